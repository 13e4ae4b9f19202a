//! A pod, as Kubernetes names it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest name of an object, in bytes (RFC 1123 subdomain).
const NAME_MAX: usize = 253;
/// Longest name of a namespace or container, in bytes (RFC 1123 label).
const LABEL_MAX: usize = 63;
/// Longest uid, in bytes. Most are UUIDs; a static pod's is the hash of its file.
const UID_MAX: usize = 64;

/// A pod of the agent's node.
///
/// As text: `NAMESPACE/NAME`, then `/CONTAINER` and `@UID` where there are any.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    /// Which of those that had the name one after the other; `None`: who is there, or was last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// One container of it, by name; `None`: the whole pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// What is said of a pod cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PodError {
    #[error(
        "`{0}` is not a pod; use NAMESPACE/NAME, NAMESPACE/NAME/CONTAINER, and @UID at the end for one of \
             several of that name"
    )]
    Form(String),
    #[error(
        "`{value}` is not the {what} of a Kubernetes object; those have lower-case letters, digits and `-`"
    )]
    Name { what: &'static str, value: String },
}

impl PodRef {
    /// # Errors
    /// [`PodError::Name`]: names come from outside.
    pub fn validate(&self) -> Result<(), PodError> {
        check("namespace", &self.namespace, is_label)?;
        check("name", &self.name, is_name)?;
        if let Some(uid) = &self.uid {
            check("uid", uid, is_uid)?;
        }
        if let Some(container) = &self.container {
            check("container", container, is_label)?;
        }
        Ok(())
    }
}

pub(super) fn check(
    what: &'static str,
    value: &str,
    is_right: impl Fn(&str) -> bool,
) -> Result<(), PodError> {
    if is_right(value) {
        return Ok(());
    }
    Err(PodError::Name {
        what,
        value: shown(value),
    })
}

/// A namespace's or container's name: RFC 1123 label.
pub(super) fn is_label(name: &str) -> bool {
    name.len() <= LABEL_MAX && !name.contains('.') && is_name(name)
}

/// An object's name: RFC 1123 subdomain.
pub(super) fn is_name(name: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= NAME_MAX
        && name.split('.').all(|part| {
            let bytes = part.as_bytes();
            bytes.iter().all(|&b| is_inner(b) || b == b'-')
                && bytes.first().copied().is_some_and(is_inner)
                && bytes.last().copied().is_some_and(is_inner)
        })
}

fn is_uid(uid: &str) -> bool {
    (1..=UID_MAX).contains(&uid.len())
        && uid
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    short.escape_debug().to_string()
}

impl FromStr for PodRef {
    type Err = PodError;

    fn from_str(text: &str) -> Result<Self, PodError> {
        let (path, uid) = match text.split_once('@') {
            Some((path, uid)) => (path, Some(uid.to_owned())),
            None => (text, None),
        };
        let mut parts = path.split('/').map(str::to_owned);
        let (Some(namespace), Some(name), container, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(PodError::Form(shown(text)));
        };
        let pod = Self {
            namespace,
            name,
            uid,
            container,
        };
        pod.validate()?;
        Ok(pod)
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if let Some(container) = &self.container {
            write!(f, "/{container}")?;
        }
        if let Some(uid) = &self.uid {
            write!(f, "@{uid}")?;
        }
        Ok(())
    }
}
