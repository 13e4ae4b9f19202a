//! libpcap's own programs: compiled by `tcpdump -ddd`, run by a small classic BPF interpreter.

use std::process::Command;

/// One instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u16,
    jt: usize,
    jf: usize,
    k: u32,
}

/// A program for Ethernet frames.
#[derive(Debug)]
pub(crate) struct Program(Vec<Instruction>);

/// What libpcap made of a filter.
#[derive(Debug)]
pub(crate) enum Compiled {
    Program(Program),
    /// "expression rejects all packets".
    RejectsAll,
    Refused(String),
}

/// Compiles with the installed tcpdump for DLT_EN10MB, optimised as for a capture.
pub(crate) fn compile(filter: &str) -> Compiled {
    // "--" keeps a filter from being taken for an option.
    let output = Command::new("tcpdump")
        .args(["-y", "EN10MB", "-ddd", "--", filter])
        .output()
        .expect("tcpdump runs");
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return if message.contains("rejects all packets") {
            Compiled::RejectsAll
        } else {
            Compiled::Refused(message)
        };
    }
    let text = String::from_utf8(output.stdout).expect("numbers");
    let mut lines = text.lines();
    let count: usize = lines.next().expect("count").parse().expect("count");
    let program: Vec<Instruction> = lines
        .map(|line| {
            let fields: Vec<u32> = line
                .split(' ')
                .map(|n| n.parse().expect("number"))
                .collect();
            let [code, jt, jf, k] = fields[..] else {
                panic!("four numbers: {line}")
            };
            Instruction {
                code: code as u16,
                jt: jt as usize,
                jf: jf as usize,
                k,
            }
        })
        .collect();
    assert_eq!(program.len(), count);
    Compiled::Program(Program(program))
}

impl Program {
    /// The verdict; a load beyond the frame refuses it, as in the kernel and in libpcap.
    pub(crate) fn takes(&self, frame: &[u8]) -> bool {
        self.run(frame).unwrap_or(0) != 0
    }

    fn run(&self, frame: &[u8]) -> Option<u32> {
        let load = |offset: u32, size: usize| {
            let start = offset as usize;
            let bytes = frame.get(start..start.checked_add(size)?)?;
            Some(
                bytes
                    .iter()
                    .fold(0u32, |value, byte| value << 8 | u32::from(*byte)),
            )
        };
        let (mut a, mut x, mut pc) = (0u32, 0u32, 0usize);
        let mut memory = [0u32; 16];
        loop {
            let Instruction { code, jt, jf, k } = self.0[pc];
            pc += 1;
            // Opcodes of <linux/bpf_common.h>: class | size | mode, class | op | source.
            match code {
                0x20 => a = load(k, 4)?,
                0x28 => a = load(k, 2)?,
                0x30 => a = load(k, 1)?,
                0x40 => a = load(x.checked_add(k)?, 4)?,
                0x48 => a = load(x.checked_add(k)?, 2)?,
                0x50 => a = load(x.checked_add(k)?, 1)?,
                0x80 => a = frame.len() as u32,
                0x00 => a = k,
                0x01 => x = k,
                0x60 => a = memory[k as usize],
                0x61 => x = memory[k as usize],
                0x02 => memory[k as usize] = a,
                0x03 => memory[k as usize] = x,
                0xb1 => x = (load(k, 1)? & 0xf) * 4,
                0x54 => a &= k,
                0x44 => a |= k,
                0x04 => a = a.wrapping_add(k),
                0x14 => a = a.wrapping_sub(k),
                0x74 => a >>= k,
                0x64 => a <<= k,
                0x05 => pc += k as usize,
                0x15 => pc += if a == k { jt } else { jf },
                0x25 => pc += if a > k { jt } else { jf },
                0x35 => pc += if a >= k { jt } else { jf },
                0x45 => pc += if a & k != 0 { jt } else { jf },
                0x07 => x = a,
                0x87 => a = x,
                0x06 => return Some(k),
                0x16 => return Some(a),
                _ => panic!("opcode {code:#x} is not one that these filters compile to"),
            }
        }
    }
}
