//! One filter program in its two versions.
//!
//! ```text
//! enter:   R2, R3 = linear bytes; the least that is read directly is there?  no: ─▶ short
//! direct:  A = X = 0
//!          direct instructions ─▶ enter of the next; where one cannot be direct: ─▶ change n
//! change n: make the helper's buffer ─▶ helper n
//! short:   make the helper's buffer
//!          A = X = 0
//! helper:  instructions by helper ─▶ enter of the next
//! ```
//! Every program looks up the linear bytes for itself, so that the verifier knows the same there
//! whichever way it came: else it follows the rest once for each of them.

use remora_capture::filter::program::{
    Arithmetic, Comparison, Operand, Operation, Program, Register, Width,
};

use super::{
    Link, Reading, Refused,
    assembler::{Assembler, Label},
    context,
    insn::{
        self, Alu, Jump, Reg, Size, alu32, alu64, call, from_big_endian, load, negate32, store,
        wide,
    },
};

const SCRATCH: Reg = Reg::R0;
const BOUND: Reg = Reg::R1;
const DATA: Reg = Reg::R2;
const DATA_END: Reg = Reg::R3;
const CONTEXT: Reg = Reg::R6;
const TAKEN: Reg = Reg::R7;
const A: Reg = Reg::R8;
const X: Reg = Reg::R9;
const FRAME: Reg = Reg::R10;

/// Where the helper puts what it reads.
const BUFFER: i16 = -SLOT;

/// Bytes of a slot of the stack. Slots are written whole, also for four bytes or less: the verifier
/// sees then that what was there before does not matter, and does not follow the rest of the
/// program once for each of the ways that left something else there.
const SLOT: i16 = 8;

/// `bpf_skb_load_bytes(skb, offset, to, len)`: 0, or an error if they are not all in the packet.
const SKB_LOAD_BYTES: i32 = 26;

/// Offsets beyond it the helper refuses; it would cut those of more than 32 bits.
const HELPER_OFFSET_MAX: i32 = i32::MAX;

/// Offsets from here on are read by helper: linear bytes rarely reach so far.
const DIRECT_MAX: u64 = 4096;

/// An IPv4 header without options, in bytes and as its first byte's low half has it.
const IPV4_HEADER: u32 = 20;
const IPV4_HEADER_WORDS: i32 = 5;

const ETHERNET_HEADER: i32 = 14;

impl Link {
    const fn header(self) -> u32 {
        match self {
            Self::Ethernet => ETHERNET_HEADER as u32,
            Self::Ip => 0,
        }
    }

    /// Bytes that are there in nearly every packet (IPv4 with a UDP or ICMP header, or ARP), checked
    /// once before each program.
    const fn least(self) -> u32 {
        self.header() + 28
    }

    /// Bytes that one check reaches if the least is not enough: IPv4 with a TCP header, or IPv6.
    const fn usual(self) -> u32 {
        self.header() + 40
    }
}

/// What is known before an instruction of the direct version, whichever way led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    x: Option<u32>,
    /// Linear bytes that are there.
    linear: u32,
}

impl Known {
    /// A register was set, to something known or not.
    fn with(self, register: Register, value: Option<u32>) -> Self {
        match register {
            Register::A => self,
            Register::X => Self { x: value, ..self },
        }
    }

    fn meet(self, other: Self) -> Self {
        Self {
            x: self.x.filter(|_| self.x == other.x),
            linear: self.linear.min(other.linear),
        }
    }
}

/// Where in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    At(u32),
    /// At X and so many bytes more; beyond 32 bits is beyond the packet.
    BehindX(u32),
}

/// Which version is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Direct,
    ByHelper,
}

/// Programs one after the other.
pub(super) struct Translation<'a> {
    assembler: &'a mut Assembler,
    link: Link,
    reading: Reading,
    /// Of the program to come.
    enter: Label,
}

