//! Signed documents: DSSE, the Dead Simple Signing Envelope of in-toto and sigstore.
//!
//! ```text
//! {"payload":BASE64,"payloadType":TYPE,"signatures":[{"keyid":KEY,"sig":BASE64}]}
//! signed: "DSSEv1" SP LEN(TYPE) SP TYPE SP LEN(payload) SP payload
//! ```
//! An envelope has one form only, so that its hash can stand for it: canonical JSON, one signature.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

use super::{CanonicalError, KeyId, PublicKey, SecretKey, canonical};

/// A file is not a document that was signed.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("it is not a signed envelope (DSSE), or one in another form than the one it can have")]
    Form,
    #[error("its payload is of another type than `{0}`")]
    Type(&'static str),
    #[error("it is signed by the key {0}, which is not among those given")]
    UnknownKey(KeyId),
    #[error("its signature does not fit: it was changed, or signed by another key")]
    Signature,
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

/// A document, its type and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    payload: Vec<u8>,
    payload_type: String,
    key_id: KeyId,
    signature: [u8; 64],
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    payload: String,
    payload_type: String,
    signatures: [WireSignature; 1],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    keyid: KeyId,
    sig: String,
}

impl Envelope {
    /// Signs a document of canonical JSON.
    ///
    /// # Errors
    /// It has no canonical form.
    pub fn sign(
        document: &impl Serialize,
        payload_type: &str,
        key: &SecretKey,
    ) -> Result<Self, EnvelopeError> {
        let payload = canonical(document)?;
        let signature = key.sign(&to_be_signed(payload_type, &payload));
        Ok(Self {
            payload,
            payload_type: payload_type.to_owned(),
            key_id: key.public().id(),
            signature,
        })
    }

    /// The file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let wire = Wire {
            payload: BASE64.encode(&self.payload),
            payload_type: self.payload_type.clone(),
            signatures: [WireSignature {
                keyid: self.key_id,
                sig: BASE64.encode(self.signature),
            }],
        };
        canonical(&wire).expect("strings have a canonical form")
    }

    /// # Errors
    /// [`EnvelopeError::Form`]; the signature is not looked at.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let form = |_| EnvelopeError::Form;
        let wire: Wire = serde_json::from_slice(bytes).map_err(form)?;
        let [WireSignature { keyid, sig }] = wire.signatures;
        let signature = BASE64.decode(sig).map_err(|_bad| EnvelopeError::Form)?;
        let envelope = Self {
            payload: BASE64
                .decode(wire.payload)
                .map_err(|_bad| EnvelopeError::Form)?,
            payload_type: wire.payload_type,
            key_id: keyid,
            signature: signature
                .try_into()
                .map_err(|_length| EnvelopeError::Form)?,
        };
        if envelope.to_bytes() != bytes {
            return Err(EnvelopeError::Form);
        }
        Ok(envelope)
    }

    /// The document, if one of the keys signed it as a `payload_type`.
    ///
    /// # Errors
    /// None did.
    pub fn open(
        &self,
        payload_type: &'static str,
        keys: &[PublicKey],
    ) -> Result<&[u8], EnvelopeError> {
        if self.payload_type != payload_type {
            return Err(EnvelopeError::Type(payload_type));
        }
        let key = keys
            .iter()
            .find(|key| key.id() == self.key_id)
            .ok_or(EnvelopeError::UnknownKey(self.key_id))?;
        if !key.verifies(
            &to_be_signed(&self.payload_type, &self.payload),
            &self.signature,
        ) {
            return Err(EnvelopeError::Signature);
        }
        Ok(&self.payload)
    }

    /// The document, whoever signed it: to be shown, not to be believed.
    #[must_use]
    pub fn unverified(&self) -> &[u8] {
        &self.payload
    }

    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }
}

/// DSSE's PAE: type and document cannot be taken one for the other.
fn to_be_signed(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TYPE: &str = "http://example.com/HelloWorld";

    #[test]
    fn what_is_signed_is_what_dsse_says() {
        // The example of the specification, protocol.md.
        assert_eq!(
            to_be_signed(TYPE, b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn an_envelope_has_one_form_and_one_key_and_one_type() {
        let key = SecretKey::from_random(&[1; 32]);
        let keys = [key.public()];
        let envelope = Envelope::sign(&json!({"a": 1}), TYPE, &key).expect("signed");
        let bytes = envelope.to_bytes();
        let read = Envelope::from_bytes(&bytes).expect("own");
        assert_eq!(read.open(TYPE, &keys).expect("own"), b"{\"a\":1}");
        assert!(matches!(
            read.open("other", &keys),
            Err(EnvelopeError::Type(_))
        ));
        let foreign = [SecretKey::from_random(&[2; 32]).public()];
        assert!(matches!(
            read.open(TYPE, &foreign),
            Err(EnvelopeError::UnknownKey(_))
        ));
        let text = String::from_utf8(bytes.clone()).expect("JSON");
        for other in [
            format!("{text}\n"),
            format!(" {text}"),
            text.replace("\"sig\"", "\"more\":1,\"sig\""),
        ] {
            assert!(
                matches!(
                    Envelope::from_bytes(other.as_bytes()),
                    Err(EnvelopeError::Form)
                ),
                "{other}"
            );
        }
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            let opened = Envelope::from_bytes(&flipped)
                .and_then(|envelope| envelope.open(TYPE, &keys).map(<[u8]>::to_vec));
            assert!(opened.is_err(), "bit {at}");
        }
    }
}
