//! What a demo shows: headings, steps with their times, facts in columns.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write, stdout},
    time::Instant,
};

/// Prints a line to standard output, whose reader may have gone (`| head`): what was begun is done all the same.
pub fn say(line: impl Display) {
    say_to(&mut stdout(), line);
}

fn say_to(out: &mut impl Write, line: impl Display) {
    let _gone = writeln!(out, "{line}");
}

/// Columns of a heading's line.
const WIDTH: usize = 88;

/// Prints to standard output; in colour on a terminal only.
#[derive(Debug)]
pub struct Screen {
    begun: Instant,
    colour: bool,
}

impl Screen {
    /// Times count from now on.
    #[must_use]
    pub fn begin() -> Self {
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            begun: Instant::now(),
            colour,
        }
    }

    fn paint(&self, sgr: &str, text: impl Display) -> String {
        if self.colour {
            format!("\x1b[{sgr}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    pub fn title(&self, text: &str) {
        say(format_args!("\n{}", self.paint("1", text)));
    }

    pub fn heading(&self, text: &str) {
        let line = "─".repeat(WIDTH.saturating_sub(text.chars().count() + 4));
        say(format_args!(
            "\n{} {} {}",
            self.paint("36", "──"),
            self.paint("1;36", text),
            self.paint("36", line)
        ));
    }

    /// Something that just happened.
    pub fn step(&self, what: &str, detail: impl Display) {
        let time = format!("{:7.3} s", self.begun.elapsed().as_secs_f64());
        say(format_args!(
            "{}  {what:<12} {detail}",
            self.paint("2", time)
        ));
        // A pipe shows each step when it happens, too.
        let _ = stdout().flush();
    }

    /// A fact that was checked.
    pub fn fact(&self, what: &str, detail: impl Display) {
        say(format_args!(
            "        {}  {what:<12} {detail}",
            self.paint("32", "✓")
        ));
    }

    /// A line of somebody else's output.
    pub fn quote(&self, line: &str) {
        say(format_args!("   {line}"));
    }

    pub fn note(&self, text: impl Display) {
        say(format_args!("           {}", self.paint("2", text)));
    }

    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_reader_that_has_gone_ends_nothing() {
        say_to(&mut Closed, "a line");
        let mut read = Vec::new();
        say_to(&mut read, "a line");
        assert_eq!(read, b"a line\n");
    }
}
