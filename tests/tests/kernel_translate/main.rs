//! Filters as machine code, run in this kernel with the agent's rights: their verdicts are the
//! reference interpreter's and libpcap's.
//!
//! - [`expressions`], [`frames`]: what is drawn.
//! - [`costs`]: what a packet costs; not run by default.
#![forbid(unsafe_code)]

mod costs;
mod expressions;
#[path = "../../../capture/tests/support/frames.rs"]
mod frames;

use std::{env, fmt::Write as _, fs, os::unix::fs::PermissionsExt as _, time::SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use pcap::{BpfProgram, Capture, Dead, Linktype};
use remora_agent::kernel::{
    program::{Kind, Program as Loaded, ProgramError},
    translate::{
        Link, Reading, Refused,
        insn::{Alu, Insn, Jump, Reg, Size, alu64, exit, jump_if, load, store},
        translate, translate_reading,
    },
};
use remora_capture::filter::program::{Frame, Instruction, Program};
use remora_tests::{
    random::{self, Random},
    run::{self, Place, Rights},
};

/// Programs of one translation: as many as there are slots.
const BATCH: usize = 64;
const ETHERNET_HEADER: usize = 14;
/// Where `struct __sk_buff` has `cb`.
const CB: i16 = 48;
const LINKS: [Link; 2] = [Link::Ethernet, Link::Ip];
const AS_AGENT: &str = "REMORA_TEST_AS_AGENT";

/// Whether this is the process with the agent's rights; if not, runs the test in one.
fn as_agent(test: &str) -> Result<bool> {
    if env::var_os(AS_AGENT).is_some() {
        return Ok(true);
    }
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("kernel_translate");
    fs::copy(env::current_exe()?, &copy)?;
    let place = Place {
        rights: Rights::Agent,
        ..Place::default()
    };
    let mut command = place.command(&copy);
    command
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(AS_AGENT, "1");
    let output = run::finish(&mut command)?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    ensure!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(false)
}

/// Leaves the bitmap in `cb`, and lets the packet pass.
fn epilogue() -> [Insn; 5] {
    [
        store(Size::Word, Reg::R6, CB, Reg::R7),
        alu64(Alu::Rsh, Reg::R7, 32),
        store(Size::Word, Reg::R6, CB + 4, Reg::R7),
        alu64(Alu::Mov, Reg::R0, 1),
        exit(),
    ]
}

fn load_code(link: Link, code: &[Insn]) -> Result<Loaded, ProgramError> {
    let kind = match link {
        Link::Ethernet => Kind::Classifier,
        Link::Ip => Kind::CgroupIngress,
    };
    Loaded::load(kind, "remora_filter", c"Dual MIT/GPL", code)
}

/// Programs in their slots, in both ways of reading.
struct Batch {
    link: Link,
    programs: Vec<Program>,
    code: [Vec<Insn>; 2],
    loaded: [Loaded; 2],
}

impl Batch {
    fn new(link: Link, programs: Vec<Program>) -> Result<Self> {
        let slots: Vec<_> = (0..).zip(&programs).collect();
        let code = [Reading::Direct, Reading::ByHelper]
            .map(|reading| translate_reading(&slots, link, reading, &epilogue()));
        let code = [code[0].clone()?, code[1].clone()?];
        let loaded = [load_code(link, &code[0])?, load_code(link, &code[1])?];
        Ok(Self {
            link,
            programs,
            code,
            loaded,
        })
    }

    /// The reference's verdicts, after the kernel gave the same in both ways.
    fn verdicts(&self, frame: &[u8]) -> Result<u64> {
        let seen = match self.link {
            Link::Ethernet => Frame::whole(frame),
            Link::Ip => Frame::network(&frame[ETHERNET_HEADER..]),
        };
        let mut expected = 0;
        for (slot, program) in self.programs.iter().enumerate() {
            expected |= u64::from(program.run(seen)) << slot;
        }
        for (loaded, code) in self.loaded.iter().zip(&self.code) {
            let run = loaded.run(frame, 1)?;
            ensure!(run.returned == 1, "returned {}", run.returned);
            if run.cb != expected {
                let slot = (run.cb ^ expected).trailing_zeros() as usize;
                bail!(
                    "slot {slot}: kernel {:016x}, reference {expected:016x}\n{}\n{}\n{code:?}",
                    run.cb,
                    self.programs[slot],
                    hex(frame),
                );
            }
        }
        Ok(expected)
    }
}

/// Seeded by `REMORA_SEED`, or by the clock; says which.
fn random() -> Random {
    let clock = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |now| now.as_nanos() as u64)
    };
    let seed = env::var("REMORA_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(clock);
    println!("REMORA_SEED={seed}");
    Random(seed)
}

