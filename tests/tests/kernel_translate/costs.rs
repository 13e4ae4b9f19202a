//! What a packet costs by filter, printed: `cargo test --release -p remora-tests --test
//! kernel_translate costs -- --ignored --nocapture`.

use anyhow::Result;
use remora_agent::kernel::{
    program::Program as Loaded,
    translate::{
        Link, Reading,
        insn::{Alu, Reg, alu64, exit},
        translate_reading,
    },
};

use crate::{as_agent, compile, epilogue, libpcap, load_code};

const REPEAT: u32 = 100_000;
const ROUNDS: usize = 15;

/// The least of several rounds, in ns.
fn least(loaded: &Loaded, frame: &[u8]) -> Result<u128> {
    let mut least = u128::MAX;
    for _ in 0..ROUNDS {
        least = least.min(loaded.run(frame, REPEAT)?.took.as_nanos());
    }
    Ok(least)
}

/// TCP from 10.0.0.1:40000 to `to`, 66 bytes.
fn tcp(to: [u8; 4], port: u16) -> Vec<u8> {
    let mut frame = vec![0; 66];
    frame[12] = 8;
    frame[14] = 0x45;
    frame[17] = 52;
    frame[23] = 6;
    frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
    frame[30..34].copy_from_slice(&to);
    frame[34..36].copy_from_slice(&40_000_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[46] = 0x80;
    frame[47] = 0x10;
    frame
}

#[test]
#[ignore = "prints figures and claims nothing"]
fn print_costs() -> Result<()> {
    if !as_agent("costs::print_costs")? {
        return Ok(());
    }
    let terms: Vec<_> = (0..25)
        .flat_map(|n| {
            [
                format!("port {}", 1000 + n * 7),
                format!("host 192.0.2.{}", 10 + n),
            ]
        })
        .collect();
    let many = terms.join(" or ");
    let web = tcp([10, 0, 0, 2], 443);
    let cases = [
        ("port", "port 443", web.clone(), tcp([10, 0, 0, 2], 80)),
        (
            "tcp, host, port",
            "tcp and host 10.0.0.2 and port 443",
            web.clone(),
            tcp([10, 0, 0, 3], 443),
        ),
        (
            "flags",
            "tcp[tcpflags] & tcp-ack != 0 and not dst net 192.168.0.0/16",
            web.clone(),
            tcp([192, 168, 0, 1], 443),
        ),
        (
            "payload",
            "tcp[((tcp[12] & 0xf0) >> 2):2] = 0",
            tcp([10, 0, 0, 2], 443).into_iter().chain([0; 4]).collect(),
            web,
        ),
        (
            "50 terms",
            many.as_str(),
            tcp([192, 0, 2, 34], 443),
            tcp([10, 0, 0, 2], 443),
        ),
    ];
    println!(
        "{:16} {:>5} {:>6} | hit: empty direct helper | miss: empty direct helper",
        "filter", "cBPF", "eBPF"
    );
    for link in [Link::Ethernet, Link::Ip] {
        let empty = load_code(link, &[alu64(Alu::Mov, Reg::R0, 1), exit()])?;
        for (name, text, hit, miss) in &cases {
            let program = compile(&libpcap(link)?, text)?.program;
            let mut line = format!("{name:16} {:5} ", program.instructions().len());
            let mut loaded = Vec::new();
            for reading in [Reading::Direct, Reading::ByHelper] {
                let code = translate_reading(&[(0, &program)], link, reading, &epilogue())?;
                if reading == Reading::Direct {
                    line += &format!("{:6}", code.len());
                }
                loaded.push(load_code(link, &code)?);
            }
            for frame in [hit, miss] {
                line += &format!(" | {:5}", least(&empty, frame)?);
                for loaded in &loaded {
                    line += &format!(" {:5}", least(loaded, frame)?);
                }
            }
            println!("{line}  {link:?}");
        }
    }
    Ok(())
}
