//! Which programs are let in.
//!
//! The rules are those of Linux for socket filters (`bpf_check_classic` and
//! `check_load_and_stores`, net/core/filter.c v6.18), and one more: nothing is read that is not of
//! the packet, so the negative offsets by which Linux gives out an interface's number, random
//! numbers and more are refused.

use super::{Instruction, Operation, PROGRAM_MAX, SCRATCH_CELLS};
use crate::filter::program::operation::{Arithmetic, Operand};

/// A program is refused; instructions are numbered from 0, as tcpdump -d does.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProgramError {
    #[error("a filter program has 1 to {PROGRAM_MAX} instructions, not {0}")]
    Length(usize),
    #[error("a filter program has 8 bytes an instruction; {0} is no multiple of that")]
    Torn(usize),
    #[error("instruction {at} of the filter program has the unknown code {code:#06x}")]
    Code { at: usize, code: u16 },
    #[error("instruction {0} of the filter program jumps out of it")]
    Jump(usize),
    #[error("the filter program does not end in a return")]
    NoReturn,
    #[error("instruction {at} of the filter program uses scratch cell {cell} of {SCRATCH_CELLS}")]
    Cell { at: usize, cell: u32 },
    #[error(
        "instruction {0} of the filter program reads a scratch cell that is not set on every way to it"
    )]
    Unset(usize),
    #[error("instruction {0} of the filter program divides by zero")]
    DivisionByZero(usize),
    #[error("instruction {at} of the filter program shifts by {bits} of 32 bits")]
    Shift { at: usize, bits: u32 },
    #[error(
        "instruction {0} of the filter program loads from a negative offset, which is nothing of the packet"
    )]
    NotOfThePacket(usize),
}

/// Highest offset of a load: beyond, Linux reads it as negative.
const OFFSET_MAX: u32 = i32::MAX as u32;

/// A set of scratch cells, a bit each.
type Cells = u16;
const _: () = assert!(Cells::BITS as usize == SCRATCH_CELLS);

pub(super) fn check(program: &[Instruction]) -> Result<(), ProgramError> {
    let len = program.len();
    if !(1..=PROGRAM_MAX).contains(&len) {
        return Err(ProgramError::Length(len));
    }
    // Jumps go forward only, so one pass sees every way to an instruction before it. Cells that
    // are set on all ways to each, by jumps; and on the way that falls through to the next.
    let mut set_by_jumps = vec![Cells::MAX; len];
    let mut set: Cells = 0;
    for (at, instruction) in program.iter().enumerate() {
        let operation = instruction.decode().ok_or(ProgramError::Code {
            at,
            code: instruction.code,
        })?;
        set &= set_by_jumps[at];
        let mut jump = |distance: u32, set: Cells| {
            let target = usize::try_from(distance)
                .ok()
                .and_then(|distance| distance.checked_add(at + 1))
                .and_then(|target| set_by_jumps.get_mut(target))
                .ok_or(ProgramError::Jump(at))?;
            *target &= set;
            Ok(())
        };
        match operation {
            Operation::LoadAbsolute { offset, .. }
            | Operation::LoadIndexed { offset, .. }
            | Operation::LoadHeaderLength { offset } => {
                if offset > OFFSET_MAX {
                    return Err(ProgramError::NotOfThePacket(at));
                }
            }
            Operation::LoadScratch(_, cell) => {
                if set & bit(at, cell)? == 0 {
                    return Err(ProgramError::Unset(at));
                }
            }
            Operation::StoreScratch(_, cell) => set |= bit(at, cell)?,
            Operation::Arithmetic(arithmetic, Operand::Constant(k)) => {
                constant(at, arithmetic, k)?;
            }
            Operation::Jump(distance) => {
                jump(distance, set)?;
                set = Cells::MAX;
            }
            Operation::JumpIf {
                then, otherwise, ..
            } => {
                jump(then.into(), set)?;
                jump(otherwise.into(), set)?;
                set = Cells::MAX;
            }
            // No way leads on from here to the next one.
            Operation::Return(_) => set = Cells::MAX,
            Operation::LoadLength(_)
            | Operation::LoadConstant(..)
            | Operation::Arithmetic(..)
            | Operation::Negate
            | Operation::CopyToX
            | Operation::CopyToA => {}
        }
    }
    // Nothing jumps out, so this is where every way ends that did not end before.
    match program.last().and_then(|last| last.decode()) {
        Some(Operation::Return(_)) => Ok(()),
        _ => Err(ProgramError::NoReturn),
    }
}

fn bit(at: usize, cell: u32) -> Result<Cells, ProgramError> {
    1u16.checked_shl(cell)
        .ok_or(ProgramError::Cell { at, cell })
}

fn constant(at: usize, arithmetic: Arithmetic, k: u32) -> Result<(), ProgramError> {
    match arithmetic {
        Arithmetic::Divide | Arithmetic::Modulo if k == 0 => Err(ProgramError::DivisionByZero(at)),
        Arithmetic::ShiftLeft | Arithmetic::ShiftRight if k >= u32::BITS => {
            Err(ProgramError::Shift { at, bits: k })
        }
        _ => Ok(()),
    }
}
