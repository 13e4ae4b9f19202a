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
/// Most bytes of [`Options`]: padding, flags, drop count, packet id.
const OPTIONS_BYTES: usize = 3 + 8 + 12 + 12;
/// The end of the options, and the total length once more.
const TRAILER_BYTES: usize = 8;

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
    let options = Options::of(meta, captured_len as usize);
    let comment_len = comment
        .as_ref()
        .map_or(0, |text| 4 + text.len().next_multiple_of(4));
    let data_end = HEADER_BYTES + captured_len as usize;
    let total_len = (data_end + options.len + comment_len + TRAILER_BYTES) as u32;

    buf.reserve(total_len as usize);
    let mut header = [0; HEADER_BYTES];
    let fields = [
        ENHANCED_PACKET,
        total_len,
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
    buf.extend_from_slice(&options.bytes[..options.len]);
    if let Some(comment) = comment {
        // At most `OPTION_BYTES_MAX`, by `harmless`.
        let len = comment.len() as u16;
        buf.extend_from_slice(&OPTION_COMMENT.to_le_bytes());
        buf.extend_from_slice(&len.to_le_bytes());
        buf.extend_from_slice(comment.as_bytes());
        buf.extend_from_slice(padding(comment.len()));
    }
    // The end of the options is all zeroes.
    let mut trailer = [0; TRAILER_BYTES];
    trailer[4..].copy_from_slice(&total_len.to_le_bytes());
    buf.extend_from_slice(&trailer);
}

/// What lies between a packet's bytes and its comment, put together before it is appended: each append is
/// one more look at the buffer's room.
struct Options {
    bytes: [u8; OPTIONS_BYTES],
    len: usize,
}

impl Options {
    /// The padding of so many bytes, then what each packet has.
    fn of(meta: &PacketMeta<'_>, captured_len: usize) -> Self {
        let mut options = Self {
            bytes: [0; OPTIONS_BYTES],
            len: padding(captured_len).len(),
        };
        options.add(OPTION_FLAGS, meta.direction.flags().to_le_bytes());
        if meta.drop_count != 0 {
            options.add(OPTION_DROP_COUNT, meta.drop_count.to_le_bytes());
        }
        if let Some(id) = meta.packet_id {
            options.add(OPTION_PACKET_ID, id.to_le_bytes());
        }
        options
    }

    /// `N` is a multiple of 4.
    fn add<const N: usize>(&mut self, code: u16, value: [u8; N]) {
        let option = &mut self.bytes[self.len..][..4 + N];
        option[..2].copy_from_slice(&code.to_le_bytes());
        option[2..4].copy_from_slice(&(N as u16).to_le_bytes());
        option[4..].copy_from_slice(&value);
        self.len += 4 + N;
    }
}

/// Zeroes after so many bytes.
fn padding(len: usize) -> &'static [u8] {
    &[0; 3][..len.wrapping_neg() % 4]
}

/// The comment of a packet that the network stack had not yet cut into segments. Fits the room
/// that the kernel side charges for it.
#[must_use]
pub fn gso_comment(segments: u16, segment_bytes: u16) -> String {
    format!("GSO: {segments} segments of {segment_bytes} bytes")
}

fn harmless(comment: &str) -> Cow<'_, str> {
    if comment.len() <= OPTION_BYTES_MAX && !comment.chars().any(is_hostile) {
        Cow::Borrowed(comment)
    } else {
        Cow::Owned(one_line(comment, OPTION_BYTES_MAX))
    }
}
