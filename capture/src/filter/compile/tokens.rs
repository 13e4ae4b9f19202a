//! Filter text as libpcap's scanner cuts it (scanner.l, 1.10): blanks, symbols, and words of
//! everything else, which are longer than ours in `words`: a colon, a point or a dash is in them.

/// A word or a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// In bytes.
    pub(super) position: usize,
    /// From 1.
    pub(super) number: usize,
}

impl Token<'_> {
    /// One of those that need no blanks around them.
    pub(super) fn is_symbol(&self) -> bool {
        self.text.starts_with(is_symbol)
    }

    /// Names a kind of value; the values after it are of this kind.
    pub(super) fn is_kind(&self) -> bool {
        matches!(
            self.text,
            "host"
                | "net"
                | "port"
                | "portrange"
                | "gateway"
                | "proto"
                | "protochain"
                | "src"
                | "dst"
        )
    }

    pub(super) fn is_joiner(&self) -> bool {
        matches!(self.text, "and" | "or" | "not" | "&&" | "||" | "!" | "(")
    }
}

fn is_symbol(c: char) -> bool {
    "+*/%[]!<>()&|^=".contains(c)
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

pub(super) fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    let mut position = 0;
    let mut number = 0;
    std::iter::from_fn(move || {
        position += text[position..].find(|c| !is_blank(c))?;
        let rest = &text[position..];
        let ends = |c: char| is_blank(c) || is_symbol(c);
        // After a backslash symbols are letters, too, but for these.
        let ends_escaped = |c: char| is_blank(c) || "!()".contains(c);
        let len = match rest.chars().next() {
            Some('\\') => rest.find(ends_escaped).unwrap_or(rest.len()),
            _ if rest.starts_with("&&") || rest.starts_with("||") => 2,
            Some(c) if is_symbol(c) => c.len_utf8(),
            _ => rest.find(ends).unwrap_or(rest.len()),
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

/// Whether bytes of the link layer's header are read (`ether[0] & 1 != 0`). For raw IP libpcap would
/// take the IP header's for them.
pub(super) fn reads_link_layer(text: &str) -> bool {
    let mut after_link = false;
    tokens(text).any(|token| {
        let reads = after_link && token.text == "[";
        after_link = matches!(
            token.text,
            "link" | "ether" | "ppp" | "slip" | "fddi" | "tr" | "wlan"
        );
        reads
    })
}
