//! Taps: the points where packets are taken, and how a packet finds its tap.
//!
//! ```text
//! TC:      ifindex            -> tap index -> sessions (u64 bitmap), Tap
//! cgroup:  cgroup id,
//!          then its ancestors -> tap index -> sessions (u64 bitmap), Tap
//! ```
//! Tap index 0 means "none", so that an array of zeroes is an empty table.

/// The tap's interface is the host end of a pod's veth: its ingress is the pod's egress.
pub const TAP_FLIP: u32 = 1 << 0;
/// The cgroup's packets that cross an interface belong to a TC tap; only loopback is this tap's.
pub const TAP_LOOPBACK_ONLY: u32 = 1 << 1;

/// What a packet of a tap is stamped with. Written by userspace before the tap is bound.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// Cgroup id (inode number of its directory), or 0 for an interface that has none.
    pub cgroup_id: u64,
    /// Raised each time the index is bound anew; a record of an old one is stale.
    pub generation: u32,
    /// `TAP_*`.
    pub flags: u32,
}

const _: () = assert!(size_of::<Tap>() == 16);

/// The agent's settings that every program reads first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Sessions armed and taps recorded on this node; 0 lets every packet leave at once.
    pub in_use: u32,
    /// Bit N set: some tap's cgroup lies at depth N of the tree. 0 lets every packet leave the cgroup
    /// programs at once.
    pub cgroup_levels: u32,
    /// Sessions that capture ingress: a loopback packet between two sockets of one tap is theirs
    /// at the receiver, and at the sender for the others.
    pub ingress_sessions: u64,
    /// 1: some cgroup's tap takes more than loopback. 0 lets what passes an interface leave the
    /// cgroup programs at once: it is TC's.
    pub cgroup_beyond_loopback: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 24);
