//! `<id>.amendments`: what is asked of a capture while it runs, until its account has it.
//!
//! ```text
//! <left out> <duration>\n   20 digits each, written over: amendments for which there was no room, and
//!                           the duration that the last of them made (nanoseconds; all nines: none)
//! {"at":…}\n                one line an amendment, up to AMENDMENTS_MAX
//! ```
//! Written, not synced: as the packets do, it outlives the agent and not the machine. It takes more of
//! the disk than it has bytes, so that an account with all of it finds room on a disk that is full.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::fcntl::{FallocateFlags, fallocate};
use remora_capture::amendment::{AMENDMENTS_MAX, Amendment, Amendments, JOINED_BYTES_MAX};
use tokio::sync::watch;

use super::shelf::create;
use crate::session::Ended;

/// Ending of its name.
pub(super) const AMENDMENTS: &str = "amendments";
/// Bytes of the first line.
const HEAD_BYTES: u64 = 42;
/// The duration of what has none.
const NO_DURATION: u64 = 99_999_999_999_999_999;
/// Disk space that is kept for each byte: itself, the account with its indents, the manifest in base64.
const SPACE_FACTOR: u64 = 5;
/// Disk space is taken in steps of so many bytes.
const SPACE_STEP: u64 = 64 << 10;
/// Most that is read of one: an alert of 64 KiB with all characters escaped, and its lines.
const BYTES_MAX: u64 = 8 << 20;

/// Whether there will be an account of the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its files are being made.
    Opening,
    Open,
    /// Its account is being written, with what was added.
    Accounted,
    /// It did not start.
    Forgotten,
}

/// The amendments of a running capture.
#[derive(Debug)]
pub(super) struct AmendmentLog {
    path: PathBuf,
    lines: Mutex<Lines>,
    stage: watch::Sender<Stage>,
}

#[derive(Debug, Default)]
struct Lines {
    /// Made at the first amendment.
    file: Option<File>,
    bytes: u64,
    space: u64,
    kept: usize,
    joined_bytes: usize,
    left_out: u64,
}

/// What a file of amendments tells.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) amendments: Amendments,
    /// The duration as of the last amendment, if there is one.
    pub(super) duration: Option<Option<Duration>>,
    /// Bytes of its whole lines.
    bytes: u64,
}

impl AmendmentLog {
    /// Of a capture whose files are about to be made.
    pub(super) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            path,
            lines: Mutex::default(),
            stage: watch::Sender::new(Stage::Opening),
        })
    }

    /// Goes on with that of an agent that is gone.
    pub(super) fn go_on(path: PathBuf) -> io::Result<Arc<Self>> {
        let told = read(&path)?;
        let kept = &told.amendments.kept;
        let mut lines = Lines {
            kept: kept.len(),
            joined_bytes: kept.iter().map(text_bytes).sum(),
            left_out: told.amendments.left_out,
            bytes: told.bytes,
            ..Lines::default()
        };
        if told.bytes > 0 {
            let file = File::options().write(true).open(&path)?;
            file.set_len(told.bytes)?;
            lines.file = Some(file);
        }
        Ok(Arc::new(Self {
            path,
            lines: Mutex::new(lines),
            stage: watch::Sender::new(Stage::Open),
        }))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its capture's files are there.
    pub(super) fn opened(&self) {
        self.stage.send_if_modified(|stage| {
            let opens = *stage == Stage::Opening;
            if opens {
                *stage = Stage::Open;
            }
            opens
        });
    }

    /// Keeps an amendment, or counts it where there is no room. Writes to the page cache.
    ///
    /// # Errors
    /// [`Ended`].
    pub(super) fn add(&self, mut amendment: Amendment) -> Result<(), Ended> {
        let mut lines = self.lines();
        if matches!(*self.stage.borrow(), Stage::Accounted | Stage::Forgotten) {
            return Err(Ended);
        }
        if let Some(joined) = &mut amendment.alert
            && lines.joined_bytes + joined.text.len() > JOINED_BYTES_MAX
        {
            joined.text.clear();
        }
        if lines.kept >= AMENDMENTS_MAX {
            lines.leave_out(&amendment);
        } else if let Err(error) = lines.append(&self.path, &amendment) {
            tracing::warn!(%error, path = %self.path.display(), "an amendment finds no room");
            lines.leave_out(&amendment);
        }
        Ok(())
    }

    /// Waits until it is certain that there will be an account with what was added.
    ///
    /// # Errors
    /// [`Ended`]: there will be none.
    pub(super) async fn certain(&self) -> Result<(), Ended> {
        let mut stage = self.stage.subscribe();
        let known = stage.wait_for(|stage| *stage != Stage::Opening).await;
        match known.map(|stage| *stage) {
            Ok(Stage::Open | Stage::Accounted) => Ok(()),
            Ok(Stage::Forgotten | Stage::Opening) | Err(_) => Err(Ended),
        }
    }

    /// Takes no more of them; what is to go into the account.
    pub(super) fn end(&self) -> Amendments {
        let mut lines = self.lines();
        self.stage.send_replace(Stage::Accounted);
        if let Some(file) = lines.file.take()
            && let Err(error) = file.set_len(lines.bytes)
        {
            tracing::warn!(%error, "failed to give space free");
        }
        let told = match read(&self.path) {
            Ok(told) => told.amendments,
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "failed to read the amendments");
                Amendments::default()
            }
        };
        let lost = lines.kept.saturating_sub(told.kept.len()) as u64;
        Amendments {
            left_out: lines.left_out + lost,
            ..told
        }
    }

    /// Its capture did not start.
    pub(super) fn forget(&self) {
        let _lines = self.lines();
        self.stage.send_replace(Stage::Forgotten);
    }
}

