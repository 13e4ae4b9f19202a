//! Time stamps by a third party (RFC 3161): that a manifest existed at a time, by the word of an
//! authority that is neither the node nor us.
//!
//! ```text
//! SHA-256 of ID.manifest.json ─ query ─▶ authority ─ response ─▶ ID.manifest.json.tsr
//! ```
//! The response is kept as it came, so that `openssl ts -verify` reads it, too.

mod element;
mod http;
mod token;

use remora_capture::evidence::Digest;

use self::element::{BOOLEAN, INTEGER, OCTETS, OID, SEQUENCE, element};

pub(crate) use self::{
    http::{Url, exchange},
    token::{Anchors, Token},
};

/// Largest response that is read, in bytes: a token and some certificates.
pub(crate) const RESPONSE_BYTES_MAX: usize = 256 << 10;
/// id-sha256, without tag and length.
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const NULL: u8 = 5;

/// What an authority is asked: to stamp a digest, with its certificate in the answer.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    digest: Digest,
    /// Whole and positive, as DER has it.
    nonce: [u8; 8],
}

impl Query {
    pub(crate) fn new(digest: Digest, random: [u8; 8]) -> Self {
        let mut nonce = random;
        nonce[0] = nonce[0] & 0x3f | 0x40;
        Self { digest, nonce }
    }

    pub(crate) fn nonce(&self) -> &[u8] {
        &self.nonce
    }

    /// The DER of a TimeStampReq.
    pub(crate) fn to_der(&self) -> Vec<u8> {
        let algorithm = element(SEQUENCE, &[&element(OID, &[SHA256]), &element(NULL, &[])]);
        let digest = element(OCTETS, &[self.digest.as_bytes()]);
        let imprint = element(SEQUENCE, &[&algorithm, &digest]);
        element(
            SEQUENCE,
            &[
                &element(INTEGER, &[&[1]]),
                &imprint,
                &element(INTEGER, &[&self.nonce]),
                &element(BOOLEAN, &[&[0xff]]),
            ],
        )
    }
}

#[cfg(test)]
mod tests;
