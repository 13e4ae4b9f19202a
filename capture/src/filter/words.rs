//! The words of pcap-filter text, and what each may be.

use super::{
    FilterError, FilterErrorKind as Kind,
    error::Word,
    terms::{Family, Protocol, Side},
};

/// A word, or a run of symbols that pcap-filter reads as one.
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) position: usize,
    /// From 1.
    pub(super) number: usize,
}

impl Token<'_> {
    pub(super) fn shown(&self) -> Word {
        Word::new(self.text, self.number)
    }

    pub(super) fn refuse(&self, kind: Kind) -> FilterError {
        FilterError {
            position: self.position,
            len: self.text.len(),
            kind,
        }
    }

    pub(super) fn is_and(&self) -> bool {
        matches!(self.text, "and" | "&&")
    }

    pub(super) fn is_or(&self) -> bool {
        matches!(self.text, "or" | "||")
    }
}

pub(super) fn words(text: &str) -> impl Iterator<Item = Token<'_>> {
    let symbol = |c: char| "&|()!=<>[]".contains(c);
    let mut position = 0;
    let mut number = 0;
    std::iter::from_fn(move || {
        let blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
        position += text[position..].find(|c| !blank(c))?;
        let rest = &text[position..];
        let len = if rest.starts_with("&&") || rest.starts_with("||") {
            2
        } else {
            match rest.find(|c| blank(c) || symbol(c)) {
                Some(0) => 1,
                Some(len) => len,
                None => rest.len(),
            }
        };
        number += 1;
        let token = Token {
            text: &rest[..len],
            position,
            number,
        };
        position += len;
        Some(token)
    })
}

/// The words parted by one blank each, which changes nothing of what they mean.
pub(super) fn spaced(text: &str) -> String {
    text.split([' ', '\t', '\r', '\n'])
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What stands before a value.
#[derive(Clone, Copy)]
pub(super) enum ValueKind {
    Host,
    Net,
    Port,
}

impl ValueKind {
    pub(super) fn of(word: &str) -> Option<Self> {
        match word {
            "host" => Some(Self::Host),
            "net" => Some(Self::Net),
            "port" => Some(Self::Port),
            _ => None,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Net => "net",
            Self::Port => "port",
        }
    }
}

/// A protocol as a word: of the network or of the transport.
#[derive(Clone, Copy)]
pub(super) enum ProtocolWord {
    Network(Family),
    Transport(Protocol),
}

impl ProtocolWord {
    pub(super) fn of(word: &str) -> Option<Self> {
        let family = [Family::Ipv4, Family::Ipv6]
            .into_iter()
            .find(|f| f.word() == word);
        let protocol = Protocol::ALL.into_iter().find(|p| p.word() == word);
        family.map(Self::Network).or(protocol.map(Self::Transport))
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Network(family) => family.word(),
            Self::Transport(protocol) => protocol.word(),
        }
    }

    pub(super) fn may_qualify(self, kind: ValueKind) -> bool {
        match (self, kind) {
            (Self::Network(_), ValueKind::Host | ValueKind::Net) => true,
            (Self::Transport(protocol), ValueKind::Port) => protocol.has_ports(),
            _ => false,
        }
    }
}

pub(super) fn side(word: &str) -> Option<Side> {
    match word {
        "src" => Some(Side::Source),
        "dst" => Some(Side::Destination),
        _ => None,
    }
}

pub(super) fn starts_qualifier(word: &str) -> bool {
    side(word).is_some() || ValueKind::of(word).is_some()
}

pub(super) fn is_known(word: &str) -> bool {
    starts_qualifier(word) || ProtocolWord::of(word).is_some() || looks_like_value(word)
}

/// A number, an address or a network, or a bad attempt at one.
pub(super) fn looks_like_value(word: &str) -> bool {
    word.contains([':', '/']) || word.starts_with(|c: char| c.is_ascii_digit())
}
