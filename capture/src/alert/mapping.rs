//! From an alert to what to capture: whose packets ([`target`]), and which of them ([`terms`]).
//!
//! Falco tells of a connection in several ways, not all of them sound:
//! - `fd.sip`/`fd.cip` are the server's and the client's address as the connect or accept saw
//!   them: right where they are there, `null` while the role is unknown (unconnected UDP);
//! - `fd.name` is `client:port->server:port`, IPv6 without brackets, one `address:port` for a
//!   listening socket, and any file name for a file;
//! - `fd.lip`/`fd.rip` are guesses by local addresses, wrong for IPv6 in a container. They are
//!   never used.
//!
//! The remote end is the server for a client, and the client for a server. The port is the
//! service's in either role: the other one is gone with the connection.

use std::net::IpAddr;

use super::Alert;
use crate::{
    filter::{AddressTerm, PortTerm, Prefix, Protocol, Side, Terms},
    session::{NameHint, PodRef, Target},
    text,
};

/// What the alerted process is in the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Client,
    Server,
}

/// The other end of the alert's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub role: Role,
    /// The remote address; `None` where none is worth a filter: unknown, unspecified, loopback.
    pub ip: Option<IpAddr>,
    /// The process's own address, for a name; `None` as for `ip`.
    pub own: Option<IpAddr>,
    /// The service's port: the remote one for a client, the own one for a server.
    pub port: Option<u16>,
    /// The port that lives as long as the connection.
    pub client_port: Option<u16>,
    /// `None` where Falco does not say, or it is neither TCP, UDP nor ICMP.
    pub protocol: Option<Protocol>,
}

impl Endpoint {
    /// The port at the other end.
    #[must_use]
    pub fn remote_port(&self) -> Option<u16> {
        match self.role {
            Role::Client => self.port,
            Role::Server => self.client_port,
        }
    }

    /// The port of the alerted process.
    #[must_use]
    pub fn own_port(&self) -> Option<u16> {
        match self.role {
            Role::Client => self.client_port,
            Role::Server => self.port,
        }
    }
}

/// How much around the alert's connection is captured: which of the target's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Traffic {
    /// The one connection.
    Flow,
    /// Every connection to the same service of the same remote address.
    #[default]
    Endpoint,
    /// All that goes to or comes from the remote address.
    RemoteHost,
    /// All of the connection's transport protocol.
    Protocol,
    /// All of the target.
    All,
}

/// An alert names nothing that can be captured on a node.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoTarget {
    #[error(
        "the alert has none of `container.id`, `thread.cgroups` and `proc.pid`; add them to the rule's output (falco.yaml: append_output)"
    )]
    Missing,
    #[error("the alert's `container.id` `{0}` is not a container id, and it has no `proc.pid`")]
    Container(String),
    #[error("the alert's `proc.pid` `{0}` is not a process id")]
    Pid(String),
}

/// Whose packets: the container, or for a process of the host (or in a container whose id is no
/// hex digits) the process's cgroup, or the process if the alert does not tell that: it may be gone
/// by now.
///
/// # Errors
/// [`NoTarget`], which says what the alert lacks.
pub fn target(alert: &Alert) -> Result<Target, NoTarget> {
    let ids = ["container.full_id", "container.id"];
    let containers = ids
        .into_iter()
        .filter_map(|key| alert.field(key))
        .filter(|id| *id != "host");
    let mut refused = None;
    for id in containers {
        let target = Target::Container(id.to_ascii_lowercase());
        if target.validate().is_ok() {
            return Ok(target);
        }
        refused = Some(id);
    }
    if let Some(target) = cgroup(alert) {
        return Ok(target);
    }
    let shown = |text| text::excerpt(text, 80).to_string();
    match (alert.field("proc.pid"), refused) {
        (Some(pid), _) => pid
            .parse()
            .ok()
            .map(Target::Pid)
            .filter(|target| target.validate().is_ok())
            .ok_or_else(|| NoTarget::Pid(shown(pid))),
        (None, Some(id)) => Err(NoTarget::Container(shown(id))),
        (None, None) => Err(NoTarget::Missing),
    }
}

