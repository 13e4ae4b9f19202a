//! Filter programs, interpreted: libpcap's verdict (`pcap_filter` of bpf_filter.c, libpcap 1.10) on
//! the frame that the file will hold, whatever the snaplen. The agent lets in no program that its
//! checker (`remora_capture::filter::program`) refuses.
//!
//! The frame is not always the packet's bytes: a VLAN tag that the kernel keeps outside of them
//! stands at offset 12 of the frame, and a packet that starts with its IP header has a synthetic
//! Ethernet header in the file, which counts for its length alone (its programs are compiled for
//! raw IP).
//!
//! Each instruction is a step of `bpf_loop`: unrolled, a program's length of them would be too many
//! jumps for the verifier. What a step leaves to the next is in the [`Machine`], in a map, so that to
//! the verifier all steps are alike.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use remora_agent_common::{
    SESSION_SLOTS,
    program::{Instruction, PROGRAM_MAX, PROGRAM_POOL, SCRATCH_CELLS},
    record::ETHERNET_HEADER,
};

use crate::{
    maps,
    scratch::Scratch,
    skb::{Skb, VLAN_TAG},
    table,
};

/// Where a tag stands in the frame, and where it ends.
const TAG_START: u32 = ETHERNET_HEADER - 2;
const TAG_END: u32 = TAG_START + VLAN_TAG;

// An instruction's code, bit by bit (linux/bpf_common.h, v6.18).
const CLASS: u16 = 0x07;
const LD: u16 = 0x00;
const LDX: u16 = 0x01;
const ST: u16 = 0x02;
const STX: u16 = 0x03;
const ALU: u16 = 0x04;
const JMP: u16 = 0x05;
const RET: u16 = 0x06;
const SIZE: u16 = 0x18;
const WORD: u16 = 0x00;
const HALF: u16 = 0x08;
const BYTE: u16 = 0x10;
const MODE: u16 = 0xe0;
const IMM: u16 = 0x00;
const ABS: u16 = 0x20;
const IND: u16 = 0x40;
const MEM: u16 = 0x60;
const LEN: u16 = 0x80;
const MSH: u16 = 0xa0;
const OPERATION: u16 = 0xf0;
const OPERAND_X: u16 = 0x08;
const RETURN_A: u16 = 0x10;
const TXA: u16 = 0x80;

/// The state of a run, in a [`Scratch`].
#[repr(C)]
pub(crate) struct Machine {
    /// The program's place in the pool.
    start: u32,
    len: u32,
    /// The next instruction's number.
    at: u32,
    a: u32,
    x: u32,
    verdict: u32,
    frame_len: u32,
    reserved: u32,
    /// Not cleared: no program reads a cell that it has not set.
    memory: [u32; SCRATCH_CELLS],
}

/// What a round of sessions is called with. On the stack, as the kernel wants it.
#[repr(C)]
struct Visit {
    skb: Skb,
    scratch: *mut Scratch,
}

/// What a step is called with.
#[repr(C)]
struct Run {
    skb: Skb,
    machine: *mut Machine,
}

/// Asks the programs of the sessions that have one; those that take the packet are taken already.
#[inline(always)]
pub(crate) fn each<const L3: bool>(skb: Skb, scratch: *mut Scratch) {
    // SAFETY: the scratch is the caller's.
    let s = unsafe { &mut *scratch };
    s.left = s.taken & s.programs;
    if s.left == 0 {
        return;
    }
    let mut frame_len = skb.len();
    if L3 {
        frame_len += ETHERNET_HEADER;
    } else if skb.vlan_present() != 0 {
        frame_len += VLAN_TAG;
    }
    s.frame_len = frame_len;
    let mut visit = Visit { skb, scratch };
    // SAFETY: the callback has the type that bpf_loop calls (kernel/bpf/bpf_iter.c, v5.17), and
    // `visit` outlives the call.
    unsafe {
        bpf_loop(
            SESSION_SLOTS,
            ask::<L3> as extern "C" fn(u64, *mut Visit) -> c_long as *mut c_void,
            (&raw mut visit).cast(),
            0,
        );
    }
}

/// Asks the program of the lowest session that is left.
extern "C" fn ask<const L3: bool>(_: u64, visit: *mut Visit) -> c_long {
    // SAFETY: bpf_loop hands on the pointer to the caller's live stack slot.
    let &mut Visit { skb, scratch } = unsafe { &mut *visit };
    // SAFETY: the scratch is this program's.
    let s = unsafe { &mut *scratch };
    let Some(slot) = s.next() else { return 1 };
    let Some(session) = table::array(&maps::SESSIONS, slot) else {
        return 1;
    };
    let span = if L3 { &session.ip } else { &session.ethernet };
    let machine = &raw mut s.machine;
    // SAFETY: the machine is the scratch's. Volatile: zeroes side by side would become a loop.
    unsafe {
        (&raw mut (*machine).start).write_volatile(span.start);
        (&raw mut (*machine).len).write_volatile(span.len);
        (&raw mut (*machine).frame_len).write_volatile(s.frame_len);
        (&raw mut (*machine).at).write_volatile(0);
        (&raw mut (*machine).a).write_volatile(0);
        (&raw mut (*machine).x).write_volatile(0);
        (&raw mut (*machine).verdict).write_volatile(0);
    }
    let mut run = Run { skb, machine };
    // SAFETY: as above.
    let takes = unsafe {
        bpf_loop(
            PROGRAM_MAX,
            step::<L3> as extern "C" fn(u64, *mut Run) -> c_long as *mut c_void,
            (&raw mut run).cast(),
            0,
        );
        (*machine).verdict != 0
    };
    s.taken &= !(u64::from(!takes) << slot);
    0
}

