//! Virtual cables.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::{netns::Netns, run};

/// Segmentation offload of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Packets of up to 64 KiB cross the cable whole.
    On,
    /// As on a plain wire: nothing above the MTU.
    Off,
}

/// One end of a cable.
#[derive(Debug)]
pub struct End<'a> {
    pub netns: &'a Netns,
    /// At most 15 characters.
    pub interface: &'a str,
    pub mac: [u8; 6],
    pub ipv4: Option<(Ipv4Addr, u8)>,
    pub ipv6: Option<(Ipv6Addr, u8)>,
}

/// Lays a cable between two ends and sets both up. It goes with either namespace.
///
/// # Errors
/// A name is taken, or an address is not one.
pub fn lay(a: &End<'_>, b: &End<'_>) -> Result<()> {
    run::output(
        run::command("ip")
            .args(["-n", a.netns.name(), "link", "add", a.interface, "address"])
            .arg(mac_text(a.mac))
            .args([
                "type",
                "veth",
                "peer",
                "name",
                b.interface,
                "netns",
                b.netns.name(),
                "address",
            ])
            .arg(mac_text(b.mac)),
    )?;
    for end in [a, b] {
        if let Some((address, prefix)) = end.ipv4 {
            end.netns.ip(&format!(
                "addr add {address}/{prefix} dev {}",
                end.interface
            ))?;
        }
        if let Some((address, prefix)) = end.ipv6 {
            end.netns.ip(&format!(
                "-6 addr add {address}/{prefix} dev {} nodad",
                end.interface
            ))?;
        }
        end.netns.ip(&format!("link set {} up", end.interface))?;
    }
    Ok(())
}

/// Switches an interface's segmentation and receive offloads.
///
/// # Errors
/// What ethtool says.
pub fn set_offload(netns: &Netns, interface: &str, offload: Offload) -> Result<()> {
    let state = match offload {
        Offload::On => "on",
        Offload::Off => "off",
    };
    run::output(
        netns.command("ethtool").args(["-K", interface]).args(
            ["tso", "gso", "gro"]
                .iter()
                .flat_map(|feature| [*feature, state]),
        ),
    )?;
    Ok(())
}

/// Packets that an interface's receive side threw away before any hook saw them (a full per-CPU
/// backlog): sent by the peer, yet never there to be captured.
///
/// # Errors
/// There is no such interface.
pub fn receive_dropped(netns: &Netns, interface: &str) -> Result<u64> {
    let text = netns.ip(&format!("-j -s link show dev {interface}"))?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    value[0]["stats64"]["rx"]["dropped"]
        .as_u64()
        .with_context(|| format!("no counters for {interface} in {text}"))
}

/// Index of an interface in its namespace.
///
/// # Errors
/// There is no such interface.
pub fn index(netns: &Netns, interface: &str) -> Result<u32> {
    let interface = interface.to_owned();
    netns.enter(move || {
        nix::net::if_::if_nametoindex(Path::new(&interface))
            .with_context(|| format!("no interface {interface}"))
    })
}

/// "02:00:00:00:01:0a".
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