impl<'a> Translation<'a> {
    pub(super) fn new(assembler: &'a mut Assembler, link: Link, reading: Reading) -> Self {
        if reading == Reading::ByHelper {
            assembler.emit(store(Size::Double, FRAME, BUFFER, 0));
        }
        let enter = assembler.label();
        Self {
            assembler,
            link,
            reading,
            enter,
        }
    }

    pub(super) fn add(&mut self, slot: u8, program: &Program) -> Result<(), Refused> {
        let ops: Vec<_> = program.operations().collect();
        let next = self.assembler.label();
        let enter = std::mem::replace(&mut self.enter, next);
        let begin = self.assembler.label();
        let by_helper: Vec<_> = ops.iter().map(|_| self.assembler.label()).collect();
        self.assembler.bind(enter);
        if self.reading == Reading::Direct {
            let short = self.assembler.label();
            self.look_up_linear_bytes(short);
            let labels = ops.iter().map(|_| self.assembler.label()).collect();
            let changes = self.body(Version::Direct, slot, &ops, labels).write();
            let changes = changes
                .into_iter()
                .map(|(index, change)| (change, by_helper[index]));
            for (change, to) in changes.chain([(short, begin)]) {
                self.assembler.bind(change);
                self.assembler.emit(store(Size::Double, FRAME, BUFFER, 0));
                self.assembler.jump(to);
            }
        }
        self.assembler.bind(begin);
        self.body(Version::ByHelper, slot, &ops, by_helper).write();
        self.assembler.check_length()
    }

    fn body<'b>(
        &'b mut self,
        version: Version,
        slot: u8,
        ops: &'b [Operation],
        labels: Vec<Label>,
    ) -> Body<'b> {
        Body {
            assembler: self.assembler,
            ops,
            slot,
            link: self.link,
            version,
            labels,
            known: vec![None; ops.len()],
            changes: Vec::new(),
            next: self.enter,
        }
    }

    /// The epilogue is here.
    pub(super) fn finish(self) {
        self.assembler.bind(self.enter);
    }

    /// To `otherwise` if there are too few of them.
    fn look_up_linear_bytes(&mut self, otherwise: Label) {
        self.assembler
            .emit(load(Size::Word, DATA, CONTEXT, context::DATA));
        self.assembler
            .emit(load(Size::Word, DATA_END, CONTEXT, context::DATA_END));
        check(self.assembler, self.link.least(), otherwise);
    }
}

/// To `otherwise` if there are fewer than `bytes` linear bytes.
fn check(assembler: &mut Assembler, bytes: u32, otherwise: Label) {
    assembler.emit(alu64(Alu::Mov, BOUND, DATA));
    assembler.emit(alu64(Alu::Add, BOUND, bytes.cast_signed()));
    assembler.jump_if(Jump::Gt, BOUND, DATA_END, otherwise);
}

/// One version of one program, while it is written.
struct Body<'a> {
    assembler: &'a mut Assembler,
    ops: &'a [Operation],
    slot: u8,
    link: Link,
    version: Version,
    labels: Vec<Label>,
    /// Nothing: no way of this version leads there.
    known: Vec<Option<Known>>,
    /// Behind the program.
    next: Label,
    /// Where the other version takes over, by instruction.
    changes: Vec<(usize, Label)>,
}

