//! The Enhanced Packet Block: the one block that is written for each packet.
//!
//! ```text
//! 0   block type 6        20  captured length
//! 4   total length        24  original length
//! 8   interface id        28  data, padded to 4
//! 12  time, high half         flags, drop count (when not 0), packet id, comment (when there is one)
//! 16  time, low half          end of options, total length
//! ```
//! Without a comment it takes at most 68 bytes and the padded data, which is what the kernel side
//! charges against a file limit.

use std::borrow::Cow;

use super::OPTION_BYTES_MAX;
use crate::{
    session::SNAPLEN_MAX,
    text::{is_hostile, one_line},
};

pub(super) const ENHANCED_PACKET: u32 = 6;
/// Bytes before the data.
const HEADER_BYTES: usize = 28;

pub(super) const OPTION_END: u16 = 0;
pub(super) const OPTION_COMMENT: u16 = 1;
pub(super) const OPTION_FLAGS: u16 = 2;
pub(super) const OPTION_DROP_COUNT: u16 = 4;
pub(super) const OPTION_PACKET_ID: u16 = 5;

/// As the target sees it; the two lowest bits of epb_flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketDirection {
    /// Into the target: "inbound".
    Ingress,
    /// Out of the target: "outbound".
    Egress,
}

impl PacketDirection {
    fn flags(self) -> u32 {
        match self {
            Self::Ingress => 1,
            Self::Egress => 2,
        }
    }

    pub(super) fn from_flags(flags: u32) -> Option<Self> {
        match flags & 0b11 {
            1 => Some(Self::Ingress),
            2 => Some(Self::Egress),
            _ => None,
        }
    }
}

/// What the file says of a packet beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct PacketMeta<'a> {
    /// Number of its Interface Description Block, from 0.
    pub interface_id: u32,
    /// Nanoseconds of UTC.
    pub time_ns: u64,
    pub direction: PacketDirection,
    /// Per-capture sequence number, taken before anything can be lost: a gap is a loss. Packets from
    /// before the capture have none.
    pub packet_id: Option<u64>,
    /// Packets lost since the last one; 0 leaves the option out.
    pub drop_count: u64,
    /// Length on the wire, in bytes, link-layer header included; raised to the captured length
    /// where it is less.
    pub original_len: u32,
    pub comment: Option<&'a str>,
}

/// Appends one block to `buf`: `prefix` (a link-layer header made up for a packet that had none),
/// then `data`. Together they are cut at [`SNAPLEN_MAX`], beyond which no reader goes.
///
/// Allocates nothing but what `buf` needs to grow, as long as the comment is printable ASCII.
pub fn encode_packet(buf: &mut Vec<u8>, meta: &PacketMeta<'_>, prefix: &[u8], data: &[u8]) {
    let prefix = &prefix[..prefix.len().min(SNAPLEN_MAX as usize)];
    let data = &data[..data.len().min(SNAPLEN_MAX as usize - prefix.len())];
    let captured_len = (prefix.len() + data.len()) as u32;
    let comment = meta.comment.map(harmless);

    let start = buf.len();
    buf.reserve(HEADER_BYTES + 44 + captured_len as usize);
    let mut header = [0; HEADER_BYTES];
    let fields = [
        ENHANCED_PACKET,
        0, // total length, known at the end
        meta.interface_id,
        (meta.time_ns >> 32) as u32,
        meta.time_ns as u32,
        captured_len,
        meta.original_len.max(captured_len),
    ];
    for (slot, field) in header.chunks_exact_mut(4).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes());
    }
    buf.extend_from_slice(&header);
    buf.extend_from_slice(prefix);
    buf.extend_from_slice(data);
    pad(buf, captured_len as usize);

    option(buf, OPTION_FLAGS, &meta.direction.flags().to_le_bytes());
    if meta.drop_count != 0 {
        option(buf, OPTION_DROP_COUNT, &meta.drop_count.to_le_bytes());
    }
    if let Some(id) = meta.packet_id {
        option(buf, OPTION_PACKET_ID, &id.to_le_bytes());
    }
    if let Some(comment) = comment {
        option(buf, OPTION_COMMENT, comment.as_bytes());
    }
    option(buf, OPTION_END, &[]);

    let total_len = ((buf.len() - start + 4) as u32).to_le_bytes();
    buf.extend_from_slice(&total_len);
    buf[start + 4..start + 8].copy_from_slice(&total_len);
}

/// The comment of a packet that the network stack had not yet cut into segments. Fits the room
/// that the kernel side charges for it.
#[must_use]
pub fn gso_comment(segments: u16, segment_bytes: u16) -> String {
    format!("GSO: {segments} segments of {segment_bytes} bytes")
}

fn option(buf: &mut Vec<u8>, code: u16, value: &[u8]) {
    buf.extend_from_slice(&code.to_le_bytes());
    // Values are eight bytes or a comment, which `harmless` bounds.
    buf.extend_from_slice(&(value.len() as u16).to_le_bytes());
    buf.extend_from_slice(value);
    pad(buf, value.len());
}

fn pad(buf: &mut Vec<u8>, len: usize) {
    buf.extend_from_slice(&[0; 3][..len.wrapping_neg() % 4]);
}

fn harmless(comment: &str) -> Cow<'_, str> {
    if comment.len() <= OPTION_BYTES_MAX && !comment.chars().any(is_hostile) {
        Cow::Borrowed(comment)
    } else {
        Cow::Owned(one_line(comment, OPTION_BYTES_MAX))
    }
}
