//! Single values of a rule file: flags, lengths of time, sizes.

use std::{num::NonZeroU64, str::FromStr, time::Duration};

use jiff::SignedDuration;
use serde_saphyr::Spanned;

use crate::{
    document::Scalar,
    error::{Fault, Problem},
};

pub(crate) type Value = Spanned<Scalar>;

pub(crate) fn line_of<T>(value: &Spanned<T>) -> u64 {
    value.referenced.line()
}

/// A text that carries its own grammar.
pub(crate) fn parsed<T: FromStr<Err = Problem>>(line: u64, text: &str) -> Result<T, Fault> {
    text.parse().map_err(|problem| Fault::at(line, problem))
}

/// `true`, `false`, also quoted; nothing else, as Talon has it.
pub(crate) fn flag(key: &'static str, value: &Value) -> Result<bool, Fault> {
    let text = value.value.to_string();
    text.parse()
        .map_err(|_other| Fault::at(line_of(value), Problem::Flag { key, value: text }))
}

/// `30`, `30s`, `1m 30s`; a bare number is seconds.
pub(crate) fn duration(key: &'static str, value: &Value) -> Result<Duration, Fault> {
    let length = match &value.value {
        Scalar::Integer(seconds) => Some(Duration::from_secs(*seconds)),
        Scalar::Text(text) => text
            .parse::<SignedDuration>()
            .ok()
            .and_then(|length| Duration::try_from(length).ok()),
        Scalar::Bool(_) => None,
    };
    length.ok_or_else(|| {
        let problem = Problem::Duration {
            key,
            value: value.value.to_string(),
        };
        Fault::at(line_of(value), problem)
    })
}

/// A whole number above 0.
pub(crate) fn count(key: &'static str, value: &Value) -> Result<NonZeroU64, Fault> {
    let text = value.value.to_string();
    text.parse()
        .map_err(|_other| Fault::at(line_of(value), Problem::Count { key, value: text }))
}

/// A size above 0: `65536`, `512KiB`, `64MiB`, `1GiB`.
pub(crate) fn bytes(key: &'static str, value: &Value) -> Result<NonZeroU64, Fault> {
    let text = value.value.to_string();
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let (number, unit) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), *factor)))
        .unwrap_or((&text, 1_u64));
    number
        .parse::<NonZeroU64>()
        .ok()
        .and_then(|number| number.checked_mul(NonZeroU64::new(unit)?))
        .ok_or_else(|| {
            Fault::at(
                line_of(value),
                Problem::Bytes {
                    key,
                    value: text.clone(),
                },
            )
        })
}