impl Body<'_> {
    /// Writes it, up to jumps behind it; answers where it gives over to the other version.
    fn write(mut self) -> Vec<(usize, Label)> {
        self.assembler.emit(alu32(Alu::Mov, A, 0));
        self.assembler.emit(alu32(Alu::Mov, X, 0));
        self.reach(
            0,
            Known {
                x: Some(0),
                linear: self.link.least(),
            },
        );
        for index in 0..self.ops.len() {
            let Some(known) = self.known.get(index).copied().flatten() else {
                continue;
            };
            self.assembler.bind(self.labels[index]);
            if let Some(known) = self.op(index, known) {
                self.reach(index + 1, known);
            }
        }
        self.changes
    }

    /// A way leads to an instruction.
    fn reach(&mut self, index: usize, known: Known) {
        if let Some(to) = self.known.get_mut(index) {
            *to = Some(to.map_or(known, |other| other.meet(known)));
        }
    }

    /// Where a jump to an instruction goes. Not to a jump.
    fn target(&mut self, index: usize, known: Known) -> Label {
        if self.ops[index] == Operation::Return(Operand::Constant(0)) {
            return self.next;
        }
        self.reach(index, known);
        self.labels[index]
    }

    /// Writes one instruction; what is known behind it, if a way leads there.
    fn op(&mut self, index: usize, known: Known) -> Option<Known> {
        match self.ops[index] {
            Operation::LoadAbsolute { width, offset } => {
                self.load(index, A, size(width), Place::At(offset), known)
            }
            Operation::LoadIndexed { width, offset } => {
                self.load(index, A, size(width), Place::BehindX(offset), known)
            }
            Operation::LoadHeaderLength { offset } => self.load_header_length(index, offset, known),
            Operation::LoadLength(register) => {
                let to = machine(register);
                self.assembler
                    .emit(load(Size::Word, to, CONTEXT, context::LEN));
                if self.link == Link::Ip {
                    self.assembler.emit(alu32(Alu::Add, to, ETHERNET_HEADER));
                }
                Some(known.with(register, None))
            }
            Operation::LoadConstant(register, value) => {
                let constant = alu32(Alu::Mov, machine(register), value.cast_signed());
                self.assembler.emit(constant);
                Some(known.with(register, Some(value)))
            }
            Operation::LoadScratch(register, cell) => {
                let to = machine(register);
                self.assembler
                    .emit(load(Size::Double, to, FRAME, cell_offset(cell)));
                Some(known.with(register, None))
            }
            Operation::StoreScratch(register, cell) => {
                let from = machine(register);
                self.assembler
                    .emit(store(Size::Double, FRAME, cell_offset(cell), from));
                Some(known)
            }
            Operation::CopyToX => {
                self.assembler.emit(alu32(Alu::Mov, X, A));
                Some(known.with(Register::X, None))
            }
            Operation::CopyToA => {
                self.assembler.emit(alu32(Alu::Mov, A, X));
                Some(known)
            }
            Operation::Arithmetic(arithmetic, operand) => {
                self.arithmetic(arithmetic, operand);
                Some(known)
            }
            Operation::Negate => {
                self.assembler.emit(negate32(A));
                Some(known)
            }
            Operation::Jump(distance) => {
                let to = self.target(index + 1 + distance as usize, known);
                self.assembler.jump(to);
                None
            }
            Operation::JumpIf {
                comparison,
                operand,
                then,
                otherwise,
            } => {
                let ways = [then, otherwise].map(|distance| index + 1 + usize::from(distance));
                self.branch(index, (comparison, operand), ways, known)
            }
            Operation::Return(verdict) => {
                match verdict {
                    Operand::Constant(0) => self.assembler.jump(self.next),
                    Operand::Constant(_) => self.take(),
                    Operand::Register(register) => {
                        let verdict = machine(register);
                        self.assembler.jump32_if(Jump::Eq, verdict, 0, self.next);
                        self.take();
                    }
                }
                None
            }
        }
    }

    fn load_header_length(&mut self, index: usize, offset: u32, known: Known) -> Option<Known> {
        let known = self.load(index, X, Size::Byte, Place::At(offset), known)?;
        self.assembler.emit(alu32(Alu::And, X, 0x0f));
        if self.version == Version::ByHelper {
            self.assembler.emit(alu32(Alu::Lsh, X, 2));
            return Some(known.with(Register::X, None));
        }
        let change = self.change(index);
        self.assembler
            .jump32_if(Jump::Ne, X, IPV4_HEADER_WORDS, change);
        self.assembler
            .emit(alu32(Alu::Mov, X, IPV4_HEADER.cast_signed()));
        Some(known.with(Register::X, Some(IPV4_HEADER)))
    }

    /// A number of the packet, into `to`.
    fn load(
        &mut self,
        index: usize,
        to: Reg,
        size: Size,
        place: Place,
        known: Known,
    ) -> Option<Known> {
        let known = match self.version {
            Version::Direct => self.load_directly(index, to, size, place, known)?,
            Version::ByHelper => {
                self.load_by_helper(to, size, place)?;
                known
            }
        };
        match size {
            Size::Half => self.assembler.emit(from_big_endian(to, 16)),
            Size::Word => self.assembler.emit(from_big_endian(to, 32)),
            Size::Byte | Size::Double => {}
        }
        Some(known)
    }

    fn load_directly(
        &mut self,
        index: usize,
        to: Reg,
        size: Size,
        place: Place,
        mut known: Known,
    ) -> Option<Known> {
        let offset = match (place, known.x) {
            (Place::At(offset), _) => u64::from(offset),
            (Place::BehindX(offset), Some(x)) => u64::from(x) + u64::from(offset),
            // Ways with and without an IPv4 header have met.
            (Place::BehindX(offset), None) if self.reads_header_length() => {
                let change = self.change(index);
                self.assembler
                    .jump32_if(Jump::Ne, X, IPV4_HEADER.cast_signed(), change);
                known.x = Some(IPV4_HEADER);
                u64::from(IPV4_HEADER) + u64::from(offset)
            }
            (Place::BehindX(_), None) => DIRECT_MAX,
        };
        let end = u32::try_from(offset + u64::from(size.bytes()))
            .ok()
            .filter(|_| offset < DIRECT_MAX);
        let Some(end) = end else {
            let change = self.change(index);
            self.assembler.jump(change);
            return None;
        };
        if end > known.linear {
            known.linear = end.max(self.link.usual());
            let change = self.change(index);
            check(self.assembler, known.linear, change);
        }
        // Below DIRECT_MAX, so it fits.
        self.assembler.emit(load(size, to, DATA, offset as i16));
        Some(known)
    }

    /// Nothing is known to come where the offset cannot be.
    fn load_by_helper(&mut self, to: Reg, size: Size, place: Place) -> Option<()> {
        let offset = match place {
            Place::At(offset) | Place::BehindX(offset) => i32::try_from(offset),
        };
        let Ok(offset) = offset else {
            self.assembler.jump(self.next);
            return None;
        };
        match place {
            Place::At(_) => self.assembler.emit(alu64(Alu::Mov, Reg::R2, offset)),
            Place::BehindX(_) => {
                self.assembler.emit(alu64(Alu::Mov, Reg::R2, X));
                self.assembler.emit(alu64(Alu::Add, Reg::R2, offset));
                self.assembler
                    .jump_if(Jump::Gt, Reg::R2, HELPER_OFFSET_MAX, self.next);
            }
        }
        self.assembler.emit(alu64(Alu::Mov, Reg::R1, CONTEXT));
        self.assembler.emit(alu64(Alu::Mov, Reg::R3, FRAME));
        self.assembler
            .emit(alu64(Alu::Add, Reg::R3, i32::from(BUFFER)));
        self.assembler
            .emit(alu64(Alu::Mov, Reg::R4, size.bytes().cast_signed()));
        self.assembler.emit(call(SKB_LOAD_BYTES));
        self.assembler.jump_if(Jump::Ne, Reg::R0, 0, self.next);
        self.assembler.emit(load(size, to, FRAME, BUFFER));
        Some(())
    }

    fn arithmetic(&mut self, arithmetic: Arithmetic, operand: Operand) {
        let op = match arithmetic {
            Arithmetic::Add => Alu::Add,
            Arithmetic::Subtract => Alu::Sub,
            Arithmetic::Multiply => Alu::Mul,
            Arithmetic::Divide => Alu::Div,
            Arithmetic::Modulo => Alu::Mod,
            Arithmetic::Or => Alu::Or,
            Arithmetic::And => Alu::And,
            Arithmetic::Xor => Alu::Xor,
            Arithmetic::ShiftLeft => Alu::Lsh,
            Arithmetic::ShiftRight => Alu::Rsh,
        };
        match (op, operand) {
            (Alu::Div | Alu::Mod, Operand::Register(by)) => {
                self.assembler
                    .jump32_if(Jump::Eq, machine(by), 0, self.next);
            }
            // eBPF would take the number modulo 32.
            (Alu::Lsh | Alu::Rsh, Operand::Register(by)) => {
                let (shift, behind) = (self.assembler.label(), self.assembler.label());
                self.assembler.jump32_if(Jump::Lt, machine(by), 32, shift);
                self.assembler.emit(alu32(Alu::Mov, A, 0));
                self.assembler.jump(behind);
                self.assembler.bind(shift);
                self.assembler.emit(alu32(op, A, machine(by)));
                self.assembler.bind(behind);
                return;
            }
            _ => {}
        }
        self.assembler.emit(alu32(op, A, right(operand)));
    }

    fn branch(
        &mut self,
        index: usize,
        (comparison, operand): (Comparison, Operand),
        [then, otherwise]: [usize; 2],
        known: Known,
    ) -> Option<Known> {
        let (comparison, inverse) = match comparison {
            Comparison::Equal => (Jump::Eq, Some(Jump::Ne)),
            Comparison::Greater => (Jump::Gt, Some(Jump::Le)),
            Comparison::GreaterOrEqual => (Jump::Ge, Some(Jump::Lt)),
            Comparison::AnyBit => (Jump::Set, None),
        };
        let right = right(operand);
        let (comparison, jumps, falls) = match inverse {
            Some(inverse) if then == index + 1 => (inverse, otherwise, then),
            _ => (comparison, then, otherwise),
        };
        let to = self.target(jumps, known);
        self.assembler.jump32_if(comparison, A, right, to);
        if falls == index + 1 {
            return Some(known);
        }
        let to = self.target(falls, known);
        self.assembler.jump(to);
        None
    }

    /// The packet is the session's.
    fn take(&mut self) {
        let bit = 1_u64 << self.slot;
        match i32::try_from(bit) {
            Ok(bit) => self.assembler.emit(alu64(Alu::Or, TAKEN, bit)),
            Err(_) => {
                self.assembler.emit_all(&wide(SCRATCH, bit));
                self.assembler.emit(alu64(Alu::Or, TAKEN, SCRATCH));
            }
        }
        self.assembler.jump(self.next);
    }

    /// Where the version by helper takes over before an instruction.
    fn change(&mut self, index: usize) -> Label {
        if let Some(&(last, label)) = self.changes.last()
            && last == index
        {
            return label;
        }
        let label = self.assembler.label();
        self.changes.push((index, label));
        label
    }

    fn reads_header_length(&self) -> bool {
        self.ops
            .iter()
            .any(|op| matches!(op, Operation::LoadHeaderLength { .. }))
    }
}

const fn machine(register: Register) -> Reg {
    match register {
        Register::A => A,
        Register::X => X,
    }
}

fn right(operand: Operand) -> insn::Operand {
    match operand {
        Operand::Constant(constant) => constant.cast_signed().into(),
        Operand::Register(register) => machine(register).into(),
    }
}

const fn size(width: Width) -> Size {
    match width {
        Width::Word => Size::Word,
        Width::Half => Size::Half,
        Width::Byte => Size::Byte,
    }
}

fn cell_offset(cell: u32) -> i16 {
    // One of 16: the checker saw to it.
    BUFFER - SLOT * (cell as i16 + 1)
}
