//! Who calls, as he says and as his connection shows.

use std::{fmt, net::SocketAddr};

use remora_proto::tls::{Name, Peer};
use sha2::{Digest as _, Sha256};
use tonic::{Extensions, Request, metadata::MetadataMap};

use super::Denied;

/// Longest token, in bytes: service accounts' have 1 to 2 KiB, OIDC's with many groups more.
pub(super) const TOKEN_MAX: usize = 8 * 1024;

/// A bearer token; shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// # Errors
    /// Empty, too long, or of other characters than a token's (RFC 6750, 2.1).
    pub fn new(text: &str) -> Result<Self, Denied> {
        let is_token = (1..=TOKEN_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b));
        is_token
            .then(|| Self(text.to_owned()))
            .ok_or(Denied::BadHeader)
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What a caller shows to prove who he is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Of a person or a service account.
    Token(Token),
    /// The listed name of the certificate that the connection began with.
    Certificate(Name),
    None,
}

/// Who calls, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub credentials: Credentials,
    /// `None` on a connection that has none.
    pub address: Option<SocketAddr>,
}

impl Caller {
    /// From a call: a token counts before the connection's certificate.
    ///
    /// # Errors
    /// The metadata `authorization` is there and is no bearer token.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Denied> {
        Self::shown(request.metadata(), request.extensions())
    }

    /// From a call's metadata, and what is known of its connection.
    ///
    /// # Errors
    /// As [`Caller::of`].
    pub fn shown(metadata: &MetadataMap, connection: &Extensions) -> Result<Self, Denied> {
        let peer = connection.get::<Peer>();
        let certificate = peer.and_then(|peer| peer.name.clone());
        let credentials = match (bearer(metadata)?, certificate) {
            (Some(token), _) => Credentials::Token(token),
            (None, Some(name)) => Credentials::Certificate(name),
            (None, None) => Credentials::None,
        };
        Ok(Self {
            credentials,
            address: peer.map(|peer| peer.address),
        })
    }

    /// What answers are kept by.
    pub(super) fn key(&self) -> Option<[u8; 32]> {
        let (kind, text) = match &self.credentials {
            Credentials::Token(token) => ("token", token.secret().to_owned()),
            Credentials::Certificate(name) => ("certificate", name.to_string()),
            Credentials::None => return None,
        };
        let mut hash = Sha256::new();
        hash.update(kind);
        hash.update([0]);
        hash.update(text);
        Some(hash.finalize().into())
    }
}

fn bearer(metadata: &MetadataMap) -> Result<Option<Token>, Denied> {
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Denied::BadHeader);
    }
    let text = value.to_str().map_err(|_not_ascii| Denied::BadHeader)?;
    let (scheme, token) = text.split_once(' ').ok_or(Denied::BadHeader)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Denied::BadHeader);
    }
    Token::new(token.trim()).map(Some)
}
