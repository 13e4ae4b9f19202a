//! What an instruction means: `code`, `jt`, `jf` and `k` as one of a few operations.
//!
//! ```text
//! code, bits 0-2: class            load        size      mode            others
//!   0 LD   4 ALU                   bits 3-4    0 W 4     bits 5-7        bit 3: operand is K (0), X (1)
//!   1 LDX  5 JMP                               1 H 2     0 IMM  3 MEM    bits 4-7: operation
//!   2 ST   6 RET                               2 B 1     1 ABS  4 LEN    RET, bits 3-4: K (0), A (2)
//!   3 STX  7 MISC                                        2 IND  5 MSH    MISC, bit 7: TAX, TXA
//! ```
//! Values are those of `linux/bpf_common.h` and `linux/filter.h` (v6.18), which are libpcap's.

use super::Instruction;

pub(super) const RETURN_CONSTANT: u16 = 0x06;

/// The two registers, 32 bits each, both 0 at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The accumulator.
    A,
    /// The index.
    X,
}

/// Of a load from the packet, which is big endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Word,
    Half,
    Byte,
}

impl Width {
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Word => 4,
            Self::Half => 2,
            Self::Byte => 1,
        }
    }
}

/// The second operand of arithmetic and comparisons, and what is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Constant(u32),
    Register(Register),
}

/// `A = A op operand`, 32 bits, wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    /// By zero: the packet is refused.
    Divide,
    Or,
    And,
    /// By 32 or more: 0.
    ShiftLeft,
    /// By 32 or more: 0.
    ShiftRight,
    /// By zero: the packet is refused.
    Modulo,
    Xor,
}

/// Of A with the operand, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    Greater,
    GreaterOrEqual,
    /// They have a bit in common.
    AnyBit,
}

/// A load beyond the packet's end refuses the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A = packet[offset..].
    LoadAbsolute {
        width: Width,
        offset: u32,
    },
    /// A = packet[X + offset..]; a sum beyond 32 bits is beyond the packet.
    LoadIndexed {
        width: Width,
        offset: u32,
    },
    /// X = 4 * (packet[offset] & 0xf): the length of an IPv4 header.
    LoadHeaderLength {
        offset: u32,
    },
    /// The length of the frame.
    LoadLength(Register),
    LoadConstant(Register, u32),
    LoadScratch(Register, u32),
    StoreScratch(Register, u32),
    Arithmetic(Arithmetic, Operand),
    /// A = -A.
    Negate,
    /// Skips so many instructions.
    Jump(u32),
    JumpIf {
        comparison: Comparison,
        operand: Operand,
        /// Instructions to skip if it holds, and if it does not.
        then: u8,
        otherwise: u8,
    },
    /// The verdict: 0 refuses, all else takes the packet.
    Return(Operand),
    /// X = A.
    CopyToX,
    /// A = X.
    CopyToA,
}

impl Instruction {
    /// `None` for a code that classic BPF does not have.
    #[must_use]
    pub fn decode(self) -> Option<Operation> {
        let Self { code, jt, jf, k } = self;
        let operand = if code & 0x08 == 0 {
            Operand::Constant(k)
        } else {
            Operand::Register(Register::X)
        };
        let jump_if = |comparison| Operation::JumpIf {
            comparison,
            operand,
            then: jt,
            otherwise: jf,
        };
        let absolute = |width| Operation::LoadAbsolute { width, offset: k };
        let indexed = |width| Operation::LoadIndexed { width, offset: k };
        let arithmetic = |operation| Operation::Arithmetic(operation, operand);
        Some(match code {
            0x20 => absolute(Width::Word),
            0x28 => absolute(Width::Half),
            0x30 => absolute(Width::Byte),
            0x40 => indexed(Width::Word),
            0x48 => indexed(Width::Half),
            0x50 => indexed(Width::Byte),
            0xb1 => Operation::LoadHeaderLength { offset: k },
            0x80 => Operation::LoadLength(Register::A),
            0x81 => Operation::LoadLength(Register::X),
            0x00 => Operation::LoadConstant(Register::A, k),
            0x01 => Operation::LoadConstant(Register::X, k),
            0x60 => Operation::LoadScratch(Register::A, k),
            0x61 => Operation::LoadScratch(Register::X, k),
            0x02 => Operation::StoreScratch(Register::A, k),
            0x03 => Operation::StoreScratch(Register::X, k),
            0x04 | 0x0c => arithmetic(Arithmetic::Add),
            0x14 | 0x1c => arithmetic(Arithmetic::Subtract),
            0x24 | 0x2c => arithmetic(Arithmetic::Multiply),
            0x34 | 0x3c => arithmetic(Arithmetic::Divide),
            0x44 | 0x4c => arithmetic(Arithmetic::Or),
            0x54 | 0x5c => arithmetic(Arithmetic::And),
            0x64 | 0x6c => arithmetic(Arithmetic::ShiftLeft),
            0x74 | 0x7c => arithmetic(Arithmetic::ShiftRight),
            0x84 => Operation::Negate,
            0x94 | 0x9c => arithmetic(Arithmetic::Modulo),
            0xa4 | 0xac => arithmetic(Arithmetic::Xor),
            0x05 => Operation::Jump(k),
            0x15 | 0x1d => jump_if(Comparison::Equal),
            0x25 | 0x2d => jump_if(Comparison::Greater),
            0x35 | 0x3d => jump_if(Comparison::GreaterOrEqual),
            0x45 | 0x4d => jump_if(Comparison::AnyBit),
            RETURN_CONSTANT => Operation::Return(Operand::Constant(k)),
            0x16 => Operation::Return(Operand::Register(Register::A)),
            0x07 => Operation::CopyToX,
            0x87 => Operation::CopyToA,
            _ => return None,
        })
    }
}
