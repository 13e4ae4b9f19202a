//! Going on with the captures of an agent that died or was replaced (`--pin`).
//!
//! A capture's [`Standing`] lies beside its files; the [`Checkpoint`] tells how far the ring was
//! read when all before was in the files. What the files hold beyond that will be read again:
//!
//! ```text
//! packet ids    0 ───────────────────── next_id of the mark ───────────── until ─────▶
//!                in the files or counted │ read again, and passed over │ read again, and written
//! ```
//! So each packet is in the files once. Were the files behind the mark (their writer was slow, and
//! the mark did not wait for it), that many packets went with the agent: `lost_on_crash`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
};

use remora_agent_common::checkpoint::SessionMark;
use remora_capture::{
    filter::{self, Meaning, Names},
    pcapng::{self, Scan, SetSoFar},
    session::{CaptureId, Compression, Removed, SuperPackets},
    sidecar::CaptureFile,
};
use tokio::sync::watch;

use super::{
    file::{FileSink, reserve},
    shelf::{PART, StoreFile},
    store::{
        PINNED, RESERVE, SEAL_RESERVE, Store, StoreError, capture_files, closed_name, write_anew,
    },
};
use crate::{
    session::{Growth, Meter, Standing},
    writer::lane::{Done, LaneStart},
};

/// Longest account of a session that is read: the sidecar's bound, and as much for the rest.
const STANDING_BYTES_MAX: u64 = 2 * remora_capture::sidecar::SIDECAR_BYTES_MAX as u64;

/// What the files of a capture hold when it is gone on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Packets of the session's own time.
    pub(super) live: u64,
    /// Packets from before it; not told of files that a ring removed.
    pub(super) past: Option<u64>,
    /// Above the ids of all of them.
    pub(super) until: u64,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
}

