//! Ways to put a packet into a ring, and what each costs; the eBPF object goes the first one.
//!
//! ```text
//! class    bpf_ringbuf_reserve of a size class, bpf_skb_load_bytes into it
//! slices   bpf_ringbuf_reserve_dynptr of what is needed, bpf_skb_load_bytes into slices of it: a slice has
//!          a constant length, so there are many
//! write    the same reservation, bpf_skb_load_bytes into a scratch, bpf_dynptr_write from there
//! output   bpf_skb_load_bytes into a scratch, bpf_ringbuf_output
//! ```
//! The figures: `cargo test --release -p remora-tests --test kernel_records -- --ignored --nocapture`.
#![forbid(unsafe_code)]

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, RingBuf};
use remora_agent::kernel::{
    program::{Kind, Program},
    translate::insn::{Alu, Insn, Jump, Reg, Size, alu64, call, exit, jump_if, load, map, store},
};
use remora_agent_common::record::{HEADER_LEN, SIZE_CLASSES};
use remora_tests::{name, run};

const RING_BYTES: usize = 16 << 20;
/// The longest record, as an array's value.
const SCRATCH_BYTES: usize = 66_048;
/// A test run takes no more than a page; the program makes the frame longer.
const GIVEN_MAX: usize = 1400;
/// Nor can it be made longer than some 16 KiB: what is longer is this frame, several times.
const FRAME_MAX: usize = 8192;
/// Longest slice.
const SLICE_MAX: usize = 1024;
const SIZES: [usize; 3] = [64, 1400, 65_536];
const ROUNDS: usize = 25;

/// Helpers by their numbers (linux/bpf.h, v6.18).
const MAP_LOOKUP: i32 = 1;
const LOAD_BYTES: i32 = 26;
const CHANGE_TAIL: i32 = 38;
const RING_OUTPUT: i32 = 130;
const RING_RESERVE: i32 = 131;
const RING_SUBMIT: i32 = 132;
const RESERVE_DYNPTR: i32 = 198;
const SUBMIT_DYNPTR: i32 = 199;
const DISCARD_DYNPTR: i32 = 200;
const DYNPTR_WRITE: i32 = 202;
const DYNPTR_DATA: i32 = 203;
const NO_WAKEUP: i32 = 1;

/// Places on the stack.
const DYNPTR: i32 = -16;
const KEY: i16 = -24;

/// What a program returns: the record is in the ring, or is not.
const DONE: u32 = 1;
const FAILED: i32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Class,
    Slices,
    Write,
    Output,
}

const WAYS: [Way; 4] = [Way::Class, Way::Slices, Way::Write, Way::Output];

/// A ring and an array, pinned under names of this run until they are open.
struct Maps {
    ring: RingBuf<MapData>,
    scratch: MapData,
}

impl Maps {
    fn new() -> Result<Self> {
        let open = |kind: &str, key: usize, value: usize, entries: usize| -> Result<MapData> {
            let pin = PathBuf::from("/sys/fs/bpf").join(name::unique());
            let mut command = run::command("bpftool");
            command.args(["map", "create"]).arg(&pin);
            command.args(["type", kind, "key", &key.to_string()]);
            command.args(["value", &value.to_string()]);
            command.args(["entries", &entries.to_string(), "name", kind]);
            run::output(&mut command)?;
            let opened = MapData::from_pin(&pin);
            fs::remove_file(&pin)?;
            Ok(opened?)
        };
        let ring = open("ringbuf", 0, 0, RING_BYTES)?;
        Ok(Self {
            ring: RingBuf::try_from(Map::RingBuf(ring))?,
            scratch: open("array", 4, SCRATCH_BYTES, 1)?,
        })
    }

    fn load(&self, way: Way, size: usize) -> Result<Program> {
        let ring = self.ring.as_fd().as_raw_fd();
        let scratch = self.scratch.fd().as_fd().as_raw_fd();
        let code = code(way, size, ring, scratch);
        Program::load(Kind::Classifier, "remora_records", c"Dual MIT/GPL", &code)
            .with_context(|| format!("{way:?}, {size} bytes"))
    }
}

/// A program's text, written from top to bottom.
#[derive(Default)]
struct Text(Vec<Insn>);

impl Text {
    fn put(&mut self, insns: impl IntoIterator<Item = Insn>) {
        self.0.extend(insns);
    }

    fn set(&mut self, register: Reg, value: i32) {
        self.put([alu64(Alu::Mov, register, value)]);
    }

    /// `register` = the stack's `place`.
    fn stack(&mut self, register: Reg, place: i32) {
        self.put([
            alu64(Alu::Mov, register, Reg::R10),
            alu64(Alu::Add, register, place),
        ]);
    }