impl Lines {
    /// After an error the file's whole lines are as before.
    fn append(&mut self, path: &Path, amendment: &Amendment) -> io::Result<()> {
        let line = amendment.to_line();
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                super::store::remove_if_there(path)?;
                let file = create(path)?;
                (&file).write_all(&head(0, amendment.duration))?;
                self.bytes = HEAD_BYTES;
                none.insert(file)
            }
        };
        let wanted = (self.bytes + line.len() as u64).saturating_mul(SPACE_FACTOR);
        if wanted > self.space {
            let space = wanted.next_multiple_of(SPACE_STEP);
            let bytes = i64::try_from(space).unwrap_or(i64::MAX);
            fallocate(&*file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes)?;
            self.space = space;
        }
        file.write_all_at(&line, self.bytes)?;
        self.bytes += line.len() as u64;
        self.kept += 1;
        self.joined_bytes += text_bytes(amendment);
        Ok(())
    }

    fn leave_out(&mut self, amendment: &Amendment) {
        self.left_out += 1;
        if let Some(file) = &self.file
            && let Err(error) = file.write_all_at(&head(self.left_out, amendment.duration), 0)
        {
            tracing::warn!(%error, "failed to count an amendment on the disk");
        }
    }
}

fn text_bytes(amendment: &Amendment) -> usize {
    let alert = amendment.alert.as_ref();
    alert.map_or(0, |alert| alert.text.len())
}

fn head(left_out: u64, duration: Option<Duration>) -> Vec<u8> {
    let nanoseconds = duration.map_or(NO_DURATION, |duration| {
        u64::try_from(duration.as_nanos())
            .unwrap_or(NO_DURATION)
            .min(NO_DURATION)
    });
    format!("{left_out:020} {nanoseconds:020}\n").into_bytes()
}

/// Reads a file of amendments as far as it is whole; none is none.
pub(super) fn read(path: &Path) -> io::Result<Told> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(BYTES_MAX).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Told::default()),
        Err(error) => return Err(error),
    };
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> Told {
    let mut told = Told::default();
    let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES as usize) else {
        return told;
    };
    let number = |from: usize, to: usize| -> Option<u64> {
        std::str::from_utf8(head.get(from..to)?).ok()?.parse().ok()
    };
    let (Some(left_out), Some(duration)) = (number(0, 20), number(21, 41)) else {
        return told;
    };
    told.bytes = HEAD_BYTES;
    for line in rest.split_inclusive(|byte| *byte == b'\n') {
        let Some(amendment) = Amendment::from_line(line).filter(|_| line.ends_with(b"\n")) else {
            break;
        };
        if told.amendments.kept.len() == AMENDMENTS_MAX {
            break;
        }
        told.bytes += line.len() as u64;
        told.duration = Some(amendment.duration);
        told.amendments.kept.push(amendment);
    }
    told.amendments.left_out = left_out;
    if left_out > 0 {
        told.duration = Some((duration != NO_DURATION).then(|| Duration::from_nanos(duration)));
    }
    told
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use remora_capture::amendment::JoinedAlert;

    use super::*;

    fn joined(text: &str, seconds: u64) -> Amendment {
        Amendment {
            at: Timestamp::UNIX_EPOCH,
            caller: "uid=0".to_owned(),
            duration: Some(Duration::from_secs(seconds)),
            alert: Some(JoinedAlert::new(text, Some(text), None)),
        }
    }

    #[test]
    fn each_amendment_is_kept_or_counted_and_none_is_taken_after_the_end() {
        let directory = tempfile::tempdir().expect("directory");
        let log = AmendmentLog::new(directory.path().join("x.amendments"));
        let all = AMENDMENTS_MAX as u64 + 7;
        for n in 0..all {
            log.add(joined(&n.to_string(), n + 1)).expect("runs");
        }
        let told = read(&log.path).expect("read");
        assert_eq!(told.duration, Some(Some(Duration::from_secs(all))));
        let amendments = log.end();
        assert_eq!(amendments, told.amendments);
        assert_eq!(amendments.kept.len(), AMENDMENTS_MAX);
        assert_eq!(amendments.left_out, 7);
        assert_eq!(amendments.alerts(), all);
        assert_eq!(log.add(joined("late", 1)), Err(Ended));
    }

    #[test]
    fn of_all_alerts_together_so_much_is_kept_in_full() {
        let directory = tempfile::tempdir().expect("directory");
        let log = AmendmentLog::new(directory.path().join("x.amendments"));
        let half = "x".repeat(JOINED_BYTES_MAX / 2);
        for _ in 0..3 {
            log.add(joined(&half, 1)).expect("runs");
        }
        let kept = log.end().kept;
        let lengths: Vec<_> = kept.iter().map(text_bytes).collect();
        assert_eq!(lengths, [half.len(), half.len(), 0]);
        let digests = kept
            .iter()
            .map(|one| one.alert.as_ref().expect("alert").sha256);
        assert_eq!(digests.collect::<std::collections::BTreeSet<_>>().len(), 1);
    }

    #[test]
    fn a_torn_line_is_cut_off_and_the_next_one_follows() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("x.amendments");
        let log = AmendmentLog::new(path.clone());
        log.add(joined("first", 1)).expect("runs");
        log.add(joined("second", 2)).expect("runs");
        drop(log);
        let bytes = std::fs::read(&path).expect("file");
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("written");
            let log = AmendmentLog::go_on(path.clone()).expect("read");
            log.add(joined("third", 3)).expect("runs");
            let kept = log.end().kept;
            let texts: Vec<_> = kept.iter().filter_map(|one| one.alert.as_ref()).collect();
            assert_eq!(
                texts.last().map(|last| last.text.as_str()),
                Some("third"),
                "{cut}"
            );
            assert!(texts.len() <= 2, "{cut}");
        }
    }
}
