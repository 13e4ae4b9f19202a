//! A capture as the agent tells it.

use remora_capture::evidence::{Head, Hold, Tombstone};
use remora_capture::session::{
    CaptureState, Counts, Files, LookBackMode, LookBackRing, Phase, StopReason, TapInfo,
};

use super::{ConvertError, Problem, invalid, known, required, time};
use crate::v1;

impl TryFrom<v1::CaptureState> for CaptureState {
    type Error = ConvertError;

    fn try_from(state: v1::CaptureState) -> Result<Self, ConvertError> {
        let v1::CaptureState {
            id,
            spec,
            phase,
            stop_reason,
            message,
            counts,
            started,
            finished,
            first_packet,
            last_packet,
            file,
            taps,
            node,
            caller,
            resolved_target,
            files,
            // Of the capture's keeping, not of its state.
            hold: _,
            upload: _,
        } = state;
        let moment = |field: &str, value: Option<prost_types::Timestamp>| {
            value.map(|value| time::timestamp(field, value)).transpose()
        };
        Ok(Self {
            id: id.parse()?,
            spec: required("capture.spec", spec)?.try_into()?,
            phase: known::<v1::Phase>("capture.phase", phase)?.try_into()?,
            stop_reason: known::<v1::StopReason>("capture.stop_reason", stop_reason)?.into(),
            message,
            counts: counts.unwrap_or_default().into(),
            started: time::timestamp("capture.started", required("capture.started", started)?)?,
            finished: moment("capture.finished", finished)?,
            first_packet: moment("capture.first_packet", first_packet)?,
            last_packet: moment("capture.last_packet", last_packet)?,
            file,
            files: files.unwrap_or_default().into(),
            taps: taps.into_iter().map(Into::into).collect(),
            node,
            caller,
            resolved_target,
            // The agent's accounts have it, and its files.
            pod: None,
        })
    }
}

impl From<&CaptureState> for v1::CaptureState {
    fn from(state: &CaptureState) -> Self {
        let CaptureState {
            id,
            spec,
            phase,
            stop_reason,
            message,
            counts,
            started,
            finished,
            first_packet,
            last_packet,
            file,
            taps,
            node,
            caller,
            resolved_target,
            pod: _,
            files,
        } = state;
        Self {
            id: id.to_string(),
            // A program is nothing to look at, and a list of captures would be full of them.
            spec: Some(v1::CaptureSpec {
                programs: None,
                ..spec.into()
            }),
            phase: v1::Phase::from(*phase).into(),
            stop_reason: v1::StopReason::from(*stop_reason).into(),
            message: message.clone(),
            counts: Some((*counts).into()),
            started: Some(time::timestamp_out(*started)),
            finished: finished.map(time::timestamp_out),
            first_packet: first_packet.map(time::timestamp_out),
            last_packet: last_packet.map(time::timestamp_out),
            file: file.clone(),
            taps: taps.iter().map(Into::into).collect(),
            node: node.clone(),
            caller: caller.clone(),
            resolved_target: resolved_target.clone(),
            files: (*files != Files::default()).then(|| (*files).into()),
            hold: None,
            upload: None,
        }
    }
}

impl From<&Hold> for v1::LegalHold {
    fn from(hold: &Hold) -> Self {
        let Hold {
            since,
            by,
            why,
            capture_id: _,
            chain: _,
        } = hold;
        Self {
            since: Some(time::timestamp_out(*since)),
            by: by.clone(),
            why: why.clone(),
        }
    }
}

impl From<(&Tombstone, &Head)> for v1::DeleteResponse {
    fn from((tombstone, head): (&Tombstone, &Head)) -> Self {
        let digests = tombstone.files.iter().filter_map(|file| file.digest);
        Self {
            deleted: Some(time::timestamp_out(tombstone.deleted)),
            files: tombstone.files.len() as u64,
            bytes: digests.map(|digest| digest.bytes).sum(),
            chain_head: head.to_string(),
        }
    }
}

/// The capture's hold, if it has one.
///
/// # Errors
/// It has one that is none.
pub fn hold_of(state: &v1::CaptureState) -> Result<Option<Hold>, ConvertError> {
    let Some(v1::LegalHold { since, by, why }) = state.hold.clone() else {
        return Ok(None);
    };
    Ok(Some(Hold {
        capture_id: state.id.parse()?,
        chain: None,
        since: time::timestamp("hold.since", required("hold.since", since)?)?,
        by,
        why,
    }))
}

impl TryFrom<v1::Phase> for Phase {
    type Error = ConvertError;

    fn try_from(phase: v1::Phase) -> Result<Self, ConvertError> {
        match phase {
            v1::Phase::Unspecified => Err(invalid("capture.phase", Problem::Missing)),
            v1::Phase::Capturing => Ok(Self::Capturing),
            v1::Phase::Draining => Ok(Self::Draining),
            v1::Phase::Finished => Ok(Self::Finished),
            v1::Phase::Failed => Ok(Self::Failed),
        }
    }
}

