//! Blocks, changed where a merged file needs them to be.

use crate::{pcapng::Block, text::one_line};

const PACKET: u32 = 6;
const STATISTICS: u32 = 5;
const INTERFACE: u32 = 1;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const OPTION_DESCRIPTION: u16 = 3;
const OPTION_PACKET_ID: u16 = 5;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_NAME: u16 = 2;
const OPTION_START: u16 = 2;
const OPTION_STOP: u16 = 3;
const OPTION_DELIVERED: u16 = 8;

/// Ethernet, the one link type of our files.
const ETHERNET: u16 = 1;
/// Decimal nanoseconds, the one resolution of our files.
const NANOSECONDS: &[u8] = &[9];
/// Longest description of an interface, in bytes.
const DESCRIPTION_MAX: usize = 4096;

/// An Interface Description Block's options, as far as they matter here.
pub(super) struct Described<'a> {
    fixed: &'a [u8],
    options: Vec<(u16, &'a [u8])>,
}

impl<'a> Described<'a> {
    /// `None` where it is not Ethernet in nanoseconds.
    pub(super) fn read(block: &Block<'a>) -> Option<Self> {
        let fixed = block.body.get(..8)?;
        let options: Vec<_> = block.options().collect();
        let link = u16::from_le_bytes([fixed[0], fixed[1]]);
        let resolution = options.iter().find(|(code, _)| *code == OPTION_RESOLUTION);
        let is_ours =
            link == ETHERNET && resolution.is_some_and(|(_, value)| *value == NANOSECONDS);
        is_ours.then_some(Self { fixed, options })
    }

    pub(super) fn name(&self) -> String {
        self.text(OPTION_NAME)
    }

    fn text(&self, wanted: u16) -> String {
        let value = self.options.iter().find(|(code, _)| *code == wanted);
        value
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .unwrap_or_default()
    }

    /// The block with this name, and with more in its description.
    pub(super) fn with(&self, name: &str, more: &str) -> Vec<u8> {
        let mut description = self.text(OPTION_DESCRIPTION);
        if !description.is_empty() {
            description.push_str("; ");
        }
        description.push_str(more);
        let mut body = self.fixed.to_vec();
        option(&mut body, OPTION_NAME, name.as_bytes());
        let description = one_line(&description, DESCRIPTION_MAX);
        option(&mut body, OPTION_DESCRIPTION, description.as_bytes());
        for (code, value) in &self.options {
            if ![OPTION_NAME, OPTION_DESCRIPTION].contains(code) {
                option(&mut body, *code, value);
            }
        }
        option(&mut body, OPTION_END, &[]);
        framed(INTERFACE, &body)
    }
}

/// An Enhanced Packet Block with another interface, time, and id. The numbers of a source's packets
/// are its own; `id_base` keeps them apart from those of others.
pub(super) fn packet(block: &Block<'_>, interface: u32, time_ns: u64, id_base: u64) -> Box<[u8]> {
    let mut body = block.body.to_vec();
    body[..4].copy_from_slice(&interface.to_le_bytes());
    set_time(&mut body, 4, time_ns);
    let id = value_at(block, OPTION_PACKET_ID).filter(|(_, value)| value.len() == 8);
    if let Some((at, value)) = id {
        let id = u64::from_le_bytes(*value.first_chunk().expect("eight bytes")) | id_base;
        body[at..at + 8].copy_from_slice(&id.to_le_bytes());
    }
    framed(PACKET, &body).into()
}

/// The packet's block with one comment more.
pub(super) fn commented(block: &[u8], comment: &str) -> Vec<u8> {
    let mut body = block[8..block.len() - 4].to_vec();
    let captured = u32::from_le_bytes(*body[12..].first_chunk().expect("a whole block")) as usize;
    let mut end = 20 + captured.next_multiple_of(4);
    while let Some(&[a, b, c, d]) = body.get(end..).and_then(|rest| rest.first_chunk()) {
        if u16::from_le_bytes([a, b]) == OPTION_END {
            break;
        }
        end += 4 + usize::from(u16::from_le_bytes([c, d])).next_multiple_of(4);
    }
    body.truncate(end);
    option(&mut body, OPTION_COMMENT, comment.as_bytes());
    option(&mut body, OPTION_END, &[]);
    framed(PACKET, &body)
}

/// An Interface Statistics Block of another interface, its times less `correction_ns`.
pub(super) fn statistics(block: &Block<'_>, interface: u32, correction_ns: i64) -> Vec<u8> {
    let mut body = block.body.to_vec();
    body[..4].copy_from_slice(&interface.to_le_bytes());
    let fixed = block.time().map(|time| (4, time));
    let times = [OPTION_START, OPTION_STOP].map(|code| {
        let (at, value) = value_at(block, code)?;
        let [high, low] = [value.get(..4)?, value.get(4..8)?]
            .map(|half| u32::from_le_bytes(half.try_into().expect("four bytes")));
        Some((at, u64::from(high) << 32 | u64::from(low)))
    });
    for (at, time) in fixed.into_iter().chain(times.into_iter().flatten()) {
        set_time(&mut body, at, corrected(time, correction_ns));
    }
    framed(STATISTICS, &body)
}

/// isb_usrdeliv of an Interface Statistics Block; 0 where it is not told.
pub(super) fn delivered(block: &[u8]) -> u64 {
    let value = delivered_at(block).and_then(|at| block.get(at..)?.first_chunk());
    value.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

pub(super) fn set_delivered(block: &mut [u8], packets: u64) {
    if let Some(value) = delivered_at(block).and_then(|at| block.get_mut(at..at + 8)) {
        value.copy_from_slice(&packets.to_le_bytes());
    }
}

/// Where its value is in the block.
fn delivered_at(block: &[u8]) -> Option<usize> {
    let mut at = 20;
    while let Some(&[a, b, c, d]) = block.get(at..)?.first_chunk() {
        let (code, len) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        match code {
            OPTION_END => return None,
            OPTION_DELIVERED if len == 8 => return Some(at + 4),
            _ => at += 4 + usize::from(len).next_multiple_of(4),
        }
    }
    None
}

/// A time of the node in the merger's.
pub(super) fn corrected(time_ns: u64, correction_ns: i64) -> u64 {
    time_ns.saturating_add_signed(correction_ns.saturating_neg())
}

/// Where in the block's body the value of its first such option is.
fn value_at<'a>(block: &Block<'a>, wanted: u16) -> Option<(usize, &'a [u8])> {
    let (_, value) = block.options().find(|(code, _)| *code == wanted)?;
    let at = value.as_ptr().addr() - block.body.as_ptr().addr();
    Some((at, value))
}

fn set_time(body: &mut [u8], at: usize, time_ns: u64) {
    body[at..at + 4].copy_from_slice(&((time_ns >> 32) as u32).to_le_bytes());
    body[at + 4..at + 8].copy_from_slice(&(time_ns as u32).to_le_bytes());
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = value.len().min(usize::from(u16::MAX));
    body.extend_from_slice(&code.to_le_bytes());
    body.extend_from_slice(&(len as u16).to_le_bytes());
    body.extend_from_slice(&value[..len]);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn framed(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32 + 12).to_le_bytes();
    let mut block = Vec::with_capacity(body.len() + 12);
    block.extend_from_slice(&kind.to_le_bytes());
    block.extend_from_slice(&len);
    block.extend_from_slice(body);
    block.extend_from_slice(&len);
    block
}
