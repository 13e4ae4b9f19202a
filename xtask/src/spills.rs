//! Spills of 32-bit registers, widened to the whole 8 bytes of their stack slot.
//!
//! LLVM spills `w1` by a 4-byte store into a slot of 8 bytes. An older verifier (of Linux 6.1; not of
//! 6.12) takes such a store into a slot that was spilled to before for an attack on what was there
//! ("attempt to corrupt spilled pointer on stack"), unless the agent has CAP_PERFMON, which it shall
//! not need. LLVM has no switch against it: 32-bit registers come with the atomics (target CPU v3)
//! that budgets are counted by. So
//!
//! ```text
//! *(u32 *)(r10 - 56) = w1    63 1a c8 ff 00 00 00 00    becomes
//! *(u64 *)(r10 - 56) = r1    7b 1a c8 ff 00 00 00 00    and likewise the loads
//! ```
//!
//! To store and load the whole register is the same as never to have spilled it. It is done to a
//! slot only if
//! - its upper half is nobody else's: no other access of the function, by the frame pointer, touches
//!   it, and no address is taken at or below it (an object on the stack reaches up from its address);
//! - on no way through the function 8 bytes are loaded where 4 were stored last, for then somebody
//!   puts them together from two halves. (That 4- and 8-byte spills share a slot in turn is common.)

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::Context as _;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

/// Bytes of an instruction: opcode, registers (source high, destination low), offset, immediate.
const INSTRUCTION: usize = 8;
/// The frame pointer.
const R10: u8 = 10;

const CLASS: u8 = 0x07;
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const JUMP: u8 = 0x05;
const JUMP_32: u8 = 0x06;
const SIZE: u8 = 0x18;
const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;
const DOUBLE: u8 = 0x18;
const MODE: u8 = 0xe0;
const MEM: u8 = 0x60;

/// Of jumps.
const OPERATION: u8 = 0xf0;
const ALWAYS: u8 = 0x00;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;

/// The one instruction of 16 bytes.
const LOAD_DOUBLE: u8 = 0x18;
/// `rX = r10`.
const MOV_REGISTER: u8 = 0xbf;
/// `rX += immediate`.
const ADD_IMMEDIATE: u8 = 0x07;

/// Widens what can be; how many slots.
///
/// # Errors
/// The object is no ELF object, or its functions are not where it says.
pub(crate) fn widen(object: &mut [u8]) -> anyhow::Result<usize> {
    let functions = functions(object)?;
    let mut slots = 0;
    for function in functions {
        let code = object
            .get_mut(function)
            .context("a function is not in the object")?;
        slots += widen_function(code);
    }
    Ok(slots)
}

/// Where each function's code is in the file.
fn functions(bytes: &[u8]) -> anyhow::Result<Vec<Range<usize>>> {
    let file = object::File::parse(bytes)?;
    let mut functions = Vec::new();
    for symbol in file.symbols() {
        if symbol.kind() != SymbolKind::Text || symbol.size() == 0 {
            continue;
        }
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file.section_by_index(index)?;
        let Some((start, _)) = section.file_range() else {
            continue;
        };
        if section.kind() == SectionKind::Text {
            let start = usize::try_from(start + symbol.address() - section.address())?;
            functions.push(start..start + usize::try_from(symbol.size())?);
        }
    }
    functions.sort_by_key(|function| function.start);
    functions.dedup();
    Ok(functions)
}

/// A load or store by the frame pointer.
#[derive(Debug, Clone, Copy)]
struct Access {
    /// Number of the instruction.
    at: usize,
    offset: i16,
    bytes: i16,
    /// Of a register as it is: neither an immediate value nor an atomic.
    is_plain: bool,
    is_load: bool,
}

