//! Random pcap-filter texts, and random programs that no compiler makes.

use std::net::{Ipv4Addr, Ipv6Addr};

use remora_capture::filter::program::Instruction;

use crate::{
    Random,
    frames::{MAC, PORTS, V4, V6},
};

pub(crate) fn text(random: &mut Random, depth: usize) -> String {
    if depth == 0 || random.below(4) == 0 {
        return term(random);
    }
    let left = text(random, depth - 1);
    match random.below(5) {
        0 => format!("not ({left})"),
        1 | 2 => format!("({left}) and ({})", text(random, depth - 1)),
        _ => format!("({left}) or ({})", text(random, depth - 1)),
    }
}

fn term(random: &mut Random) -> String {
    let ipv4 = Ipv4Addr::from(random.one(&V4));
    let ipv6 = Ipv6Addr::from(random.one(&V6));
    let port = random.one(&PORTS);
    let side = random.one(&["", "", "src ", "dst ", "src and dst "]);
    let one_side = random.one(&["", "", "src ", "dst "]);
    let transport = random.one(&["", "", "tcp ", "udp ", "sctp "]);
    match random.below(20) {
        0 | 1 => random
            .one(&[
                "tcp", "udp", "icmp", "icmp6", "sctp", "ip", "ip6", "arp", "rarp", "igmp", "esp",
                "ah", "pim",
            ])
            .to_owned(),
        2 => format!("{side}host {ipv4}"),
        3 => format!("{side}host {ipv6}"),
        4 => format!("{side}net {}.0.0.0/8", ipv4.octets()[0]),
        5 => format!("{side}net {ipv6}/{}", random.one(&[128, 64, 48, 33, 8]))
            .replace("::1/", "::/")
            .replace("::2/", "::/"),
        6 | 7 => format!("{transport}{side}port {port}"),
        8 => format!(
            "{transport}{side}portrange {}-{}",
            port.saturating_sub(3),
            port.saturating_add(random.below(100) as u16)
        ),
        9 => format!(
            "{} proto {}",
            random.one(&["ip", "ip6"]),
            random.one(&[1, 6, 17, 44, 50, 58])
        ),
        10 => format!("{} {}", random.one(&["less", "greater"]), random.below(200)),
        11 => format!("ether {one_side}host {}", mac(random)),
        12 => random
            .one(&[
                "ether broadcast",
                "ether multicast",
                "ip multicast",
                "ip6 multicast",
                "ether proto 0x88cc",
                "ether proto 0x800",
                "llc",
                "stp",
                "ipx",
            ])
            .to_owned(),
        13 => random
            .one(&[
                "vlan",
                "vlan 5",
                "vlan 7 and ip",
                "mpls",
                "mpls 1",
                "pppoes",
                "pppoes and tcp",
            ])
            .to_owned(),
        14 => random
            .one(&[
                "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
                "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
                "icmp[icmptype] = icmp-echo",
                "ip[6:2] & 0x3fff != 0",
                "ip[ip[8]] > 5",
                "ip6[40] = 6",
                "ip[0] & 0xf != 5",
                "ether[ether[14] & 0xf] = 0",
                "tcp[tcp[0:2] - tcp[2:2]] >= 8",
            ])
            .to_owned(),
        _ => format!(
            "{} {} {}",
            arithmetic(random, 2),
            random.one(&["=", "!=", ">", "<", ">=", "<="]),
            arithmetic(random, 1)
        ),
    }
}

fn mac(random: &mut Random) -> String {
    random.one(&MAC).map(|byte| format!("{byte:02x}")).join(":")
}

fn arithmetic(random: &mut Random, depth: usize) -> String {
    if depth == 0 || random.below(3) == 0 {
        return match random.below(6) {
            0 => "len".to_owned(),
            1 => random.below(300).to_string(),
            _ => format!(
                "{}[{}:{}]",
                random.one(&["ip", "ip", "ip6", "tcp", "udp", "icmp", "ether"]),
                random.below(48),
                random.one(&[1, 2, 4])
            ),
        };
    }
    let (left, right) = (arithmetic(random, depth - 1), arithmetic(random, depth - 1));
    match random.below(6) {
        0 => format!("({left} << {})", random.below(32)),
        1 => format!("({left} >> ({right} & 63))"),
        _ => format!(
            "({left} {} {right})",
            random.one(&["+", "-", "*", "/", "%", "&", "|", "^", "<<"])
        ),
    }
}

const LOADS: [u16; 6] = [0x20, 0x28, 0x30, 0x40, 0x48, 0x50];
const ALU: [u16; 21] = [
    0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c,
    0x84, 0x94, 0x9c, 0xa4, 0xac,
];
const JUMPS: [u16; 8] = [0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d];
/// Copies and constants of both registers, lengths, cells.
const OTHERS: [u16; 13] = [
    0x00, 0x01, 0x07, 0x07, 0x87, 0x80, 0x81, 0x02, 0x03, 0x60, 0x61, 0xb1, 0xb1,
];
const RETURN_CONSTANT: u16 = 0x06;
const RETURN_A: u16 = 0x16;

/// Any instructions; the checker may refuse them.
pub(crate) fn program(random: &mut Random) -> Vec<Instruction> {
    let len = 2 + random.below(24);
    let mut program: Vec<_> = (0..len).map(|at| instruction(random, len - at)).collect();
    program.push(Instruction {
        code: random.one(&[RETURN_A, RETURN_CONSTANT]),
        jt: 0,
        jf: 0,
        k: random.one(&[0, 1, u32::MAX]),
    });
    program
}

fn instruction(random: &mut Random, left: usize) -> Instruction {
    let way = |random: &mut Random| random.below(left.min(4)) as u8;
    let number = |random: &mut Random| match random.below(4) {
        0 => random.number() as u32,
        1 => random.one(&[0, 1, 31, 32, 0x7fff_ffff, 0x8000_0000, u32::MAX]),
        _ => random.below(64) as u32,
    };
    let offset = |random: &mut Random| match random.below(12) {
        0 => random.number() as u32 >> 1,
        1 => random.one(&[4095, 4096, 4097, 1510, 0x7fff_ffff]),
        _ => random.below(70) as u32,
    };
    let (code, k) = match random.below(16) {
        0..6 => (random.one(&LOADS), offset(random)),
        6..9 => match random.one(&ALU) {
            code @ (0x64 | 0x74) => (code, random.below(32) as u32),
            code @ (0x34 | 0x94) => (code, number(random).max(1)),
            code => (code, number(random)),
        },
        9..12 => (random.one(&JUMPS), number(random)),
        12 if random.below(2) == 0 => (0x05, random.below(left.min(4)) as u32),
        13 if random.below(6) == 0 => (random.one(&[RETURN_A, RETURN_CONSTANT]), number(random)),
        _ => match random.one(&OTHERS) {
            code @ (0x02 | 0x03 | 0x60 | 0x61) => (code, random.one(&[0, 0, 0, 1, 15])),
            code @ 0xb1 => (code, offset(random)),
            code => (code, number(random)),
        },
    };
    Instruction {
        code,
        jt: way(random),
        jf: way(random),
        k,
    }
}
