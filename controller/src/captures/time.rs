//! Times as Kubernetes' types have them, which are of another version of jiff.

use jiff::Timestamp;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp as Theirs,
};

pub(super) fn read(time: &Time) -> Timestamp {
    Timestamp::from_nanosecond(time.0.as_nanosecond()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// In whole seconds, as the API server keeps it: what comes back is what was written.
pub(super) fn written(time: Timestamp) -> Time {
    Time(Theirs::from_second(time.as_second()).unwrap_or(Theirs::UNIX_EPOCH))
}

pub(super) fn micro(time: Timestamp) -> MicroTime {
    MicroTime(Theirs::from_microsecond(time.as_microsecond()).unwrap_or(Theirs::UNIX_EPOCH))
}
