//! Captures with filters beside one of all, of the same traffic.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1;

use crate::{
    agent::{TestAgent, of_pod},
    node::{Node, Pod},
    packets::{self, Capture, Packet},
    proof::{self, Proven},
    run, traffic, wait,
};

const LIMIT: Duration = Duration::from_secs(20);
/// Where the markers go: nobody listens.
const MARKER_PORT: u16 = 7;
/// Sent when all captures have begun.
pub const BEGIN: &[u8] = b"remora test: begin";
/// Sent before any of them ends.
pub const END: &[u8] = b"remora test: end";

/// Sends a marker out of a pod.
///
/// # Errors
/// The kernel does not take it.
pub fn mark(node: &Node, pod: &Pod, text: &[u8]) -> Result<()> {
    traffic::datagram(
        pod.netns(),
        SocketAddr::new(node.address(), MARKER_PORT),
        text,
    )
}

fn is_marker(frame: &[u8], text: &[u8]) -> bool {
    frame.windows(text.len()).any(|window| window == text)
}

/// Captures of one pod at the same time: one of all packets, which begins first and ends last.
#[derive(Debug)]
pub struct Beside<'a, 'n> {
    agent: &'a TestAgent<'n>,
    all: v1::CaptureState,
}

/// The capture of all, and the markers' times: every capture ran all that time.
#[derive(Debug)]
pub struct All {
    proven: Proven,
    from: Duration,
    to: Duration,
}

impl<'a, 'n> Beside<'a, 'n> {
    /// Starts the capture of all.
    ///
    /// # Errors
    /// The agent's refusal.
    pub fn start(agent: &'a TestAgent<'n>, pod: &Pod) -> Result<Self> {
        Ok(Self {
            agent,
            all: agent.capture(of_pod(pod))?,
        })
    }

    /// Waits until the end marker is in the file.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_for_end(&self) -> Result<()> {
        // Its name while it grows.
        let file = self.agent.file(&self.all).with_extension("pcapng.part");
        wait::until(LIMIT, "the end marker", || {
            // It may be in the middle of a batch.
            let read = Capture::read(&file);
            Ok(read.is_ok_and(|capture| capture.frames().any(|frame| is_marker(frame, END))))
        })
    }

    /// Stops it, after the others.
    ///
    /// # Errors
    /// A packet was lost, or a marker is not there.
    pub fn stop(self) -> Result<All> {
        let proven = proof::prove(self.agent, &self.agent.stop(&self.all.id)?)?;
        proof::complete(&proven.counts)?;
        let time = |marker: &[u8]| {
            let mut packets = proven.capture.packets.iter();
            packets
                .find(|packet| is_marker(&packet.data, marker))
                .map(|packet| packet.time)
                .context("no marker")
        };
        let (from, to) = (time(BEGIN)?, time(END)?);
        Ok(All { from, to, proven })
    }
}

impl All {
    /// What tcpdump finds in this capture's file.
    ///
    /// # Errors
    /// It does not like the filter.
    pub fn by_tcpdump(&self, filter: &str, directory: &Path) -> Result<Vec<Packet>> {
        let file = directory.join("filtered.pcap");
        run::output(
            run::command("tcpdump")
                .args(["--time-stamp-precision=nano", "-r"])
                .arg(&self.proven.path)
                .arg("-w")
                .arg(&file)
                .args(["--", filter]),
        )?;
        Ok(Capture::read(&file)?.packets)
    }

    /// What a verdict on each frame finds in it.
    #[must_use]
    pub fn by(&self, takes: impl Fn(&[u8]) -> bool) -> Vec<Packet> {
        let packets = self.proven.capture.packets.iter();
        packets
            .filter(|packet| takes(&packet.data))
            .cloned()
            .collect()
    }

    /// Packets between the markers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.within(&self.proven.capture.packets)
    }

    fn is_within(&self, packet: &Packet) -> bool {
        (self.from..=self.to).contains(&packet.time)
    }

    fn within(&self, packets: &[Packet]) -> usize {
        let packets = packets.iter();
        packets.filter(|packet| self.is_within(packet)).count()
    }

    /// `ours`, of whose packets the first `snaplen` bytes were kept, is one piece of `theirs`, which
    /// was found in this capture, and has at least what lies between the markers. Answers how many
    /// packets that is.
    ///
    /// # Errors
    /// It is not; with the first packet that differs.
    pub fn confirm(&self, ours: &[Packet], theirs: &[Packet], snaplen: usize) -> Result<usize> {
        let wanted = self.within(theirs);
        let (begin, equal) = self.place(ours, theirs, snaplen)?;
        ensure!(
            equal == ours.len() && begin + equal >= self.before(theirs) + wanted,
            "{} packets, it should be {wanted} between the markers; after {equal} that are equal \
             there is {}\nwhere there should be {}",
            ours.len(),
            shown(ours.get(equal)),
            shown(theirs.get(begin + equal)),
        );
        Ok(wanted)
    }

    /// Where in `theirs` it is that `ours` begins, and how many packets are equal from there on.
    ///
    /// # Errors
    /// There are no packets.
    pub fn place(
        &self,
        ours: &[Packet],
        theirs: &[Packet],
        snaplen: usize,
    ) -> Result<(usize, usize)> {
        let equal = |begin: usize| {
            let theirs = theirs.get(begin..).unwrap_or_default();
            let pairs = ours.iter().zip(theirs);
            pairs
                .take_while(|(ours, theirs)| is_cut(ours, theirs, snaplen))
                .count()
        };
        // The capture began at one of the packets before the marker, or at the first after it.
        (0..=self.before(theirs))
            .map(|begin| (begin, equal(begin)))
            .max_by_key(|(_, equal)| *equal)
            .context("no packets")
    }

    /// How many of these, which are in the order of time, came before the first marker.
    fn before(&self, packets: &[Packet]) -> usize {
        let before = |packet: &&Packet| packet.time < self.from;
        packets.iter().take_while(before).count()
    }
}

/// `ours` is `whole`, cut to `snaplen` bytes.
#[must_use]
pub fn is_cut(ours: &Packet, whole: &Packet, snaplen: usize) -> bool {
    ours.time == whole.time
        && ours.original_len == whole.original_len
        && ours.data == whole.data[..whole.data.len().min(snaplen)]
}

/// A packet in an error message.
fn shown(packet: Option<&Packet>) -> String {
    packet.map_or_else(
        || "none".into(),
        |packet| format!("{:?}, {}", packet.time, packets::shown(&packet.data)),
    )
}

/// Stops captures; their packets, of which none was lost.
///
/// # Errors
/// Their accounts are not in order.
pub fn stopped<'f>(
    agent: &TestAgent<'_>,
    captures: Vec<(&'f str, String)>,
) -> Result<Vec<(&'f str, Vec<Packet>)>> {
    captures
        .into_iter()
        .map(|(filter, id)| {
            let state = agent.stop(&id)?;
            let counts = state.counts.unwrap_or_default();
            proof::law(&counts)?;
            proof::complete(&counts)?;
            let capture = Capture::read(&agent.file(&state))?;
            ensure!(capture.packets.len() as u64 == counts.written, "{counts:?}");
            Ok((filter, capture.packets))
        })
        .collect()
}
