//! The network of the control plane and the nodes: a bridge, a cable to each node, and routes to
//! their pods. None leads out.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{
    netns::Netns,
    veth::{self, End},
};

/// The control plane's address.
pub const API: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Address of the Service `kubernetes`: the first of [`SERVICES`].
pub const KUBERNETES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Addresses of Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// So many nodes know each other's pods.
const NODES_MAX: u8 = 4;
const BRIDGE: &str = "lan";

/// The control plane's network namespace, with the bridge.
#[derive(Debug)]
pub struct Lan {
    netns: Netns,
}

impl Lan {
    pub(super) fn new() -> Result<Self> {
        let netns = Netns::new("control")?;
        netns.ip(&format!("link add {BRIDGE} type bridge"))?;
        netns.ip(&format!("addr add {API}/24 dev {BRIDGE}"))?;
        netns.ip(&format!("link set {BRIDGE} up"))?;
        // The API server itself answers at its Service's address.
        netns.ip(&format!("addr add {KUBERNETES}/32 dev lo"))?;
        Ok(Self { netns })
    }

    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Connects a node by its number, from 1, which its address and its pods' are made of.
    pub(super) fn connect(&self, node: &Netns, number: u8) -> Result<()> {
        let port = format!("node-{number}");
        veth::lay(
            &End {
                netns: &self.netns,
                interface: &port,
                mac: [2, 0, 0, 0, 5, number],
                ipv4: None,
                ipv6: None,
            },
            &End {
                netns: node,
                interface: "eth0",
                mac: [2, 0, 0, 0, 6, number],
                ipv4: Some((address(number), 24)),
                ipv6: None,
            },
        )?;
        self.netns.ip(&format!("link set {port} master {BRIDGE}"))?;
        self.netns.ip(&format!(
            "route add {} via {}",
            pods(number),
            address(number)
        ))?;
        node.sysctl("net.ipv4.ip_forward", "1")?;
        node.ip(&format!("route add {KUBERNETES} via {API}"))?;
        for other in (1..=NODES_MAX).filter(|&other| other != number) {
            let (pods, via) = (pods(other), address(other));
            node.ip(&format!("route add {pods} via {via}"))?;
        }
        Ok(())
    }
}

/// A node's address.
#[must_use]
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + number)
}

/// Addresses of a node's pods.
#[must_use]
pub fn pods(number: u8) -> String {
    format!("10.244.{number}.0/24")
}
