//! Tokens of service accounts as the cluster's own issuer signs them, of any time and for any audience:
//! the API server itself makes none that is over.
//!
//! `base64url(header).base64url(claims).base64url(r ‖ s)` (RFC 7515, RFC 7518 section 3.4).

use std::fs;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::json;

use super::access::Access;

/// Issuer and audience of the API server.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// Bytes of a half of a signature by P-256.
const HALF: usize = 32;

/// What a token says.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    /// Of the account.
    pub uid: &'a str,
    pub audience: &'a str,
    /// Seconds since 1970.
    pub from: i64,
    pub until: i64,
}

impl Access {
    /// A token with these claims.
    ///
    /// # Errors
    /// The issuer's key cannot be read.
    pub fn account_token(&self, claims: &Claims<'_>) -> Result<String> {
        let key = KeyPair::from_pem(&fs::read_to_string(self.accounts_key())?)?;
        let Claims {
            namespace,
            account,
            uid,
            audience,
            from,
            until,
        } = claims;
        let header = json!({"alg": "ES256", "typ": "JWT"});
        let claims = json!({
            "iss": ISSUER,
            "aud": [audience],
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": from, "nbf": from, "exp": until,
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": account, "uid": uid},
            },
        });
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let text = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let signature = fixed(&key.sign(text.as_bytes())?)?;
        Ok(format!("{text}.{}", encode(&signature)))
    }
}

/// The two numbers of a DER signature (SEQUENCE of two INTEGERs), each in [`HALF`] bytes.
fn fixed(der: &[u8]) -> Result<Vec<u8>> {
    let numbers = der.strip_prefix(&[0x30]).and_then(|rest| rest.get(1..));
    let mut rest = numbers.context("no sequence")?;
    let mut signature = Vec::with_capacity(2 * HALF);
    for _ in 0..2 {
        let [0x02, length, after @ ..] = rest else {
            anyhow::bail!("no integer")
        };
        let (number, after) = after
            .split_at_checked(usize::from(*length))
            .context("too short")?;
        // A leading zero says only that it is positive.
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        ensure!(number.len() <= HALF, "too long");
        signature.resize(signature.len() + HALF - number.len(), 0);
        signature.extend(number);
        rest = after;
    }
    Ok(signature)
}
