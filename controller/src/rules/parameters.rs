//! Parameters of `remora:capture`, checked as the agent would check them.

use std::time::Duration;

use remora_capture::{
    alert::mapping::Scope,
    filter::{Filter, FilterError, Names, compiler},
    session::{Limits, SessionSpec, Snaplen, SpecError, Target},
};
use serde_saphyr::Spanned;

use super::{
    CaptureParameters,
    document::{ParameterBlock, Scalar},
    error::{Fault, Problem},
    value::{bytes, count, duration, line_of},
};

/// Length of a capture whose rule gives none.
const DURATION_DEFAULT: Duration = Duration::from_secs(30);

/// `line` is the action's, for what has no line of its own.
pub(super) fn compile(line: u64, block: &ParameterBlock) -> Result<CaptureParameters, Fault> {
    let length = block
        .duration
        .as_ref()
        .map(|v| duration("duration", v))
        .transpose()?;
    let look_back = block
        .look_back
        .as_ref()
        .map(|v| duration("look_back", v))
        .transpose()?;
    let parameters = CaptureParameters {
        scope: block
            .scope
            .as_ref()
            .map(scope)
            .transpose()?
            .unwrap_or_default(),
        filter: block
            .filter
            .as_ref()
            .map(filter)
            .transpose()?
            .unwrap_or_default(),
        limits: Limits {
            packets: block
                .max_packets
                .as_ref()
                .map(|v| count("max_packets", v))
                .transpose()?,
            file_bytes: block
                .max_bytes
                .as_ref()
                .map(|v| bytes("max_bytes", v))
                .transpose()?,
            duration: Some(length.unwrap_or(DURATION_DEFAULT)),
        },
        snaplen: block
            .snaplen
            .as_ref()
            .map(snaplen)
            .transpose()?
            .unwrap_or_default(),
        look_back: look_back.unwrap_or_default(),
    };
    // The agent's own check, at load and not at the first alert. The target is any valid one.
    let mut spec = SessionSpec::new(Target::Pid(1));
    spec.limits = parameters.limits;
    spec.look_back = parameters.look_back;
    spec.validate().map_err(|e| Fault::at(line, e.into()))?;
    Ok(parameters)
}

/// The words of a rule file.
const SCOPES: [(&str, Scope); 5] = [
    ("flow", Scope::Flow),
    ("endpoint", Scope::Endpoint),
    ("remote-host", Scope::RemoteHost),
    ("protocol", Scope::Protocol),
    ("all", Scope::All),
];

pub(super) fn scope_word(scope: Scope) -> &'static str {
    SCOPES
        .iter()
        .find(|(_, s)| *s == scope)
        .map_or("", |(word, _)| word)
}

fn scope(text: &Spanned<String>) -> Result<Scope, Fault> {
    let known = SCOPES.iter().find(|(word, _)| *word == text.value);
    known
        .map(|(_, scope)| *scope)
        .ok_or_else(|| Fault::at(line_of(text), Problem::Scope(text.value.clone())))
}

fn filter(text: &Spanned<String>) -> Result<Filter, Fault> {
    if text.value.contains("${") {
        return Err(Fault::at(line_of(text), Problem::Template));
    }
    Filter::compile(&text.value, compiler(Names::Refused))
        .map_err(|e: FilterError| Fault::at(line_of(text), Problem::Filter(e)))
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
