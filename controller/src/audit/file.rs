//! The log's files: whole lines only, in a chain, rotated.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use remora_capture::audit::{Break, Entry, Head, LINE_MAX, Verifier};

/// Who wanted what is nobody's business.
const MODE: u32 = 0o600;

/// When the next file begins, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes after which a file is full.
    pub bytes: u64,
    /// Full files that are kept.
    pub files: u32,
}

impl Default for Rotation {
    /// 1 GiB in all, some four million decisions.
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            files: 15,
        }
    }
}

/// The log cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another controller writes the audit log {}; give each its own --audit-log", .0.display())]
    InUse(PathBuf),
    #[error(
        "the audit log {} is broken: {broken}; keep it as it is, elsewhere, and start with a new one",
        path.display()
    )]
    Broken { path: PathBuf, broken: Break },
    #[error("failed to {action} the audit log {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The file that is written.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    /// Bytes of whole lines, all of them on the disk.
    len: u64,
    head: Head,
    /// Held while this is there.
    _lock: File,
}

impl LogFile {
    /// Opens the log or begins it. What a crash left of a line that nobody was told of is cut off.
    pub(super) fn open(path: &Path, rotation: Rotation) -> Result<Self, OpenError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source| OpenError::Io {
                action,
                path,
                source,
            }
        };
        let lock = open(&beside(path, "lock")).map_err(failed("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
        }
        let mut file = open(path).map_err(failed("open"))?;
        let len = without_torn_line(&mut file).map_err(failed("read"))?;
        let on_disk = file.metadata().map_err(failed("read"))?.len();
        if len < on_disk {
            tracing::warn!(
                path = %path.display(), bytes = on_disk - len,
                "cut off a line that a crash left unfinished; nobody was told of it"
            );
            file.set_len(len).map_err(failed("mend"))?;
        }
        let mut verifier = Verifier::default();
        if len == 0 {
            // Just rotated, or new.
            let before = beside(path, "1");
            if before.exists() {
                follow(&mut verifier, &before)?;
            }
        }
        follow(&mut verifier, path)?;
        sync_directory(path).map_err(failed("sync"))?;
        Ok(Self {
            path: path.to_owned(),
            rotation,
            file,
            len,
            head: verifier.head().unwrap_or(Head::START),
            _lock: lock,
        })
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Appends all entries and has them on the disk, or none.
    pub(super) fn append<'e>(
        &mut self,
        entries: impl Iterator<Item = &'e Entry>,
    ) -> io::Result<()> {
        let (mut lines, mut head) = (Vec::new(), self.head);
        for entry in entries {
            let (line, next) = head.append(entry);
            lines.extend(line);
            head = next;
        }
        if lines.is_empty() {
            return Ok(());
        }
        if self.len > 0 && self.len + lines.len() as u64 > self.rotation.bytes {
            self.rotate()?;
        }
        let written = self.write(&lines);
        if let Err(error) = written {
            // The next try cuts again, should this fail.
            let _left = self.cut();
            return Err(error);
        }
        self.len += lines.len() as u64;
        self.head = head;
        Ok(())
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.cut()?;
        self.file.write_all(lines)?;
        self.file.sync_data()
    }

    /// Whatever is behind the last whole line goes.
    fn cut(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() != self.len {
            self.file.set_len(self.len)?;
        }
        self.file.seek(SeekFrom::Start(self.len)).map(|_| ())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.path;
        // Not there: a rotation that failed after this.
        if path.exists() {
            for n in (1..self.rotation.files).rev() {
                let (from, to) = (n.to_string(), (n + 1).to_string());
                match fs::rename(beside(path, &from), beside(path, &to)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            if self.rotation.files == 0 {
                fs::remove_file(path)?;
            } else {
                fs::rename(path, beside(path, "1"))?;
            }
        }
        self.file = open(path)?;
        self.len = 0;
        sync_directory(path)?;
        tracing::info!(path = %path.display(), head = %self.head, "the audit log was rotated");
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(path)
}

/// `FILE.ENDING`.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// How each line begins.
const LINE_START: &[u8] = b"{\"number\":";

/// Bytes of the file without the start of a line of ours (or the zeroes of one) at its end. Anything
/// else that is there is not for us to cut off.
fn without_torn_line(file: &mut File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let from = len.saturating_sub(LINE_MAX as u64 + 1);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.read_to_end(&mut tail)?;
    let whole = match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => at + 1,
        None if from == 0 => 0,
        None => return Ok(len),
    };
    let torn = &tail[whole..];
    let start = &LINE_START[..LINE_START.len().min(torn.len())];
    let is_ours = torn.starts_with(start) || torn.iter().all(|byte| *byte == 0);
    Ok(if is_ours { from + whole as u64 } else { len })
}

fn follow(verifier: &mut Verifier, path: &Path) -> Result<(), OpenError> {
    let followed = File::open(path).and_then(|file| verifier.file(BufReader::new(file)));
    match followed {
        Ok(Ok(())) => Ok(()),
        Ok(Err(broken)) => Err(OpenError::Broken {
            path: path.to_owned(),
            broken,
        }),
        Err(source) => Err(OpenError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
