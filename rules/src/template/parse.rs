//! From a template's text to its terms.
//!
//! ```text
//! chain := unary ((`and` | `or`) unary)*        both joiners bind alike, from the left, as in
//! unary := (`not`)* (`(` chain `)` | term)      pcap-filter
//! term  := words, with a hole in place of a value
//! ```
//! What a term without holes says is left to libpcap: brackets that are not around a chain
//! (`port (80 or 443)`, `(tcp[12] & 0xf0) >> 2 = 5`) are words of their term.

use remora_capture::text::shown;

use super::{
    Joiner, Node, Piece,
    hole::{Hole, Kind, NAMES, Source},
};
use crate::{document::nearest, error::Problem};

/// Most brackets open at once, so that neither parsing nor filling in recurses deeper.
const DEPTH_MAX: usize = 16;
/// Most holes with `?`: the filter without each is tried when the rule is read.
const OPTIONAL_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    Open,
    Close,
    Not,
    Join(Joiner),
    Hole,
    Word,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: TokenKind,
    text: &'a str,
    /// Nothing between it and the token before.
    touches: bool,
}

/// The terms, and how many holes with `?` are in them.
pub(super) fn parse(text: &str) -> Result<(Node, usize), Problem> {
    let tokens = tokens(text)?;
    let glued = tokens.windows(2).find(|pair| {
        let words = pair
            .iter()
            .all(|t| matches!(t.kind, TokenKind::Hole | TokenKind::Word));
        words && pair[1].touches && pair.iter().any(|t| t.kind == TokenKind::Hole)
    });
    if let Some([first, second]) = glued {
        return Err(bad(format!(
            "`{}{}`: a hole stands by itself, with blanks around it",
            shown(first.text),
            shown(second.text)
        )));
    }
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
        optional: 0,
    };
    let node = parser.chain()?;
    match parser.peek() {
        None => Ok((node, parser.optional)),
        Some(_) => Err(bad("a `)` without its `(`")),
    }
}

fn bad(what: impl Into<String>) -> Problem {
    Problem::Template(what.into())
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, Problem> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(blanks) = text[at..].find(|c: char| !c.is_ascii_whitespace()) {
        let start = at + blanks;
        let rest = &text[start..];
        let (kind, len) = if rest.starts_with("${") {
            let end = rest
                .find('}')
                .ok_or_else(|| bad(format!("`{}` has no `}}`", shown(rest))))?;
            (TokenKind::Hole, end + 1)
        } else if rest.starts_with('(') {
            (TokenKind::Open, 1)
        } else if rest.starts_with(')') {
            (TokenKind::Close, 1)
        } else if rest.starts_with("&&") || rest.starts_with("||") {
            (TokenKind::Word, 2)
        } else if rest.starts_with('!') && !rest.starts_with("!=") {
            (TokenKind::Word, 1)
        } else {
            (TokenKind::Word, word_len(rest))
        };
        let text = &rest[..len];
        let kind = match (kind, text) {
            (TokenKind::Word, "and" | "&&") => TokenKind::Join(Joiner::And),
            (TokenKind::Word, "or" | "||") => TokenKind::Join(Joiner::Or),
            (TokenKind::Word, "not" | "!") => TokenKind::Not,
            (kind, _) => kind,
        };
        tokens.push(Token {
            kind,
            text,
            touches: blanks == 0,
        });
        at = start + len;
    }
    Ok(tokens)
}

