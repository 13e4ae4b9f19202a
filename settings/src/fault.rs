//! What is wrong with settings, in a line.

use std::{
    io,
    path::{Path, PathBuf},
};

/// No arguments can be made of what was said.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Of the command line alone; help and version as well.
    #[error("{}", one_line(.0))]
    CommandLine(clap::Error),
    #[error(transparent)]
    File(#[from] FileFault),
    /// Each setting is right and all of them together are not.
    #[error("{}: {}", path.display(), one_line(error))]
    Together { error: clap::Error, path: PathBuf },
}

impl Fault {
    /// Tells it as clap tells its own, and ends the process: exit code 2, or 0 after help.
    pub fn exit(self, program: &str) -> ! {
        match self {
            Self::CommandLine(error) => error.exit(),
            fault => {
                eprintln!("{program}: {fault}");
                std::process::exit(2)
            }
        }
    }
}

/// What is wrong in a settings file.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    #[error("{}: cannot be read: {source}", path.display())]
    Unread { path: PathBuf, source: io::Error },
    #[error("{}:{line}:{column}: {message}", path.display())]
    At {
        path: PathBuf,
        line: usize,
        column: usize,
        message: String,
    },
    #[error("{}: {message}", path.display())]
    Whole { path: PathBuf, message: String },
}

impl FileFault {
    pub(crate) fn whole(path: &Path, message: String) -> Self {
        Self::Whole {
            path: path.to_owned(),
            message,
        }
    }
}

/// clap's error without its usage, on one line.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    let text = text
        .split("\n\nFor more information")
        .next()
        .unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
