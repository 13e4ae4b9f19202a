//! Durations and moments. protobuf allows what neither `std` nor we do: negative durations,
//! nanoseconds beyond a second, years beyond 9999.

use std::time::Duration;

use jiff::Timestamp;

use super::{ConvertError, Problem, invalid};

/// Longest `google.protobuf.Duration`, in seconds: 10 000 years.
const DURATION_SECONDS_MAX: u64 = 315_576_000_000;
/// First and last second of `google.protobuf.Timestamp`: the years 1 to 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// # Errors
/// Negative, or out of protobuf's own range.
pub(super) fn duration(
    field: &str,
    value: prost_types::Duration,
) -> Result<Duration, ConvertError> {
    if value.seconds < 0 || value.nanos < 0 {
        return Err(invalid(field, Problem::Negative));
    }
    let (seconds, nanos) = (value.seconds.unsigned_abs(), value.nanos.unsigned_abs());
    if seconds > DURATION_SECONDS_MAX || value.nanos >= NANOS_PER_SECOND {
        return Err(invalid(field, Problem::OutOfRange));
    }
    Ok(Duration::new(seconds, nanos))
}

/// A duration beyond protobuf's 10 000 years becomes that.
pub(super) fn duration_out(value: Duration) -> prost_types::Duration {
    let value = value.min(Duration::from_secs(DURATION_SECONDS_MAX));
    prost_types::Duration {
        seconds: value.as_secs().cast_signed(),
        nanos: value.subsec_nanos().cast_signed(),
    }
}

/// # Errors
/// Out of protobuf's own range.
pub(super) fn timestamp(
    field: &str,
    value: prost_types::Timestamp,
) -> Result<Timestamp, ConvertError> {
    let out_of_range = || invalid(field, Problem::OutOfRange);
    if !TIMESTAMP_SECONDS.contains(&value.seconds) || !(0..NANOS_PER_SECOND).contains(&value.nanos)
    {
        return Err(out_of_range());
    }
    Timestamp::new(value.seconds, value.nanos).map_err(|_beyond_jiff| out_of_range())
}

/// A moment out of protobuf's years 1 to 9999 becomes the nearest in them.
pub(super) fn timestamp_out(value: Timestamp) -> prost_types::Timestamp {
    // jiff's nanoseconds have the sign of its seconds, protobuf's count up from the second.
    let (mut seconds, mut nanos) = (value.as_second(), value.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += NANOS_PER_SECOND;
    }
    if seconds < *TIMESTAMP_SECONDS.start() {
        (seconds, nanos) = (*TIMESTAMP_SECONDS.start(), 0);
    }
    if seconds > *TIMESTAMP_SECONDS.end() {
        (seconds, nanos) = (*TIMESTAMP_SECONDS.end(), NANOS_PER_SECOND - 1);
    }
    prost_types::Timestamp { seconds, nanos }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_that_cannot_be_are_refused() {
        for (seconds, nanos, problem) in [
            (-1, 0, Problem::Negative),
            (0, -1, Problem::Negative),
            (i64::MIN, i32::MIN, Problem::Negative),
            (5, -1, Problem::Negative),
            (i64::MAX, 0, Problem::OutOfRange),
            (0, 1_000_000_000, Problem::OutOfRange),
            (0, i32::MAX, Problem::OutOfRange),
        ] {
            assert_eq!(
                duration("d", prost_types::Duration { seconds, nanos }),
                Err(invalid("d", problem)),
            );
        }
    }

    #[test]
    fn a_duration_too_long_for_protobuf_goes_out_as_its_longest() {
        let out = duration_out(Duration::MAX);
        assert_eq!(
            duration("d", out),
            Ok(Duration::from_secs(DURATION_SECONDS_MAX))
        );
    }

    #[test]
    fn every_moment_of_jiff_goes_out_as_one_that_comes_in() {
        for moment in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
            assert!(timestamp("t", timestamp_out(moment)).is_ok(), "{moment}");
        }
    }

    proptest! {
        #[test]
        fn any_duration_is_taken_or_refused(seconds: i64, nanos: i32) {
            if let Ok(taken) = duration("d", prost_types::Duration { seconds, nanos }) {
                prop_assert_eq!(duration_out(taken), prost_types::Duration { seconds, nanos });
            }
        }

        #[test]
        fn any_moment_is_taken_or_refused(
            seconds in prop_oneof![any::<i64>(), TIMESTAMP_SECONDS],
            nanos in prop_oneof![any::<i32>(), 0..NANOS_PER_SECOND],
        ) {
            let moment = prost_types::Timestamp { seconds, nanos };
            if let Ok(taken) = timestamp("t", moment) {
                prop_assert_eq!(timestamp_out(taken), moment);
            }
        }
    }
}
