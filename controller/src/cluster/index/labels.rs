//! Label selectors, in Kubernetes' text form: `app=cart,tier!=cache,zone in (a, b),!canary`.

use std::sync::Arc;

use remora_capture::text::shown;

/// A pod's labels, sorted by key.
pub(super) type Labels = [(Arc<str>, Arc<str>)];

/// Requirements that a selector has, at most.
const REQUIREMENTS_MAX: usize = 64;

/// All of its requirements must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    /// Holds without the label, too.
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// A text is no label selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` in the label selector is not understood; use KEY=VALUE, KEY!=VALUE, KEY, !KEY, \
     `KEY in (A,B)` or `KEY notin (A,B)`, with commas between them"
)]
pub struct LabelsError {
    text: String,
}

impl LabelSelector {
    pub(super) fn parse(text: &str) -> Result<Self, LabelsError> {
        let requirements: Vec<_> = split(text).map(requirement).collect::<Result<_, _>>()?;
        if requirements.len() > REQUIREMENTS_MAX {
            return Err(refused(text));
        }
        Ok(Self(requirements))
    }

    pub(super) fn takes(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels
                .binary_search_by(|(key, _)| key.as_ref().cmp(&requirement.key))
                .ok()
                .map(|at| labels[at].1.as_ref());
            match (&requirement.test, value) {
                (Test::In(values), Some(value)) => values.iter().any(|one| one == value),
                (Test::NotIn(values), Some(value)) => values.iter().all(|one| one != value),
                (Test::Exists, value) => value.is_some(),
                (Test::Absent, value) => value.is_none(),
                (Test::In(_), None) => false,
                (Test::NotIn(_), None) => true,
            }
        })
    }
}

/// At the commas outside of parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    })
}

fn requirement(text: &str) -> Result<Requirement, LabelsError> {
    let refused = || refused(text);
    let made = |key: &str, test| {
        let key = key.trim();
        let requirement = Requirement {
            key: key.to_owned(),
            test,
        };
        is_key(key).then_some(requirement).ok_or_else(refused)
    };
    let text = text.trim();
    if let Some((key, values)) = text.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(refused)?;
        let values: Vec<_> = values.split(',').map(|v| v.trim().to_owned()).collect();
        if !values.iter().all(|value| is_value(value)) {
            return Err(refused());
        }
        let mut words = key.split_ascii_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => made(key, Test::In(values)),
            (Some(key), Some("notin"), None) => made(key, Test::NotIn(values)),
            _ => Err(refused()),
        };
    }
    let valued = |key: &str, value: &str, test: fn(Vec<String>) -> Test| {
        let value = value.trim();
        if !is_value(value) {
            return Err(refused());
        }
        made(key, test(vec![value.to_owned()]))
    };
    if let Some((key, value)) = text.split_once("!=") {
        return valued(key, value, Test::NotIn);
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return valued(key, value, Test::In);
    }
    match text.strip_prefix('!') {
        Some(key) => made(key, Test::Absent),
        None => made(text, Test::Exists),
    }
}

fn refused(text: &str) -> LabelsError {
    LabelsError {
        text: shown(text.trim()).to_string(),
    }
}

/// `[PREFIX/]NAME`.
fn is_key(key: &str) -> bool {
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("a", key));
    (1..=253).contains(&prefix.len())
        && !name.is_empty()
        && is_value(prefix) | (prefix.len() > 63)
        && is_value(name)
}

/// At most 63 of `[A-Za-z0-9._-]`, with a letter or digit at both ends; or nothing.
fn is_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    let is_end = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Vec<(Arc<str>, Arc<str>)> {
        let mut labels: Vec<_> = pairs
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        labels.sort();
        labels
    }

    #[test]
    fn selects_as_kubernetes_does() {
        let pod = labels(&[("app", "cart"), ("tier", "web"), ("example.org/zone", "a")]);
        for (text, takes) in [
            ("app=cart", true),
            ("app==cart", true),
            ("app = cart , tier=web", true),
            ("app=cart,tier=db", false),
            ("tier!=db", true),
            ("missing!=x", true),
            ("missing=x", false),
            ("missing=", false),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("app in (shop, cart)", true),
            ("app in (shop)", false),
            ("app notin (shop,cart),tier", false),
            ("app notin (shop),tier in (web)", true),
            ("missing notin (a)", true),
            ("example.org/zone=a", true),
        ] {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(selector.takes(&pod), takes, "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_named() {
        for text in [
            "",
            "app=cart,",
            "=x",
            "app in cart",
            "app in (",
            "a b",
            "app=c art",
            "app in (a",
            "app/=x",
            "a=b=c",
            "app isin (a)",
            "app=\u{1b}[31m",
            "app=-x",
        ] {
            let error = LabelSelector::parse(text).expect_err(text).to_string();
            assert!(!error.contains('\u{1b}'), "{error}");
        }
    }
}
