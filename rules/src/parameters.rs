//! Parameters of `remora:capture`, checked as the agent would check them.

use std::{collections::BTreeMap, time::Duration};

use remora_capture::{
    alert::mapping::Traffic,
    filter::{Filter, FilterError, Names, compiler},
    session::{Limits, SessionSpec, Snaplen, SpecError, Target},
};
use serde_saphyr::Spanned;

use crate::{
    CaptureParameters, Dns, Ends, RuleFilter, Scope,
    document::{ParameterBlock, Scalar},
    error::{Fault, Problem},
    template::Template,
    value::{bytes, count, duration, flag, line_of},
};

/// Length of a capture whose rule gives none.
const DURATION_DEFAULT: Duration = Duration::from_secs(30);
/// Labels that Remora sets from the alert and the rule.
pub const OWN_LABELS: [&str; 4] = ["namespace", "node", "pod", "rule"];

/// `line` is the action's, for what has no line of its own.
pub(crate) fn compile(line: u64, block: &ParameterBlock) -> Result<CaptureParameters, Fault> {
    let filter = filter_of(block)?;
    let sink = match &block.destination {
        Some(destination) if destination.value != "store" => {
            let name = destination.value.parse();
            Some(name.map_err(|_name| {
                let problem = Problem::Destination(destination.value.clone());
                Fault::at(line_of(destination), problem)
            })?)
        }
        _ => None,
    };
    let length = given(&block.duration, |v| duration("duration", v))?;
    let parameters = CaptureParameters {
        scope: given(&block.scope, scope)?.unwrap_or_default(),
        // A filter with holes names the alert's endpoint by itself.
        traffic: given(&block.traffic, traffic)?.unwrap_or(match filter {
            RuleFilter::Fixed(_) => Traffic::default(),
            RuleFilter::Template { .. } => Traffic::All,
        }),
        filter,
        dns: match given(&block.dns, |v| flag("dns", v))? {
            Some(true) => Dns::Too,
            Some(false) | None => Dns::AsFiltered,
        },
        ends: match given(&block.both_ends, |v| flag("both_ends", v))? {
            Some(true) => Ends::Both,
            Some(false) | None => Ends::Alerted,
        },
        limits: Limits {
            packets: given(&block.max_packets, |v| count("max_packets", v))?,
            file_bytes: given(&block.max_bytes, |v| bytes("max_bytes", v))?,
            duration: Some(length.unwrap_or(DURATION_DEFAULT)),
        },
        snaplen: given(&block.snaplen, snaplen)?.unwrap_or_default(),
        look_back: given(&block.look_back, |v| duration("look_back", v))?.unwrap_or_default(),
        labels: labels(block)?,
        sink,
    };
    // The agent's own check, at load and not at the first alert. The target is any valid one.
    parameters
        .spec(Target::Pid(1))
        .validate()
        .map_err(|e| Fault::at(line, e.into()))?;
    Ok(parameters)
}

impl CaptureParameters {
    /// All that the rule alone says of a capture.
    pub(crate) fn spec(&self, target: Target) -> SessionSpec {
        let mut spec = SessionSpec::new(target);
        spec.limits = self.limits;
        spec.snaplen = self.snaplen;
        spec.look_back = self.look_back;
        spec.labels = self.labels.clone();
        spec.sink.clone_from(&self.sink);
        spec
    }
}

fn given<V, T>(
    value: &Option<Spanned<V>>,
    read: impl FnOnce(&Spanned<V>) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    value.as_ref().map(read).transpose()
}

/// Words of a rule file.
const SCOPES: [(&str, Scope); 5] = [
    ("container", Scope::Container),
    ("pod", Scope::Pod),
    ("deployment", Scope::Deployment),
    ("service", Scope::Service),
    ("node", Scope::Node),
];
const TRAFFICS: [(&str, Traffic); 5] = [
    ("flow", Traffic::Flow),
    ("endpoint", Traffic::Endpoint),
    ("remote-host", Traffic::RemoteHost),
    ("protocol", Traffic::Protocol),
    ("all", Traffic::All),
];

pub(crate) fn scope_word(scope: Scope) -> &'static str {
    word_of(&SCOPES, scope)
}

pub(crate) fn traffic_word(traffic: Traffic) -> &'static str {
    word_of(&TRAFFICS, traffic)
}

fn word_of<T: PartialEq>(words: &[(&'static str, T)], meaning: T) -> &'static str {
    words
        .iter()
        .find(|(_, known)| *known == meaning)
        .map_or("", |(word, _)| word)
}

fn meaning_of<T: Copy>(words: &[(&'static str, T)], text: &str) -> Option<(&'static str, T)> {
    words.iter().find(|(word, _)| *word == text).copied()
}

fn scope(text: &Spanned<String>) -> Result<Scope, Fault> {
    if let Some((_, scope)) = meaning_of(&SCOPES, &text.value) {
        return Ok(scope);
    }
    let problem = match meaning_of(&TRAFFICS, &text.value) {
        Some((word, _)) => Problem::ScopeOfTraffic { word },
        None => Problem::Scope(text.value.clone()),
    };
    Err(Fault::at(line_of(text), problem))
}

fn traffic(text: &Spanned<String>) -> Result<Traffic, Fault> {
    meaning_of(&TRAFFICS, &text.value)
        .map(|(_, traffic)| traffic)
        .ok_or_else(|| Fault::at(line_of(text), Problem::Traffic(text.value.clone())))
}

fn filter_of(block: &ParameterBlock) -> Result<RuleFilter, Fault> {
    let template = block
        .filter
        .as_ref()
        .filter(|text| Template::has_holes(&text.value));
    match (template, &block.fallback) {
        (Some(text), fallback) => Ok(RuleFilter::Template {
            template: Template::parse(&text.value)
                .map_err(|problem| Fault::at(line_of(text), problem))?,
            fallback: given(fallback, filter)?,
        }),
        (None, Some(fallback)) => Err(Fault::at(line_of(fallback), Problem::IdleFallback)),
        (None, None) => Ok(RuleFilter::Fixed(
            given(&block.filter, filter)?.unwrap_or_default(),
        )),
    }
}

fn filter(text: &Spanned<String>) -> Result<Filter, Fault> {
    Filter::compile(&text.value, compiler(Names::Refused))
        .map_err(|e: FilterError| Fault::at(line_of(text), Problem::Filter(e)))
}

fn labels(block: &ParameterBlock) -> Result<BTreeMap<String, String>, Fault> {
    let mut labels = BTreeMap::new();
    for (key, value) in block.labels.iter().flatten() {
        if key.is_empty() || OWN_LABELS.contains(&key.as_str()) {
            return Err(Fault::at(line_of(value), Problem::Label(key.clone())));
        }
        labels.insert(key.clone(), value.value.to_string());
    }
    Ok(labels)
}

/// 0 is the whole packet, as in tcpdump.
fn snaplen(value: &Spanned<Scalar>) -> Result<Snaplen, Fault> {
    if value.value == Scalar::Integer(0) {
        return Ok(Snaplen::MAX);
    }
    let number = bytes("snaplen", value)?.get();
    u32::try_from(number)
        .map_err(|_too_large| SpecError::Snaplen(number))
        .and_then(Snaplen::try_from)
        .map_err(|e| Fault::at(line_of(value), e.into()))
}
