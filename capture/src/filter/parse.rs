//! From text to [`Terms`]: the grammar over the words.
//!
//! ```text
//! filter    = [ term { and term } ]
//! term      = protocol | [ protocol ] [ side ] kind value | side value | value
//! side      = "src" | "dst" | "src" (or|and) "dst" | "dst" (or|and) "src"
//! kind      = "host" | "net" | "port"
//! ```

use std::{iter::Peekable, net::IpAddr};

use super::{
    ADDRESS_TERMS_MAX, FILTER_BYTES_MAX, FilterError, FilterErrorKind as Kind, PORT_TERMS_MAX,
    error::Word,
    terms::{AddressTerm, PortTerm, Prefix, PrefixError, Protocol, Side, Terms},
    words::{
        ProtocolWord, Token, ValueKind, is_known, looks_like_value, side, starts_qualifier, words,
    },
};

/// Reads `text`: its words parted by one blank, and what they mean.
pub(super) fn parse(text: &str) -> Result<(String, Terms), FilterError> {
    if text.len() > FILTER_BYTES_MAX {
        let kind = Kind::TooLong(text.len());
        return Err(FilterError {
            position: 0,
            len: 0,
            kind,
        });
    }
    let mut parser = Parser {
        text,
        words: words(text).peekable(),
        terms: Terms::default(),
        carried: None,
        spaced: String::with_capacity(text.len()),
        end: 0,
    };
    parser.filter()?;
    Ok((parser.spaced, parser.terms))
}

#[derive(Clone, Copy)]
enum Sides {
    One(Side),
    /// `src and dst`.
    Each,
}

impl Sides {
    fn iter(self) -> impl Iterator<Item = Side> {
        let (first, second) = match self {
            Self::One(side) => (side, None),
            Self::Each => (Side::Source, Some(Side::Destination)),
        };
        std::iter::once(first).chain(second)
    }
}

/// All that stands before a value; a bare value after `and` takes it over.
#[derive(Clone, Copy)]
struct Qualifiers {
    protocol: Option<ProtocolWord>,
    sides: Sides,
    kind: ValueKind,
}

struct Parser<'a, I: Iterator<Item = Token<'a>>> {
    text: &'a str,
    words: Peekable<I>,
    terms: Terms,
    carried: Option<Qualifiers>,
    /// The words read so far, parted by one blank.
    spaced: String,
    /// Where the last word read ends.
    end: usize,
}

