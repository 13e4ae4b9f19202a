//! How far the ring's reader has come, kept in a pinned map: where the next agent goes on when this
//! one is killed.
//!
//! The whole of it is one map value, written by one call: so it is always that of one moment. Packets
//! of records before `position` are in their files or counted here; what comes after is in the ring
//! still, and is read again. Programs never look at it.

use crate::SESSION_SLOTS;

/// The reader at a moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Position of the ring, in bytes.
    pub position: u64,
    /// CLOCK_REALTIME, nanoseconds: when it was written.
    pub time_ns: u64,
    /// Inode of the network namespace whose interfaces are meant; 0 before the first agent.
    pub netns: u64,
    pub reserved: u64,
    /// By slot.
    pub sessions: [SessionMark; SESSION_SLOTS as usize],
}

/// A session there. Counts are of packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionMark {
    /// Id of its capture, low half first; 0 for none.
    pub capture: [u64; 2],
    /// Records before this position are of an earlier session in the slot.
    pub from: u64,
    /// Id of its next packet.
    pub next_id: u64,
    pub read: u64,
    pub written: u64,
    pub malformed: u64,
    pub stale: u64,
    pub dropped_queue: u64,
    pub dropped_io: u64,
    pub lost_on_crash: u64,
    /// Of the time before it began: looked at, matched, without room.
    pub past_seen: u64,
    pub past_matched: u64,
    pub past_over_budget: u64,
    /// 1: it has looked back.
    pub past_done: u64,
    pub reserved: u64,
}

impl Checkpoint {
    /// Of a ring that nobody has read.
    pub const NONE: Self = Self {
        position: 0,
        time_ns: 0,
        netns: 0,
        reserved: 0,
        sessions: [SessionMark::NONE; SESSION_SLOTS as usize],
    };
}

impl SessionMark {
    const NONE: Self = Self {
        capture: [0; 2],
        from: 0,
        next_id: 0,
        read: 0,
        written: 0,
        malformed: 0,
        stale: 0,
        dropped_queue: 0,
        dropped_io: 0,
        lost_on_crash: 0,
        past_seen: 0,
        past_matched: 0,
        past_over_budget: 0,
        past_done: 0,
        reserved: 0,
    };
}

const _: () = assert!(size_of::<SessionMark>() == 128);
const _: () = assert!(size_of::<Checkpoint>() == 32 + 64 * 128);
