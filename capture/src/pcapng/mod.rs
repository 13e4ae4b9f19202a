//! pcapng (draft-ietf-opsawg-pcapng-05): writing captures, mending torn ones, reading them back.
//!
//! ```text
//! Section Header     tool, node, kernel; comments: capture id, alert
//! Interface Desc.    one per tap: namespace/pod/interface, filter, snaplen, nanoseconds
//! Name Resolution    names of addresses, before any packet
//! Enhanced Packet *  direction, drop count, packet id
//! Interface Stat.    one per tap: received, matched, lost
//! ```
//!
//! All blocks are little-endian, all packets Ethernet, all times nanoseconds of UTC. What is
//! written once comes from `pcap-file` ([`section_header`] and its siblings); what is written for
//! each packet is encoded here ([`encode_packet`]), byte for byte as `pcap-file` would. Blocks are
//! made whole in memory: who writes them never leaves half a block but by a crash, and what a
//! crash tore, [`repair`] cuts off. [`FileSet`] writes them to one file or to several, compressed or
//! not.

mod block_file;
mod blocks;
mod cold;
mod compress;
mod durable;
mod packet;
mod part;
mod read;
mod reopen;
mod repair;
mod set;
mod whole;

pub use block_file::{BlockFile, Medium, Torn};
pub use blocks::{BLOCK_BYTES_MAX, Block, BlockKind, Blocks, Tear};
pub use cold::{
    Interface, STATISTICS_BYTES_MAX, Section, Statistics, interface_description,
    interface_statistics, name_resolution, section_header,
};
pub use compress::{Compressor, FRAME_BYTES, FRAME_END, Unpacked, frame, repair_compressed};
pub use durable::{SYNC_BYTES, SYNC_INTERVAL, Unsynced};
pub use packet::{PacketDirection, PacketMeta, encode_packet, gso_comment};
pub use part::{Part, Place, Totals};
pub use read::{Packet, ReadError, packets, read_packets};
pub use reopen::reopen;
pub use repair::{Scan, count_packets, repair, scan};
pub use set::{FILES_MAX, FileSet, Finished, SetSoFar, Shelf};
pub use whole::{PacketRun, Run, Whole, runs, whole_blocks};

/// Longest text of a comment or any other option, in bytes: its length is a `u16`.
pub const OPTION_BYTES_MAX: usize = u16::MAX as usize;
