//! A session in its slot, and what it leaves.

use std::{num::NonZeroU64, sync::Arc};

use jiff::Timestamp;
use remora_capture::{
    filter::Filter,
    pcapng::Finished,
    session::{CaptureState, Files, Phase, StopReason},
};
use tokio::time::Instant;

use super::{BoundTap, ChunkReceiver, Closed, Meter, Output, Place, Slot, Stored, TapHook};

#[derive(Default)]
pub(super) struct SlotState {
    pub(super) generation: u32,
    pub(super) session: Option<Running>,
}

/// A session between arming and its final counts.
pub(super) struct Running {
    pub(super) state: CaptureState,
    pub(super) afterwards: Afterwards,
    pub(super) place: Place,
    /// Others were seen behind its interfaces, and that was said.
    pub(super) shared: bool,
    pub(super) taps: Arc<[BoundTap]>,
    pub(super) meter: Arc<Meter>,
    /// `None` once it is draining.
    pub(super) output: Option<Box<dyn Output>>,
    pub(super) stream: Option<ChunkReceiver>,
    pub(super) stored: Option<Stored>,
    pub(super) armed: Instant,
    pub(super) deadline: Option<Instant>,
    /// When its duration began, and when it ends: CLOCK_MONOTONIC, nanoseconds.
    pub(super) begun_ns: u64,
    pub(super) ends_ns: Option<u64>,
    /// By which alerts join it.
    pub(super) coalescing_key: Option<String>,
}

impl Running {
    /// It has files, and is not being ended: the next agent can go on with it.
    pub(super) fn outlives_agent(&self) -> bool {
        self.stored.is_some() && self.output.is_some()
    }
}

/// What is left of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// Its account.
    Keep,
    /// Nothing: it did not start.
    Forget,
}

pub(super) struct Drained {
    pub(super) slot: Slot,
    pub(super) afterwards: Afterwards,
    pub(super) state: CaptureState,
}

/// What a session cannot see, for a person: the place's notes, and its filter's.
pub(super) fn notes(place: &Place, filter: &Filter, taps: &[BoundTap]) -> Vec<String> {
    let mut notes = place.notes.clone();
    let blind = filter
        .meaning()
        .programs()
        .is_some_and(|programs| programs.raw.is_none());
    if blind && taps.iter().any(|tap| tap.hook == TapHook::Cgroup) {
        notes.push(format!(
            "the filter `{filter}` asks for an Ethernet header; packets that have none (of loopback, \
             and of what runs in the host's network) cannot match and are left out"
        ));
    }
    notes
}

/// The final state of a session from how its output ended, and its files.
pub(super) fn conclude(state: &mut CaptureState, closed: Closed, meter: &Meter) -> Finished {
    let Closed {
        counts,
        files,
        blocks,
        problem,
        notes,
    } = closed;
    state.counts = counts;
    state.files = Files {
        count: files.files.len() as u64,
        removed: files.removed,
        blocks,
    };
    state.finished = Some(Timestamp::now());
    state.first_packet = meter.first_packet();
    state.last_packet = meter.last_packet();
    let failed = problem.is_some();
    // Beside what was said when the session was ended.
    for text in problem.iter().chain(&notes) {
        state.message = join(&state.message, text);
    }
    if state.stop_reason == Some(StopReason::FileBytes) && at_packet_limit(state, meter) {
        state.stop_reason = Some(StopReason::Packets);
    }
    state.phase = if failed {
        Phase::Failed
    } else {
        Phase::Finished
    };
    if !state.counts.balanced() {
        tracing::error!(capture = %state.id, counts = ?state.counts, "the counts do not add up");
    }
    files
}

fn at_packet_limit(state: &CaptureState, meter: &Meter) -> bool {
    let live = state.counts.submitted - meter.from_past();
    state.spec.limits.packets.map(NonZeroU64::get) == Some(live)
}

/// What is said of a session whose target received packets past the interfaces where they were taken.
pub(super) fn missed(packets: u64) -> String {
    if packets == 0 {
        return String::new();
    }
    format!(
        "by its end {packets} packets had come into the target past its interface (another program of the node \
         hands them over): they are not in the file, and in no count"
    )
}

/// Two problems as one text.
pub(super) fn join(first: &str, second: &str) -> String {
    match (first, second) {
        ("", only) | (only, "") => only.to_owned(),
        _ => format!("{first}; {second}"),
    }
}
