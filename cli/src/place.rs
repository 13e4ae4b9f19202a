//! The files of an output: one that is there or is made, several with numbers, or a stream.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal as _, Write},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use remora_capture::{
    pcapng::{Medium, Part, Shelf},
    sidecar::CaptureFile,
};

/// Captures are secret: the owner's alone.
const FILE_MODE: u32 = 0o600;
/// What a name may end in, the longest first; a number of a set goes before it.
const ENDINGS: [&str; 4] = [".pcapng.zst", ".zst", ".pcapng", ".pcap"];

/// Where an output's files are.
#[derive(Debug)]
pub(crate) enum Place {
    /// The file or stream of this name, until it is taken.
    One {
        path: PathBuf,
        kind: Kind,
        opened: Option<Target>,
    },
    /// Files that rotate: `STEM_000001_20261124112233ENDING` in the directory.
    Set {
        directory: PathBuf,
        stem: String,
        ending: &'static str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Made by us: a start that fails takes it away again.
    Fresh,
    /// Had stood there before.
    Existing,
    /// A pipe, a device: it has no length.
    Stream,
}

/// An open file or stream.
#[derive(Debug)]
pub(crate) struct Target {
    file: File,
    kind: Kind,
    /// What had stood there before is still in it.
    stale: bool,
}

impl Place {
    /// Opens `path`, or standard output for `-`; a place of a set opens nothing yet.
    ///
    /// # Errors
    /// The path cannot be written, or is a terminal.
    pub(crate) fn of(path: &Path, rotates: bool) -> anyhow::Result<Self> {
        if rotates {
            return Self::set(path);
        }
        let target = open(path).with_context(|| cannot_be_written(path))?;
        if target.file.is_terminal() {
            bail!("packets are binary and this is a terminal; use -w FILE, or -w - | tshark -r -");
        }
        Ok(Self::One {
            path: path.to_owned(),
            kind: target.kind,
            opened: Some(target),
        })
    }

    fn set(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            bail!("standard output is one stream; to rotate (-C, -G) use -w FILE");
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} is no file name", path.display()))?;
        let (stem, ending) = ENDINGS
            .iter()
            .find_map(|ending| Some((name.strip_suffix(ending)?, *ending)))
            .unwrap_or((name, ""));
        Ok(Self::Set {
            directory: path.parent().unwrap_or(Path::new("")).to_owned(),
            stem: stem.to_owned(),
            ending,
        })
    }

    /// Another descriptor of it, if it is a stream.
    pub(crate) fn stream(&self) -> Option<File> {
        match self {
            Self::One {
                kind: Kind::Stream,
                opened: Some(target),
                ..
            } => target.file.try_clone().ok(),
            Self::One { .. } | Self::Set { .. } => None,
        }
    }

    /// The path of file `name`, unless it had been there before.
    pub(crate) fn fresh(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::One { path, kind, .. } => (*kind == Kind::Fresh).then(|| path.clone()),
            Self::Set { directory, .. } => Some(directory.join(name)),
        }
    }
}

/// For an error about `path`.
pub(crate) fn cannot_be_written(path: &Path) -> String {
    format!(
        "{} cannot be written; is the directory there?",
        path.display()
    )
}

fn open(path: &Path) -> io::Result<Target> {
    let stream = |file| Target {
        file,
        kind: Kind::Stream,
        stale: false,
    };
    if path == Path::new("-") {
        // Into a file it may append (`>>`): what stands there is none of ours.
        return Ok(stream(File::from(
            io::stdout().as_fd().try_clone_to_owned()?,
        )));
    }
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    let (file, kind) = match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            (options.open(path)?, Kind::Existing)
        }
        result => (result?, Kind::Fresh),
    };
    if !file.metadata()?.is_file() {
        return Ok(stream(file));
    }
    Ok(Target {
        file,
        kind,
        stale: kind == Kind::Existing,
    })
}

impl Shelf for Place {
    type File = Target;

    fn create(&mut self, part: Part) -> io::Result<(String, Target)> {
        match self {
            Self::One { path, opened, .. } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let opened = opened.take();
                let opened = opened.ok_or_else(|| io::Error::other("one file was asked for"));
                Ok((name.into_owned(), opened?))
            }
            Self::Set {
                directory,
                stem,
                ending,
            } => {
                let name = part.name(stem, ending);
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(FILE_MODE)
                    .open(directory.join(&name))?;
                let target = Target {
                    file,
                    kind: Kind::Fresh,
                    stale: false,
                };
                Ok((name, target))
            }
        }
    }

    fn close(&mut self, _: &str, target: Target) -> io::Result<()> {
        // Some file systems tell only now that there was no room.
        match target.kind {
            Kind::Stream => Ok(()),
            Kind::Fresh | Kind::Existing => target.file.sync_all(),
        }
    }

    fn remove(&mut self, file: &CaptureFile) -> io::Result<()> {
        match self.fresh(&file.name) {
            Some(path) => fs::remove_file(path),
            None => Ok(()),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stale {
            self.file.set_len(0)?;
            self.stale = false;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Medium for Target {
    fn cut(&mut self, len: u64) -> io::Result<()> {
        match self.kind {
            // What went out is out.
            Kind::Stream => Ok(()),
            Kind::Fresh | Kind::Existing => self.file.cut(len),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        match self.kind {
            Kind::Stream => Ok(()),
            Kind::Fresh | Kind::Existing => self.file.sync_data(),
        }
    }
}
