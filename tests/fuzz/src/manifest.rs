//! A manifest, to what it proves.
//!
//! ```text
//! 0 (u8) | the file
//! 1 (u8) | the document that is signed, as JSON
//! 2 (u8) | changes of a good document: which value (u16), how (u8), length (u8), so many bytes
//! ```
//! Changed, a value becomes one of JSON's (the bytes, if they are JSON), or is gone. Whoever has the
//! node's key signs what he likes: a reader must stand that, too.

use std::sync::LazyLock;

use remora_capture::{
    evidence::{Entry, Envelope, Head, Inventory, Manifest, Scope, verify},
    text::excerpt,
};
use serde_json::Value;

use crate::{
    Pieces,
    evidence::{CAPTURE, KEY, confirm, confirm_shown},
};

/// Values of a document that is changed further.
const VALUES_MAX: usize = 10_000;
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let [.., (_, manifest)] = &*CAPTURE;
    let envelope = Envelope::from_bytes(manifest).expect("our own");
    serde_json::from_slice(envelope.unverified()).expect("JSON")
});

/// # Panics
/// What is no manifest is taken for one, or a message is not for a terminal.
pub fn check(data: &[u8]) {
    let mut pieces = Pieces(data);
    match pieces.u8() % 3 {
        0 => confirm_file(pieces.rest()),
        1 => {
            if let Ok(document) = serde_json::from_slice::<Value>(pieces.rest()) {
                confirm_signed(&document);
            }
        }
        _ => {
            let mut document = DOCUMENT.clone();
            // A value may become several of itself: that grows without end.
            while !pieces.0.is_empty() && count(&document) < VALUES_MAX {
                let (which, how) = (pieces.u16(), pieces.u8());
                let len = usize::from(pieces.u8());
                let bytes = pieces.take(len);
                let mut left = usize::from(which) % count(&document);
                change(&mut document, &mut left, how, bytes);
            }
            confirm_signed(&document);
        }
    }
}

/// Nobody has signed it: it is none, whatever it is.
fn confirm_file(bytes: &[u8]) {
    let keys = [KEY.public()];
    let [.., (name, manifest)] = &*CAPTURE;
    match Manifest::open(bytes, &keys) {
        Ok(_) => assert_eq!(bytes, manifest, "only one form has been signed"),
        Err(error) => confirm_shown(&error.to_string()),
    }
    if let Ok(manifest) = Manifest::unverified(bytes) {
        // As a person is shown it.
        assert!(excerpt(&manifest.node, 100).to_string().len() < 1024);
    }
    assert!(Head::from_signed(bytes, &keys).is_err());
    confirm_verdict(name, bytes);
}

/// It is signed by a key that is believed.
fn confirm_signed(document: &Value) {
    let Ok(envelope) = Envelope::sign(document, PAYLOAD_TYPE, &KEY) else {
        return;
    };
    let bytes = envelope.to_bytes();
    let [.., (name, _)] = &*CAPTURE;
    match Manifest::open(&bytes, &[KEY.public()]) {
        Ok(manifest) => {
            let again = manifest.clone().sign(&KEY).expect("it was signed before");
            let again = Manifest::open(&again, &[KEY.public()]).expect("our own");
            assert_eq!(again, manifest);
        }
        Err(error) => confirm_shown(&error.to_string()),
    }
    confirm_verdict(name, &bytes);
}

/// It is looked at beside the files that it may stand for.
fn confirm_verdict(name: &str, manifest: &[u8]) {
    let mut inventory = Inventory::default();
    let [packets, account, _] = &*CAPTURE;
    let files = [packets, account].map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    for (name, bytes) in files.into_iter().chain([(name, manifest)]) {
        inventory.put(name, Entry::read(name, bytes).expect("memory"));
    }
    for scope in [Scope::Directory, Scope::Selection] {
        confirm(&verify(&inventory, &[KEY.public()], None, scope));
    }
}

/// Values in it, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

/// Changes the value that `left` others come before; false if it is not in `value`.
fn change(value: &mut Value, left: &mut usize, how: u8, bytes: &[u8]) -> bool {
    if *left == 0 {
        *value = match how % 6 {
            0 => Value::Null,
            1 => u64::MAX.into(),
            2 => i64::MIN.into(),
            3 => String::from_utf8_lossy(bytes).into_owned().into(),
            4 => Value::Array(vec![value.clone(); usize::from(how / 6) % 4]),
            _ => serde_json::from_slice(bytes).unwrap_or(Value::Bool(true)),
        };
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(values) => values.iter_mut().any(|v| change(v, left, how, bytes)),
        Value::Object(members) => members.values_mut().any(|v| change(v, left, how, bytes)),
        _ => false,
    }
}
