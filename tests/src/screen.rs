//! What a demo shows: headings, steps with their times, facts in columns.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _, stdout},
    time::Instant,
};

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
        println!("\n{}", self.paint("1", text));
    }

    pub fn heading(&self, text: &str) {
        let line = "─".repeat(WIDTH.saturating_sub(text.chars().count() + 4));
        println!(
            "\n{} {} {}",
            self.paint("36", "──"),
            self.paint("1;36", text),
            self.paint("36", line)
        );
    }

    /// Something that just happened.
    pub fn step(&self, what: &str, detail: impl Display) {
        let time = format!("{:7.3} s", self.begun.elapsed().as_secs_f64());
        println!("{}  {what:<12} {detail}", self.paint("2", time));
        // A pipe shows each step when it happens, too.
        let _ = stdout().flush();
    }

    /// A fact that was checked.
    pub fn fact(&self, what: &str, detail: impl Display) {
        println!("        {}  {what:<12} {detail}", self.paint("32", "✓"));
    }

    /// A line of somebody else's output.
    pub fn quote(&self, line: &str) {
        println!("   {line}");
    }

    pub fn note(&self, text: impl Display) {
        println!("           {}", self.paint("2", text));
    }

    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}
