//! Walking a file block by block, total: whatever the bytes, the answer is the whole blocks at
//! its beginning and where, if so, it is torn.
//!
//! A block counts as whole when its two lengths agree and its content is consistent enough that
//! Wireshark's readers take it: fields and options within the block, packets of a known interface.

use std::{
    fmt,
    io::{self, Read},
};

use super::packet::{ENHANCED_PACKET, OPTION_END};
use crate::session::SNAPLEN_MAX;

/// Longest block that is believed, in bytes; libpcap's limit.
pub const BLOCK_BYTES_MAX: u32 = 16 * 1024 * 1024;

pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
pub(super) const NAME_RESOLUTION: u32 = 4;
pub(super) const INTERFACE_STATISTICS: u32 = 5;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// Type and first length.
const HEAD_BYTES: usize = 8;
/// Bytes that every block has: its head and the second length.
const FRAME_BYTES: u32 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKind {
    SectionHeader,
    InterfaceDescription,
    NameResolution,
    InterfaceStatistics,
    EnhancedPacket,
    /// Any other type; its body is not looked into.
    Other(u32),
}

impl BlockKind {
    fn of(code: u32) -> Self {
        match code {
            SECTION_HEADER => Self::SectionHeader,
            INTERFACE_DESCRIPTION => Self::InterfaceDescription,
            NAME_RESOLUTION => Self::NameResolution,
            INTERFACE_STATISTICS => Self::InterfaceStatistics,
            ENHANCED_PACKET => Self::EnhancedPacket,
            code => Self::Other(code),
        }
    }
}

/// A whole block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    pub kind: BlockKind,
    /// Where it begins in the file.
    pub offset: u64,
    /// All of its bytes, both lengths included; a multiple of 4.
    pub len: u32,
    /// What is between the lengths.
    pub body: &'a [u8],
}

impl<'a> Block<'a> {
    /// The interface that a packet or an account is of.
    #[must_use]
    pub fn interface_id(&self) -> Option<u32> {
        match self.kind {
            BlockKind::EnhancedPacket | BlockKind::InterfaceStatistics => le32(self.body, 0),
            _ => None,
        }
    }

    /// Time of a packet, in the interface's resolution (nanoseconds in our files).
    #[must_use]
    pub fn time(&self) -> Option<u64> {
        self.interface_id()?;
        Some(u64::from(le32(self.body, 4)?) << 32 | u64::from(le32(self.body, 8)?))
    }

    /// Code and value of each option.
    pub fn options(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        Options(
            self.options_offset()
                .and_then(|o| self.body.get(o..))
                .unwrap_or_default(),
        )
    }

    /// Where the options begin in the body, if that is known and within it.
    fn options_offset(&self) -> Option<usize> {
        let offset = match self.kind {
            BlockKind::SectionHeader => 16,
            BlockKind::InterfaceDescription => 8,
            BlockKind::InterfaceStatistics => 12,
            BlockKind::EnhancedPacket => {
                let captured_len = le32(self.body, 12)? as usize;
                20 + captured_len.checked_next_multiple_of(4)?
            }
            BlockKind::NameResolution => self.records_end()?,
            BlockKind::Other(_) => return None,
        };
        (offset <= self.body.len()).then_some(offset)
    }

    /// Where a Name Resolution Block's options begin.
    fn records_end(&self) -> Option<usize> {
        let mut offset = 0;
        loop {
            let (code, len) = (
                le16(self.body, offset)?,
                usize::from(le16(self.body, offset + 2)?),
            );
            offset += 4 + len.next_multiple_of(4);
            let address_len = match code {
                0 => return (offset <= self.body.len()).then_some(offset),
                1 => 4,
                2 => 16,
                _ => 0,
            };
            // An address is followed by a name of at least its closing zero.
            if address_len > 0 && len <= address_len {
                return None;
            }
        }
    }

    fn is_consistent(&self, interfaces: u32) -> bool {
        if matches!(self.kind, BlockKind::Other(_)) {
            return true;
        }
        let Some(offset) = self.options_offset() else {
            return false;
        };
        let fixed_part_fits = match self.kind {
            BlockKind::SectionHeader => {
                le32(self.body, 0) == Some(BYTE_ORDER_MAGIC) && le16(self.body, 4) == Some(1)
            }
            BlockKind::EnhancedPacket => {
                let (captured, original) = (le32(self.body, 12), le32(self.body, 16));
                captured <= original
                    && captured.is_some_and(|len| len <= SNAPLEN_MAX)
                    && self.interface_id().is_some_and(|id| id < interfaces)
            }
            BlockKind::InterfaceStatistics => self.interface_id().is_some_and(|id| id < interfaces),
            _ => true,
        };
        fixed_part_fits && options_fit(&self.body[offset..])
    }
}