impl Store {
    /// Keeps what is needed to go on with a session.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep_standing(&self, standing: &Standing) -> io::Result<()> {
        let id = standing.state.id;
        let (path, aside) = (self.file(id, PINNED), self.file(id, "pinned.part"));
        write_anew(&aside, &serde_json::to_vec(standing)?)?;
        fs::rename(&aside, &path)
    }

    /// The sessions of an agent that is gone, by their slots. One that cannot be read is logged and left
    /// to [`Store::recover`].
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn standing(&self) -> Result<Vec<Standing>, StoreError> {
        let read = |id| match self.read_standing(id) {
            Ok(standing) => Some(standing),
            Err(error) => {
                tracing::error!(capture = %id, %error, "failed to read how to go on with it");
                None
            }
        };
        let mut standing: Vec<_> = self.ids(PINNED)?.into_iter().filter_map(read).collect();
        standing.sort_by_key(|standing| standing.slot);
        Ok(standing)
    }

    fn read_standing(&self, id: CaptureId) -> io::Result<Standing> {
        let mut json = Vec::new();
        File::open(self.file(id, PINNED))?
            .take(STANDING_BYTES_MAX)
            .read_to_end(&mut json)?;
        let mut standing: Standing = serde_json::from_slice(&json)?;
        let told = self.amendments(id)?;
        if let Some(duration) = told.duration {
            standing.last(duration);
        }
        let alerts = told.amendments.kept.into_iter().filter_map(|one| one.alert);
        standing.joined = alerts.map(|alert| alert.key).collect();
        let spec = &mut standing.state.spec;
        // Its programs are in the kernel; where its text names hosts it stays with the interpreter.
        if *spec.filter.meaning() == Meaning::Unread
            && let Ok(compiled) = spec
                .filter
                .clone()
                .compiled(filter::compiler(Names::Refused))
        {
            spec.filter = compiled;
        }
        Ok(standing)
    }

    /// Opens the files of a capture at their end. `next_id`: packets below it are whole.
    pub(super) fn reopen(
        &self,
        standing: &Standing,
        header: Vec<u8>,
        next_id: u64,
        growth: watch::Sender<Growth>,
    ) -> io::Result<(FileSink, Held)> {
        let state = &standing.state;
        let writing = state.spec.writing;
        let id = state.id;
        if writing.compression != Compression::None {
            return Err(io::Error::other("compressed files are not gone on with"));
        }
        let mut paths = capture_files(&self.directory, id)?;
        let unsure = (state.spec.super_packets == SuperPackets::Segmented).then_some(next_id);
        let (last, file, scan) = loop {
            let last = paths
                .pop()
                .ok_or_else(|| io::Error::other("it has no file with a whole header"))?;
            let (last, file, scan) = self.reopen_one(&last, unsure)?;
            let interfaces = scan.interface_packets.len();
            // The one before it stays the last until this one has a packet.
            if interfaces == standing.taps.len() && (scan.packets > 0 || paths.is_empty()) {
                break (last, file, scan);
            }
            self.usage().give_back(scan.whole_bytes);
            fs::remove_file(&last)?;
        };
        let mut held = Held {
            past: Some(0),
            ..Held::default()
        };
        let mut closed = Vec::new();
        let mut removed = None;
        for path in &paths {
            let scan = pcapng::scan(File::open(path)?)?;
            held.add(&scan);
            removed.get_or_insert(scan.place.map_or_else(Removed::default, |p| p.removed()));
            closed.push(CaptureFile {
                bytes: fs::metadata(path)?.len(),
                packets: scan.packets,
                blocks: scan.packet_blocks,
                name: self.close_name(path)?,
            });
        }
        held.add(&scan);
        let place = scan.place;
        let removed =
            removed.unwrap_or_else(|| place.map_or_else(Removed::default, |p| p.removed()));
        held.live += removed.packets;
        if removed.files > 0 {
            held.past = None;
        }
        let so_far = SetSoFar {
            closed,
            removed,
            name: closed_name(file_name(&last)).to_owned(),
            last: StoreFile::go_on(file, scan.whole_bytes, self.usage()),
            scan,
        };
        let room = self.reserve_bytes(state);
        let seal = self.file(id, SEAL_RESERVE);
        if !seal.exists() {
            // A full disk is no reason to end it.
            let _no_room = reserve(&seal, room);
        }
        self.seals().watch(id, growth.subscribe());
        self.amend_again(id)?;
        let reserve = (self.file(id, RESERVE), room);
        let start_ns = u64::try_from(state.started.as_nanosecond()).unwrap_or(0);
        let shelf = self.shelf(id, writing);
        let sink = FileSink::go_on(shelf, writing, start_ns, header, so_far, reserve, growth)?;
        Ok((sink, held))
    }

    /// Cuts a file to what stays. It is not closed any more: its capture may have been killed between
    /// its end and its account.
    fn reopen_one(&self, path: &Path, unsure: Option<u64>) -> io::Result<(PathBuf, File, Scan)> {
        let open = match file_name(path) {
            name if name.ends_with(PART) => path.to_owned(),
            name => self.directory.join(format!("{name}{PART}")),
        };
        fs::rename(path, &open)?;
        let mut file = File::options().read(true).write(true).open(&open)?;
        let before = file.metadata()?.len();
        let scan = pcapng::reopen(&mut file, unsure)?;
        let cut = before.saturating_sub(scan.whole_bytes);
        self.usage().give_back(cut);
        Ok((open, file, scan))
    }

    /// A file that is complete gets the name that says so: it was killed between the two.
    fn close_name(&self, path: &Path) -> io::Result<String> {
        let name = closed_name(file_name(path)).to_owned();
        fs::rename(path, self.directory.join(&name))?;
        Ok(name)
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

impl Held {
    fn add(&mut self, scan: &Scan) {
        self.live += scan.numbered;
        if let Some(past) = &mut self.past {
            *past += scan.packets - scan.numbered;
        }
        if let Some(id) = scan.last_packet_id {
            self.until = self.until.max(id.saturating_add(1));
        }
        if self.first_ns == 0 {
            self.first_ns = scan.first_packet_ns.unwrap_or(0);
        }
        self.last_ns = scan.last_packet_ns.unwrap_or(self.last_ns);
    }
}

/// Sets the meter to what was counted, and tells where the lane begins.
pub(super) fn take_up(meter: &Meter, mark: &SessionMark, held: Held) -> LaneStart {
    let past_here = mark.past_matched.saturating_sub(mark.past_over_budget);
    let past = held.past.unwrap_or(past_here);
    // Of a ring's removed files it is only known how many packets they had.
    let live = match held.past {
        Some(_) => held.live,
        None => held.live.saturating_sub(past),
    };
    let counted = mark.malformed + mark.stale + mark.dropped_queue + mark.dropped_io;
    // Below the mark, if the files are behind it; none that are beyond it count there.
    let went = if held.until > mark.next_id {
        0
    } else {
        mark.read.saturating_sub(counted + live)
    };
    let set = |counter: &std::sync::atomic::AtomicU64, n| counter.store(n, Relaxed);
    set(&meter.read, mark.read - went);
    set(&meter.lost_on_crash, mark.lost_on_crash + went);
    set(&meter.malformed, mark.malformed);
    set(&meter.stale, mark.stale);
    set(&meter.dropped_queue, mark.dropped_queue);
    set(&meter.dropped_io, mark.dropped_io);
    set(&meter.written, live + past);
    set(&meter.past_seen, mark.past_seen.max(past));
    set(&meter.past_over_budget, mark.past_over_budget);
    set(&meter.past_matched, past + mark.past_over_budget);
    // Whatever is missing of it stays so.
    set(&meter.past_done, 1);
    set(&meter.first_packet_ns, held.first_ns);
    set(&meter.last_packet_ns, held.last_ns);
    let untold = mark.next_id.saturating_sub(held.until);
    LaneStart {
        capture: mark.capture,
        from: mark.from,
        next_id: mark.next_id,
        untold: u32::try_from(untold).unwrap_or(u32::MAX),
        done: (held.until > mark.next_id).then_some(Done {
            until: held.until,
            written: live,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURE: [u64; 2] = [7, 9];

    fn mark() -> SessionMark {
        SessionMark {
            capture: CAPTURE,
            from: 64,
            next_id: 100,
            read: 90,
            dropped_queue: 5,
            stale: 1,
            past_matched: 4,
            ..SessionMark::default()
        }
    }

    fn count(counter: &std::sync::atomic::AtomicU64) -> u64 {
        counter.load(Relaxed)
    }

    #[test]
    fn files_beyond_the_mark_are_read_again_and_nothing_is_lost() {
        let meter = Meter::default();
        let held = Held {
            live: 84 + 20,
            past: Some(4),
            until: 122,
            ..Held::default()
        };
        let start = take_up(&meter, &mark(), held);
        assert_eq!((start.from, start.next_id, start.untold), (64, 100, 0));
        let done = Done {
            until: 122,
            written: 104,
        };
        assert_eq!(start.done, Some(done));
        assert_eq!((count(&meter.read), count(&meter.lost_on_crash)), (90, 0));
        assert_eq!(count(&meter.written), 108);
    }

    #[test]
    fn what_files_behind_the_mark_lack_went_with_the_agent_and_the_next_packet_tells() {
        let meter = Meter::default();
        let held = Held {
            live: 60,
            past: Some(3),
            until: 70,
            ..Held::default()
        };
        let start = take_up(&meter, &mark(), held);
        assert_eq!((start.next_id, start.untold, start.done), (100, 30, None));
        assert_eq!((count(&meter.read), count(&meter.lost_on_crash)), (66, 24));
        assert_eq!(meter.from_past(), 3, "only what is there is known");
        let ended = count(&meter.written) + 5 + 1;
        assert_eq!(count(&meter.read) + meter.from_past(), ended);
    }

    #[test]
    fn a_session_without_a_mark_is_read_from_its_first_packet() {
        let meter = Meter::default();
        let held = Held {
            live: 3,
            past: Some(0),
            until: 3,
            ..Held::default()
        };
        let mark = SessionMark {
            capture: CAPTURE,
            from: 640,
            ..SessionMark::default()
        };
        let start = take_up(&meter, &mark, held);
        assert_eq!((start.from, start.next_id), (640, 0));
        assert_eq!(start.done.map(|done| done.until), Some(3));
        assert_eq!((count(&meter.read), count(&meter.lost_on_crash)), (0, 0));
    }
}
