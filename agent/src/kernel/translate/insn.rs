//! eBPF instructions, as the kernel reads them (Documentation/bpf/standardization/instruction-set.rst,
//! v6.18).
//!
//! ```text
//! 0        1        2                 4                                 8
//! +--------+---+----+-----------------+---------------------------------+
//! | opcode |dst|src |     offset      |            immediate            |
//! +--------+---+----+-----------------+---------------------------------+
//!           low high  (nibbles)
//! ```
//! Jumps count from the instruction behind them. [`wide`] takes two instructions.

/// One instruction of eight bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    pub opcode: u8,
    /// Destination in the low nibble, source in the high one.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const _: () = assert!(size_of::<Insn>() == 8);

/// A register; R0 to R5 do not outlive a call, R10 is the frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The right side of an operation or comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Reg(Reg),
    /// Read as unsigned by 32-bit operations, sign-extended by 64-bit ones.
    Imm(i32),
}

impl From<Reg> for Operand {
    fn from(register: Reg) -> Self {
        Self::Reg(register)
    }
}

impl From<i32> for Operand {
    fn from(immediate: i32) -> Self {
        Self::Imm(immediate)
    }
}

/// Bytes that a load or store moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Byte,
    Half,
    Word,
    Double,
}

impl Size {
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
            Self::Double => 0x18,
        }
    }
}

/// Arithmetic; division and shifts are unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alu {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Div = 0x30,
    Or = 0x40,
    And = 0x50,
    Lsh = 0x60,
    Rsh = 0x70,
    Mod = 0x90,
    Xor = 0xa0,
    Mov = 0xb0,
}

/// Comparisons; unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Jump {
    Eq = 0x10,
    Gt = 0x20,
    Ge = 0x30,
    /// Any common bit.
    Set = 0x40,
    Ne = 0x50,
    Lt = 0xa0,
    Le = 0xb0,
}

const LD_IMM64: u8 = 0x18;
const LDX_MEM: u8 = 0x61;
const ST_MEM: u8 = 0x62;
const STX_MEM: u8 = 0x63;
const ALU: u8 = 0x04;
const ALU64: u8 = 0x07;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const FROM_REGISTER: u8 = 0x08;
const NEGATE: u8 = 0x80;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JA: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const fn insn(opcode: u8, dst: Reg, src: Reg, offset: i16, immediate: i32) -> Insn {
    Insn {
        opcode,
        registers: dst as u8 | (src as u8) << 4,
        offset,
        immediate,
    }
}

fn with_operand(opcode: u8, dst: Reg, operand: Operand, offset: i16) -> Insn {
    match operand {
        Operand::Reg(src) => insn(opcode | FROM_REGISTER, dst, src, offset, 0),
        Operand::Imm(immediate) => insn(opcode, dst, Reg::R0, offset, immediate),
    }
}

/// `dst = dst op operand`, 64 bits.
#[must_use]
pub fn alu64(op: Alu, dst: Reg, operand: impl Into<Operand>) -> Insn {
    with_operand(ALU64 | op as u8, dst, operand.into(), 0)
}

/// `dst = dst op operand`, 32 bits; the upper half becomes 0.
#[must_use]
pub fn alu32(op: Alu, dst: Reg, operand: impl Into<Operand>) -> Insn {
    with_operand(ALU | op as u8, dst, operand.into(), 0)
}

/// `dst = -dst`, 32 bits.
#[must_use]
pub const fn negate32(dst: Reg) -> Insn {
    insn(ALU | NEGATE, dst, Reg::R0, 0, 0)
}

/// `dst = value`; two instructions.
#[must_use]
pub const fn wide(dst: Reg, value: u64) -> [Insn; 2] {
    let halves = (value as u32 as i32, (value >> 32) as u32 as i32);
    [
        insn(LD_IMM64, dst, Reg::R0, 0, halves.0),
        insn(0, Reg::R0, Reg::R0, 0, halves.1),
    ]
}

/// `dst` = a map, by its file descriptor in the process that loads the program; two instructions.
#[must_use]
pub const fn map(dst: Reg, fd: i32) -> [Insn; 2] {
    // Not a source register here: BPF_PSEUDO_MAP_FD, 1.
    [
        insn(LD_IMM64, dst, Reg::R1, 0, fd),
        insn(0, Reg::R0, Reg::R0, 0, 0),
    ]
}