/// One instruction. 1 ends the program.
extern "C" fn step<const L3: bool>(_: u64, run: *mut Run) -> c_long {
    // SAFETY: bpf_loop hands on the pointer to the caller's live stack slot.
    let run = unsafe { &*run };
    let skb = &run.skb;
    // SAFETY: the scratch is this program's.
    let m = unsafe { &mut *run.machine };
    let at = m.at;
    if at >= m.len {
        return 1;
    }
    m.at = at + 1;
    let place = m.start.wrapping_add(at) & (PROGRAM_POOL - 1);
    let Some(&Instruction { code, jt, jf, k }) = table::array(&maps::PROGRAMS, place) else {
        return 1;
    };
    match code & CLASS {
        LD => match load::<L3>(skb, m, code, k) {
            Some(value) => m.a = value,
            None => return 1,
        },
        LDX => match load::<L3>(skb, m, code, k) {
            Some(value) => m.x = value,
            None => return 1,
        },
        ST => m.memory[k as usize & (SCRATCH_CELLS - 1)] = m.a,
        STX => m.memory[k as usize & (SCRATCH_CELLS - 1)] = m.x,
        ALU => match calculate(m, code, k) {
            Some(value) => m.a = value,
            None => return 1,
        },
        JMP => m.at = m.at.wrapping_add(jump(m, code, jt, jf, k)),
        RET => {
            m.verdict = if code & 0x18 == RETURN_A { m.a } else { k };
            return 1;
        }
        _ => {
            if code & 0xf8 == TXA {
                m.a = m.x;
            } else {
                m.x = m.a;
            }
        }
    }
    0
}

/// What a load gives; nothing if it reaches outside of the packet.
#[inline(always)]
fn load<const L3: bool>(skb: &Skb, m: &Machine, code: u16, k: u32) -> Option<u32> {
    match code & MODE {
        IMM => Some(k),
        LEN => Some(m.frame_len),
        MEM => Some(m.memory[k as usize & (SCRATCH_CELLS - 1)]),
        ABS => bytes::<L3>(skb, k, code & SIZE),
        IND => bytes::<L3>(skb, m.x.checked_add(k)?, code & SIZE),
        MSH => Some((bytes::<L3>(skb, k, BYTE)? & 0x0f) << 2),
        _ => None,
    }
}

#[inline(never)]
fn bytes_at(skb: &Skb, offset: u32, size: u16) -> u64 {
    /// No load of four bytes gives it.
    const OUTSIDE: u64 = 1 << 32;
    match size {
        WORD => skb
            .load::<4>(offset)
            .map_or(OUTSIDE, |b| u64::from(u32::from_be_bytes(b))),
        HALF => skb
            .load::<2>(offset)
            .map_or(OUTSIDE, |b| u64::from(u16::from_be_bytes(b))),
        _ => skb.load::<1>(offset).map_or(OUTSIDE, |b| u64::from(b[0])),
    }
}

#[inline(always)]
fn bytes<const L3: bool>(skb: &Skb, offset: u32, size: u16) -> Option<u32> {
    if !L3 && skb.vlan_present() != 0 {
        return tagged(skb, offset, size);
    }
    u32::try_from(bytes_at(skb, offset, size)).ok()
}

/// From the frame with its tag put back.
#[inline(always)]
fn tagged(skb: &Skb, offset: u32, size: u16) -> Option<u32> {
    let first = tagged_byte(skb, offset);
    if size != WORD && size != HALF {
        return u32::try_from(first).ok();
    }
    let two = first << 8 | tagged_byte(skb, offset.checked_add(1)?);
    if size == HALF {
        return u32::try_from(two).ok();
    }
    let three = two << 8 | tagged_byte(skb, offset.checked_add(2)?);
    u32::try_from(three << 8 | tagged_byte(skb, offset.checked_add(3)?)).ok()
}

/// More than 32 bits, also when bytes follow, if there is no such byte.
#[inline(never)]
fn tagged_byte(skb: &Skb, offset: u32) -> u64 {
    const OUTSIDE: u64 = 1 << 32;
    let tag = u32::from(u16::from_be(skb.vlan_proto() as u16)) << 16 | skb.vlan_tci() & 0xffff;
    let inside = if offset < TAG_START {
        offset
    } else if offset < TAG_END {
        return u64::from(tag >> (8 * (TAG_END - 1 - offset)) & 0xff);
    } else {
        offset - VLAN_TAG
    };
    skb.load::<1>(inside).map_or(OUTSIDE, |b| u64::from(b[0]))
}

#[inline(always)]
fn calculate(m: &Machine, code: u16, k: u32) -> Option<u32> {
    let operand = if code & OPERAND_X != 0 { m.x } else { k };
    let a = m.a;
    Some(match code & OPERATION {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 if operand == 0 => return None,
        0x30 => a / operand,
        0x40 => a | operand,
        0x50 => a & operand,
        0x60 if operand >= 32 => 0,
        0x60 => a << (operand & 31),
        0x70 if operand >= 32 => 0,
        0x70 => a >> (operand & 31),
        0x80 => a.wrapping_neg(),
        0x90 if operand == 0 => return None,
        0x90 => a % operand,
        0xa0 => a ^ operand,
        _ => return None,
    })
}

/// How many instructions are skipped.
#[inline(always)]
fn jump(m: &Machine, code: u16, jt: u8, jf: u8, k: u32) -> u32 {
    let operand = if code & OPERAND_X != 0 { m.x } else { k };
    let holds = match code & OPERATION {
        0x00 => return k,
        0x10 => m.a == operand,
        0x20 => m.a > operand,
        0x30 => m.a >= operand,
        _ => m.a & operand != 0,
    };
    u32::from(if holds { jt } else { jf })
}
