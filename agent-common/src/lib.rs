//! What the eBPF programs and the agent share: map keys and values, the ring record, limits.
//!
//! Everything here is `repr(C)`, has explicit padding, and its size is asserted at compile time.
//! A change of any layout raises [`ABI_VERSION`]; the agent refuses an object of another version.
#![no_std]
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod counters;
pub mod filter;
pub mod headers;
pub mod look_back;
pub mod program;
pub mod record;
pub mod session;
pub mod share;
pub mod stage;
pub mod tap;

/// Version of every layout in this crate. It stands in each record and in the object's
/// `ABI` global, so that neither an old object nor an old record is read by a new agent.
pub const ABI_VERSION: u16 = 8;

/// Sessions that can be armed on one node at a time: the bits of a tap's bitmap.
pub const SESSION_SLOTS: u32 = 64;

/// Attached points (interfaces and cgroups) known to the kernel at a time.
pub const TAP_SLOTS: u32 = 4096;

/// Interfaces are looked up in an array up to this index, and in a hash map from there on: the
/// JIT inlines an array lookup (2 ns here) but not a hash lookup (17 ns).
pub const IFINDEX_ARRAY: u32 = 65_536;

/// Largest snaplen, as tcpdump's default (`MAXIMUM_SNAPLEN` of libpcap).
pub const SNAPLEN_MAX: u32 = 262_144;
