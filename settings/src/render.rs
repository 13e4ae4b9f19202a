//! Settings as a file that can be read again.

use std::fmt::Write as _;

use clap::{ArgMatches, parser::ValueSource};
use toml_edit::{Array, Value};

use crate::keys::{Key, Keys, Kind};

/// Longest line of a comment.
const COLUMNS: usize = 100;

/// What holds: settings of the file as they are, others commented with where they are from.
pub(crate) fn effective(
    keys: &Keys,
    matches: &ArgMatches,
    in_file: impl Fn(&Key) -> bool,
) -> String {
    let mut text = String::new();
    for key in keys.iter() {
        let id = key.arg.get_id().as_str();
        let values = matches.try_get_raw(id).ok().flatten();
        let values: Vec<String> = values
            .into_iter()
            .flatten()
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        let line = format!("{} = {}", key.name, shown(key, &values, matches));
        let _infallible = match matches.value_source(id) {
            Some(ValueSource::CommandLine) if in_file(key) => writeln!(text, "{line}"),
            Some(ValueSource::EnvVariable) => writeln!(text, "{line} # environment"),
            Some(ValueSource::DefaultValue) => writeln!(text, "# {line}"),
            _ => Ok(()),
        };
    }
    text
}

fn shown(key: &Key, values: &[String], matches: &ArgMatches) -> Value {
    match key.kind {
        Kind::Switch => matches.get_flag(key.arg.get_id().as_str()).into(),
        Kind::List => values.iter().collect::<Array>().into(),
        Kind::Value { .. } | Kind::SwitchOrValue => {
            value(key, values.first().map_or("", String::as_str))
        }
    }
}

/// A string, or a number where that is what it is.
fn value(key: &Key, text: &str) -> Value {
    match (key.kind, text.parse::<i64>()) {
        (Kind::Value { number: true }, Ok(number)) => number.into(),
        _ => text.into(),
    }
}

/// Every key, commented out, with what its flag's help says.
pub(crate) fn template(keys: &Keys) -> String {
    let mut text = String::new();
    let mut heading = None;
    for key in keys.iter() {
        let own = key.arg.get_help_heading();
        if own != heading {
            let _infallible = writeln!(text, "\n# ── {} ──", own.unwrap_or("General"));
            heading = own;
        }
        let help = key.arg.get_long_help().or(key.arg.get_help());
        let mut help = help.map(ToString::to_string).unwrap_or_default();
        let possible = key.arg.get_possible_values();
        if key.kind != Kind::Switch && !possible.is_empty() {
            let names: Vec<_> = possible.iter().map(|value| value.get_name()).collect();
            let _infallible = write!(help, ": {}", names.join(", "));
        }
        let _infallible = writeln!(
            text,
            "\n{}# {} = {}",
            comment(&help),
            key.name,
            example(key)
        );
    }
    text.trim_start().to_owned()
}

/// The default, or what a value is called.
fn example(key: &Key) -> Value {
    let defaults = key.arg.get_default_values();
    let defaults = defaults.iter().map(|value| value.to_string_lossy());
    let names = key.arg.get_value_names().unwrap_or_default();
    let words: Vec<String> = if defaults.len() > 0 {
        defaults.map(Into::into).collect()
    } else {
        names.iter().map(ToString::to_string).collect()
    };
    match key.kind {
        Kind::Switch => false.into(),
        Kind::List => words.iter().collect::<Array>().into(),
        Kind::Value { .. } | Kind::SwitchOrValue => {
            value(key, words.first().map_or("", String::as_str))
        }
    }
}

fn comment(help: &str) -> String {
    let mut text = String::new();
    for paragraph in help.lines() {
        let mut line = "#".to_owned();
        for word in paragraph.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > COLUMNS {
                text += &line;
                text.push('\n');
                "#".clone_into(&mut line);
            }
            line.push(' ');
            line += word;
        }
        text += &line;
        text.push('\n');
    }
    text
}