/// All containers of the alert's pod, by the cgroup around that of its process
/// (`…-pod<uid>.slice`, or `…/pod<uid>` without systemd); `None` when the alert does not tell it.
#[must_use]
pub fn pod(alert: &Alert) -> Option<Target> {
    let path = cgroup_path(alert)?;
    let mut end = 0;
    for part in path.split_inclusive('/') {
        end += part.len();
        if is_pod(part.trim_end_matches('/')) {
            let path = path[..end].trim_end_matches('/').to_owned();
            return Some(Target::CgroupPath(path)).filter(|target| target.validate().is_ok());
        }
    }
    None
}

/// The alert's pod by its names; `None` when the alert does not tell them.
#[must_use]
pub fn named_pod(alert: &Alert) -> Option<PodRef> {
    let name = |key| alert.field(key).map(str::to_owned);
    let pod = PodRef {
        namespace: name("k8s.ns.name")?,
        name: name("k8s.pod.name")?,
        uid: name("k8s.pod.uid"),
        container: None,
    };
    pod.validate().is_ok().then_some(pod)
}

/// `kubepods-burstable-pod<uid>.slice`, where `_` stands for the UID's `-`, or `pod<uid>`. The UID
/// of a pod from a file has no `-`.
fn is_pod(directory: &str) -> bool {
    let uid = match directory.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid),
        None => directory.strip_prefix("pod"),
    };
    uid.is_some_and(|uid| {
        (32..=36).contains(&uid.len())
            && uid
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || b"-_".contains(&b))
    })
}

fn cgroup(alert: &Alert) -> Option<Target> {
    let target = Target::CgroupPath(cgroup_path(alert)?.to_owned());
    target.validate().is_ok().then_some(target)
}

/// The process's cgroup, of `thread.cgroups`: `cpuset=PATH cpu=PATH …`, one path for all on
/// cgroup2. Where they differ, none of them is known to be of cgroup2.
fn cgroup_path(alert: &Alert) -> Option<&str> {
    let mut paths = alert
        .field("thread.cgroups")?
        .split_ascii_whitespace()
        .map(|entry| entry.split_once('=').map(|(_, path)| path));
    let path = paths.next()??;
    let is_one = paths.all(|other| other == Some(path));
    (is_one && path != "/").then_some(path)
}

/// The other end of the alert's connection; `None` when the alert is of none.
#[must_use]
pub fn endpoint(alert: &Alert) -> Option<Endpoint> {
    let name = connection(alert);
    let role = role(alert, name.as_ref());
    let name_side = |client: bool| match name {
        Some(Connection::Tuple {
            client: from,
            server: to,
        }) => Some(if client { from } else { to }),
        Some(Connection::Listening(own)) if !client && role == Role::Server => Some(own),
        _ => None,
    };
    let end = |client: bool| {
        let (ip_key, port_key) = if client {
            ("fd.cip", "fd.cport")
        } else {
            ("fd.sip", "fd.sport")
        };
        let named = name_side(client);
        let ip = alert
            .field(ip_key)
            .and_then(address)
            .or(named.map(|(ip, _)| ip));
        // A port of another address would be a wrong one.
        let named_port = named
            .filter(|(named_ip, _)| Some(*named_ip) == ip)
            .map(|(_, p)| p);
        let port = alert
            .field(port_key)
            .and_then(|text| text.parse().ok())
            .or(named_port);
        (ip, port.filter(|port| *port != 0))
    };
    let ((client_ip, client_port), (server_ip, port)) = (end(true), end(false));
    let (own, remote) = match role {
        Role::Client => (client_ip, server_ip),
        // A listening socket has no remote end yet.
        Role::Server => (server_ip, client_ip),
    };
    let telling = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_loopback();
    let ip = remote.filter(telling);
    let protocol = match alert.field("fd.l4proto") {
        Some("tcp") => Some(Protocol::Tcp),
        Some("udp") => Some(Protocol::Udp),
        Some("icmp") => remote.map(|ip| {
            if ip.is_ipv4() {
                Protocol::Icmp
            } else {
                Protocol::Icmp6
            }
        }),
        _ => None,
    };
    let known = remote.is_some() || port.is_some() || protocol.is_some();
    known.then_some(Endpoint {
        role,
        ip,
        own: own.filter(telling),
        port,
        client_port,
        protocol,
    })
}

