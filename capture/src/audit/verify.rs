//! Whether a log is as it was written.

use std::io::{self, BufRead, Read as _};

use super::chain::{Head, LINE_MAX, Line};

/// Follows a chain, line by line, over all its files.
#[derive(Debug, Default)]
pub struct Verifier {
    first: Option<u64>,
    last: Option<Head>,
}

/// Where a chain breaks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Break {
    #[error("line {line} of the file is no entry of an audit log ({why})")]
    NotALine { line: u64, why: String },
    #[error(
        "line {line} of the file has number {found} where {wanted} belongs: lines are missing, added or moved"
    )]
    Number { line: u64, wanted: u64, found: u64 },
    #[error(
        "line {line} of the file (number {number}) does not follow from the one before: one of the two was changed"
    )]
    Changed { line: u64, number: u64 },
    #[error("line {line} of the file has no end: the log was cut off, or is being written")]
    Torn { line: u64 },
}

impl Verifier {
    /// The number that the log begins with; 1 unless earlier files are gone.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.first
    }

    /// The last line so far.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        self.last
    }

    /// Follows the chain through a file; where it ends, the next one begins. The inner error is a break, after
    /// which nothing is proved.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn file(&mut self, file: impl BufRead) -> io::Result<Result<(), Break>> {
        self.file_watched(file, |_| {})
    }

    /// As [`Verifier::file`], telling of each line that follows.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn file_watched(
        &mut self,
        mut file: impl BufRead,
        mut passed: impl FnMut(Head),
    ) -> io::Result<Result<(), Break>> {
        let mut line = 0;
        let mut bytes = Vec::new();
        loop {
            line += 1;
            bytes.clear();
            let most = LINE_MAX as u64 + 1;
            (&mut file).take(most).read_until(b'\n', &mut bytes)?;
            let followed = match bytes.strip_suffix(b"\n") {
                Some(bytes) => self.line(line, bytes),
                None if bytes.is_empty() => return Ok(Ok(())),
                None if bytes.len() as u64 == most => Err(Break::NotALine {
                    line,
                    why: format!("longer than {LINE_MAX} bytes"),
                }),
                None => Err(Break::Torn { line }),
            };
            match (followed, self.last) {
                (Err(broken), _) => return Ok(Err(broken)),
                (Ok(()), Some(head)) => passed(head),
                (Ok(()), None) => {}
            }
        }
    }

    /// The next line, without its end; `line`: which it is of its file.
    ///
    /// # Errors
    /// It is not the next.
    pub fn line(&mut self, line: u64, bytes: &[u8]) -> Result<(), Break> {
        let not_a_line = |why: serde_json::Error| Break::NotALine {
            line,
            why: why.to_string(),
        };
        let Line {
            number, previous, ..
        } = serde_json::from_slice(bytes).map_err(not_a_line)?;
        // The first of all may have any number, but what it follows is then unknown.
        let before = self.last.unwrap_or(Head {
            number: number.saturating_sub(1),
            line: if number == 1 {
                Head::START.line
            } else {
                previous
            },
        });
        let wanted = before.number + 1;
        if number != wanted {
            return Err(Break::Number {
                line,
                wanted,
                found: number,
            });
        }
        if previous != before.line {
            return Err(Break::Changed { line, number });
        }
        self.first.get_or_insert(number);
        self.last = Some(Head::of(number, bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{Decision, Entry},
        *,
    };

    fn log(entries: usize) -> (Vec<u8>, Head) {
        let (mut log, mut head) = (Vec::new(), Head::START);
        for n in 0..entries {
            let mut entry = Entry::new("start", Decision::Allowed, "jane");
            entry.target = format!("pod/cart-{n}");
            let (line, next) = head.append(&entry);
            log.extend(line);
            head = next;
        }
        (log, head)
    }

    fn verify(log: &[u8], head: Head) -> bool {
        let mut verifier = Verifier::default();
        verifier.file(log).unwrap().is_ok()
            && verifier.head() == Some(head)
            && verifier.first() == Some(1)
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let (log, head) = log(4);
        assert!(verify(&log, head));
        for bit in 0..log.len() * 8 {
            let mut changed = log.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&changed, head), "bit {bit}");
        }
    }

    #[test]
    fn lines_taken_out_moved_doubled_or_cut_off_are_found() {
        let (log, head) = log(5);
        let lines: Vec<_> = log.split_inclusive(|b| *b == b'\n').collect();
        let joined = |order: &[usize]| order.iter().flat_map(|n| lines[*n].to_vec()).collect();
        for order in [
            &[0, 1, 2, 3][..],
            &[1, 2, 3, 4],
            &[0, 2, 3, 4],
            &[0, 1, 1, 2, 3, 4],
            &[0, 2, 1, 3, 4],
            &[],
        ] {
            let changed: Vec<u8> = joined(order);
            assert!(!verify(&changed, head), "{order:?}");
        }
        assert!(!verify(&log[..log.len() - 1], head));
    }

    #[test]
    fn a_chain_goes_on_over_files_and_tells_where_it_begins() {
        let (log, head) = log(6);
        let cut = log
            .split_inclusive(|b| *b == b'\n')
            .take(2)
            .map(<[u8]>::len)
            .sum();
        let (older, newer) = log.split_at(cut);
        let mut both = Verifier::default();
        both.file(older).unwrap().unwrap();
        both.file(newer).unwrap().unwrap();
        assert_eq!((both.first(), both.head()), (Some(1), Some(head)));
        let mut rest = Verifier::default();
        rest.file(newer).unwrap().unwrap();
        assert_eq!((rest.first(), rest.head()), (Some(3), Some(head)));
        let mut wrong_way = Verifier::default();
        wrong_way.file(newer).unwrap().unwrap();
        assert!(wrong_way.file(older).unwrap().is_err());
    }

    proptest! {
        // Long random texts are slow to make.
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Whatever is written in: one line, bounded, and verified.
        #[test]
        fn hostile_text_makes_one_bounded_line(texts in proptest::collection::vec(".{0,6000}", 6)) {
            let mut entry = Entry::new(&texts[0], Decision::Refused, &texts[1]);
            entry.namespaces = vec![texts[2].clone(); 100];
            entry.target.clone_from(&texts[3]);
            entry.filter.clone_from(&texts[4]);
            entry.reason.clone_from(&texts[5]);
            let (line, head) = Head::START.append(&entry);
            prop_assert!(line.len() <= LINE_MAX);
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            prop_assert!(verify(&line, head));
        }
    }
}
