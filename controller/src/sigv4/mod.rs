//! AWS Signature Version 4, on the side of who is called: is a request signed with our key, now, and
//! whole? Pure.
//!
//! ```text
//! head ──Claim::read──▶ Claim ──prove(body, secret)──▶ Proof
//!   form, key, scope, clock        signature
//! ```
//! A claim is judged before the body is read, so that who has no key costs no more than a head.
//! Whatever is used of a request must be signed: `host`, `x-amz-date`, and each `x-amz-…` and
//! `amz-sdk-…` header that is there. The body always counts by its own digest: what a header says of
//! it is not asked (so `UNSIGNED-PAYLOAD` is refused). Signatures in the query are not taken.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

mod canonical;
mod scope;

use std::{fmt, time::Duration};

use axum::http::{HeaderMap, Method, Uri, header};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use self::scope::Scope;

/// Name of the one algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Most headers that are signed.
const SIGNED_MAX: usize = 32;
/// The header with the time of signing, as `20261124T030039Z`.
const DATE: &str = "x-amz-date";

/// A key pair.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its name; no secret.
    pub access_key: String,
    pub secret_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// A request's head, as it was on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
}

/// What a claim is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub access_key: &'a str,
    /// "lambda", "sts"
    pub service: &'a str,
    pub now: Timestamp,
    /// Most that the time of signing may be away from now, to either side.
    pub skew: Duration,
}

/// Why a request is not taken for one of ours.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denied {
    #[error("the request is not signed; sign it with AWS Signature Version 4 ({ALGORITHM})")]
    Unsigned,
    #[error("the signature is incomplete: {0}")]
    Incomplete(&'static str),
    #[error("the access key is not the one that is known here")]
    UnknownKey,
    #[error("the credential's scope is not of service `{service}` and the day of {DATE}")]
    Scope { service: String },
    #[error("the request was signed {away:?} away from this clock; at most {skew:?} are taken")]
    Skewed { away: Duration, skew: Duration },
    #[error(
        "the signature is another one: the secret key differs, or the request was changed on its way"
    )]
    Mismatch,
}

/// A request that says to be signed with our key, at a time that is now.
#[derive(Debug)]
pub struct Claim<'a> {
    head: Head<'a>,
    scope: Scope<'a>,
    signed_headers: Vec<&'a str>,
    signature: [u8; 32],
    /// As it came.
    date: &'a str,
    time: Timestamp,
}

/// Of a request that is ours: its signature, which no other request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proof {
    pub signature: [u8; 32],
    /// When it was signed.
    pub time: Timestamp,
}

impl<'a> Claim<'a> {
    /// Reads what a request says of its signature.
    ///
    /// # Errors
    /// It is unsigned, malformed, by another key, for another service, or of another time.
    pub fn read(head: Head<'a>, terms: Terms<'_>) -> Result<Self, Denied> {
        let authorization = one(head.headers, header::AUTHORIZATION.as_str())
            .map_err(|_several| Denied::Incomplete("there are several Authorization headers"))?
            .ok_or(Denied::Unsigned)?;
        let parts = authorization
            .strip_prefix(ALGORITHM)
            .and_then(|rest| rest.strip_prefix(' '))
            .ok_or(Denied::Unsigned)?;
        let Parts {
            credential,
            signed_headers,
            signature,
        } = Parts::read(parts)?;
        let scope = Scope::read(credential).ok_or(Denied::Incomplete(
            "Credential is not KEY/DAY/REGION/SERVICE/aws4_request",
        ))?;
        let date = one(head.headers, DATE)
            .map_err(|_several| Denied::Incomplete("there are several X-Amz-Date headers"))?
            .ok_or(Denied::Incomplete("X-Amz-Date is missing"))?;
        let time = scope::time(date).ok_or(Denied::Incomplete("X-Amz-Date is no time"))?;
        let signed_headers = signed(head, signed_headers)?;
        if scope.access_key != terms.access_key {
            return Err(Denied::UnknownKey);
        }
        if scope.service != terms.service || !date.starts_with(scope.day) {
            let service = terms.service.to_owned();
            return Err(Denied::Scope { service });
        }
        let away = terms.now.duration_since(time).unsigned_abs();
        if away > terms.skew {
            let skew = terms.skew;
            return Err(Denied::Skewed { away, skew });
        }
        Ok(Self {
            head,
            scope,
            signed_headers,
            signature,
            date,
            time,
        })
    }