/// Which packets of the target. Empty terms, which take all of them, where the alert does not say
/// what `traffic` asks for.
#[must_use]
pub fn terms(alert: &Alert, traffic: Traffic) -> Terms {
    let mut terms = Terms::default();
    let Some(endpoint) = endpoint(alert) else {
        return terms;
    };
    if traffic == Traffic::All {
        return terms;
    }
    if traffic != Traffic::Protocol
        && let Some(ip) = endpoint.ip
    {
        terms.addresses.push(AddressTerm {
            prefix: Prefix::host(ip),
            side: Side::Either,
        });
    }
    if traffic == Traffic::RemoteHost {
        return terms;
    }
    terms.protocol = endpoint.protocol;
    if traffic == Traffic::Protocol || endpoint.protocol.is_some_and(|p| !p.has_ports()) {
        return terms;
    }
    let client_port = endpoint.client_port.filter(|_| traffic == Traffic::Flow);
    for port in endpoint.port.into_iter().chain(client_port) {
        terms.ports.push(PortTerm {
            port,
            side: Side::Either,
        });
    }
    terms
}

/// Names that Falco resolved for the connection's ends.
#[must_use]
pub fn names(alert: &Alert) -> Vec<NameHint> {
    [("fd.sip", "fd.sip.name"), ("fd.cip", "fd.cip.name")]
        .into_iter()
        .filter_map(|(ip, name)| {
            let address = address(alert.field(ip)?)?;
            Some(NameHint {
                address,
                name: alert.field(name)?.to_owned(),
            })
        })
        .filter(NameHint::is_usable)
        .collect()
}

/// What `fd.name` says of a socket.
#[derive(Clone, Copy)]
enum Connection {
    Tuple {
        client: (IpAddr, u16),
        server: (IpAddr, u16),
    },
    Listening((IpAddr, u16)),
}

fn connection(alert: &Alert) -> Option<Connection> {
    if alert
        .field("fd.type")
        .is_some_and(|kind| !matches!(kind, "ipv4" | "ipv6"))
    {
        return None;
    }
    let name = alert.field("fd.name")?;
    match name.split_once("->") {
        Some((client, server)) => Some(Connection::Tuple {
            client: socket(client)?,
            server: socket(server)?,
        }),
        None => socket(name).map(Connection::Listening),
    }
}

/// `address:port`, IPv6 with or without brackets.
fn socket(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.rsplit_once(':')?;
    let ip = ip
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'))
        .unwrap_or(ip);
    Some((address(ip)?, port.parse().ok()?))
}

/// On the wire an IPv4-mapped address is an IPv4 address.
fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

fn role(alert: &Alert, name: Option<&Connection>) -> Role {
    match (alert.field("fd.is_server"), alert.field("evt.type")) {
        (Some("true"), _) => Role::Server,
        (Some("false"), _) => Role::Client,
        (_, Some("accept" | "accept4" | "listen")) => Role::Server,
        (_, Some("connect" | "sendto" | "sendmsg" | "sendmmsg")) => Role::Client,
        _ if matches!(name, Some(Connection::Listening(_))) => Role::Server,
        // Most rules on connections are on outbound ones.
        _ => Role::Client,
    }
}
