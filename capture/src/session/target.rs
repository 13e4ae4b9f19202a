//! What a session is attached to, in a user's words.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{PodError, PodRef};

/// A target on one node, not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Path from the cgroup2 root, absolute, without `..`: `/remora/web`.
    CgroupPath(String),
    /// Inode number of the cgroup's directory.
    CgroupId(u64),
    /// Process id: its cgroup is the target.
    Pid(u32),
    /// systemd unit with its suffix.
    Unit(String),
    /// Container id, or 12 or more of its first hex digits, in lower case.
    Container(String),
    /// Network interface of the agent's network namespace.
    Interface(String),
    /// A pod of the agent's node: `shop/cart-7d9`, one container of it, or one of the pods that had
    /// this name.
    Pod(PodRef),
}

/// A target's text is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    #[error(
        "`{0}` is not a target; use cgroup:PATH, cgroup:ID, pid:N, unit:NAME, container:ID, pod:NAMESPACE/NAME or interface:NAME"
    )]
    Unknown(String),
    #[error(
        "`{0}` is not a cgroup path; it starts with `/` at the cgroup2 root and has no empty, `.` or `..` part"
    )]
    CgroupPath(String),
    #[error("`{0}` is not a process id")]
    Pid(String),
    #[error("`{0}` is not a unit name like nginx.service")]
    Unit(String),
    #[error("`{0}` is not a container id; it needs 12 to 64 hex digits")]
    Container(String),
    #[error("`{0}` is not an interface name; it has 1 to 15 characters without `/` and blanks")]
    Interface(String),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Longest cgroup path, in bytes (PATH_MAX of Linux).
const CGROUP_PATH_MAX: usize = 4096;

impl Target {
    /// Checks what the type cannot: names come from outside and are used to look up files.
    ///
    /// # Errors
    /// [`TargetError`] that names the offending part, escaped.
    pub fn validate(&self) -> Result<(), TargetError> {
        match self {
            Self::CgroupPath(path) => {
                let parts_ok = path == "/"
                    || path
                        .strip_prefix('/')
                        .is_some_and(|p| p.split('/').all(|s| !matches!(s, "" | "." | "..")));
                if !parts_ok || path.len() > CGROUP_PATH_MAX || path.contains('\0') {
                    return Err(TargetError::CgroupPath(shown(path)));
                }
            }
            Self::CgroupId(id) if *id == 0 => return Err(TargetError::CgroupPath(id.to_string())),
            Self::CgroupId(_) => {}
            Self::Pid(pid) => {
                if *pid == 0 || *pid > i32::MAX.unsigned_abs() {
                    return Err(TargetError::Pid(pid.to_string()));
                }
            }
            Self::Unit(unit) => {
                let ok = unit.len() <= 255
                    && unit.contains('.')
                    && !unit.starts_with('.')
                    && unit
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c));
                if !ok {
                    return Err(TargetError::Unit(shown(unit)));
                }
            }
            Self::Container(id) => {
                let ok = (12..=64).contains(&id.len())
                    && id
                        .chars()
                        .all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
                if !ok {
                    return Err(TargetError::Container(shown(id)));
                }
            }
            Self::Interface(name) => {
                let ok = (1..=15).contains(&name.len())
                    && !matches!(name.as_str(), "." | "..")
                    && name.chars().all(|c| c.is_ascii_graphic() && c != '/');
                if !ok {
                    return Err(TargetError::Interface(shown(name)));
                }
            }
            Self::Pod(pod) => pod.validate()?,
        }
        Ok(())
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (kind, rest) = text
            .split_once(':')
            .ok_or_else(|| TargetError::Unknown(shown(text)))?;
        let target = match kind {
            "cgroup" => match rest.parse::<u64>() {
                Ok(id) => Self::CgroupId(id),
                Err(_) => Self::CgroupPath(rest.to_owned()),
            },
            "pid" => Self::Pid(
                rest.parse()
                    .map_err(|_invalid| TargetError::Pid(shown(rest)))?,
            ),
            "unit" => Self::Unit(rest.to_owned()),
            // "containerd://3f2a…" is how Kubernetes writes it.
            "container" => {
                let id = rest.rsplit_once("://").map_or(rest, |(_, id)| id);
                Self::Container(id.to_ascii_lowercase())
            }
            "interface" | "if" => Self::Interface(rest.to_owned()),
            "pod" => Self::Pod(rest.parse()?),
            _ => return Err(TargetError::Unknown(shown(text))),
        };
        target.validate()?;
        Ok(target)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CgroupPath(path) => write!(f, "cgroup:{path}"),
            Self::CgroupId(id) => write!(f, "cgroup:{id}"),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Unit(unit) => write!(f, "unit:{unit}"),
            Self::Container(id) => write!(f, "container:{id}"),
            Self::Interface(name) => write!(f, "interface:{name}"),
            Self::Pod(pod) => write!(f, "pod:{pod}"),
        }
    }
}

/// The start of untrusted text, escaped, for an error message.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    short.escape_debug().to_string()
}