/// The lowest `bits` (16, 32 or 64) of `dst`, from big-endian to the machine's order; the rest
/// becomes 0.
#[must_use]
pub const fn from_big_endian(dst: Reg, bits: i32) -> Insn {
    insn(TO_BIG_ENDIAN, dst, Reg::R0, 0, bits)
}

/// `dst = *(size *)(base + offset)`, zero-extended.
#[must_use]
pub const fn load(size: Size, dst: Reg, base: Reg, offset: i16) -> Insn {
    insn(LDX_MEM | size.bits(), dst, base, offset, 0)
}

/// `*(size *)(base + offset) = operand`.
#[must_use]
pub fn store(size: Size, base: Reg, offset: i16, operand: impl Into<Operand>) -> Insn {
    match operand.into() {
        Operand::Reg(src) => insn(STX_MEM | size.bits(), base, src, offset, 0),
        Operand::Imm(immediate) => insn(ST_MEM | size.bits(), base, Reg::R0, offset, immediate),
    }
}

/// Over the next `offset` instructions.
#[must_use]
pub const fn jump(offset: i16) -> Insn {
    insn(JA, Reg::R0, Reg::R0, offset, 0)
}

/// Over the next `offset` instructions if the 64-bit comparison holds.
#[must_use]
pub fn jump_if(comparison: Jump, dst: Reg, operand: impl Into<Operand>, offset: i16) -> Insn {
    with_operand(JMP | comparison as u8, dst, operand.into(), offset)
}

/// Over the next `offset` instructions if the 32-bit comparison holds.
#[must_use]
pub fn jump32_if(comparison: Jump, dst: Reg, operand: impl Into<Operand>, offset: i16) -> Insn {
    with_operand(JMP32 | comparison as u8, dst, operand.into(), offset)
}

/// Calls a helper by its number: R1 to R5 in, R0 out.
#[must_use]
pub const fn call(helper: i32) -> Insn {
    insn(CALL, Reg::R0, Reg::R0, 0, helper)
}

/// Ends the program with R0.
#[must_use]
pub const fn exit() -> Insn {
    insn(EXIT, Reg::R0, Reg::R0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as the instruction set puts them.
    #[test]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        let bytes = |insn: Insn| {
            let [low, high] = insn.offset.to_le_bytes();
            let [a, b, c, d] = insn.immediate.to_le_bytes();
            [insn.opcode, insn.registers, low, high, a, b, c, d]
        };
        for (insn, expected) in [
            (
                alu64(Alu::Mov, Reg::R6, Reg::R1),
                [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
            ),
            (
                alu32(Alu::And, Reg::R8, 15),
                [0x54, 0x08, 0, 0, 15, 0, 0, 0],
            ),
            (negate32(Reg::R8), [0x84, 0x08, 0, 0, 0, 0, 0, 0]),
            (
                from_big_endian(Reg::R8, 16),
                [0xdc, 0x08, 0, 0, 16, 0, 0, 0],
            ),
            (
                load(Size::Half, Reg::R8, Reg::R2, 12),
                [0x69, 0x28, 12, 0, 0, 0, 0, 0],
            ),
            (
                load(Size::Byte, Reg::R0, Reg::R10, -4),
                [0x71, 0xa0, 0xfc, 0xff, 0, 0, 0, 0],
            ),
            (
                store(Size::Word, Reg::R10, -4, 0),
                [0x62, 0x0a, 0xfc, 0xff, 0, 0, 0, 0],
            ),
            (
                store(Size::Double, Reg::R10, -8, Reg::R1),
                [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0],
            ),
            (jump(-1), [0x05, 0, 0xff, 0xff, 0, 0, 0, 0]),
            (
                jump_if(Jump::Gt, Reg::R1, Reg::R3, 3),
                [0x2d, 0x31, 3, 0, 0, 0, 0, 0],
            ),
            (
                jump32_if(Jump::Ne, Reg::R8, 0x800, 3),
                [0x56, 0x08, 3, 0, 0, 8, 0, 0],
            ),
            (call(26), [0x85, 0, 0, 0, 26, 0, 0, 0]),
            (exit(), [0x95, 0, 0, 0, 0, 0, 0, 0]),
            (wide(Reg::R0, 1 << 33)[1], [0, 0, 0, 0, 2, 0, 0, 0]),
            (map(Reg::R2, 7)[0], [0x18, 0x12, 0, 0, 7, 0, 0, 0]),
        ] {
            assert_eq!(bytes(insn), expected, "{insn:?}");
        }
    }
}