fn widen_function(code: &mut [u8]) -> usize {
    let Some(lowest_address) = lowest_address(code) else {
        return 0;
    };
    let accesses = accesses(code);
    let slots: BTreeSet<i16> = accesses
        .iter()
        .filter(|access| access.bytes == 4 && access.offset % 8 == 0)
        .map(|access| access.offset)
        .filter(|&slot| i32::from(slot) + 8 <= lowest_address)
        .filter(|&slot| {
            accesses
                .iter()
                .filter(|access| access.offset < slot + 8 && access.offset + access.bytes > slot)
                .all(|access| access.offset == slot && access.bytes >= 4 && access.is_plain)
        })
        .filter(|&slot| !is_put_together(code, slot, &accesses))
        .collect();
    for access in accesses
        .iter()
        .filter(|access| access.bytes == 4 && slots.contains(&access.offset))
    {
        code[access.at * INSTRUCTION] |= DOUBLE;
    }
    slots.len()
}

fn accesses(code: &[u8]) -> Vec<Access> {
    let mut accesses = Vec::new();
    for (at, instruction) in instructions(code) {
        let (opcode, source, destination) = fields(instruction);
        let base = match opcode & CLASS {
            LDX => source,
            ST | STX => destination,
            _ => continue,
        };
        if base == R10 {
            accesses.push(Access {
                at,
                offset: i16::from_le_bytes([instruction[2], instruction[3]]),
                bytes: match opcode & SIZE {
                    WORD => 4,
                    HALF => 2,
                    BYTE => 1,
                    _ => 8,
                },
                is_plain: opcode & MODE == MEM && opcode & CLASS != ST,
                is_load: opcode & CLASS == LDX,
            });
        }
    }
    accesses
}

/// Whether 8 bytes are loaded from the slot on a way through the function on which 4 were stored last.
fn is_put_together(code: &[u8], slot: i16, accesses: &[Access]) -> bool {
    let accesses: BTreeMap<usize, &Access> = accesses
        .iter()
        .filter(|access| access.offset == slot)
        .map(|access| (access.at, access))
        .collect();
    // An instruction, and whether 4 bytes were stored last before it.
    let mut ways = vec![(0, false)];
    let mut gone = BTreeSet::new();
    while let Some((at, mut half)) = ways.pop() {
        if !gone.insert((at, half)) {
            continue;
        }
        match accesses.get(&at) {
            Some(access) if access.is_load && access.bytes == 8 && half => return true,
            Some(access) if !access.is_load => half = access.bytes == 4,
            _ => {}
        }
        ways.extend(next(code, at).into_iter().flatten().map(|at| (at, half)));
    }
    false
}

/// Where the function goes on after an instruction: nowhere, or to one or two others.
fn next(code: &[u8], at: usize) -> [Option<usize>; 2] {
    let Some(instruction) = code.chunks_exact(INSTRUCTION).nth(at) else {
        return [None, None];
    };
    let (opcode, ..) = fields(instruction);
    let offset = i16::from_le_bytes([instruction[2], instruction[3]]);
    let jump = |distance: i32| (at + 1).checked_add_signed(isize::try_from(distance).ok()?);
    match (opcode & CLASS, opcode & OPERATION) {
        (LD, _) if opcode == LOAD_DOUBLE => [Some(at + 2), None],
        (JUMP | JUMP_32, EXIT) => [None, None],
        (JUMP, ALWAYS) => [jump(offset.into()), None],
        (JUMP_32, ALWAYS) => [jump(immediate(instruction)), None],
        (JUMP | JUMP_32, operation) if operation != CALL => [Some(at + 1), jump(offset.into())],
        _ => [Some(at + 1), None],
    }
}

fn immediate(instruction: &[u8]) -> i32 {
    i32::from_le_bytes([
        instruction[4],
        instruction[5],
        instruction[6],
        instruction[7],
    ])
}

/// The lowest offset from the frame pointer whose address is taken, 0 if none is. `None` if that
/// cannot be told: an address is made otherwise than by `rX = r10; rX += offset`.
fn lowest_address(code: &[u8]) -> Option<i32> {
    let mut lowest = 0;
    let mut previous = None;
    for (_, instruction) in instructions(code) {
        let (opcode, source, destination) = fields(instruction);
        if let Some(copy) = previous.take() {
            if opcode != ADD_IMMEDIATE || destination != copy {
                return None;
            }
            lowest = lowest.min(immediate(instruction));
        } else if opcode == MOV_REGISTER && source == R10 {
            previous = Some(destination);
        }
    }
    Some(lowest)
}