/// Why a walk ended before the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// The file ends within a block.
    Short,
    /// No block of a little-endian pcapng file begins here.
    NotABlock,
    /// The block's two lengths differ.
    LengthMismatch,
    /// The block's content contradicts itself or the file.
    Inconsistent,
}

impl fmt::Display for Tear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "the file ended within a block",
            Self::NotABlock => "no pcapng block began there",
            Self::LengthMismatch => "the last block's two lengths differed",
            Self::Inconsistent => "the last block's content contradicted itself",
        })
    }
}

/// The whole blocks at the beginning of `reader`; give it a buffered one.
#[derive(Debug)]
pub struct Blocks<R> {
    reader: R,
    block: Vec<u8>,
    offset: u64,
    /// Interface Description Blocks in this section; `None` before the first section.
    interfaces: Option<u32>,
    tear: Option<Tear>,
}

impl<R: Read> Blocks<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            block: Vec::new(),
            offset: 0,
            interfaces: None,
            tear: None,
        }
    }

    /// For a reader that has more after it had ended.
    pub(crate) fn reader_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Where the last whole block ended.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Why there is no further block; `None` at a clean end.
    #[must_use]
    pub fn tear(&self) -> Option<Tear> {
        self.tear
    }

    /// The next whole block; `None` at the end or at a tear, from then on.
    ///
    /// # Errors
    /// The reader's; `ErrorKind::UnexpectedEof` is a tear instead.
    pub fn next_block(&mut self) -> io::Result<Option<Block<'_>>> {
        if self.tear.is_some() {
            return Ok(None);
        }
        match self.read_block()? {
            Ok(false) => Ok(None),
            Ok(true) => {
                let block = whole(&self.block, self.offset);
                self.offset += u64::from(block.len);
                Ok(Some(block))
            }
            Err(tear) => {
                self.tear = Some(tear);
                Ok(None)
            }
        }
    }

    /// Reads and judges one block into `self.block`; `Ok(false)` at the clean end.
    fn read_block(&mut self) -> io::Result<Result<bool, Tear>> {
        self.block.clear();
        if self.fill(HEAD_BYTES)? < HEAD_BYTES {
            return Ok(if self.block.is_empty() {
                Ok(false)
            } else {
                Err(Tear::Short)
            });
        }
        let (code, len) = (le32(&self.block, 0), le32(&self.block, 4));
        let (Some(code), Some(len)) = (code, len) else {
            return Ok(Err(Tear::Short));
        };
        let starts_block = len >= FRAME_BYTES
            && len.is_multiple_of(4)
            && len <= BLOCK_BYTES_MAX
            && (self.interfaces.is_some() || code == SECTION_HEADER);
        if !starts_block {
            return Ok(Err(Tear::NotABlock));
        }
        if self.fill(len as usize)? < len as usize {
            return Ok(Err(Tear::Short));
        }
        if le32(&self.block, len as usize - 4) != Some(len) {
            return Ok(Err(Tear::LengthMismatch));
        }
        let block = whole(&self.block, self.offset);
        if !block.is_consistent(self.interfaces.unwrap_or(0)) {
            return Ok(Err(Tear::Inconsistent));
        }
        match block.kind {
            BlockKind::SectionHeader => self.interfaces = Some(0),
            BlockKind::InterfaceDescription => {
                self.interfaces = self.interfaces.map(|n| n.saturating_add(1));
            }
            _ => {}
        }
        Ok(Ok(true))
    }

    /// Reads until the block has `len` bytes or the file ends; returns what it has then.
    fn fill(&mut self, len: usize) -> io::Result<usize> {
        let missing = (len - self.block.len()) as u64;
        // Grows with what is really there, not with what a length field claims.
        (&mut self.reader)
            .take(missing)
            .read_to_end(&mut self.block)?;
        Ok(self.block.len())
    }
}

/// Looks at bytes whose length fields were checked.
fn whole(bytes: &[u8], offset: u64) -> Block<'_> {
    Block {
        kind: BlockKind::of(le32(bytes, 0).unwrap_or(0)),
        offset,
        len: bytes.len() as u32,
        body: &bytes[HEAD_BYTES..bytes.len() - 4],
    }
}

struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (code, len) = (le16(self.0, 0)?, usize::from(le16(self.0, 2)?));
        if code == OPTION_END {
            return None;
        }
        let value = self.0.get(4..4 + len)?;
        self.0 = self
            .0
            .get(4 + len.next_multiple_of(4)..)
            .unwrap_or_default();
        Some((code, value))
    }
}

/// The options end at the end of the block, or at an end-of-options mark.
fn options_fit(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let (Some(code), Some(len)) = (le16(bytes, 0), le16(bytes, 2)) else {
            return false;
        };
        if code == OPTION_END {
            return len == 0;
        }
        match bytes.get(4 + usize::from(len).next_multiple_of(4)..) {
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
    true
}

fn le16(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|b| u16::from_le_bytes(*b))
}

fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))
}
