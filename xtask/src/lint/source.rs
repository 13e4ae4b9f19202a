//! The paths (`a::b::c`) that a Rust source names.
//!
//! Reads words, not grammar: comments and literals are left out, `use` trees are taken apart, and
//! what `#[cfg(test)]` stands before is left out too, for tests may reach where the code may not.
//! Names that are brought in by `use` show up once, there. Code made by macros is not seen.

use std::str::Chars;

/// A path as it is written, with its line (from 1). A word alone is a path of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedPath {
    pub(super) line: usize,
    pub(super) segments: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Separator,
    Mark(char),
}

/// Every path in `source` outside its tests, in the order of the text.
pub(super) fn paths(source: &str) -> Vec<NamedPath> {
    let tokens = without_tests(tokens(source));
    let mut paths = Vec::new();
    let mut at = 0;
    while let Some((token, line)) = tokens.get(at) {
        match token {
            Token::Word(word) if word == "use" && !follows_mark(&tokens, at, '<') => {
                at = use_tree(&tokens, at + 1, &[], &mut paths);
            }
            Token::Word(word) if follows_mark(&tokens, at, '.') && word != "unsafe" => at += 1,
            Token::Word(word) => {
                let mut segments = vec![word.clone()];
                at += 1;
                while let (Some((Token::Separator, _)), Some((Token::Word(next), _))) =
                    (tokens.get(at), tokens.get(at + 1))
                {
                    segments.push(next.clone());
                    at += 2;
                }
                paths.push(NamedPath {
                    line: *line,
                    segments,
                });
            }
            _ => at += 1,
        }
    }
    paths
}

fn follows_mark(tokens: &[(Token, usize)], at: usize, mark: char) -> bool {
    // A range (`..word`) is no field or method.
    at > 0
        && tokens[at - 1].0 == Token::Mark(mark)
        && !(mark == '.' && at > 1 && tokens[at - 2].0 == Token::Mark('.'))
}

/// Takes one tree of a `use` apart, from `at`; answers where it ended.
fn use_tree(
    tokens: &[(Token, usize)],
    mut at: usize,
    prefix: &[String],
    paths: &mut Vec<NamedPath>,
) -> usize {
    let mut segments = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |(_, line)| *line);
    loop {
        match tokens.get(at).map(|(token, _)| token) {
            Some(Token::Word(word)) if word == "as" => at += 2,
            Some(Token::Word(word)) => {
                if word != "self" || segments.is_empty() {
                    segments.push(word.clone());
                }
                at += 1;
            }
            Some(Token::Separator) => at += 1,
            Some(Token::Mark('*')) => {
                segments.push("*".to_owned());
                at += 1;
            }
            Some(Token::Mark('{')) => {
                at += 1;
                while !matches!(tokens.get(at), None | Some((Token::Mark('}'), _))) {
                    at = use_tree(tokens, at, &segments, paths);
                    if matches!(tokens.get(at), Some((Token::Mark(','), _))) {
                        at += 1;
                    }
                }
                return at + 1;
            }
            other => {
                paths.push(NamedPath { line, segments });
                // `,` and `}` belong to the tree around this one.
                let outer = matches!(other, Some(Token::Mark(',' | '}')));
                return if outer { at } else { at + 1 };
            }
        }
    }
}