    /// The record's header at `at`: eight words.
    fn header(&mut self, at: Reg) {
        for word in 0..HEADER_LEN / 8 {
            self.put([store(Size::Double, at, (word * 8) as i16, word as i32)]);
        }
    }

    /// `length` bytes of the packet, from its byte `from`, to `to`.
    fn packet(&mut self, from: usize, to: Reg, offset: usize, length: usize) {
        for piece in (0..length).step_by(FRAME_MAX) {
            self.put([
                alu64(Alu::Mov, Reg::R3, to),
                alu64(Alu::Add, Reg::R3, (offset + piece) as i32),
                alu64(Alu::Mov, Reg::R1, Reg::R6),
            ]);
            self.set(Reg::R2, (from % FRAME_MAX) as i32);
            self.set(Reg::R4, (length - piece).min(FRAME_MAX) as i32);
            self.put([call(LOAD_BYTES)]);
        }
    }

    /// Ends with `FAILED` if R0 is (not) 0, after what must be done.
    fn unless(&mut self, good: Jump, cleaning: &[Insn]) {
        let skipped = cleaning.len() as i16 + 2;
        self.put([jump_if(good, Reg::R0, 0, skipped)]);
        self.put(cleaning.iter().copied());
        self.put([alu64(Alu::Mov, Reg::R0, FAILED), exit()]);
    }

    /// R8 = the scratch.
    fn scratch(&mut self, scratch: i32) {
        self.put([store(Size::Word, Reg::R10, KEY, 0)]);
        self.put(map(Reg::R1, scratch));
        self.stack(Reg::R2, KEY.into());
        self.put([call(MAP_LOOKUP)]);
        self.unless(Jump::Ne, &[]);
        self.put([alu64(Alu::Mov, Reg::R8, Reg::R0)]);
    }

    fn reserve_dynptr(&mut self, ring: i32, bytes: usize) {
        self.put(map(Reg::R1, ring));
        self.set(Reg::R2, bytes as i32);
        self.set(Reg::R3, 0);
        self.stack(Reg::R4, DYNPTR);
        self.put([call(RESERVE_DYNPTR)]);
        self.unless(Jump::Eq, &discard());
    }

    fn submit_dynptr(&mut self) {
        self.stack(Reg::R1, DYNPTR);
        self.set(Reg::R2, NO_WAKEUP);
        self.put([call(SUBMIT_DYNPTR)]);
    }
}

fn discard() -> [Insn; 4] {
    [
        alu64(Alu::Mov, Reg::R1, Reg::R10),
        alu64(Alu::Add, Reg::R1, DYNPTR),
        alu64(Alu::Mov, Reg::R2, NO_WAKEUP),
        call(DISCARD_DYNPTR),
    ]
}

/// Slices that make up `size`: the longest, then by powers of two, then what is left.
fn slices(size: usize) -> Vec<usize> {
    let mut slices = vec![SLICE_MAX; size / SLICE_MAX];
    let mut rest = size % SLICE_MAX;
    while rest > 0 {
        let slice = if rest >= 8 { 1 << rest.ilog2() } else { rest };
        slices.push(slice);
        rest -= slice;
    }
    slices
}

