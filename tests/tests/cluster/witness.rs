//! tcpdump in a pod's own network namespace, and the comparison with what it saw.
//!
//! ```text
//!   tcpdump  ├──────── begin ─────────── end ────────┤
//!   ours         ├──── begin ─────────── end ───┤
//! ```
//! tcpdump begins before the capture and ends after it: so what tcpdump has between two requests that
//! the test marked must be in the capture, and what the capture has, tcpdump must have.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use remora_tests::{
    cluster::pods::in_network,
    name,
    packets::{self, Packet},
    wire::Tcpdump,
};

/// Pages that the test asks for.
pub(crate) const BEGIN: &str = "remora-test-begin";
pub(crate) const END: &str = "remora-test-end";
/// Length of an Ethernet header.
const ETHERNET: usize = 14;

pub(crate) struct Witness {
    tcpdump: Tcpdump,
    _directory: tempfile::TempDir,
}

impl Witness {
    /// In the network namespace that a file stands for.
    pub(crate) fn start(network: &Path, interface: &str, filter: &str) -> Result<Self> {
        let directory = name::directory()?;
        let place = |tool: &str| in_network(network, tool);
        Ok(Self {
            tcpdump: Tcpdump::start(place, interface, filter, directory.path())?,
            _directory: directory,
        })
    }

    /// Its packets, the end marker among them.
    pub(crate) fn stop(self) -> Result<Vec<Packet>> {
        self.tcpdump
            .wait_for_frame("the end marker", |frame| contains(frame, END))?;
        Ok(self.tcpdump.stop()?.packets)
    }
}

/// `ours` is what tcpdump saw.
pub(crate) fn assert_equal(ours: &[Packet], theirs: &[Packet]) -> Result<()> {
    packets::assert_between(ours, between(theirs)?, theirs)
}

/// `ours` is what tcpdump saw, but for packets without data, which the kernel may send or take without a
/// socket.
pub(crate) fn assert_all_data(ours: &[Packet], theirs: &[Packet]) -> Result<()> {
    let least: Vec<Packet> = between(theirs)?.iter().filter(has_data).cloned().collect();
    ensure!(!least.is_empty(), "no packet has data");
    packets::assert_between(ours, &least, theirs)
}

/// Of `ours` what is not older than tcpdump's first packet: where tcpdump began later.
pub(crate) fn since(ours: &[Packet], theirs: &[Packet]) -> Result<Vec<Packet>> {
    let first = theirs.first().context("tcpdump has no packet")?.time;
    let mut ours = ours.to_vec();
    ours.retain(|packet| packet.time >= first);
    Ok(ours)
}

/// From the begin marker to the end marker.
fn between(packets: &[Packet]) -> Result<&[Packet]> {
    let at = |text| {
        let mut packets = packets.iter();
        packets.position(|packet| contains(&packet.data, text))
    };
    let begin = at(BEGIN).context("no begin marker")?;
    let end = at(END).context("no end marker")?;
    Ok(&packets[begin..=end])
}

/// The packets without their Ethernet headers: loopback's are zeroes, and ours of cgroups synthetic.
pub(crate) fn from_ip_on(packets: &[Packet]) -> Vec<Packet> {
    let without = |packet: &Packet| Packet {
        data: packet.data.get(ETHERNET..).unwrap_or_default().to_vec(),
        original_len: packet.original_len.saturating_sub(ETHERNET as u32),
        ..packet.clone()
    };
    packets.iter().map(without).collect()
}

pub(crate) fn contains(bytes: &[u8], text: &str) -> bool {
    let text = text.as_bytes();
    bytes.windows(text.len()).any(|window| window == text)
}

/// A TCP segment over IPv4, from its IP header on, that has data.
fn has_data(packet: &&Packet) -> bool {
    let data = &packet.data;
    let header = usize::from(data.first().copied().unwrap_or_default() & 15) * 4;
    let offset = data.get(header + 12).copied().unwrap_or_default() >> 4;
    data.get(9) == Some(&6) && data.len() > header + usize::from(offset) * 4
}
