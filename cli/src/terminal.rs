//! What reaches the user's terminal: escaped, and never a reason to fail.

use std::io::{self, IsTerminal as _, Write as _};

use remora_capture::text;

/// Most lines and characters of an error that are shown.
const ERROR_LINES_MAX: usize = 8;
const LINE_CHARS_MAX: usize = 2000;

/// One line on standard error. A terminal that is gone is no reason to end a capture.
pub(crate) fn note(line: &str) {
    let _gone = writeln!(io::stderr(), "{}", text::excerpt(line, LINE_CHARS_MAX));
}

/// An error with its causes; lines of its text stay lines.
pub(crate) fn error(error: &anyhow::Error) {
    let shown = format!("{error:#}");
    for (index, line) in shown.lines().take(ERROR_LINES_MAX).enumerate() {
        note(&if index == 0 {
            format!("remora: {line}")
        } else {
            line.to_owned()
        });
    }
}

/// Text on standard output, as it is: it was escaped where it was made. A reader that has seen
/// enough (`| head`) is no fault.
///
/// # Errors
/// Standard output fails otherwise.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// The running count of packets, on one line that is written over; silent unless standard error
/// is a terminal.
#[derive(Debug)]
pub(crate) struct LiveCount {
    shown: Option<u64>,
    enabled: bool,
}

impl LiveCount {
    pub(crate) fn new() -> Self {
        Self {
            shown: None,
            enabled: io::stderr().is_terminal(),
        }
    }

    pub(crate) fn show(&mut self, packets: u64) {
        if self.enabled && self.shown != Some(packets) {
            let _gone = write!(io::stderr(), "\rPackets: {packets} ");
            self.shown = Some(packets);
        }
    }
}

impl Drop for LiveCount {
    /// Ends the line, so that the next one begins at its start.
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _gone = writeln!(io::stderr());
        }
    }
}
