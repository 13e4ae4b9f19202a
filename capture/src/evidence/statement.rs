//! What is signed of files: an in-toto statement in a DSSE envelope.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Digest, Envelope, EnvelopeError, KeyId, PublicKey, SecretKey, manifest::ManifestError,
};
use crate::text::shown;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// What is said of the files that are its subject.
pub(super) trait Predicate: Serialize + DeserializeOwned {
    /// Names this layout.
    const TYPE: &'static str;

    fn subject(&self) -> Vec<Subject>;

    /// Of the key that signs it.
    fn key_id(&self) -> KeyId;
}

#[derive(Serialize, Deserialize)]
pub(super) struct Statement<P> {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: P,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SubjectDigest {
    sha256: Digest,
}

impl Subject {
    pub(super) fn new(name: &str, sha256: Digest) -> Self {
        Self {
            name: name.to_owned(),
            digest: SubjectDigest { sha256 },
        }
    }
}

impl<P: Predicate> Statement<P> {
    pub(super) fn about(subject: Vec<Subject>, predicate: P) -> Self {
        Self {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject,
            predicate_type: P::TYPE.to_owned(),
            predicate,
        }
    }
}

/// The document's file.
pub(super) fn sign<P: Predicate>(predicate: P, key: &SecretKey) -> Result<Vec<u8>, EnvelopeError> {
    let statement = Statement::about(predicate.subject(), predicate);
    Ok(Envelope::sign(&statement, PAYLOAD_TYPE, key)?.to_bytes())
}

/// Reads a file that one of the keys signed.
pub(super) fn open<P: Predicate>(bytes: &[u8], keys: &[PublicKey]) -> Result<P, ManifestError> {
    let envelope = Envelope::from_bytes(bytes)?;
    let predicate: P = of_payload(envelope.open(PAYLOAD_TYPE, keys)?)?;
    if predicate.key_id() != envelope.key_id() {
        return Err(ManifestError::Statement("it names another key".to_owned()));
    }
    Ok(predicate)
}

/// Reads a file, whoever signed it.
pub(super) fn unverified<P: Predicate>(bytes: &[u8]) -> Result<P, ManifestError> {
    of_payload(Envelope::from_bytes(bytes)?.unverified())
}

fn of_payload<P: Predicate>(payload: &[u8]) -> Result<P, ManifestError> {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "_type")]
        statement_type: String,
        #[serde(rename = "predicateType")]
        predicate_type: String,
    }
    let other = |why: &str| ManifestError::Statement(why.to_owned());
    let unread = |error: serde_json::Error| other(&shown(&error.to_string()).to_string());
    let kind: Kind = serde_json::from_slice(payload).map_err(unread)?;
    if kind.statement_type != STATEMENT_TYPE || kind.predicate_type != P::TYPE {
        return Err(other("it is a statement of another type"));
    }
    let statement: Statement<P> = serde_json::from_slice(payload).map_err(unread)?;
    let predicate = statement.predicate;
    if statement.subject != predicate.subject() {
        return Err(other("its subject is not its files"));
    }
    Ok(predicate)
}
