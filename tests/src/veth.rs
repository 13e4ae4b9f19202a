//! Virtual cables.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use crate::{netns::Netns, run};

/// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h (v6.18).
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const RTM_NEWLINK: u16 = 16;
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
const IFLA_GRO_IPV4_MAX_SIZE: u16 = 64;

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

/// Lets super-packets of IPv4 and IPv6 on an interface grow to so many bytes (BIG TCP).
///
/// # Errors
/// The kernel cannot (IPv4 before Linux 6.3).
pub fn allow_big_tcp(netns: &Netns, interface: &str, bytes: u32) -> Result<()> {
    netns.ip(&format!(
        "link set {interface} gso_max_size {bytes} gro_max_size {bytes}"
    ))?;
    // By hand, for ip(8) knows these two from 6.3 on only.
    let index = index(netns, interface)?;
    let mut message = Vec::new();
    message.extend(48u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 12]); // sequence number, port; family, type
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]); // no flags
    for attribute in [IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE] {
        message.extend(8u16.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(bytes.to_ne_bytes());
    }
    let answer = netns.enter(move || {
        let route = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        let mut answer = vec![0; 4096];
        send(route.as_raw_fd(), &message, MsgFlags::empty())?;
        let len = recv(route.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(len);
        Ok(answer)
    })?;
    // A header, then an errno; 0 says that it was done.
    let errno = answer.get(16..20).context("a short answer")?;
    let errno = Errno::from_raw(-i32::from_ne_bytes(errno.try_into()?));
    ensure!(
        errno as i32 == 0,
        "{interface} takes no super-packets of {bytes} bytes: {errno}"
    );
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
