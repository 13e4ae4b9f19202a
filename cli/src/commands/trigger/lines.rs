//! Lines of bounded length. What is longer is passed over, in constant memory, and told.

use std::io::{self, BufRead};

use remora_capture::alert::ALERT_BYTES_MAX;

/// A line is longer than an alert may be.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a line has more than {ALERT_BYTES_MAX} bytes")]
pub(super) struct TooLong;

/// Each line that is not blank, without its end.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input }
    }

    /// `None` at the end.
    fn read(&mut self) -> io::Result<Option<Result<Vec<u8>, TooLong>>> {
        let (mut line, mut is_too_long, mut is_any) = (Vec::new(), false, false);
        loop {
            let buffer = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                buffer => buffer?,
            };
            if buffer.is_empty() {
                break;
            }
            is_any = true;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            is_too_long |= line.len() + part.len() > ALERT_BYTES_MAX;
            if is_too_long {
                line = Vec::new();
            } else {
                line.extend_from_slice(part);
            }
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        Ok(match (is_any, is_too_long) {
            (false, _) => None,
            (true, true) => Some(Err(TooLong)),
            (true, false) => Some(Ok(line)),
        })
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Result<Vec<u8>, TooLong>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read().transpose()? {
                Ok(Ok(line)) if line.trim_ascii().is_empty() => {}
                line => return Some(line),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn lines(input: &[u8]) -> Vec<Result<Vec<u8>, TooLong>> {
        // A buffer smaller than a line.
        let input = BufReader::with_capacity(7, input);
        Lines::new(input).map(Result::unwrap).collect()
    }

    #[test]
    fn a_line_is_a_line_with_or_without_its_end() {
        let expected = vec![Ok(b"{\"rule\": 1}".to_vec()), Ok(b"b\r".to_vec())];
        assert_eq!(lines(b"\n{\"rule\": 1}\n \t\nb\r\n\n"), expected);
        assert_eq!(lines(b"{\"rule\": 1}\nb\r"), expected);
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\n"), []);
    }

    #[test]
    fn what_is_too_long_is_passed_over_and_what_follows_is_read() {
        let longest = vec![b'x'; ALERT_BYTES_MAX];
        let input = [&longest[..], b"\n", &longest, b"y\nz\n", &longest, &longest].concat();
        let expected = [Ok(longest), Err(TooLong), Ok(b"z".to_vec()), Err(TooLong)];
        assert_eq!(lines(&input), expected);
    }
}