/// Up to a blank, a bracket, a joiner of symbols, a `!` that is not of `!=`, or a hole.
fn word_len(rest: &str) -> usize {
    let ends = |(at, c): (usize, char)| {
        let here = &rest[at..];
        c.is_ascii_whitespace()
            || matches!(c, '(' | ')')
            || c == '!' && !here.starts_with("!=")
            || ["&&", "||", "${"].iter().any(|sign| here.starts_with(sign))
    };
    rest.char_indices()
        .skip(1)
        .find(|place| ends(*place))
        .map_or(rest.len(), |(at, _)| at)
}

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    depth: usize,
    optional: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn peek_kind(&self) -> Option<TokenKind> {
        self.peek().map(|token| token.kind)
    }

    fn chain(&mut self) -> Result<Node, Problem> {
        let mut links = vec![(Joiner::And, self.unary()?)];
        while let Some(TokenKind::Join(joiner)) = self.peek_kind() {
            self.at += 1;
            links.push((joiner, self.unary()?));
        }
        Ok(Node::Chain(links))
    }

    fn unary(&mut self) -> Result<Node, Problem> {
        let mut negations = 0;
        while self.peek_kind() == Some(TokenKind::Not) {
            self.at += 1;
            negations += 1;
        }
        let node = match self.peek_kind() {
            Some(TokenKind::Open) => self.group()?,
            _ => self.term()?,
        };
        // Two are none.
        Ok(if negations % 2 == 1 {
            Node::Not(Box::new(node))
        } else {
            node
        })
    }

    fn group(&mut self) -> Result<Node, Problem> {
        let start = self.at;
        if self.depth == DEPTH_MAX {
            return Err(bad(format!("more than {DEPTH_MAX} brackets in each other")));
        }
        self.depth += 1;
        self.at += 1;
        let inner = self.chain();
        self.depth -= 1;
        let closed = self.peek_kind() == Some(TokenKind::Close);
        let inner = inner?;
        if !closed {
            return Err(bad("a `(` without its `)`"));
        }
        self.at += 1;
        match self.peek_kind() {
            None | Some(TokenKind::Join(_) | TokenKind::Close) => Ok(Node::Group(Box::new(inner))),
            // Brackets of a calculation: `(tcp[12] & 0xf0) >> 2 = 5`.
            Some(_) => {
                self.at = start;
                self.term()
            }
        }
    }

    fn term(&mut self) -> Result<Node, Problem> {
        let mut pieces = Vec::new();
        let mut open = 0_usize;
        let mut before: Option<Token<'a>> = None;
        while let Some(token) = self.peek() {
            match token.kind {
                TokenKind::Open => open += 1,
                TokenKind::Close if open == 0 => break,
                TokenKind::Close => open -= 1,
                // `src or dst port 53` is one term.
                TokenKind::Join(_) if open == 0 && !self.between_sides(before) => break,
                _ => {}
            }
            self.at += 1;
            pieces.push(match token.kind {
                TokenKind::Hole => Piece::Hole(self.hole(token, before, open)?),
                _ => Piece::Text(token.text.to_owned()),
            });
            before = Some(token);
        }
        match pieces.first() {
            None => Err(bad("a term is missing")),
            Some(Piece::Text(word)) if is_bare(word) => Err(bad(format!(
                "`{}` stands alone; write what it is, like `host` or `port`",
                shown(word)
            ))),
            Some(Piece::Hole(_)) if pieces.len() > 1 => {
                let rest = pieces.split_off(1);
                Ok(Node::Qualified(pieces, rest))
            }
            Some(_) => Ok(Node::Term(pieces)),
        }
    }

    fn between_sides(&self, before: Option<Token<'_>>) -> bool {
        let is = |token: Option<&Token<'_>>, word| token.is_some_and(|t| t.text == word);
        let next = self.tokens.get(self.at + 1);
        is(before.as_ref(), "src") && is(next, "dst")
            || is(before.as_ref(), "dst") && is(next, "src")
    }

    fn hole(
        &mut self,
        token: Token<'_>,
        before: Option<Token<'_>>,
        open: usize,
    ) -> Result<Hole, Problem> {
        let inner = token
            .text
            .strip_prefix("${")
            .and_then(|t| t.strip_suffix('}'))
            .unwrap_or_default();
        let (name, is_optional) = match inner.strip_suffix('?') {
            Some(name) => (name, true),
            None => (inner, false),
        };
        let source = Source::of(name).ok_or_else(|| {
            let known = nearest(name, &NAMES).map_or_else(String::new, |known| {
                format!("; did you mean `${{{known}}}`?")
            });
            bad(format!(
                "`{}` is nothing that an alert has; there are ${{{}}} and ${{field:KEY}}{known}",
                shown(token.text),
                NAMES.join("}, ${")
            ))
        })?;
        let kind = match before.filter(|_| open == 0).map(|b| b.text) {
            Some("host" | "src" | "dst") => Kind::Address,
            Some("net") => Kind::Network,
            Some("port") => Kind::Port,
            None if open == 0 && self.ends_term() => Kind::Protocol,
            None if open == 0 => Kind::Transport,
            Some(_) | None => {
                return Err(bad(format!(
                    "`{}` stands after none of host, src, dst, net and port, nor at the \
                     beginning of a term, where it is a protocol",
                    shown(token.text)
                )));
            }
        };
        if !source.may_be(kind) {
            return Err(bad(format!(
                "`{}` is not {}, which belongs there; what it is, is told by the word before it \
                 (`host ${{remote.ip}}`, `port ${{remote.port}}`)",
                shown(token.text),
                kind.name()
            )));
        }
        self.optional += usize::from(is_optional);
        if self.optional > OPTIONAL_MAX {
            return Err(bad(format!("more than {OPTIONAL_MAX} holes with `?`")));
        }
        Ok(Hole {
            text: token.text.to_owned(),
            source,
            kind,
            is_optional,
        })
    }

    /// The token before was the term's last.
    fn ends_term(&self) -> bool {
        matches!(
            self.peek_kind(),
            None | Some(TokenKind::Join(_) | TokenKind::Close)
        )
    }
}

/// A number or an address without a word before it takes over the word of the term before, which
/// may be gone.
fn is_bare(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) || word.contains(':')
}
