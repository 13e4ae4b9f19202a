//! The reference interpreter: `bpf_filter` of libpcap 1.10, instruction by instruction.

use super::{
    Frame, Instruction, Operation, SCRATCH_CELLS,
    operation::{Arithmetic, Comparison, Operand, Register, Width},
};

/// What the program returns for the packet; a load beyond it, and a division by zero, return 0.
pub(super) fn run(program: &[Instruction], frame: Frame<'_>) -> u32 {
    Machine {
        frame,
        a: 0,
        x: 0,
        scratch: [0; SCRATCH_CELLS],
    }
    .run(program)
    .unwrap_or(0)
}

struct Machine<'a> {
    frame: Frame<'a>,
    a: u32,
    x: u32,
    scratch: [u32; SCRATCH_CELLS],
}

impl Machine<'_> {
    fn run(&mut self, program: &[Instruction]) -> Option<u32> {
        let mut at = 0;
        // The checker saw to it that every way ends, and inside.
        loop {
            let operation = program.get(at)?.decode()?;
            at += 1;
            match operation {
                Operation::LoadAbsolute { width, offset } => self.a = self.load(width, offset)?,
                Operation::LoadIndexed { width, offset } => {
                    self.a = self.load(width, self.x.checked_add(offset)?)?;
                }
                Operation::LoadHeaderLength { offset } => {
                    self.x = (self.load(Width::Byte, offset)? & 0xf) * 4;
                }
                Operation::LoadLength(register) => *self.register(register) = self.frame.wire_len,
                Operation::LoadConstant(register, value) => *self.register(register) = value,
                Operation::LoadScratch(register, cell) => {
                    *self.register(register) = *self.scratch.get(cell as usize)?;
                }
                Operation::StoreScratch(register, cell) => {
                    let value = *self.register(register);
                    *self.scratch.get_mut(cell as usize)? = value;
                }
                Operation::Arithmetic(arithmetic, operand) => {
                    self.a = calculate(arithmetic, self.a, self.value(operand))?;
                }
                Operation::Negate => self.a = self.a.wrapping_neg(),
                Operation::Jump(distance) => at += distance as usize,
                Operation::JumpIf {
                    comparison,
                    operand,
                    then,
                    otherwise,
                } => {
                    let holds = holds(comparison, self.a, self.value(operand));
                    at += usize::from(if holds { then } else { otherwise });
                }
                Operation::Return(operand) => return Some(self.value(operand)),
                Operation::CopyToX => self.x = self.a,
                Operation::CopyToA => self.a = self.x,
            }
        }
    }

    fn load(&self, width: Width, offset: u32) -> Option<u32> {
        let bytes = self.frame.bytes.get(offset as usize..)?;
        Some(match width {
            Width::Word => u32::from_be_bytes(*bytes.first_chunk()?),
            Width::Half => u16::from_be_bytes(*bytes.first_chunk()?).into(),
            Width::Byte => (*bytes.first()?).into(),
        })
    }

    fn register(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::A => &mut self.a,
            Register::X => &mut self.x,
        }
    }

    fn value(&self, operand: Operand) -> u32 {
        match operand {
            Operand::Constant(value) => value,
            Operand::Register(Register::A) => self.a,
            Operand::Register(Register::X) => self.x,
        }
    }
}

fn calculate(arithmetic: Arithmetic, a: u32, b: u32) -> Option<u32> {
    Some(match arithmetic {
        Arithmetic::Add => a.wrapping_add(b),
        Arithmetic::Subtract => a.wrapping_sub(b),
        Arithmetic::Multiply => a.wrapping_mul(b),
        Arithmetic::Divide => a.checked_div(b)?,
        Arithmetic::Modulo => a.checked_rem(b)?,
        Arithmetic::Or => a | b,
        Arithmetic::And => a & b,
        Arithmetic::Xor => a ^ b,
        // libpcap's; Linux' machine code looks at the lowest 5 bits alone.
        Arithmetic::ShiftLeft => a.checked_shl(b).unwrap_or(0),
        Arithmetic::ShiftRight => a.checked_shr(b).unwrap_or(0),
    })
}

fn holds(comparison: Comparison, a: u32, b: u32) -> bool {
    match comparison {
        Comparison::Equal => a == b,
        Comparison::Greater => a > b,
        Comparison::GreaterOrEqual => a >= b,
        Comparison::AnyBit => a & b != 0,
    }
}
