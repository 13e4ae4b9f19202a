//! The request.

use std::{num::NonZeroU64, time::Duration};

use remora_capture::{
    filter::{
        AddressTerm, Family, Filter, FilterError, PortTerm, Prefix, Protocol, Side, Terms,
        program::{Program, Programs},
    },
    session::{
        CaptureId, Destination, Direction, Limits, NameHint, SessionSpec, Snaplen, SpecError,
        SuperPackets, Target, Trigger, Writing,
    },
    text,
};

use super::{ConvertError, Problem, invalid, known, required, time};
use crate::{
    limits::{COALESCING_KEY_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX},
    v1,
};

/// Characters of a refused value that an error shows.
const SHOWN_MAX: usize = 80;

/// A checked [`v1::StartRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub spec: SessionSpec,
    /// The same key again means the same capture.
    pub idempotency_key: Option<String>,
    /// A running capture of this key is lengthened instead.
    pub coalescing_key: Option<String>,
}

/// A checked [`v1::ExtendRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extend {
    pub id: CaptureId,
    /// How long it shall last in all.
    pub duration: Duration,
}

impl TryFrom<v1::ExtendRequest> for Extend {
    type Error = ConvertError;

    fn try_from(request: v1::ExtendRequest) -> Result<Self, ConvertError> {
        let v1::ExtendRequest { id, duration } = request;
        let duration = time::duration("duration", required("duration", duration)?)?;
        Limits {
            duration: Some(duration),
            ..Limits::default()
        }
        .validate()?;
        Ok(Self {
            id: id.parse()?,
            duration,
        })
    }
}

impl TryFrom<v1::StartRequest> for Start {
    type Error = ConvertError;

    fn try_from(request: v1::StartRequest) -> Result<Self, ConvertError> {
        let v1::StartRequest {
            spec,
            idempotency_key,
            coalescing_key,
        } = request;
        if idempotency_key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            let (len, max) = (idempotency_key.len(), IDEMPOTENCY_KEY_BYTES_MAX);
            return Err(invalid("idempotency_key", Problem::TooLong { len, max }));
        }
        if coalescing_key.len() > COALESCING_KEY_BYTES_MAX {
            let (len, max) = (coalescing_key.len(), COALESCING_KEY_BYTES_MAX);
            return Err(invalid("coalescing_key", Problem::TooLong { len, max }));
        }
        if !coalescing_key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid("coalescing_key", Problem::NotVisible));
        }
        Ok(Self {
            spec: required("spec", spec)?.try_into()?,
            idempotency_key: Some(idempotency_key).filter(|key| !key.is_empty()),
            coalescing_key: Some(coalescing_key).filter(|key| !key.is_empty()),
        })
    }
}

impl TryFrom<v1::CaptureSpec> for SessionSpec {
    type Error = ConvertError;

    fn try_from(spec: v1::CaptureSpec) -> Result<Self, ConvertError> {
        let v1::CaptureSpec {
            target,
            filter,
            terms,
            snaplen,
            direction,
            limits,
            destination,
            look_back,
            trigger,
            labels,
            names,
            writing,
            segment,
            programs,
            part,
            sink,
        } = spec;
        let spec = Self {
            target: required("spec.target", target)?.try_into()?,
            filter: filter_of(&filter, terms, programs)?,
            snaplen: if snaplen == 0 {
                Snaplen::MAX
            } else {
                snaplen.try_into()?
            },
            direction: known::<v1::Direction>("spec.direction", direction)?.into(),
            limits: limits.unwrap_or_default().try_into()?,
            destination: known::<v1::Destination>("spec.destination", destination)?.into(),
            sink: match sink.as_str() {
                "" => None,
                name => Some(name.parse().map_err(SpecError::from)?),
            },
            writing: writing.unwrap_or_default().try_into()?,
            super_packets: if segment {
                SuperPackets::Segmented
            } else {
                SuperPackets::Whole
            },
            look_back: time::duration("spec.look_back", look_back.unwrap_or_default())?,
            trigger: trigger.unwrap_or_default().try_into()?,
            labels: labels.into_iter().collect(),
            names: names
                .into_iter()
                .enumerate()
                .map(name_hint)
                .collect::<Result<_, _>>()?,
            part: part.map(TryInto::try_into).transpose()?,
        };
        spec.validate()?;
        Ok(spec)
    }
}

