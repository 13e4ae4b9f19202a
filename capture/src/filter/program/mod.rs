//! Filter programs: classic BPF, as libpcap compiles pcap-filter text.
//!
//! ```text
//! 0      2    3    4          8     struct sock_filter, linux/filter.h v6.18;
//! +------+----+----+----------+     on the wire (gRPC) little endian
//! | code | jt | jf | k        |
//! +------+----+----+----------+
//! ```
//!
//! A [`Program`] has passed the checker, wherever it came from: it ends, and touches nothing but the
//! packet and its own 16 scratch cells. [`Program::run`] is the reference of what it says.
//!
//! A filter has two, for packets are seen in two ways ([`Programs`]): as Ethernet frames by the TC
//! hooks, from their network header on by the cgroup hooks.

mod check;
mod interpret;
mod listing;
mod operation;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use check::ProgramError;
pub use operation::{Arithmetic, Comparison, Operand, Operation, Register, Width};

/// Most instructions of one program (Linux' `BPF_MAXINSNS`).
pub const PROGRAM_MAX: usize = 4096;
/// Cells of scratch memory, 32 bits each (`BPF_MEMWORDS`).
pub const SCRATCH_CELLS: usize = 16;
/// Bytes of an instruction on the wire.
pub const INSTRUCTION_BYTES: usize = 8;

/// One instruction, as it stands in a program. [`Operation`] is what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Class, size and mode, or operation and operand.
    pub code: u16,
    /// Instructions to skip if a conditional jump is taken.
    pub jt: u8,
    /// Instructions to skip if it is not.
    pub jf: u8,
    /// Constant, offset, scratch cell or distance.
    pub k: u32,
}

/// What a program takes for the packet's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// Ethernet's destination address (LINKTYPE_ETHERNET, 1).
    Ethernet,
    /// The IPv4 or IPv6 header (LINKTYPE_RAW, 101).
    Raw,
}

/// A program that passed the checker; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program(Arc<[Instruction]>);

/// A packet as a program sees it.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The packet from the byte on that the program's link type says: all of it, whatever the
    /// snaplen.
    pub bytes: &'a [u8],
    /// What `len`, `less` and `greater` compare: the length of the frame as the file has it. For
    /// a [raw](LinkType::Raw) program this is 14 more than the packet's, because the file gives
    /// such a packet an Ethernet header.
    pub wire_len: u32,
}

/// A filter's programs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Programs {
    pub ethernet: Program,
    /// `None`: the filter asks for what packets without an Ethernet header do not have (`ether host
    /// …`), so that none of them matches.
    pub raw: Option<Program>,
}

impl Program {
    /// # Errors
    /// The first instruction that breaks a rule of the checker.
    pub fn new(instructions: impl Into<Arc<[Instruction]>>) -> Result<Self, ProgramError> {
        let instructions = instructions.into();
        check::check(&instructions)?;
        Ok(Self(instructions))
    }

    /// Reads [`Program::to_bytes`].
    ///
    /// # Errors
    /// Bytes are left over, or the checker's.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProgramError> {
        let (instructions, rest) = bytes.as_chunks::<INSTRUCTION_BYTES>();
        if !rest.is_empty() {
            return Err(ProgramError::Torn(bytes.len()));
        }
        if instructions.len() > PROGRAM_MAX {
            return Err(ProgramError::Length(instructions.len()));
        }
        let instructions: Arc<[_]> = instructions
            .iter()
            .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Instruction {
                code: u16::from_le_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_le_bytes([k0, k1, k2, k3]),
            })
            .collect();
        Self::new(instructions)
    }

    /// 8 bytes an instruction: code, jt, jf, k, little endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * INSTRUCTION_BYTES);
        for Instruction { code, jt, jf, k } in self.0.iter() {
            bytes.extend(code.to_le_bytes());
            bytes.extend([*jt, *jf]);
            bytes.extend(k.to_le_bytes());
        }
        bytes
    }

    /// Takes no packet.
    #[must_use]
    pub fn reject_all() -> Self {
        Self::returning(0)
    }

    /// Takes every packet.
    #[must_use]
    pub fn take_all() -> Self {
        Self::returning(u32::MAX)
    }

    fn returning(k: u32) -> Self {
        Self(Arc::new([Instruction {
            code: operation::RETURN_CONSTANT,
            jt: 0,
            jf: 0,
            k,
        }]))
    }

    /// 1 to [`PROGRAM_MAX`].
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// The instructions decoded.
    pub fn operations(&self) -> impl ExactSizeIterator<Item = Operation> {
        // The checker has decoded each of them.
        self.0.iter().map(|instruction| {
            instruction
                .decode()
                .unwrap_or(Operation::Return(Operand::Constant(0)))
        })
    }

    /// Whether the program takes the packet. This is libpcap's verdict (`bpf_filter`, 1.10) and the
    /// oracle of every faster way to find it.
    #[must_use]
    pub fn run(&self, frame: Frame<'_>) -> bool {
        interpret::run(&self.0, frame) != 0
    }
}

impl Programs {
    #[must_use]
    pub fn of(&self, link: LinkType) -> Option<&Program> {
        match link {
            LinkType::Ethernet => Some(&self.ethernet),
            LinkType::Raw => self.raw.as_ref(),
        }
    }
}

impl<'a> Frame<'a> {
    /// A whole frame.
    #[must_use]
    pub fn whole(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            wire_len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        }
    }

    /// A whole packet from its network header on, for a raw program.
    #[must_use]
    pub fn network(bytes: &'a [u8]) -> Self {
        let Self { wire_len, .. } = Self::whole(bytes);
        Self {
            bytes,
            wire_len: wire_len.saturating_add(ETHERNET_HEADER),
        }
    }
}

/// Bytes of the header that the file has before a raw packet.
const ETHERNET_HEADER: u32 = 14;