impl From<Phase> for v1::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Capturing => Self::Capturing,
            Phase::Draining => Self::Draining,
            Phase::Finished => Self::Finished,
            Phase::Failed => Self::Failed,
        }
    }
}

impl From<v1::StopReason> for Option<StopReason> {
    fn from(reason: v1::StopReason) -> Self {
        Some(match reason {
            v1::StopReason::Unspecified => return None,
            v1::StopReason::Requested => StopReason::Requested,
            v1::StopReason::Packets => StopReason::Packets,
            v1::StopReason::FileBytes => StopReason::FileBytes,
            v1::StopReason::Duration => StopReason::Duration,
            v1::StopReason::TargetGone => StopReason::TargetGone,
            v1::StopReason::ReaderGone => StopReason::ReaderGone,
            v1::StopReason::NoSpace => StopReason::NoSpace,
            v1::StopReason::IoError => StopReason::IoError,
            v1::StopReason::Shutdown => StopReason::Shutdown,
            v1::StopReason::CrashRecovered => StopReason::CrashRecovered,
        })
    }
}

impl From<Option<StopReason>> for v1::StopReason {
    fn from(reason: Option<StopReason>) -> Self {
        let Some(reason) = reason else {
            return Self::Unspecified;
        };
        match reason {
            StopReason::Requested => Self::Requested,
            StopReason::Packets => Self::Packets,
            StopReason::FileBytes => Self::FileBytes,
            StopReason::Duration => Self::Duration,
            StopReason::TargetGone => Self::TargetGone,
            StopReason::ReaderGone => Self::ReaderGone,
            StopReason::NoSpace => Self::NoSpace,
            StopReason::IoError => Self::IoError,
            StopReason::Shutdown => Self::Shutdown,
            StopReason::CrashRecovered => Self::CrashRecovered,
        }
    }
}

/// Both sides have the same fields; the pattern without `..` keeps it so.
macro_rules! counts_both_ways {
    ($($field:ident),* $(,)?) => {
        impl From<v1::Counts> for Counts {
            fn from(counts: v1::Counts) -> Self {
                let v1::Counts { $($field),* } = counts;
                Self { $($field),* }
            }
        }

        impl From<Counts> for v1::Counts {
            fn from(counts: Counts) -> Self {
                let Counts { $($field),* } = counts;
                Self { $($field),* }
            }
        }
    };
}

counts_both_ways!(
    seen,
    matched,
    submitted,
    lost,
    over_budget,
    copy_error,
    read,
    written,
    dropped_queue,
    dropped_io,
    malformed,
    stale,
    lost_on_crash,
    written_bytes,
);

impl From<v1::Tap> for TapInfo {
    fn from(tap: v1::Tap) -> Self {
        let v1::Tap {
            hook,
            interface,
            ifindex,
            cgroup_id,
            description,
            look_back,
        } = tap;
        Self {
            hook,
            interface,
            ifindex,
            cgroup_id,
            description,
            look_back: look_back.map(Into::into),
        }
    }
}

impl From<&TapInfo> for v1::Tap {
    fn from(tap: &TapInfo) -> Self {
        let TapInfo {
            hook,
            interface,
            ifindex,
            cgroup_id,
            description,
            look_back,
        } = tap.clone();
        Self {
            hook,
            interface,
            ifindex,
            cgroup_id,
            description,
            look_back: look_back.map(Into::into),
        }
    }
}

impl From<v1::LookBackRing> for LookBackRing {
    fn from(ring: v1::LookBackRing) -> Self {
        let v1::LookBackRing {
            bytes,
            reach_ms,
            packets,
            cut_packets,
            cut_bytes,
            mode: _,
        } = ring;
        Self {
            mode: ring.mode().into(),
            bytes,
            reach_ms,
            packets,
            cut_packets,
            cut_bytes,
        }
    }
}

impl From<LookBackRing> for v1::LookBackRing {
    fn from(ring: LookBackRing) -> Self {
        let LookBackRing {
            mode,
            bytes,
            reach_ms,
            packets,
            cut_packets,
            cut_bytes,
        } = ring;
        Self {
            mode: v1::LookBackMode::from(mode).into(),
            bytes,
            reach_ms,
            packets,
            cut_packets,
            cut_bytes,
        }
    }
}

impl From<v1::LookBackMode> for LookBackMode {
    fn from(mode: v1::LookBackMode) -> Self {
        match mode {
            v1::LookBackMode::Unspecified | v1::LookBackMode::Payload => Self::Payload,
            v1::LookBackMode::Headers => Self::Headers,
            v1::LookBackMode::Off => Self::Off,
        }
    }
}

impl From<LookBackMode> for v1::LookBackMode {
    fn from(mode: LookBackMode) -> Self {
        match mode {
            LookBackMode::Payload => Self::Payload,
            LookBackMode::Headers => Self::Headers,
            LookBackMode::Off => Self::Off,
        }
    }
}