impl From<&SessionSpec> for v1::CaptureSpec {
    fn from(spec: &SessionSpec) -> Self {
        let SessionSpec {
            target,
            filter,
            snaplen,
            direction,
            limits,
            destination,
            sink,
            writing,
            super_packets,
            look_back,
            trigger,
            labels,
            names,
            part,
        } = spec;
        Self {
            target: Some(target.into()),
            filter: filter.to_string(),
            terms: None,
            programs: filter.meaning().programs().map(Into::into),
            snaplen: snaplen.get(),
            direction: v1::Direction::from(*direction).into(),
            limits: Some(limits.into()),
            destination: v1::Destination::from(*destination).into(),
            look_back: (!look_back.is_zero()).then(|| time::duration_out(*look_back)),
            trigger: Some(trigger.into()),
            labels: labels
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            names: names.iter().map(Into::into).collect(),
            writing: (*writing != Writing::default()).then(|| writing.into()),
            segment: *super_packets == SuperPackets::Segmented,
            part: part.as_ref().map(Into::into),
            sink: sink.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

/// The text and the typed terms, both of which must hold; or the text with its programs.
fn filter_of(
    text: &str,
    terms: Option<v1::FilterTerms>,
    programs: Option<v1::FilterPrograms>,
) -> Result<Filter, ConvertError> {
    match (terms, programs) {
        (None, None) => Filter::unread(text).map_err(|error| refused(text, error)),
        (None, Some(programs)) => {
            Filter::with_programs(text, programs.try_into()?).map_err(|error| refused(text, error))
        }
        (Some(terms), None) => {
            let filter = Filter::unread(text).map_err(|error| refused(text, error))?;
            let terms = typed(terms)?;
            let typed =
                Filter::from_terms(&terms).map_err(|error| refused(&terms.to_string(), error))?;
            let both = filter.both(&typed);
            Filter::unread(&both).map_err(|error| refused(&both, error))
        }
        (Some(_), Some(_)) => Err(ConvertError::Terms(
            "programs are of the whole filter; put the terms into its text".to_owned(),
        )),
    }
}

impl TryFrom<v1::FilterPrograms> for Programs {
    type Error = ConvertError;

    fn try_from(programs: v1::FilterPrograms) -> Result<Self, ConvertError> {
        let v1::FilterPrograms { ethernet, raw } = programs;
        let read = |link: &'static str, bytes: &[u8]| {
            Program::from_bytes(bytes).map_err(|error| ConvertError::Program { link, error })
        };
        Ok(Self {
            ethernet: read("ethernet", &ethernet)?,
            raw: match raw.as_ref() {
                [] => None,
                raw => Some(read("raw", raw)?),
            },
        })
    }
}

impl From<&Programs> for v1::FilterPrograms {
    fn from(Programs { ethernet, raw }: &Programs) -> Self {
        let bytes = |program: &Program| program.to_bytes().into();
        Self {
            ethernet: bytes(ethernet),
            raw: raw.as_ref().map(bytes).unwrap_or_default(),
        }
    }
}

fn refused(text: &str, error: FilterError) -> ConvertError {
    let pointer = error.pointer(text);
    ConvertError::Filter { error, pointer }
}

fn typed(terms: v1::FilterTerms) -> Result<Terms, ConvertError> {
    let v1::FilterTerms {
        family,
        protocol,
        host,
        port,
    } = terms;
    let not = |field: &str, value: &str, expected: &str| {
        let shown = text::excerpt(value, SHOWN_MAX);
        ConvertError::Terms(format!("{field}: `{shown}` is not {expected}"))
    };
    let family = match family.as_str() {
        "" => None,
        "ip" => Some(Family::Ipv4),
        "ip6" => Some(Family::Ipv6),
        other => return Err(not("family", other, "ip or ip6")),
    };
    let protocol = match protocol.as_str() {
        "" => None,
        word => Some(
            Protocol::ALL
                .into_iter()
                .find(|protocol| protocol.word() == word)
                .ok_or_else(|| not("protocol", word, "tcp, udp, icmp, icmp6 or sctp"))?,
        ),
    };
    let addresses = match host.as_str() {
        "" => vec![],
        host => {
            let prefix = host
                .parse::<Prefix>()
                .map_err(|error| not("host", host, &format!("usable: {error}")))?;
            vec![AddressTerm {
                prefix,
                side: Side::Either,
            }]
        }
    };
    let ports = match u16::try_from(port) {
        Ok(0) => vec![],
        Ok(port) => vec![PortTerm {
            port,
            side: Side::Either,
        }],
        Err(_too_large) => return Err(not("port", &port.to_string(), "0 to 65535")),
    };
    Ok(Terms {
        family,
        protocol,
        addresses,
        ports,
    })
}

impl TryFrom<v1::Target> for Target {
    type Error = ConvertError;

    fn try_from(target: v1::Target) -> Result<Self, ConvertError> {
        use v1::target::Target as Wire;
        let target = match required("spec.target", target.target)? {
            Wire::CgroupPath(path) => Self::CgroupPath(path),
            Wire::CgroupId(id) => Self::CgroupId(id),
            Wire::Pid(pid) => Self::Pid(pid),
            Wire::Unit(unit) => Self::Unit(unit),
            Wire::ContainerId(id) => Self::Container(id),
            Wire::Interface(name) => Self::Interface(name),
            Wire::Pod(pod) => Self::Pod(pod.into()),
        };
        target.validate().map_err(SpecError::from)?;
        Ok(target)
    }
}

impl From<&Target> for v1::Target {
    fn from(target: &Target) -> Self {
        use v1::target::Target as Wire;
        let target = match target.clone() {
            Target::CgroupPath(path) => Wire::CgroupPath(path),
            Target::CgroupId(id) => Wire::CgroupId(id),
            Target::Pid(pid) => Wire::Pid(pid),
            Target::Unit(unit) => Wire::Unit(unit),
            Target::Container(id) => Wire::ContainerId(id),
            Target::Interface(name) => Wire::Interface(name),
            Target::Pod(pod) => Wire::Pod(pod.into()),
        };
        Self {
            target: Some(target),
        }
    }
}

impl From<v1::Direction> for Direction {
    fn from(direction: v1::Direction) -> Self {
        match direction {
            v1::Direction::Unspecified => Self::Both,
            v1::Direction::Ingress => Self::Ingress,
            v1::Direction::Egress => Self::Egress,
        }
    }
}

impl From<Direction> for v1::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Both => Self::Unspecified,
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

impl From<v1::Destination> for Destination {
    fn from(destination: v1::Destination) -> Self {
        match destination {
            v1::Destination::Unspecified | v1::Destination::Store => Self::Store,
            v1::Destination::Stream => Self::Stream,
        }
    }
}

impl From<Destination> for v1::Destination {
    fn from(destination: Destination) -> Self {
        match destination {
            Destination::Store => Self::Store,
            Destination::Stream => Self::Stream,
        }
    }
}

impl TryFrom<v1::Limits> for Limits {
    type Error = ConvertError;

    fn try_from(limits: v1::Limits) -> Result<Self, ConvertError> {
        let v1::Limits {
            packets,
            file_bytes,
            duration,
        } = limits;
        let duration = time::duration("spec.limits.duration", duration.unwrap_or_default())?;
        Ok(Self {
            packets: NonZeroU64::new(packets),
            file_bytes: NonZeroU64::new(file_bytes),
            duration: Some(duration).filter(|duration| !duration.is_zero()),
        })
    }
}

impl From<&Limits> for v1::Limits {
    fn from(limits: &Limits) -> Self {
        let Limits {
            packets,
            file_bytes,
            duration,
        } = limits;
        Self {
            packets: packets.map_or(0, NonZeroU64::get),
            file_bytes: file_bytes.map_or(0, NonZeroU64::get),
            duration: duration.map(time::duration_out),
        }
    }
}

impl TryFrom<v1::Trigger> for Trigger {
    type Error = ConvertError;

    fn try_from(trigger: v1::Trigger) -> Result<Self, ConvertError> {
        let v1::Trigger {
            source,
            rule,
            priority,
            alert,
            requester,
            reason,
            time,
            trace_id,
        } = trigger;
        let alert = String::from_utf8(alert.into())
            .map_err(|_binary| invalid("spec.trigger.alert", Problem::NotUtf8))?;
        let time = time
            .map(|time| time::timestamp("spec.trigger.time", time))
            .transpose()?;
        Ok(Self {
            source,
            rule,
            priority,
            alert,
            requester,
            reason,
            time,
            trace_id,
        })
    }
}

impl From<&Trigger> for v1::Trigger {
    fn from(trigger: &Trigger) -> Self {
        let Trigger {
            source,
            rule,
            priority,
            alert,
            requester,
            reason,
            time,
            trace_id,
        } = trigger.clone();
        Self {
            source,
            rule,
            priority,
            alert: alert.into(),
            requester,
            reason,
            time: time.map(time::timestamp_out),
            trace_id,
        }
    }
}

fn name_hint((index, hint): (usize, v1::NameHint)) -> Result<NameHint, ConvertError> {
    let v1::NameHint { address, name } = hint;
    let address = address.parse().map_err(|_syntax| {
        let shown = text::excerpt(&address, SHOWN_MAX).to_string();
        invalid(
            format!("spec.names[{index}].address"),
            Problem::NotAnAddress(shown),
        )
    })?;
    Ok(NameHint { address, name })
}

impl From<&NameHint> for v1::NameHint {
    fn from(hint: &NameHint) -> Self {
        let NameHint { address, name } = hint;
        Self {
            address: address.to_string(),
            name: name.clone(),
        }
    }
}
