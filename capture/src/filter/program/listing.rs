//! A program as `tcpdump -d` prints it.

use std::fmt;

use super::{
    Operation, Program,
    operation::{Arithmetic, Comparison, Operand, Register, Width},
};

impl fmt::Display for Program {
    /// A line an instruction, without a line break at the end; tcpdump's layout to the blank.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, operation) in self.operations().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            let (name, operand) = words(operation, at);
            write!(f, "({at:03}) {name:<8} ")?;
            if let Operation::JumpIf {
                then, otherwise, ..
            } = operation
            {
                let to = |distance: u8| at + 1 + usize::from(distance);
                write!(f, "{operand:<16} jt {}\tjf {}", to(then), to(otherwise))?;
            } else {
                f.write_str(&operand)?;
            }
        }
        Ok(())
    }
}

fn words(operation: Operation, at: usize) -> (&'static str, String) {
    let load = |register| match register {
        Register::A => "ld",
        Register::X => "ldx",
    };
    match operation {
        Operation::LoadAbsolute { width, offset } => (of_width(width), format!("[{offset}]")),
        Operation::LoadIndexed { width, offset } => (of_width(width), format!("[x + {offset}]")),
        Operation::LoadHeaderLength { offset } => ("ldxb", format!("4*([{offset}]&0xf)")),
        Operation::LoadLength(register) => (load(register), "#pktlen".to_owned()),
        Operation::LoadConstant(register, value) => (load(register), format!("#{value:#x}")),
        Operation::LoadScratch(register, cell) => (load(register), format!("M[{cell}]")),
        Operation::StoreScratch(Register::A, cell) => ("st", format!("M[{cell}]")),
        Operation::StoreScratch(Register::X, cell) => ("stx", format!("M[{cell}]")),
        Operation::Arithmetic(arithmetic, operand) => calculation(arithmetic, operand),
        Operation::Negate => ("neg", String::new()),
        Operation::Jump(distance) => ("ja", (at + 1 + distance as usize).to_string()),
        Operation::JumpIf {
            comparison,
            operand,
            ..
        } => {
            let name = match comparison {
                Comparison::Equal => "jeq",
                Comparison::Greater => "jgt",
                Comparison::GreaterOrEqual => "jge",
                Comparison::AnyBit => "jset",
            };
            (name, hexadecimal(operand))
        }
        Operation::Return(operand) => match operand {
            Operand::Constant(_) => ("ret", decimal(operand)),
            Operand::Register(_) => ("ret", String::new()),
        },
        Operation::CopyToX => ("tax", String::new()),
        Operation::CopyToA => ("txa", String::new()),
    }
}

fn of_width(width: Width) -> &'static str {
    match width {
        Width::Word => "ld",
        Width::Half => "ldh",
        Width::Byte => "ldb",
    }
}

fn calculation(arithmetic: Arithmetic, operand: Operand) -> (&'static str, String) {
    match arithmetic {
        Arithmetic::Add => ("add", decimal(operand)),
        Arithmetic::Subtract => ("sub", decimal(operand)),
        Arithmetic::Multiply => ("mul", decimal(operand)),
        Arithmetic::Divide => ("div", decimal(operand)),
        Arithmetic::Modulo => ("mod", decimal(operand)),
        Arithmetic::Or => ("or", hexadecimal(operand)),
        Arithmetic::And => ("and", hexadecimal(operand)),
        Arithmetic::Xor => ("xor", hexadecimal(operand)),
        Arithmetic::ShiftLeft => ("lsh", decimal(operand)),
        Arithmetic::ShiftRight => ("rsh", decimal(operand)),
    }
}

/// Signed, as C prints an `int`.
fn decimal(operand: Operand) -> String {
    match operand {
        Operand::Constant(value) => format!("#{}", value.cast_signed()),
        Operand::Register(_) => "x".to_owned(),
    }
}

fn hexadecimal(operand: Operand) -> String {
    match operand {
        Operand::Constant(value) => format!("#{value:#x}"),
        Operand::Register(_) => "x".to_owned(),
    }
}