/// Leaves out each item that `#[cfg(test)]` stands before.
fn without_tests(tokens: Vec<(Token, usize)>) -> Vec<(Token, usize)> {
    let cfg_test = [
        Token::Mark('#'),
        Token::Mark('['),
        Token::Word("cfg".into()),
        Token::Mark('('),
        Token::Word("test".into()),
        Token::Mark(')'),
        Token::Mark(']'),
    ];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_test = tokens[at..]
            .iter()
            .map(|(token, _)| token)
            .take(cfg_test.len())
            .eq(&cfg_test);
        if is_test {
            at = end_of_item(&tokens, at + cfg_test.len());
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Behind the `;` or the closing brace that ends the item at `at`.
fn end_of_item(tokens: &[(Token, usize)], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some((token, _)) = tokens.get(at) {
        at += 1;
        match token {
            Token::Mark('{' | '(' | '[') => depth += 1,
            Token::Mark(close @ ('}' | ')' | ']')) => {
                depth = depth.saturating_sub(1);
                if depth == 0 && *close == '}' {
                    break;
                }
            }
            Token::Mark(';') if depth == 0 => break,
            _ => {}
        }
    }
    at
}

/// Words and marks with their lines.
fn tokens(source: &str) -> Vec<(Token, usize)> {
    let mut tokens = Vec::new();
    let mut rest = source.chars();
    let line_at = |rest: &Chars<'_>| {
        let read = source.len() - rest.as_str().len();
        source[..read].matches('\n').count() + 1
    };
    while let Some(first) = rest.clone().next() {
        let text = rest.as_str();
        if text.starts_with("//") {
            skip_past(&mut rest, "\n");
        } else if text.starts_with("/*") {
            skip_block_comment(&mut rest);
        } else if let Some(hashes) = raw_string(text) {
            skip_past(&mut rest, "\"");
            skip_past(&mut rest, &format!("\"{}", "#".repeat(hashes)));
        } else if first == '"' || text.starts_with("b\"") || text.starts_with("c\"") {
            skip_past(&mut rest, "\"");
            skip_quoted(&mut rest, '"');
        } else if first == '\'' {
            rest.next();
            // 'a' and '\n' are literals, 'a alone is a lifetime.
            let mut ahead = rest.clone();
            let (one, two) = (ahead.next(), ahead.next());
            if one == Some('\\') || two == Some('\'') {
                skip_quoted(&mut rest, '\'');
            }
        } else if first.is_alphabetic() || first == '_' {
            let line = line_at(&rest);
            let text = text.strip_prefix("r#").unwrap_or(text);
            let end = text
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(text.len());
            tokens.push((Token::Word(text[..end].to_owned()), line));
            rest = text[end..].chars();
        } else if text.starts_with("::") {
            tokens.push((Token::Separator, line_at(&rest)));
            rest.nth(1);
        } else {
            if !first.is_whitespace() {
                tokens.push((Token::Mark(first), line_at(&rest)));
            }
            rest.next();
        }
    }
    tokens
}

/// Number of `#` of the raw string literal that `text` starts with, if it does.
fn raw_string(text: &str) -> Option<usize> {
    let text = text
        .strip_prefix(['b', 'c'])
        .unwrap_or(text)
        .strip_prefix('r')?;
    let hashes = text.chars().take_while(|c| *c == '#').count();
    text[hashes..].starts_with('"').then_some(hashes)
}

fn skip_past(rest: &mut Chars<'_>, end: &str) {
    let text = rest.as_str();
    let at = text.find(end).map_or(text.len(), |at| at + end.len());
    *rest = text[at..].chars();
}

fn skip_quoted(rest: &mut Chars<'_>, quote: char) {
    while let Some(c) = rest.next() {
        if c == '\\' {
            rest.next();
        } else if c == quote {
            return;
        }
    }
}

/// Block comments nest.
fn skip_block_comment(rest: &mut Chars<'_>) {
    let mut depth = 0_usize;
    loop {
        let text = rest.as_str();
        if text.starts_with("/*") {
            depth += 1;
            rest.nth(1);
        } else if text.starts_with("*/") {
            depth -= 1;
            rest.nth(1);
        } else if rest.next().is_none() {
            return;
        }
        if depth == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(source: &str) -> Vec<String> {
        paths(source)
            .into_iter()
            .map(|path| path.segments.join("::"))
            .collect()
    }

    #[test]
    fn use_trees_are_taken_apart() {
        assert_eq!(
            named("use std::{env, io::{self, Read as _}, fs::*};\nuse crate::a;"),
            [
                "std::env",
                "std::io",
                "std::io::Read",
                "std::fs::*",
                "crate::a"
            ]
        );
        assert_eq!(
            named("pub(crate) use self::x::Y as Z;"),
            ["pub", "crate", "self::x::Y"]
        );
        assert_eq!(
            named("use ::aya::{maps, Ebpf,};"),
            ["aya::maps", "aya::Ebpf"]
        );
    }

    #[test]
    fn paths_in_expressions_are_found_with_their_lines() {
        let found = paths("fn f() {\n  tokio::spawn(x.spawn());\n}");
        let spawn = found.iter().find(|path| path.segments.len() == 2).unwrap();
        assert_eq!(
            (spawn.line, spawn.segments.join("::").as_str()),
            (2, "tokio::spawn")
        );
        assert!(!named("x.spawn()").contains(&"spawn".to_owned()));
        assert_eq!(named("a..b::c"), ["a", "b::c"]);
        assert_eq!(named("<T as aya::Pod>::f"), ["T", "as", "aya::Pod", "f"]);
    }

    #[test]
    fn comments_and_literals_name_nothing() {
        let source = "// aya::a\n/* aya::b /* aya::c */ aya::d */ \"aya::e \\\" aya::f\" \
                      r#\"aya::g \" aya::h\"# b\"aya::i\" 'a' '\\'' &'static x /// aya::j";
        assert_eq!(named(source), ["static", "x"]);
    }

    #[test]
    fn what_is_only_for_tests_is_left_out() {
        let source = "use a::b;\n#[cfg(test)]\nuse aya::x;\n#[cfg(test)]\nmod tests { fn f() { aya::y() } }\n\
                      #[cfg(not(test))]\nuse c::d;";
        let named = named(source);
        assert!(
            named.contains(&"a::b".into()) && named.contains(&"c::d".into()),
            "{named:?}"
        );
        assert!(
            !named.iter().any(|path| path.starts_with("aya")),
            "{named:?}"
        );
    }
}