/// A network header of this type the kernel does not look at before a test run.
const ETHERTYPE_EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
const FRAME_MAX: usize = 1514;

/// 15 to 1514 bytes. A test run takes no frame whose type is IPv4 or IPv6 and which is cut within
/// the header: such a one is made longer, or, where the program does not see the type, has another.
fn frame(random: &mut Random, link: Link) -> Vec<u8> {
    let whole = frames::ethernet(random);
    let mut bytes = frames::damaged(whole, random);
    if random.below(8) == 0 {
        let more = random.below(FRAME_MAX);
        bytes.extend(random.bytes(more));
        bytes.truncate(FRAME_MAX);
    }
    bytes.resize(bytes.len().max(ETHERNET_HEADER + 1), 0);
    if link == Link::Ip {
        bytes[12..14].copy_from_slice(&ETHERTYPE_EXPERIMENTAL);
    }
    let least = match bytes[12..14] {
        [0x08, 0x00] => 34,
        [0x86, 0xdd] => 54,
        _ => 0,
    };
    bytes.resize(bytes.len().max(least), 0);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What libpcap makes of a text: for itself, and for us.
struct Compiled {
    text: String,
    libpcap: BpfProgram,
    program: Program,
}

fn compile(libpcap: &Capture<Dead>, text: &str) -> Result<Compiled> {
    let compiled = libpcap.compile(text, true)?;
    let mut instructions = Vec::new();
    for instruction in compiled.get_instructions() {
        let shown = instruction.to_string();
        let mut numbers = shown.split_whitespace().map(str::parse::<u32>);
        let mut number = || numbers.next().context("four numbers")?.context("a number");
        instructions.push(Instruction {
            code: number()?.try_into()?,
            jt: number()?.try_into()?,
            jf: number()?.try_into()?,
            k: number()?,
        });
    }
    Ok(Compiled {
        text: text.to_owned(),
        program: Program::new(instructions)?,
        libpcap: compiled,
    })
}

fn libpcap(link: Link) -> Result<Capture<Dead>> {
    Ok(Capture::dead(match link {
        Link::Ethernet => Linktype::ETHERNET,
        Link::Ip => Linktype(12),
    })?)
}

#[test]
fn a_million_random_verdicts_are_the_references_and_libpcaps() -> Result<()> {
    const BATCHES: usize = 16;
    const PACKETS: usize = 512;
    if !as_agent("a_million_random_verdicts_are_the_references_and_libpcaps")? {
        return Ok(());
    }
    let mut random = random();
    let (mut pairs, mut taken, mut refused) = (0, 0, 0);
    let mut texts = std::collections::BTreeSet::new();
    for link in LINKS {
        let libpcap = libpcap(link)?;
        for _ in 0..BATCHES {
            let mut filters = Vec::new();
            while filters.len() < BATCH {
                // Not for this link type, or never true.
                let depth = random.below(4);
                let Ok(filter) = compile(&libpcap, &expressions::text(&mut random, depth)) else {
                    refused += 1;
                    continue;
                };
                texts.insert(filter.text.clone());
                filters.push(filter);
            }
            let programs = filters.iter().map(|filter| filter.program.clone());
            let batch = Batch::new(link, programs.collect())?;
            for _ in 0..PACKETS {
                let frame = frame(&mut random, link);
                let verdicts = batch.verdicts(&frame).with_context(|| {
                    format!(
                        "{link:?}: {:?}",
                        filters.iter().map(|f| &f.text).collect::<Vec<_>>()
                    )
                })?;
                for (slot, filter) in filters.iter().enumerate() {
                    // libpcap is told of no other length than the bytes'.
                    let bytes = &frame[if link == Link::Ip { ETHERNET_HEADER } else { 0 }..];
                    let reference = filter.program.run(Frame::whole(bytes));
                    ensure!(
                        filter.libpcap.filter(bytes) == reference,
                        "{link:?}: {:?} on {}: reference {reference}\n{}",
                        filter.text,
                        hex(bytes),
                        filter.program
                    );
                    pairs += 1;
                    taken += verdicts >> slot & 1;
                }
            }
        }
    }
    println!(
        "{pairs} pairs of {} texts ({refused} drawn in vain), {taken} taken, 0 differences",
        texts.len()
    );
    ensure!(pairs >= 1_000_000 && texts.len() >= 1000);
    ensure!(taken > pairs / 20 && taken < pairs / 20 * 19, "{taken}");
    Ok(())
}

#[test]
fn every_instruction_does_what_the_reference_says_also_in_programs_that_no_compiler_makes()
-> Result<()> {
    const BATCHES: usize = 24;
    const PACKETS: usize = 100;
    if !as_agent(
        "every_instruction_does_what_the_reference_says_also_in_programs_that_no_compiler_makes",
    )? {
        return Ok(());
    }
    let mut random = random();
    let mut taken = 0;
    let mut codes = std::collections::BTreeSet::new();
    for link in LINKS {
        for _ in 0..BATCHES {
            let mut programs = Vec::new();
            while programs.len() < BATCH {
                programs.extend(Program::new(expressions::program(&mut random)).ok());
            }
            codes.extend(
                programs
                    .iter()
                    .flat_map(|p| p.instructions().iter().map(|i| i.code)),
            );
            let batch = Batch::new(link, programs)?;
            for _ in 0..PACKETS {
                let frame = frame(&mut random, link);
                taken += batch.verdicts(&frame)?.count_ones();
            }
        }
    }
    // 6 loads, 21 of arithmetic, 9 jumps, 2 returns, 11 others.
    ensure!(codes.len() == 49, "{codes:x?}");
    ensure!(taken > 10_000, "{taken}");
    Ok(())
}

#[test]
fn a_test_of_the_bitmap_does_not_make_the_verifier_follow_every_combination() -> Result<()> {
    if !as_agent("a_test_of_the_bitmap_does_not_make_the_verifier_follow_every_combination")? {
        return Ok(());
    }
    for link in LINKS {
        let filter = compile(&libpcap(link)?, "tcp and host 10.0.0.1 and port 80")?.program;
        let slots: Vec<_> = (0..64).map(|slot| (slot, &filter)).collect();
        let mut tested = vec![
            jump_if(Jump::Eq, Reg::R7, 0, 1),
            load(Size::Word, Reg::R0, Reg::R6, 0),
        ];
        tested.extend(epilogue());
        // Without mixing, 2^64 ways: the verifier gives up at a million instructions.
        load_code(link, &translate(&slots, link, &tested)?)?;
    }
    Ok(())
}

#[test]
fn a_program_with_jumps_beyond_sixteen_bits_is_refused_and_one_below_loads() -> Result<()> {
    if !as_agent("a_program_with_jumps_beyond_sixteen_bits_is_refused_and_one_below_loads")? {
        return Ok(());
    }
    let instruction = |code, k| Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let loads = |count: u32| {
        let mut program = vec![instruction(0x30, 0); count as usize];
        program.push(instruction(0x16, 0));
        Program::new(program)
    };
    let long = loads(4095)?;
    ensure!(translate(&[(0, &long)], Link::Ethernet, &epilogue()) == Err(Refused::TooLong));
    let short = loads(2000)?;
    load_code(
        Link::Ethernet,
        &translate(&[(63, &short)], Link::Ethernet, &epilogue())?,
    )?;
    Ok(())
}

#[test]
fn a_refused_program_has_the_verifiers_last_words_in_its_error() {
    let error = load_code(Link::Ethernet, &[exit()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("R0 !read_ok"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}
