//! Taps: the points where packets are taken, and how a packet finds its tap.
//!
//! ```text
//! TC:      ifindex                -> tap index -> TapSessions, Tap
//! cgroup:  cgroup of the program's
//!          attachment             -> tap index -> TapSessions, Tap
//! ```
//! Tap index 0 means "none", so that an array of zeroes is an empty table.

/// The tap's interface is the host end of a pod's veth: its ingress is the pod's egress.
pub const TAP_FLIP: u32 = 1 << 0;
/// Packets are kept up to the end of their transport header alone, whatever a session's snaplen.
pub const TAP_HEADERS_ONLY: u32 = 1 << 1;
/// In the word of a cgroup that programs are attached to, whose low half is its tap index: the cgroup's
/// packets that cross an interface belong to a TC tap; only loopback is this tap's.
pub const CGROUP_LOOPBACK_ONLY: u64 = 1 << 32;
/// Likewise, but of those only the ones that it sends: those that it receives come past that interface, and
/// are this tap's.
pub const CGROUP_RECEIVED: u64 = 1 << 33;

/// The sessions armed on a tap, as bitmaps: those that take what comes in by the hook, and those that take what
/// goes out. Flipping a bit arms or disarms.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapSessions {
    pub ingress: u64,
    pub egress: u64,
}

const _: () = assert!(size_of::<TapSessions>() == 16);

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
    /// Depth of the cgroup in the tree, the root's being 0.
    pub cgroup_level: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Tap>() == 24);

/// What is in use, for all taps together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Sessions armed and taps recorded on this node; 0 lets every packet leave the TC programs at once.
    pub in_use: u32,
    /// Sessions armed on this node, among which a ring that is nearly full is shared.
    pub sharers: u32,
    /// Sessions that capture ingress: a loopback packet between two sockets of one tap is theirs
    /// at the receiver, and at the sender for the others.
    pub ingress_sessions: u64,
}

const _: () = assert!(size_of::<Gate>() == 16);
