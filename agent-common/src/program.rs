//! Filter programs: classic BPF as libpcap compiles it, one for each link type that packets are
//! seen with (`struct sock_filter` of linux/filter.h, v6.18).

/// One instruction, laid out as the kernel's `struct sock_filter`.
///
/// ```text
/// 0      2    3    4          8
/// +------+----+----+----------+
/// | code | jt | jf | k        |
/// +------+----+----+----------+
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

const _: () = assert!(size_of::<Instruction>() == 8);

/// Most instructions of one program, as in the kernel (`BPF_MAXINSNS`).
pub const PROGRAM_MAX: u32 = 4096;

/// Cells of scratch memory (`BPF_MEMWORDS`).
pub const SCRATCH_CELLS: usize = 16;

/// Instructions of all programs of a node together.
pub const PROGRAM_POOL: u32 = 65_536;

/// Where a program lies in the pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    /// Instructions; 0: there is no program, and nothing matches.
    pub len: u32,
}
