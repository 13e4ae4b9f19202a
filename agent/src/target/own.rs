//! The interfaces by which a node's packets come and go: what `cgroup:/`, the whole node, means.
//!
//! | interface | its packets |
//! |---|---|
//! | hardware, with Ethernet headers | taken |
//! | a veth with an address in a network of its own, and nobody of this node behind it | taken: the node is a container itself |
//! | a pod's veth, bridge, bond, VLAN, overlay | left out: they pass one of the above too, or do not leave the node |
//! | loopback, tun | left out |

use std::{collections::BTreeSet, net::IpAddr};

use nix::ifaddrs::getifaddrs;

use super::{
    error::{ResolveError, shown},
    links::{Interface, InterfaceKind},
    message::{Device, Link, LinkFilter},
    residents::Residents,
    resolve::{CgroupScope, Resolved},
    rtnl::RouteSocket,
};

/// What is not seen so.
const NOTE: &str = "the node's own interfaces alone: what its pods send to each other and never leaves \
                    the node is not seen";

/// The node's own interfaces, as they are now.
///
/// # Errors
/// There is none with Ethernet headers, or the kernel does not tell.
pub(super) fn node(residents: &Residents) -> Result<Resolved, ResolveError> {
    let links = RouteSocket::open(0)
        .and_then(|mut socket| socket.links(LinkFilter::All))
        .map_err(ResolveError::io("ask rtnetlink for the node's interfaces"))?;
    let addressed = addressed().map_err(ResolveError::io("ask for the node's addresses"))?;
    let is_pods = |ifindex| {
        residents
            .behind(ifindex)
            .is_some_and(|cgroups| !cgroups.is_empty())
    };
    let mut interfaces: Vec<Interface> = links
        .into_iter()
        .filter(|link| leads_out(link, &addressed) && !is_pods(link.interface.ifindex))
        .map(|link| link.interface)
        .collect();
    interfaces.sort_by_key(|interface| interface.ifindex);
    if interfaces.is_empty() {
        return Err(ResolveError::not_found(
            "interface of the node's own with Ethernet headers",
            "`ip link` shows those that there are; capture one by interface:NAME",
        ));
    }
    let names: Vec<_> = interfaces
        .iter()
        .map(|interface| shown(&interface.name))
        .collect();
    Ok(Resolved {
        cgroup: None,
        cgroup_scope: CgroupScope::None,
        description: format!("the node by its interfaces {}", names.join(", ")),
        notes: vec![NOTE.to_owned()],
        interfaces,
    })
}

fn leads_out(link: &Link, addressed: &BTreeSet<String>) -> bool {
    match link.device {
        Device::Hardware => link.interface.kind == InterfaceKind::Other,
        Device::Veth => addressed.contains(&link.interface.name),
        Device::Virtual => false,
    }
}

/// A veth by which a node that is a container itself is connected, if nobody of this node is behind it.
pub(super) fn connects_the_node(interface: &str) -> bool {
    addressed().is_ok_and(|names| names.contains(interface))
}

/// Names of the interfaces that have an address in a network: a pod's veth has at most one that is
/// a network by itself (the CNI plugin ptp), or of the link alone.
fn addressed() -> std::io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in getifaddrs()? {
        let ip = |address: Option<nix::sys::socket::SockaddrStorage>| {
            let address = address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        };
        if let (Some(address), Some(mask)) = (ip(entry.address), ip(entry.netmask))
            && is_in_a_network(address, mask)
        {
            names.insert(entry.interface_name);
        }
    }
    Ok(names)
}

fn is_in_a_network(address: IpAddr, mask: IpAddr) -> bool {
    let of_link = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_whole = match mask {
        IpAddr::V4(mask) => mask.to_bits() == u32::MAX,
        IpAddr::V6(mask) => mask.to_bits() == u128::MAX,
    };
    !of_link && !is_whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(device: Device, kind: InterfaceKind, name: &str) -> Link {
        Link {
            interface: Interface {
                ifindex: 1,
                name: name.to_owned(),
                kind,
            },
            peer_netns: None,
            device,
        }
    }

    #[test]
    fn hardware_leads_out_and_a_veth_with_a_network() {
        use InterfaceKind::{Loopback, NoEthernet, Other, Veth};
        let addressed = BTreeSet::from(["eth0".to_owned(), "cni0".to_owned()]);
        for (device, kind, name, expected) in [
            (Device::Hardware, Other, "ens5", true),
            (Device::Hardware, Loopback, "lo", false),
            (Device::Hardware, NoEthernet, "ib0", false),
            (Device::Veth, Veth, "eth0", true),
            (Device::Veth, Veth, "veth12", false),
            (Device::Virtual, Other, "cni0", false),
        ] {
            assert_eq!(
                leads_out(&link(device, kind, name), &addressed),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn an_address_of_the_link_or_alone_is_in_no_network() {
        for (address, mask, expected) in [
            ("10.99.0.11", "255.255.255.0", true),
            ("10.244.1.1", "255.255.255.255", false),
            ("169.254.1.1", "255.255.0.0", false),
            ("fe80::1", "ffff:ffff:ffff:ffff::", false),
            ("2001:db8::1", "ffff:ffff:ffff:ffff::", true),
        ] {
            let parse = |text: &str| text.parse::<IpAddr>().unwrap();
            assert_eq!(
                is_in_a_network(parse(address), parse(mask)),
                expected,
                "{address}"
            );
        }
    }
}
