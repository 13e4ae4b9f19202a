//! A settings file: TOML, of keys alone.

use std::{ffi::OsString, fs, io::Read as _, ops::Range, path::Path};

use toml_edit::{Document, Item, Value};

use crate::{
    fault::FileFault,
    keys::{Key, Keys, Kind},
};

/// Longest file, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// What a file says.
#[derive(Debug)]
pub(crate) struct File<'a> {
    settings: Vec<(&'a Key, Vec<Word>)>,
}

/// What a key's flag is given.
#[derive(Debug)]
enum Word {
    Alone,
    With(String),
}

impl<'a> File<'a> {
    /// # Errors
    /// It cannot be read, or is wrong anywhere.
    pub(crate) fn read(path: &Path, keys: &'a Keys) -> Result<Self, FileFault> {
        let mut text = String::new();
        let read = fs::File::open(path)
            .and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text));
        read.map_err(|source| FileFault::Unread {
            path: path.to_owned(),
            source,
        })?;
        if text.len() as u64 > BYTES_MAX {
            let message = format!("longer than {BYTES_MAX} bytes: this is no settings file");
            return Err(FileFault::whole(path, message));
        }
        Self::parse(&text, keys).map_err(|wrong| wrong.at(path, &text))
    }

    fn parse(text: &str, keys: &'a Keys) -> Result<Self, Wrong> {
        let document = Document::parse(text).map_err(|error| Wrong {
            span: error.span(),
            message: error.message().replace('\n', "; "),
        })?;
        let mut settings = Vec::new();
        for (name, item) in document.as_table() {
            let span = document.as_table().key(name).and_then(|key| key.span());
            let key = keys.get(name).ok_or_else(|| Wrong {
                span: span.or_else(|| item.span()),
                message: unknown(name, keys),
            })?;
            settings.push((key, words(key, item)?));
        }
        Ok(Self { settings })
    }

    /// As words of a command line, but for the keys that are given otherwise.
    pub(crate) fn words(&self, given: impl Fn(&Key) -> bool) -> impl Iterator<Item = OsString> {
        let settings = self.settings.iter().filter(move |(key, _)| !given(key));
        settings.flat_map(|(key, words)| {
            words.iter().map(|word| match word {
                Word::Alone => format!("--{}", key.name).into(),
                Word::With(value) => format!("--{}={value}", key.name).into(),
            })
        })
    }

    pub(crate) fn has(&self, key: &Key) -> bool {
        self.settings.iter().any(|(own, _)| own.name == key.name)
    }
}

fn unknown(name: &str, keys: &Keys) -> String {
    let name = name.escape_debug();
    match keys.nearest(&name.to_string()) {
        Some(nearest) => format!("unknown key `{name}`; did you mean `{nearest}`?"),
        None => format!("unknown key `{name}`; `config show` lists all"),
    }
}

/// Something is wrong at a place.
struct Wrong {
    span: Option<Range<usize>>,
    message: String,
}

impl Wrong {
    fn at(self, path: &Path, text: &str) -> FileFault {
        let Self { span, message } = self;
        let before = span.and_then(|span| text.get(..span.start));
        let Some(before) = before else {
            return FileFault::whole(path, message);
        };
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        FileFault::At {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }
}

fn words(key: &Key, item: &Item) -> Result<Vec<Word>, Wrong> {
    let wrong = |message: String, span| Wrong {
        span,
        message: format!("{}: {message}", key.name),
    };
    let Item::Value(value) = item else {
        return Err(wrong(
            "this is a table; settings are `key = value`".to_owned(),
            item.span(),
        ));
    };
    let one = |value: &Value, number: bool| {
        let text = match value {
            Value::String(text) => text.value().clone(),
            Value::Integer(integer) if number => integer.value().to_string(),
            other => {
                let expected = if number {
                    "a string or a whole number"
                } else {
                    "a string"
                };
                return Err(wrong(expected_but(expected, other), other.span()));
            }
        };
        match key.judge(&text) {
            Ok(()) => Ok(Word::With(text)),
            Err(reason) => Err(wrong(reason, value.span())),
        }
    };
    match (key.kind, value) {
        (Kind::Switch | Kind::SwitchOrValue, Value::Boolean(on)) => {
            Ok(on.value().then_some(Word::Alone).into_iter().collect())
        }
        (Kind::Switch, other) => Err(wrong(expected_but("true or false", other), other.span())),
        (Kind::List, Value::Array(values)) => {
            values.iter().map(|value| one(value, false)).collect()
        }
        (Kind::Value { number }, value) => Ok(vec![one(value, number)?]),
        (Kind::SwitchOrValue | Kind::List, value) => Ok(vec![one(value, false)?]),
    }
}

fn expected_but(expected: &str, found: &Value) -> String {
    let found = match found {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a point",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::InlineTable(_) => "a table",
    };
    format!("expected {expected}, found {found}")
}
