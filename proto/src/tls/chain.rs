//! The judgement about a peer's certificate, for both sides.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use super::{
    files::provider,
    name::{Names, told},
};

/// OIDs of id-kp-serverAuth and id-kp-clientAuth (RFC 5280, 4.2.1.12), without tag and length.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// A good certificate has no name that is let in.
#[derive(Debug, thiserror::Error)]
#[error("its names ({presented}) are not among those let in ({wanted})")]
pub(super) struct WrongName {
    presented: String,
    wanted: String,
}

/// What a peer's certificate must be.
pub(super) struct Chain {
    anchors: Vec<TrustAnchor<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    /// `None`, for a server: the name that it was dialled by.
    names: Option<Names>,
    /// For a server: a client may have no certificate.
    is_optional: bool,
}

impl Chain {
    pub(super) fn new(anchors: Vec<TrustAnchor<'static>>, names: Option<Names>) -> Self {
        Self {
            anchors,
            algorithms: provider().signature_verification_algorithms,
            names,
            is_optional: false,
        }
    }

    pub(super) fn optional(mut self) -> Self {
        self.is_optional = true;
        self
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: &'static [u8],
        dialled: Option<&ServerName<'_>>,
    ) -> Result<(), Error> {
        let certificate = EndEntityCert::try_from(end_entity).map_err(refusal)?;
        certificate
            .verify_for_usage(
                self.algorithms.all,
                &self.anchors,
                intermediates,
                now,
                KeyUsage::required(usage),
                None,
                None,
            )
            .map_err(refusal)?;
        let wanted = match (&self.names, dialled) {
            (Some(names), _) if names.found_in(&certificate).is_some() => return Ok(()),
            (Some(names), _) => names.to_string(),
            (None, Some(dialled))
                if certificate
                    .verify_is_valid_for_subject_name(dialled)
                    .is_ok() =>
            {
                return Ok(());
            }
            (None, dialled) => dialled
                .map(ServerName::to_str)
                .unwrap_or_default()
                .into_owned(),
        };
        let wrong = WrongName {
            presented: told(&certificate),
            wanted,
        };
        Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("names", &self.names)
            .field("is_optional", &self.is_optional)
            .finish_non_exhaustive()
    }
}

/// TLS 1.2 is not offered, so nobody signs by it.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken".to_owned()))
}

impl ClientCertVerifier for Chain {
    fn client_auth_mandatory(&self) -> bool {
        !self.is_optional
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates, now, CLIENT_AUTH, None)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Chain {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(
            end_entity,
            intermediates,
            now,
            SERVER_AUTH,
            Some(server_name),
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// webpki's verdict in rustls' words, which choose the alert that the peer is sent.
fn refusal(error: webpki::Error) -> Error {
    let error = match error {
        webpki::Error::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::InvalidCertValidity => CertificateError::Expired,
        // The second: by a CA of that name that has another key, as one that was made anew.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            CertificateError::UnknownIssuer
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        error => CertificateError::Other(OtherError(Arc::new(error))),
    };
    error.into()
}

/// The reason in `error`, if a certificate's names were it.
pub(super) fn wrong_name(error: &CertificateError) -> Option<&WrongName> {
    match error {
        CertificateError::Other(OtherError(error)) => error.downcast_ref(),
        _ => None,
    }
}

/// A certificate that signs others was shown as somebody's own.
pub(super) fn is_ca(error: &CertificateError) -> bool {
    match error {
        CertificateError::Other(OtherError(error)) => {
            matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}
