//! A program's settings in one TOML file. Each flag of its command has a key of the same name, because the
//! keys are made of the flags: nothing here knows a setting by itself.
//!
//! ```text
//! command line ──▶ what was given (flags, environment)
//! FILE ──file──▶ keys with values, each judged by its flag's own parser ──▶ words of a command line
//!                                        words of what was not given ─┘ + command line ──▶ clap
//! ```
//! A flag goes before the environment, that before the file, that before the default. A file that is wrong
//! anywhere is refused with line and column.
#![forbid(unsafe_code)]

mod fault;
mod file;
mod keys;
mod render;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command, Parser, Subcommand, parser::ValueSource};

pub use fault::{Fault, FileFault};
use file::File;
use keys::Keys;

/// The flag that names the file; no key.
const CONFIG: &str = "config";

/// Which of a program's commands has settings, and where they usually are.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `run`
    pub command: &'static str,
    /// Read if it is there and `--config` says nothing else.
    pub file: &'static str,
}

/// Work with the settings file
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether a settings file is right, and print what holds with it
    Check {
        /// The file (default: the one that `run` reads)
        file: Option<PathBuf>,
    },
    /// Print all settings with their defaults, as a file to begin with
    Show,
}

impl Settings {
    /// Parses the process's command line, with the file's settings where it has none.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn parse<P: Parser>(self, words: impl IntoIterator<Item = OsString>) -> Result<P, Fault> {
        let mut words: Vec<OsString> = words.into_iter().collect();
        let keys = Keys::of(P::command(), self.command);
        // Words that are none, or another command: clap says so, or does it.
        let Some(given) = keys.given(&words) else {
            return P::try_parse_from(words).map_err(Fault::CommandLine);
        };
        let Some(path) = self.path(&given) else {
            return P::try_parse_from(words).map_err(Fault::CommandLine);
        };
        let file = File::read(&path, &keys)?;
        words.extend(file.words(|key| is_given(&given, key)));
        P::try_parse_from(words).map_err(|error| Fault::Together { error, path })
    }

    fn path(self, given: &Given) -> Option<PathBuf> {
        let usual = Path::new(self.file);
        given
            .config
            .clone()
            .or_else(|| usual.exists().then(|| usual.to_owned()))
    }

    /// What holds with a file, the environment and the defaults, as a settings file. `judge` says what
    /// the program says of the whole.
    ///
    /// # Errors
    /// [`Fault`]; of the whole, too.
    pub fn check<P: Parser>(
        self,
        path: Option<&Path>,
        judge: impl FnOnce(P) -> Result<(), String>,
    ) -> Result<String, Fault> {
        let path = path.unwrap_or(Path::new(self.file));
        let keys = Keys::of(P::command(), self.command);
        let file = File::read(path, &keys)?;
        let mut words = vec![OsString::from("program"), self.command.into()];
        let given = keys.given(&words).unwrap_or_default();
        words.extend(file.words(|key| is_given(&given, key)));
        let together = |error| Fault::Together {
            error,
            path: path.to_owned(),
        };
        let matches = P::command().try_get_matches_from(words);
        let matches = matches.map_err(together)?;
        let whole = P::from_arg_matches(&matches).map_err(together)?;
        judge(whole).map_err(|message| FileFault::whole(path, message))?;
        let of_command = matches.subcommand().map(|(_, matches)| matches);
        Ok(of_command.map_or_else(String::new, |matches| {
            render::effective(&keys, matches, |key| file.has(key))
        }))
    }

    /// Every setting with what it does and its default, commented out.
    #[must_use]
    pub fn show<P: Parser>(self) -> String {
        render::template(&Keys::of(P::command(), self.command))
    }

    /// The names of all settings.
    #[must_use]
    pub fn names(self, program: Command) -> Vec<String> {
        let keys = Keys::of(program, self.command);
        keys.iter().map(|key| key.name.clone()).collect()
    }
}

/// What the command line and the environment say.
#[derive(Debug, Default)]
struct Given {
    config: Option<PathBuf>,
    ids: Vec<String>,
}

fn is_given(given: &Given, key: &keys::Key) -> bool {
    given.ids.iter().any(|id| id == key.arg.get_id().as_str())
}

/// Said by somebody, and no default.
fn is_said(matches: &ArgMatches, id: &str) -> bool {
    let source = matches
        .try_contains_id(id)
        .is_ok()
        .then(|| matches.value_source(id));
    matches!(
        source.flatten(),
        Some(ValueSource::CommandLine | ValueSource::EnvVariable)
    )
}

#[cfg(test)]
mod tests;
