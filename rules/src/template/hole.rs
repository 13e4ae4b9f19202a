//! What a hole asks for, and the values that may fill it.

use std::{fmt, net::IpAddr};

use remora_capture::{
    alert::{Alert, mapping},
    filter::{Prefix, Protocol},
};

/// Where a hole's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Remote(Part),
    Own(Part),
    /// The port that stays when the connection is gone: the remote one for a client, the own one
    /// for a server.
    ServicePort,
    /// The connection's protocol.
    Protocol,
    /// An output field, by its key.
    Field(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Ip,
    Port,
}

/// The names that a hole may have; besides, `field:KEY`.
pub(super) const NAMES: [&str; 6] = [
    "remote.ip",
    "remote.port",
    "remote.proto",
    "service.port",
    "own.ip",
    "own.port",
];

impl Source {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "remote.ip" => Self::Remote(Part::Ip),
            "remote.port" => Self::Remote(Part::Port),
            "remote.proto" => Self::Protocol,
            "service.port" => Self::ServicePort,
            "own.ip" => Self::Own(Part::Ip),
            "own.port" => Self::Own(Part::Port),
            _ => Self::Field(
                name.strip_prefix("field:")
                    .filter(|key| !key.is_empty())?
                    .to_owned(),
            ),
        })
    }

    /// Whether a value of this kind can come of it.
    pub(super) fn may_be(&self, kind: Kind) -> bool {
        match self {
            Self::Remote(Part::Ip) | Self::Own(Part::Ip) => {
                matches!(kind, Kind::Address | Kind::Network)
            }
            Self::Remote(Part::Port) | Self::Own(Part::Port) | Self::ServicePort => {
                kind == Kind::Port
            }
            Self::Protocol => matches!(kind, Kind::Protocol | Kind::Transport),
            Self::Field(_) => true,
        }
    }

    /// What the alert says, if it is of this kind.
    pub(super) fn value(&self, kind: Kind, alert: &Alert) -> Option<Value> {
        let end = || mapping::endpoint(alert);
        Some(match self {
            Self::Remote(Part::Ip) => Value::Address(end()?.ip?),
            Self::Remote(Part::Port) => Value::Port(end()?.remote_port()?),
            Self::Own(Part::Ip) => Value::Address(end()?.own?),
            Self::Own(Part::Port) => Value::Port(end()?.own_port()?),
            Self::ServicePort => Value::Port(end()?.port?),
            Self::Protocol => Value::Protocol(end()?.protocol.filter(|p| kind.takes(*p))?),
            Self::Field(key) => kind.read(alert.field(key)?)?,
        })
    }
}

/// What may stand in a hole, as the word before it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// After `host`, `src`, `dst`.
    Address,
    /// After `net`.
    Network,
    /// After `port`.
    Port,
    /// A term by itself: `tcp`, `icmp`.
    Protocol,
    /// Before `port`: one that has ports.
    Transport,
}

impl Kind {
    fn takes(self, protocol: Protocol) -> bool {
        self != Self::Transport || protocol.has_ports()
    }

    /// A foreign text, as a value of this kind or not at all.
    fn read(self, text: &str) -> Option<Value> {
        match self {
            Self::Address => Some(Value::Address(address(text)?)),
            Self::Network => match address(text) {
                Some(address) => Some(Value::Address(address)),
                None => text.parse().ok().map(Value::Network),
            },
            Self::Port => text.parse().ok().filter(|port| *port != 0).map(Value::Port),
            Self::Protocol | Self::Transport => Protocol::ALL
                .into_iter()
                .find(|p| p.word().eq_ignore_ascii_case(text))
                .filter(|p| self.takes(*p))
                .map(Value::Protocol),
        }
    }

    /// A value to try a template with.
    pub(super) fn sample(self) -> Value {
        match self {
            Self::Address | Self::Network => Value::Address(IpAddr::from([192, 0, 2, 7])),
            Self::Port => Value::Port(4444),
            Self::Protocol | Self::Transport => Value::Protocol(Protocol::Tcp),
        }
    }

    /// For a message: "an address".
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Address => "an address",
            Self::Network => "an address or a network",
            Self::Port => "a port from 1 to 65535",
            Self::Protocol => "a protocol (tcp, udp, sctp, icmp or icmp6)",
            Self::Transport => "a protocol with ports (tcp, udp or sctp)",
        }
    }
}

/// On the wire an IPv4-mapped address is an IPv4 address.
fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// A value that was understood. Filter text is made of it, and of nothing else that came with the
/// alert: so no alert can write filter text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Address(IpAddr),
    Network(Prefix),
    Port(u16),
    Protocol(Protocol),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Network(prefix) => prefix.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Protocol(protocol) => f.write_str(protocol.word()),
        }
    }
}

/// `${remote.ip}`, or `${remote.ip?}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    /// As it stands in the template.
    pub(super) text: String,
    pub(super) source: Source,
    pub(super) kind: Kind,
    /// Its term goes when there is no value.
    pub(super) is_optional: bool,
}