fn code(way: Way, size: usize, ring: i32, scratch: i32) -> Vec<Insn> {
    let bytes = HEADER_LEN + size;
    let frame = size.min(FRAME_MAX);
    let mut text = Text::default();
    text.put([
        alu64(Alu::Mov, Reg::R6, Reg::R1),
        load(Size::Word, Reg::R2, Reg::R6, 0),
        jump_if(Jump::Ge, Reg::R2, frame as i32, 6),
        alu64(Alu::Mov, Reg::R2, frame as i32),
        alu64(Alu::Mov, Reg::R3, 0),
        call(CHANGE_TAIL),
        jump_if(Jump::Eq, Reg::R0, 0, 2),
        alu64(Alu::Mov, Reg::R0, FAILED),
        exit(),
    ]);
    match way {
        Way::Class => {
            let class = SIZE_CLASSES.into_iter().find(|class| *class >= bytes);
            text.put(map(Reg::R1, ring));
            text.set(Reg::R2, class.unwrap_or(bytes) as i32);
            text.set(Reg::R3, 0);
            text.put([call(RING_RESERVE)]);
            text.unless(Jump::Ne, &[]);
            text.put([alu64(Alu::Mov, Reg::R7, Reg::R0)]);
            text.header(Reg::R7);
            text.packet(0, Reg::R7, HEADER_LEN, size);
            text.put([alu64(Alu::Mov, Reg::R1, Reg::R7)]);
            text.set(Reg::R2, NO_WAKEUP);
            text.put([call(RING_SUBMIT)]);
        }
        Way::Slices => {
            text.reserve_dynptr(ring, bytes);
            let mut at = 0;
            for length in [HEADER_LEN].into_iter().chain(slices(size)) {
                text.stack(Reg::R1, DYNPTR);
                text.set(Reg::R2, at as i32);
                text.set(Reg::R3, length as i32);
                text.put([call(DYNPTR_DATA)]);
                text.unless(Jump::Ne, &discard());
                match at {
                    0 => text.header(Reg::R0),
                    _ => text.packet(at - HEADER_LEN, Reg::R0, 0, length),
                }
                at += length;
            }
            text.submit_dynptr();
        }
        Way::Write => {
            text.scratch(scratch);
            text.reserve_dynptr(ring, bytes);
            text.header(Reg::R8);
            text.packet(0, Reg::R8, HEADER_LEN, size);
            text.stack(Reg::R1, DYNPTR);
            text.set(Reg::R2, 0);
            text.put([alu64(Alu::Mov, Reg::R3, Reg::R8)]);
            text.set(Reg::R4, bytes as i32);
            text.set(Reg::R5, 0);
            text.put([call(DYNPTR_WRITE)]);
            text.submit_dynptr();
        }
        Way::Output => {
            text.scratch(scratch);
            text.header(Reg::R8);
            text.packet(0, Reg::R8, HEADER_LEN, size);
            text.put(map(Reg::R1, ring));
            text.put([alu64(Alu::Mov, Reg::R2, Reg::R8)]);
            text.set(Reg::R3, bytes as i32);
            text.set(Reg::R4, NO_WAKEUP);
            text.put([call(RING_OUTPUT)]);
        }
    }
    text.put([alu64(Alu::Mov, Reg::R0, DONE as i32), exit()]);
    text.0
}

/// What a test run is given for a packet of `size`.
fn given(size: usize) -> Vec<u8> {
    (0..size.min(GIVEN_MAX)).map(|at| at as u8).collect()
}

#[test]
fn every_way_puts_the_same_into_the_ring() -> Result<()> {
    let mut maps = Maps::new()?;
    for size in SIZES {
        for way in WAYS {
            let program = maps.load(way, size)?;
            let run = program.run(&given(size), 1)?;
            ensure!(run.returned == DONE, "{way:?}, {size}: {}", run.returned);
            let record = maps.ring.next().context("no record")?;
            let (header, packet) = record.split_at(HEADER_LEN);
            for (word, bytes) in header.chunks(8).enumerate() {
                ensure!(bytes == (word as u64).to_ne_bytes(), "{way:?}: {header:?}");
            }
            // A class has room to spare; the frame was made longer by zeroes.
            let mut frame = given(size);
            frame.resize(size.min(FRAME_MAX), 0);
            let same = packet[..size].chunks(FRAME_MAX).all(|piece| piece == frame);
            ensure!(same, "{way:?}, {size}: other bytes");
            let exact = way == Way::Class || packet.len() == size;
            ensure!(exact, "{way:?}, {size}: {} bytes", packet.len());
            drop(record);
            ensure!(maps.ring.next().is_none());
        }
    }
    Ok(())
}

#[test]
#[ignore = "prints figures and claims nothing"]
fn print_costs() -> Result<()> {
    let mut maps = Maps::new()?;
    println!("ns of a packet, the least of {ROUNDS} rounds");
    println!(
        "{:>8} {:>8} {:>8} {:>8} {:>8}",
        "bytes", "class", "slices", "write", "output"
    );
    for size in SIZES {
        let programs = WAYS.map(|way| maps.load(way, size));
        let mut least = [u128::MAX; WAYS.len()];
        // A half of the ring, which is emptied between two runs.
        let packets = RING_BYTES
            / 2
            / (SIZE_CLASSES.into_iter())
                .find(|class| *class >= HEADER_LEN + size)
                .context("no class")?;
        for _ in 0..ROUNDS {
            for (program, least) in programs.iter().zip(&mut least) {
                let program = program
                    .as_ref()
                    .map_err(|error| anyhow::anyhow!("{error:#}"))?;
                let run = program.run(&given(size), u32::try_from(packets)?)?;
                ensure!(run.returned == DONE, "{}", run.returned);
                let mut records = 0;
                while maps.ring.next().is_some() {
                    records += 1;
                }
                ensure!(records == packets, "{records} of {packets} records");
                *least = (*least).min(run.took.as_nanos());
            }
        }
        let [class, slices, write, output] = least;
        println!("{size:>8} {class:>8} {slices:>8} {write:>8} {output:>8}");
    }
    Ok(())
}