impl<'a, I: Iterator<Item = Token<'a>>> Parser<'a, I> {
    fn filter(&mut self) -> Result<(), FilterError> {
        if self.words.peek().is_none() {
            return Ok(());
        }
        loop {
            self.term()?;
            match self.next() {
                None => return Ok(()),
                Some(word) if word.is_and() => {}
                Some(word) if word.is_or() || !is_known(word.text) => {
                    return Err(word.refuse(Kind::Unknown(word.shown())));
                }
                Some(word) => {
                    let expected = "`and`, which joins two terms";
                    return Err(word.refuse(Kind::Unexpected {
                        found: word.shown(),
                        expected,
                    }));
                }
            }
        }
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let word = self.words.next()?;
        if !self.spaced.is_empty() {
            self.spaced.push(' ');
        }
        self.spaced.push_str(word.text);
        self.end = word.position + word.text.len();
        Some(word)
    }

    fn expect(&mut self, expected: &'static str) -> Result<Token<'a>, FilterError> {
        let kind = Kind::Unfinished { expected };
        self.next().ok_or(FilterError {
            position: self.text.len(),
            len: 0,
            kind,
        })
    }

    fn term(&mut self) -> Result<(), FilterError> {
        let first = self.expect("a term")?;
        let protocol = ProtocolWord::of(first.text);
        if let Some(protocol) = protocol
            && self
                .words
                .peek()
                .is_none_or(|next| !starts_qualifier(next.text))
        {
            self.carried = None;
            return self.add(first, |terms| match protocol {
                ProtocolWord::Network(family) => restrict(&mut terms.family, family),
                ProtocolWord::Transport(protocol) => restrict_protocol(terms, protocol),
            });
        }
        let word = if protocol.is_some() {
            self.expect("`host`, `net` or `port`")?
        } else {
            first
        };
        if let Some(kind) = ValueKind::of(word.text) {
            return self.value(first, protocol, Sides::One(Side::Either), kind);
        }
        if let Some(side) = side(word.text) {
            let sides = self.sides(side)?;
            let kind = self.words.peek().and_then(|next| ValueKind::of(next.text));
            if kind.is_some() {
                self.next();
            }
            return self.value(first, protocol, sides, kind.unwrap_or(ValueKind::Host));
        }
        if let Some(carried) = self.carried
            && looks_like_value(word.text)
        {
            return self.add_value(first, word, carried);
        }
        let kind = if looks_like_value(word.text) {
            Kind::NoKind(word.shown())
        } else if word.is_and() {
            Kind::Unexpected {
                found: word.shown(),
                expected: "a term, which belongs here",
            }
        } else {
            Kind::Unknown(word.shown())
        };
        Err(word.refuse(kind))
    }

    /// After `src` or `dst`: whether the other one follows.
    fn sides(&mut self, side: Side) -> Result<Sides, FilterError> {
        let Some(joint) = self
            .words
            .peek()
            .copied()
            .filter(|next| next.is_and() || next.is_or())
        else {
            return Ok(Sides::One(side));
        };
        self.next();
        let (other, expected) = match side {
            Side::Source => (
                Side::Destination,
                "`dst`, or an address before the joining word",
            ),
            _ => (Side::Source, "`src`, or an address before the joining word"),
        };
        let word = self.expect(expected)?;
        if super::words::side(word.text) != Some(other) {
            return Err(word.refuse(Kind::Unexpected {
                found: word.shown(),
                expected,
            }));
        }
        Ok(if joint.is_or() {
            Sides::One(Side::Either)
        } else {
            Sides::Each
        })
    }

    fn value(
        &mut self,
        first: Token<'a>,
        protocol: Option<ProtocolWord>,
        sides: Sides,
        kind: ValueKind,
    ) -> Result<(), FilterError> {
        if let Some(protocol) = protocol
            && !protocol.may_qualify(kind)
        {
            let (qualifier, kind) = (protocol.word(), kind.word());
            return Err(first.refuse(Kind::Qualifier { qualifier, kind }));
        }
        let word = self.expect(match kind {
            ValueKind::Host => "an address",
            ValueKind::Net => "a network",
            ValueKind::Port => "a port number",
        })?;
        let qualifiers = Qualifiers {
            protocol,
            sides,
            kind,
        };
        self.carried = Some(qualifiers);
        self.add_value(first, word, qualifiers)
    }

    fn add_value(
        &mut self,
        first: Token<'a>,
        word: Token<'a>,
        Qualifiers {
            protocol,
            sides,
            kind,
        }: Qualifiers,
    ) -> Result<(), FilterError> {
        let prefix = match kind {
            ValueKind::Port => {
                let port =
                    port(word.text).ok_or_else(|| word.refuse(Kind::NotAPort(word.shown())))?;
                return self.add(first, |terms| {
                    for side in sides.iter() {
                        push_new(&mut terms.ports, PortTerm { port, side });
                    }
                    match protocol {
                        Some(ProtocolWord::Transport(p)) => restrict_protocol(terms, p),
                        _ => true,
                    }
                });
            }
            ValueKind::Host => {
                let address: IpAddr = word
                    .text
                    .parse()
                    .map_err(|_invalid| word.refuse(Kind::NotAnAddress(word.shown())))?;
                Prefix::host(address)
            }
            ValueKind::Net => network(word.text).map_err(|reason| {
                word.refuse(Kind::NotANetwork {
                    word: word.shown(),
                    reason,
                })
            })?,
        };
        self.add(first, |terms| {
            for side in sides.iter() {
                push_new(&mut terms.addresses, AddressTerm { prefix, side });
            }
            match protocol {
                Some(ProtocolWord::Network(family)) => restrict(&mut terms.family, family),
                _ => true,
            }
        })
    }

    /// Adds a term that began at `first`; `change` answers false when it contradicts.
    fn add(
        &mut self,
        first: Token<'a>,
        change: impl FnOnce(&mut Terms) -> bool,
    ) -> Result<(), FilterError> {
        let possible = change(&mut self.terms);
        let words = &self.text[first.position..self.end];
        let shown = Word::new(words, first.number);
        let kind = if self.terms.addresses.len() > ADDRESS_TERMS_MAX
            || self.terms.ports.len() > PORT_TERMS_MAX
        {
            Kind::TooManyTerms(shown)
        } else if !possible || !self.terms.is_satisfiable() {
            Kind::RejectsAll(shown)
        } else {
            return Ok(());
        };
        Err(FilterError {
            position: first.position,
            len: words.len(),
            kind,
        })
    }
}

/// Narrows `slot` to `value`; false when it holds another.
fn restrict<T: Copy + PartialEq>(slot: &mut Option<T>, value: T) -> bool {
    *slot.get_or_insert(value) == value
}

fn restrict_protocol(terms: &mut Terms, protocol: Protocol) -> bool {
    restrict(&mut terms.protocol, protocol)
        && protocol
            .family()
            .is_none_or(|family| restrict(&mut terms.family, family))
}

fn push_new<T: PartialEq>(terms: &mut Vec<T>, term: T) {
    if !terms.contains(&term) {
        terms.push(term);
    }
}

/// Decimal without leading zeroes: pcap-filter reads those as octal.
fn port(word: &str) -> Option<u16> {
    let plain = word == "0" || word.starts_with(|c: char| matches!(c, '1'..='9'));
    word.parse().ok().filter(|_| plain)
}

/// A prefix; an IPv4 network of fewer than four numbers has the length of those.
fn network(word: &str) -> Result<Prefix, PrefixError> {
    let (address, length) = word
        .split_once('/')
        .map_or((word, None), |(a, l)| (a, Some(l)));
    let numbers = address.split('.').count();
    let short = numbers < 4 && !address.contains(':');
    if !short {
        return word.parse();
    }
    let address: IpAddr = format!("{address}{}", ".0".repeat(4 - numbers))
        .parse()
        .map_err(|_invalid| PrefixError::Syntax)?;
    match length {
        // tcpdump's own grammar refuses `net 10/8`.
        Some(_) if numbers == 1 => Err(PrefixError::Syntax),
        Some(length) => format!("{address}/{length}").parse(),
        None => Prefix::new(address, numbers as u8 * 8),
    }
}