    /// Holds the claim against the secret key and the whole body.
    ///
    /// # Errors
    /// The signature is not this request's.
    pub fn prove(&self, body: &[u8], secret_key: &str) -> Result<Proof, Denied> {
        let right = self.signature(body, secret_key)?;
        if bool::from(right.ct_eq(&self.signature)) {
            Ok(Proof {
                signature: right,
                time: self.time,
            })
        } else {
            Err(Denied::Mismatch)
        }
    }

    fn signature(&self, body: &[u8], secret_key: &str) -> Result<[u8; 32], Denied> {
        let request = canonical::request(self.head, &self.signed_headers, body)?;
        let text = format!(
            "{ALGORITHM}\n{}\n{}\n{}",
            self.date,
            self.scope,
            hex(&Sha256::digest(request))
        );
        let mut key = mac(format!("AWS4{secret_key}").as_bytes(), self.scope.day);
        for part in [self.scope.region, self.scope.service, "aws4_request"] {
            key = mac(&key, part);
        }
        Ok(mac(&key, &text))
    }
}

/// The parts of an `Authorization` header.
struct Parts<'a> {
    credential: &'a str,
    signed_headers: &'a str,
    signature: [u8; 32],
}

impl<'a> Parts<'a> {
    fn read(text: &'a str) -> Result<Self, Denied> {
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in text.split(',') {
            let (name, value) = part
                .trim()
                .split_once('=')
                .ok_or(Denied::Incomplete("Authorization is not NAME=VALUE, …"))?;
            let place = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(Denied::Incomplete("Authorization has an unknown part")),
            };
            if place.replace(value).is_some() {
                return Err(Denied::Incomplete("Authorization has a part twice"));
            }
        }
        Ok(Self {
            credential: credential.ok_or(Denied::Incomplete("Credential is missing"))?,
            signed_headers: signed_headers.ok_or(Denied::Incomplete("SignedHeaders is missing"))?,
            signature: signature
                .and_then(unhex)
                .ok_or(Denied::Incomplete("Signature is not 64 hex digits"))?,
        })
    }
}

/// The names of the signed headers, in order, each once; all that must be signed is among them.
fn signed<'a>(head: Head<'_>, text: &'a str) -> Result<Vec<&'a str>, Denied> {
    let names: Vec<&str> = text.split(';').take(SIGNED_MAX + 1).collect();
    let is_sorted = names.windows(2).all(|pair| pair[0] < pair[1]);
    if names.len() > SIGNED_MAX || !is_sorted {
        return Err(Denied::Incomplete(
            "SignedHeaders is not in order, or too long",
        ));
    }
    let present = head.headers.keys().map(axum::http::HeaderName::as_str);
    let needed = present
        .filter(|name| name.starts_with("x-amz-") || name.starts_with("amz-sdk-"))
        .chain(["host"]);
    for name in needed {
        if names.binary_search(&name).is_err() {
            return Err(Denied::Incomplete(
                "host, x-amz-… and amz-sdk-… headers are to be signed",
            ));
        }
    }
    Ok(names)
}

/// A header that comes at most once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Several> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        Some(_) => Err(Several),
        None => Ok(first.and_then(|value| value.to_str().ok())),
    }
}

struct Several;

fn mac(key: &[u8], text: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 64 lower-case hex digits.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 64 || !text.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
