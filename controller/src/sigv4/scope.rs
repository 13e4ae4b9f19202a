//! Whose key, for which day, region and service: `KEY/20261124/us-east-1/lambda/aws4_request`.

use std::fmt;

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// A credential's scope. The region may be any, and empty: an SDK that was told endpoints needs none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scope<'a> {
    pub(super) access_key: &'a str,
    /// `20261124`
    pub(super) day: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

impl<'a> Scope<'a> {
    pub(super) fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.rsplitn(5, '/');
        let end = parts.next()?;
        let scope = Self {
            service: parts.next()?,
            region: parts.next()?,
            day: parts.next()?,
            access_key: parts.next()?,
        };
        let is_day = scope.day.len() == 8 && scope.day.bytes().all(|b| b.is_ascii_digit());
        (end == "aws4_request" && is_day).then_some(scope)
    }
}

/// Without the key's name, as it is signed.
impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}/aws4_request",
            self.day, self.region, self.service
        )
    }
}

/// `20261124T030039Z`, and no other form.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    let is_form = text.len() == 16
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 => b == b'T',
            15 => b == b'Z',
            _ => b.is_ascii_digit(),
        });
    let time = is_form.then(|| DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok())??;
    TimeZone::UTC.to_timestamp(time).ok()
}
