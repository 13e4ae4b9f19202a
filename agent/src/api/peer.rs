//! Who may call. On the socket: root, the agent's own user, and members of one configured group. By
//! the network: who has a certificate with a listed name, which the handshake has judged.
//!
//! The socket's mode already says so (0660, of that group). The peer's credentials are checked all
//! the same, since a descriptor can be handed on, and are logged with each call that changes
//! something.

use std::{io, os::unix::ffi::OsStrExt as _};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use remora_proto::{
    reason::{Reason, status},
    tls::Peer,
};
use tokio::net::unix::UCred;
use tonic::{Code, Request, Status, transport::server::UdsConnectInfo};

/// The rule.
#[derive(Clone, Debug)]
pub struct PeerPolicy {
    own: Uid,
    group: Option<Group>,
}

/// The configured group is not one.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("there is no group `{0}`; make it (`groupadd {0}`) or leave --group out")]
    Unknown(String),
    #[error("failed to look up group `{name}`: {source}")]
    Lookup { name: String, source: io::Error },
}

impl PeerPolicy {
    /// With a group by its name or number.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn new(group: Option<&str>) -> Result<Self, GroupError> {
        let group = group.map(find_group).transpose()?;
        Ok(Self {
            own: Uid::effective(),
            group,
        })
    }

    /// The group that the socket is given to.
    #[must_use]
    pub fn gid(&self) -> Option<Gid> {
        self.group.as_ref().map(|group| group.gid)
    }

    /// Describes the caller, or refuses.
    ///
    /// # Errors
    /// PERMISSION_DENIED with what to do.
    pub fn check<T>(&self, request: &Request<T>) -> Result<String, Status> {
        if let Some(peer) = request.extensions().get::<Peer>() {
            return remote(peer);
        }
        let peer = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|info| info.peer_cred)
            .ok_or_else(|| {
                status(
                    Code::PermissionDenied,
                    Reason::PermissionDenied,
                    "the caller's credentials cannot be read",
                )
            })?;
        if self.allows(&peer) {
            let pid = peer
                .pid()
                .map_or_else(String::new, |pid| format!(" pid={pid}"));
            return Ok(format!("uid={} gid={}{pid}", peer.uid(), peer.gid()));
        }
        tracing::warn!(uid = peer.uid(), gid = peer.gid(), "refused a caller");
        let hint = match &self.group {
            Some(group) => format!("become a member of group `{}`, or root", group.name),
            None => "call as root, or start the agent with --group".to_owned(),
        };
        Err(status(
            Code::PermissionDenied,
            Reason::PermissionDenied,
            format!("uid {} may not use this agent; {hint}", peer.uid()),
        ))
    }

    fn allows(&self, peer: &UCred) -> bool {
        let uid = Uid::from_raw(peer.uid());
        uid.is_root()
            || uid == self.own
            || self
                .group
                .as_ref()
                .is_some_and(|group| peer.gid() == group.gid.as_raw() || is_member(uid, group.gid))
    }
}

/// A caller by the network. Only one with a name gets here; what has none is refused all the same.
fn remote(peer: &Peer) -> Result<String, Status> {
    let Peer { address, name } = peer;
    match name {
        Some(name) => Ok(format!("san={name} address={address}")),
        None => Err(status(
            Code::PermissionDenied,
            Reason::PermissionDenied,
            "no certificate was shown",
        )),
    }
}

/// The user's groups as the machine's user database has them.
fn is_member(uid: Uid, gid: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else {
        return false;
    };
    let Ok(name) = std::ffi::CString::new(std::ffi::OsStr::new(&user.name).as_bytes()) else {
        return false;
    };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&gid))
}

fn find_group(name: &str) -> Result<Group, GroupError> {
    let found = match name.parse::<u32>() {
        Ok(gid) => Group::from_gid(Gid::from_raw(gid)),
        Err(_) => Group::from_name(name),
    };
    found
        .map_err(|errno| GroupError::Lookup {
            name: name.to_owned(),
            source: errno.into(),
        })?
        .ok_or_else(|| GroupError::Unknown(name.escape_debug().to_string()))
}
