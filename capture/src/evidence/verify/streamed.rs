//! Accounts of captures whose packets went to their reader: they have no file, and no manifest.

use ulid::Ulid;

use crate::{
    session::Destination,
    sidecar::{SIDECAR_BYTES_MAX, Sidecar},
};

const ENDING: &str = ".json";
/// Captures that are named.
const NAMED: usize = 3;

/// Bytes of a file that are looked at to know whether it is one, at the most; 0 if its name is no account's.
pub(super) fn bytes_wanted(name: &str) -> usize {
    match id(name) {
        Some(_) => SIDECAR_BYTES_MAX,
        None => 0,
    }
}

/// `bytes` are such an account, of the capture that the name is of.
pub(super) fn is_account(name: &str, bytes: &[u8]) -> bool {
    let Some(id) = id(name) else {
        return false;
    };
    Sidecar::from_json(bytes).is_ok_and(|account| {
        let capture = account.capture;
        capture.spec.destination == Destination::Stream && capture.id.to_string() == id
    })
}

/// What is said of them; nothing of none.
pub(super) fn told(names: &[&str]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let named = names.get(..NAMED).unwrap_or(names);
    let more = match names.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "{}{more}: accounts of captures that were streamed to their readers; there is no file of theirs here, and \
         nobody signed them",
        named.join(", ")
    ))
}

fn id(name: &str) -> Option<&str> {
    let id = name.strip_suffix(ENDING)?;
    id.parse::<Ulid>().is_ok().then_some(id)
}
