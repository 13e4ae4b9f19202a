//! Classic BPF to eBPF: the filter programs of several sessions as one program, which tells in one
//! run which of them take a packet.
//!
//! ```text
//! R1 = ctx ─▶ R6 = ctx, R7 = 0 ─▶ program of slot a ─▶ ... ─▶ program of slot z ─▶ epilogue
//!                                     takes: R7 |= 1 << a                           R6, R7
//!
//! of each program two versions:
//!   enter ─▶ direct ──────────────────────────────▶ next program's enter
//!               │ not in the linear bytes, IPv4 options, offset from the packet
//!               ▼ (same instruction, same A, X and scratch cells)
//!            by helper ───────────────────────────▶ next program's enter
//! ```
//! - [`insn`]: eBPF instructions. `assembler`: jumps forward.
//! - `body`: the two versions of one program.
//!
//! The **direct** version reads the packet's linear bytes by constant offsets. It takes for granted
//! what is so for nearly every packet (the bytes are there, an IPv4 header has 20 bytes), checks that,
//! and gives over to the version by **helper** where it is not: registers and cells are the same
//! in both, so they can change at any instruction. `bpf_skb_load_bytes` reads every byte of the
//! packet and so has the last word on where it ends.
//!
//! | register | direct | by helper |
//! |---|---|---|
//! | R0, R1 | scratch | scratch, arguments |
//! | R2, R3 | start and end of the linear bytes | arguments |
//! | R6, R7 | context, bitmap of the slots that take the packet | same |
//! | R8, R9 | A, X | same |
//! | R10 - 8 | - | what the helper has read |
//! | R10 - 16 - 8 n | scratch cell n | same |
//!
//! Without CAP_PERFMON the verifier has a fence put behind every store to a stack slot that may be
//! unwritten, or hold a spilled register: so there is one a change of version and none a read, and one
//! where a program uses a scratch cell, which few do. Nor may a number be added to a packet pointer
//! there: an offset that the packet gives is the helper's, except for the 20 bytes.
//!
//! The verdict is that of libpcap's `bpf_filter` on the frame's bytes. A VLAN tag that the kernel keeps
//! beside the packet (`skb->vlan_present`) is no byte of it: such a packet is not for this program,
//! and the caller's code before it has to see to that.

mod assembler;
mod body;
pub mod insn;

use remora_capture::filter::program::Program;

use self::{
    assembler::Assembler,
    body::Translation,
    insn::{Alu, Insn, Reg, Size, alu64, load},
};

/// Offsets of `struct __sk_buff` (linux/bpf.h, v6.18).
mod context {
    pub(super) const LEN: i16 = 0;
    pub(super) const DATA: i16 = 76;
    pub(super) const DATA_END: i16 = 80;
}

/// What a packet begins with where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// `sched_cls`: the Ethernet header.
    Ethernet,
    /// `cgroup_skb`: the IP header. A length is told with the 14 bytes of the Ethernet header that
    /// the file puts before it.
    Ip,
}

/// How the packet is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Directly where possible.
    #[default]
    Direct,
    /// By helper alone, as packets are whose headers are not linear; for tests and measurements.
    ByHelper,
}

/// Why programs stay with the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the filters are too long to be translated together; they are interpreted")]
    TooLong,
}

/// Translates the programs, each for a session slot (0..64), for packets that begin as `link` says.
///
/// Starts with the context in R1. Control falls into `epilogue` with the context in R6 and in R7 the
/// bitmap of the slots whose program returned something else than 0; R0 to R5, R8 and R9 are
/// undefined. The verifier takes R7 for any number there, so that a test of it does not make
/// every way to it another one.
///
/// # Errors
/// Too long together.
pub fn translate(
    programs: &[(u8, &Program)],
    link: Link,
    epilogue: &[Insn],
) -> Result<Vec<Insn>, Refused> {
    translate_reading(programs, link, Reading::Direct, epilogue)
}

/// [`translate`] with a choice of how the packet is read.
///
/// # Errors
/// As [`translate`].
pub fn translate_reading(
    programs: &[(u8, &Program)],
    link: Link,
    reading: Reading,
    epilogue: &[Insn],
) -> Result<Vec<Insn>, Refused> {
    let mut assembler = Assembler::default();
    assembler.emit(alu64(Alu::Mov, Reg::R6, Reg::R1));
    assembler.emit(alu64(Alu::Mov, Reg::R7, 0));
    let mut translation = Translation::new(&mut assembler, link, reading);
    for &(slot, program) in programs {
        translation.add(slot, program)?;
    }
    translation.finish();
    // The verifier follows single bits; not through a number whose 64 bits it does not know.
    assembler.emit(load(Size::Word, Reg::R1, Reg::R6, context::LEN));
    assembler.emit(alu64(Alu::Mov, Reg::R0, 0));
    assembler.emit(alu64(Alu::Sub, Reg::R0, Reg::R1));
    assembler.emit(alu64(Alu::Xor, Reg::R7, Reg::R0));
    assembler.emit(alu64(Alu::Xor, Reg::R7, Reg::R0));
    assembler.emit_all(epilogue);
    assembler.finish()
}
