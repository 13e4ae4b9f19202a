//! An authority's response: what it says, and whether it is an authority's.

use std::{fmt, time::Duration};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use remora_capture::evidence::Digest;
use rustls_pki_types::{
    CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime, pem::PemObject as _,
};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{
    SHA256,
    element::{Element, FIRST, INTEGER, Malformed, OCTETS, OID, SEQUENCE, SET, TIME},
};

// Object identifiers, without tag and length: signedData, contentType, messageDigest,
// signingCertificateV2, TSTInfo, SHA-384, SHA-512, and the key purpose timeStamping.
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];
const SIGNING_CERTIFICATE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 0x10, 2, 0x2f];
const TST_INFO: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 0x10, 1, 4];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3];
const TIME_STAMPING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 8];

/// Why a response proves nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StampError {
    #[error("not a time stamp response (RFC 3161)")]
    Form,
    #[error("the authority refused: status {0}")]
    Refused(u8),
    #[error("it is a stamp of something else")]
    Imprint,
    #[error("it is the answer to another query")]
    Nonce,
    #[error("it is signed over a digest that is not taken; SHA-256, SHA-384 and SHA-512 are")]
    Algorithm,
    #[error("its signature does not fit: it was changed")]
    Signature,
    #[error("no certificate in it has made its signature; ask with the certificate (certReq)")]
    NoCertificate,
    #[error("its certificate is not one of the authority that was given, for time stamps: {0}")]
    Chain(webpki::Error),
    #[error("no certificate in PEM: {0}")]
    Anchors(String),
}

impl From<Malformed> for StampError {
    fn from(_: Malformed) -> Self {
        Self::Form
    }
}

/// The authorities that are believed.
pub(crate) struct Anchors(Vec<TrustAnchor<'static>>);

impl Anchors {
    /// # Errors
    /// There is no certificate.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, StampError> {
        let anchors = |error: &dyn fmt::Display| StampError::Anchors(error.to_string());
        let mut found = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| anchors(&error))?;
            let anchor = anchor_from_trusted_cert(&certificate).map_err(|error| anchors(&error))?;
            found.push(anchor.to_owned());
        }
        if found.is_empty() {
            return Err(anchors(&"there is none"));
        }
        Ok(Self(found))
    }
}

/// What a response says.
#[derive(Debug)]
pub(crate) struct Token<'a> {
    /// What was signed: the TSTInfo.
    info: &'a [u8],
    certificates: Vec<&'a [u8]>,
    digest: &'a [u8],
    attributes: Element<'a>,
    signature: &'a [u8],
    imprint: (&'a [u8], &'a [u8]),
    pub(crate) time: Timestamp,
    nonce: Option<&'a [u8]>,
}

impl<'a> Token<'a> {
    /// Reads a response; believes nothing of it yet.
    ///
    /// # Errors
    /// It is none, or a refusal.
    pub(crate) fn read(response: &'a [u8]) -> Result<Self, StampError> {
        let mut response = Element::of(response)?.list(SEQUENCE)?;
        let status = response.next()?.list(SEQUENCE)?.value(INTEGER)?;
        // Granted, and granted with changes.
        if !matches!(status, [0] | [1]) {
            return Err(StampError::Refused(*status.last().ok_or(Malformed)?));
        }
        let mut content = response.next()?.list(SEQUENCE)?;
        is(content.value(OID)?, SIGNED_DATA)?;
        let signed = content.next()?.list(FIRST)?.next()?;
        let mut signed = signed.list(SEQUENCE)?;
        signed.value(INTEGER)?;
        signed.value(SET)?;
        let mut content = signed.next()?.list(SEQUENCE)?;
        is(content.value(OID)?, TST_INFO)?;
        let info = content.next()?.list(FIRST)?.value(OCTETS)?;
        let certificates = match signed.optional(FIRST) {
            Some(certificates) => certificates.list(FIRST)?.rest().map(|c| c.whole).collect(),
            None => Vec::new(),
        };
        signed.optional(FIRST + 1);
        let mut signer = signed.next()?.list(SET)?.next()?.list(SEQUENCE)?;
        signer.value(INTEGER)?;
        signer.next()?;
        let digest = signer.next()?.list(SEQUENCE)?.value(OID)?;
        let attributes = signer.next()?;
        attributes.value(FIRST)?;
        signer.next()?;
        let signature = signer.value(OCTETS)?;

        let mut told = Element::of(info)?.list(SEQUENCE)?;
        told.value(INTEGER)?;
        told.value(OID)?;
        let mut imprint = told.next()?.list(SEQUENCE)?;
        let algorithm = imprint.next()?.list(SEQUENCE)?.value(OID)?;
        let imprint = (algorithm, imprint.value(OCTETS)?);
        told.value(INTEGER)?;
        let time = time(told.value(TIME)?)?;
        // Accuracy and ordering come between.
        told.optional(SEQUENCE);
        told.optional(super::element::BOOLEAN);
        let nonce = told.optional(INTEGER).map(|nonce| nonce.value);
        Ok(Self {
            info,
            certificates,
            digest,
            attributes,
            signature,
            imprint,
            time,
            nonce,
        })
    }

