//! libpcap's compiler, by the crate `pcap`.
//!
//! Compiled is as tcpdump does for a file (`tcpdump -r`): optimised, for a handle without an
//! interface, with the netmask 0.

use std::sync::{Mutex, PoisonError};

use pcap::{BpfInstruction, Capture, Linktype};

use super::{Compile, Names, names::refuse_names, tokens::tokens};
use crate::{
    filter::{
        FilterError, FilterErrorKind,
        error::Word,
        program::{Instruction, LinkType, Program, ProgramError},
    },
    session::SNAPLEN_MAX,
    text as harmless,
};

/// DLT_EN10MB and DLT_RAW, as libpcap numbers them in memory on Linux.
const ETHERNET: Linktype = Linktype(1);
const RAW: Linktype = Linktype(12);

/// `ret #k`.
const RETURN_CONSTANT: u16 = 0x06;
/// Characters of libpcap's message that are shown.
const MESSAGE_MAX: usize = 160;
/// A word whose error comes from the scanner, so that it tells whether the parser got to it.
const SENTINEL: &str = "1:2:";

/// libpcap before 1.11 is not safe to compile in several threads at once.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(super) struct Libpcap {
    names: Names,
}

impl Libpcap {
    pub(super) fn of(names: Names) -> &'static Self {
        match names {
            Names::LookedUp => &Self {
                names: Names::LookedUp,
            },
            Names::Refused => &Self {
                names: Names::Refused,
            },
        }
    }
}

impl Compile for Libpcap {
    fn compile(&self, text: &str, link: LinkType) -> Result<Program, FilterError> {
        if self.names == Names::Refused {
            refuse_names(text)?;
        }
        let instructions = run(text, link).map_err(|message| explain(text, link, &message))?;
        Program::new(instructions).map_err(|error| unusable(text, error))
    }
}

/// Instructions, or libpcap's message.
fn run(text: &str, link: LinkType) -> Result<Vec<Instruction>, String> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = Capture::dead(match link {
        LinkType::Ethernet => ETHERNET,
        LinkType::Raw => RAW,
    })
    .map_err(message)?;
    let program = handle.compile(text, true).map_err(message)?;
    program
        .get_instructions()
        .iter()
        .map(|instruction| {
            read(instruction).ok_or_else(|| "libpcap's program cannot be read".to_owned())
        })
        .collect()
}

fn message(error: pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(message) => message,
        other => other.to_string(),
    }
}

/// The crate shows an instruction's numbers only as text: `40 0 0 12`.
fn read(instruction: &BpfInstruction) -> Option<Instruction> {
    let text = instruction.to_string();
    let mut numbers = text.split(' ');
    let code = numbers.next()?.parse().ok()?;
    let jt = numbers.next()?.parse().ok()?;
    let jf = numbers.next()?.parse().ok()?;
    let mut k = numbers.next()?.parse().ok()?;
    // The crate's handle has a snaplen of 65535, which is what a program returns that takes a packet.
    if code == RETURN_CONSTANT && k != 0 {
        k = SNAPLEN_MAX;
    }
    Some(Instruction { code, jt, jf, k })
}

fn explain(text: &str, link: LinkType, message: &str) -> FilterError {
    if message.contains("rejects all packets") {
        return everywhere(FilterErrorKind::MatchesNothing);
    }
    if is_syntax_error(message) {
        return syntax(text, link);
    }
    let shown = harmless::excerpt(message, MESSAGE_MAX).to_string();
    let kind = FilterErrorKind::Libpcap(shown);
    // Many messages quote the word that is to blame.
    let quoted = message.split(['\'', '"']).nth(1);
    let blamed = tokens(text).find(|token| Some(token.text) == quoted);
    match blamed {
        Some(token) => FilterError {
            position: token.position,
            len: token.text.len(),
            kind,
        },
        None => everywhere(kind),
    }
}

fn is_syntax_error(message: &str) -> bool {
    message.contains("syntax error")
}

/// libpcap does not say where a syntax error is. Its parser takes no word after the bad one: so the
/// text up to a word, and then the sentinel, fails at the sentinel as long as the bad word is not in it.
fn syntax(text: &str, link: LinkType) -> FilterError {
    let all: Vec<_> = tokens(text).collect();
    let bad = all.partition_point(|token| {
        let end = token.position + token.text.len();
        let probe = format!("{} {SENTINEL}", &text[..end]);
        matches!(run(&probe, link), Err(message) if !is_syntax_error(&message))
    });
    match all.get(bad) {
        Some(token) => FilterError {
            position: token.position,
            len: token.text.len(),
            kind: FilterErrorKind::Syntax(Word::new(token.text, token.number)),
        },
        None => FilterError {
            position: text.len(),
            len: 0,
            kind: FilterErrorKind::Unfinished {
                expected: "the rest of a term",
            },
        },
    }
}

/// libpcap made a program, but not one for a kernel hook.
fn unusable(text: &str, error: ProgramError) -> FilterError {
    let at_word = |words: &[&str], kind: fn(Word) -> FilterErrorKind| {
        tokens(text)
            .find(|token| words.contains(&token.text))
            .map(|token| FilterError {
                position: token.position,
                len: token.text.len(),
                kind: kind(Word::new(token.text, token.number)),
            })
    };
    let named = match error {
        ProgramError::Jump(_) => at_word(&["protochain"], FilterErrorKind::Loop),
        ProgramError::NotOfThePacket(_) => at_word(
            &["inbound", "outbound", "ifindex"],
            FilterErrorKind::NotOfThePacket,
        ),
        _ => None,
    };
    named.unwrap_or_else(|| everywhere(FilterErrorKind::Program(error)))
}

/// An error of the whole text.
fn everywhere(kind: FilterErrorKind) -> FilterError {
    FilterError {
        position: 0,
        len: 0,
        kind,
    }
}
