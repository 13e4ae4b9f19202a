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

/// One line that is written over; silent unless standard error is a terminal.
#[derive(Debug)]
pub(crate) struct LiveLine {
    shown: String,
    enabled: bool,
}

impl LiveLine {
    pub(crate) fn new() -> Self {
        Self {
            shown: String::new(),
            enabled: io::stderr().is_terminal(),
        }
    }

    /// Shows `line`, which was escaped where it was made.
    pub(crate) fn show(&mut self, line: &str) {
        if self.enabled && self.shown != line {
            // As long as the one before, or its end would stay.
            let width = self.shown.chars().count();
            let _gone = write!(io::stderr(), "\r{line:<width$} ");
            line.clone_into(&mut self.shown);
        }
    }
}

impl Drop for LiveLine {
    /// Ends the line, so that the next one begins at its start.
    fn drop(&mut self) {
        if !self.shown.is_empty() {
            let _gone = writeln!(io::stderr());
        }
    }
}