/// Numbered; the second half of a 16-byte one has opcode 0 and no class of ours.
fn instructions(code: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    code.chunks_exact(INSTRUCTION).enumerate()
}

fn fields(instruction: &[u8]) -> (u8, u8, u8) {
    (instruction[0], instruction[1] >> 4, instruction[1] & 0x0f)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `*(u32 *)(r10 + offset) = w1`
    fn store(offset: i16) -> [u8; 8] {
        let [low, high] = offset.to_le_bytes();
        [0x63, 0x1a, low, high, 0, 0, 0, 0]
    }

    /// `w1 = *(u32 *)(r10 + offset)`
    fn load(offset: i16) -> [u8; 8] {
        let [low, high] = offset.to_le_bytes();
        [0x61, 0xa1, low, high, 0, 0, 0, 0]
    }

    /// `r2 = r10; r2 += offset`
    fn address(offset: i8) -> [[u8; 8]; 2] {
        let high = if offset < 0 { 0xff } else { 0 };
        [
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, offset.to_le_bytes()[0], high, high, high],
        ]
    }

    fn opcodes(instructions: &[[u8; 8]]) -> (usize, Vec<u8>) {
        let mut code = instructions.concat();
        let slots = widen_function(&mut code);
        (slots, code.chunks(8).map(|i| i[0]).collect())
    }

    #[test]
    fn a_slot_of_its_own_is_stored_and_loaded_whole() {
        let code = [store(-16), store(-16), load(-16), store(-24)];
        assert_eq!(opcodes(&code), (2, vec![0x7b, 0x7b, 0x79, 0x7b]));
    }

    #[test]
    fn a_slot_whose_upper_half_somebody_uses_stays() {
        assert_eq!(opcodes(&[store(-16), store(-12)]).0, 0);
        let byte = [0x71, 0xa1, 0xf5, 0xff, 0, 0, 0, 0];
        assert_eq!(opcodes(&[store(-16), byte]), (0, vec![0x63, 0x71]));
        // A constant is stored in four bytes, as ever.
        let constant = [0x62, 0x0a, 0xf0, 0xff, 7, 0, 0, 0];
        assert_eq!(opcodes(&[store(-16), constant]), (0, vec![0x63, 0x62]));
    }

    #[test]
    fn a_slot_that_spills_of_both_sizes_use_in_turn_is_used_whole() {
        let double = |opcode: u8, registers: u8| [opcode, registers, 0xf0, 0xff, 0, 0, 0, 0];
        let (store_double, load_double) = (double(0x7b, 0x1a), double(0x79, 0xa1));
        let code = [store_double, load_double, store(-16), load(-16)];
        assert_eq!(opcodes(&code), (1, vec![0x7b, 0x79, 0x7b, 0x79]));
        // Half of the eight bytes is new.
        let code = [store_double, store(-16), load_double];
        assert_eq!(opcodes(&code).0, 0);
        // By a jump back to the load.
        let back = [0x55, 0x01, 0xfd, 0xff, 0, 0, 0, 0];
        let code = [store_double, load_double, store(-16), back];
        assert_eq!(opcodes(&code).0, 0);
        // Never by the jump over it, or after the end.
        let over = [0x05, 0, 1, 0, 0, 0, 0, 0];
        let code = [store(-16), over, load_double];
        assert_eq!(opcodes(&code).0, 1);
        let code = [store(-16), [0x95, 0, 0, 0, 0, 0, 0, 0], load_double];
        assert_eq!(opcodes(&code).0, 1);
    }

    #[test]
    fn a_slot_that_may_lie_in_an_object_on_the_stack_stays() {
        let [copy, add] = address(-24);
        assert_eq!(opcodes(&[store(-16), copy, add]).0, 0);
        assert_eq!(opcodes(&[store(-24), copy, add]).0, 0);
        assert_eq!(opcodes(&[store(-32), copy, add]).0, 1);
        // Who knows where that points to.
        assert_eq!(opcodes(&[store(-32), copy, store(-40)]).0, 0);
    }
}