    /// It is of the file with this digest, answers the query with this nonce, and its signature fits a
    /// certificate that came with it.
    ///
    /// # Errors
    /// [`StampError`]
    pub(crate) fn check(&self, file: Digest, nonce: Option<&[u8]>) -> Result<(), StampError> {
        if self.imprint != (SHA256, file.as_bytes().as_slice()) {
            return Err(StampError::Imprint);
        }
        if nonce.is_some() && nonce != self.nonce {
            return Err(StampError::Nonce);
        }
        self.signer().map(drop)
    }

    /// Its certificate is one of these authorities', valid when it was made.
    ///
    /// # Errors
    /// [`StampError`]
    pub(crate) fn believe(&self, anchors: &Anchors) -> Result<(), StampError> {
        let signer = self.signer()?;
        let certificate = EndEntityCert::try_from(&signer).map_err(StampError::Chain)?;
        let others: Vec<_> = self.certificates.iter().map(|der| (*der).into()).collect();
        let seconds = u64::try_from(self.time.as_second()).unwrap_or(0);
        certificate
            .verify_for_usage(
                ALL_VERIFICATION_ALGS,
                &anchors.0,
                &others,
                UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
                KeyUsage::required(TIME_STAMPING),
                None,
                None,
            )
            .map(drop)
            .map_err(StampError::Chain)
    }

    /// The certificate whose key has signed it.
    fn signer(&self) -> Result<CertificateDer<'a>, StampError> {
        let attributes = self.attributes.list(FIRST)?;
        let (mut kind, mut digest, mut named) = (None, None, None);
        for attribute in attributes.rest() {
            let mut attribute = attribute.list(SEQUENCE)?;
            let (name, mut values) = (attribute.value(OID)?, attribute.next()?.list(SET)?);
            match name {
                CONTENT_TYPE => kind = Some(values.value(OID)?),
                MESSAGE_DIGEST => digest = Some(values.value(OCTETS)?),
                SIGNING_CERTIFICATE => named = Some(named_certificate(values.next()?)?),
                _ => {}
            }
        }
        if kind != Some(TST_INFO) || digest != Some(hash(self.digest, self.info)?.as_slice()) {
            return Err(StampError::Signature);
        }
        // As a SET, which it is where it is signed (RFC 5652, section 5.4).
        let mut signed = self.attributes.whole.to_vec();
        signed[0] = SET;
        let mut is_any = false;
        for der in &self.certificates {
            let certificate = CertificateDer::from(*der);
            let Ok(parsed) = EndEntityCert::try_from(&certificate) else {
                continue;
            };
            is_any = true;
            let is_named = match named {
                Some((algorithm, digest)) => hash(algorithm, der)? == digest,
                None => true,
            };
            let fits = |algorithm: &&dyn SignatureVerificationAlgorithm| {
                parsed
                    .verify_signature(*algorithm, &signed, self.signature)
                    .is_ok()
            };
            if is_named && ALL_VERIFICATION_ALGS.iter().any(fits) {
                return Ok(certificate);
            }
        }
        Err(if is_any {
            StampError::Signature
        } else {
            StampError::NoCertificate
        })
    }
}

/// Digest of the signer's certificate (ESSCertIDv2): the algorithm, SHA-256 if it is not told, and the
/// bytes.
fn named_certificate(value: Element<'_>) -> Result<(&[u8], &[u8]), Malformed> {
    let certificates = value.list(SEQUENCE)?.next()?;
    let mut first = certificates.list(SEQUENCE)?.next()?.list(SEQUENCE)?;
    let algorithm = match first.optional(SEQUENCE) {
        Some(algorithm) => algorithm.list(SEQUENCE)?.value(OID)?,
        None => SHA256,
    };
    Ok((algorithm, first.value(OCTETS)?))
}

fn hash(algorithm: &[u8], bytes: &[u8]) -> Result<Vec<u8>, StampError> {
    match algorithm {
        SHA256 => Ok(Sha256::digest(bytes).to_vec()),
        SHA384 => Ok(Sha384::digest(bytes).to_vec()),
        SHA512 => Ok(Sha512::digest(bytes).to_vec()),
        _ => Err(StampError::Algorithm),
    }
}

fn is(found: &[u8], wanted: &[u8]) -> Result<(), Malformed> {
    (found == wanted).then_some(()).ok_or(Malformed)
}

/// `20261124112233[.123]Z`
fn time(text: &[u8]) -> Result<Timestamp, Malformed> {
    let text = str::from_utf8(text)
        .ok()
        .and_then(|text| text.strip_suffix('Z'));
    let time = DateTime::strptime("%Y%m%d%H%M%S%.f", text.ok_or(Malformed)?);
    let time = time.map_err(|_other| Malformed)?;
    TimeZone::UTC.to_timestamp(time).map_err(|_other| Malformed)
}
