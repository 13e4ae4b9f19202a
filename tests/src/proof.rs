//! The conservation law, looked at from every side.
//!
//! ```text
//! matched   = submitted + lost + over_budget + copy_error
//! submitted = read + lost_on_crash
//! read      = written + dropped_queue + dropped_io + malformed + stale
//! written   = packets in the file, counted by pcap-file and by capinfos
//! API = sidecar = manifest = statistics block = metrics
//! ```

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use remora_capture::evidence::Entry;
use remora_proto::v1;

use crate::{
    agent::TestAgent,
    packets::{Capture, Packet, Statistics},
    wire,
};

/// A finished capture whose accounts were found in order.
#[derive(Debug)]
pub struct Proven {
    pub counts: v1::Counts,
    pub capture: Capture,
    pub path: PathBuf,
}

impl Proven {
    /// Packets that matched and are not in the file.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.counts.matched - self.counts.written
    }
}

/// Checks a finished capture with a file from every side.
///
/// # Errors
/// Any two sides disagree.
pub fn prove(agent: &TestAgent<'_>, state: &v1::CaptureState) -> Result<Proven> {
    let counts = state.counts.unwrap_or_default();
    law(&counts)?;
    let path = agent.file(state);
    let capture = prove_file(&path, &counts)?;
    let files = state.files.unwrap_or_default();
    ensure!(
        files.count == 1 && files.blocks == capture.packets.len() as u64,
        "{files:?}, but one file of {} packet blocks",
        capture.packets.len()
    );

    let get = agent.get(&state.id)?.counts.unwrap_or_default();
    ensure!(
        get == counts,
        "Get says {get:?}, the final answer {counts:?}"
    );
    let sidecar = agent.sidecar(&state.id)?;
    let told: v1::Counts = sidecar.capture.counts.into();
    ensure!(
        told == counts,
        "the sidecar says {told:?}, the API {counts:?}"
    );
    ensure!(
        sidecar.file.name == state.file
            && sidecar.file.bytes == counts.written_bytes
            && sidecar.file.packets == counts.written,
        "the sidecar's file is {:?}, the API says {counts:?}",
        sidecar.file
    );
    prove_metrics(&agent.metrics()?, &state.id, &counts)?;
    prove_manifest(agent, &state.id, &counts)?;
    Ok(Proven {
        counts,
        capture,
        path,
    })
}

/// The files of a finished capture that rotated, one after the other, oldest first.
#[derive(Debug)]
pub struct ProvenSet {
    pub counts: v1::Counts,
    pub files: v1::Files,
    /// Of all files that are there.
    pub packets: Vec<Packet>,
    pub paths: Vec<PathBuf>,
}

impl ProvenSet {
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.packets.iter().map(|packet| packet.data.as_slice())
    }
}

/// Checks a finished capture whose files rotated: each is whole, and together they come to what
/// the API, the sidecar and the last file's statistics say.
///
/// # Errors
/// Any two sides disagree.
pub fn prove_set(agent: &TestAgent<'_>, state: &v1::CaptureState) -> Result<ProvenSet> {
    let counts = state.counts.unwrap_or_default();
    let files = state.files.unwrap_or_default();
    law(&counts)?;
    let sidecar = agent.sidecar(&state.id)?;
    let told: v1::Counts = sidecar.capture.counts.into();
    ensure!(told == counts, "the sidecar says {told:?}, not {counts:?}");
    ensure!(
        sidecar.file.bytes == counts.written_bytes && sidecar.file.packets == counts.written,
        "the sidecar says {:?}, the API {counts:?}",
        sidecar.file
    );
    ensure!(
        sidecar.files.len() as u64 == files.count,
        "{files:?}, the sidecar lists {}",
        sidecar.files.len()
    );
    let (mut all, mut paths, mut bytes) = (Capture::default(), Vec::new(), 0);
    let mut matched = Vec::new();
    for listed in &sidecar.files {
        let path = agent.data_dir().join(&listed.name);
        let len = std::fs::metadata(&path)?.len();
        ensure!(len == listed.bytes, "{listed:?} has {len} bytes");
        bytes += len;
        let capture = wire::readable(&path)?;
        let found = capture.packets.len() as u64;
        ensure!(
            found == listed.blocks && wire::capinfos_count(&path)? == found,
            "{listed:?} has {found} packet blocks"
        );
        let statistics = capture.statistics_sum();
        ensure!(
            statistics.delivered == listed.packets,
            "{listed:?}: {statistics:?}"
        );
        matched.push(statistics.accepted);
        all.packets.extend(capture.packets);
        paths.push(path);
    }
    ensure!(
        bytes + files.removed_bytes == counts.written_bytes,
        "{bytes} bytes and {files:?}, counted {}",
        counts.written_bytes
    );
    let there: u64 = sidecar.files.iter().map(|file| file.packets).sum();
    ensure!(
        there + files.removed_packets == counts.written,
        "{there} packets and {files:?}, written {}",
        counts.written
    );
    ensure!(
        matched.last() == Some(&counts.matched) && matched.iter().rev().skip(1).all(|&n| n == 0),
        "the files' statistics say {matched:?} matched, the API {counts:?}"
    );
    prove_told(&all, &counts)?;
    prove_metrics(&agent.metrics()?, &state.id, &counts)?;
    prove_manifest(agent, &state.id, &counts)?;
    Ok(ProvenSet {
        counts,
        files,
        packets: all.packets,
        paths,
    })
}

/// The manifest is signed, has the same counts, and stands for the files as they lie there.
fn prove_manifest(agent: &TestAgent<'_>, id: &str, counts: &v1::Counts) -> Result<()> {
    let manifest = agent.manifest(id)?;
    let told: v1::Counts = manifest.counts.into();
    ensure!(
        told == *counts,
        "the manifest says {told:?}, the API {counts:?}"
    );
    let (mut packets, mut bytes) = (manifest.removed.packets, manifest.removed.bytes);
    for file in &manifest.files {
        let path = agent.data_dir().join(&file.name);
        let digest = file.digest.context("a file without a digest")?;
        let found = Entry::read(&file.name, std::fs::File::open(&path)?)?;
        ensure!(found.digest() == digest, "{}: another digest", file.name);
        let blocks = wire::capinfos_count(&path)?;
        ensure!(
            blocks == file.blocks,
            "{}: capinfos counts {blocks}, the manifest {}",
            file.name,
            file.blocks
        );
        packets += file.packets;
        bytes += digest.bytes;
    }
    ensure!(
        (packets, bytes) == (counts.written, counts.written_bytes),
        "the manifest's files have {packets} packets in {bytes} bytes, the API says {counts:?}"
    );
    let missing = manifest.counts.missing();
    ensure!(
        !manifest.complete || missing == 0,
        "complete, but {missing} are missing"
    );
    Ok(())
}

/// The metrics tell each count of a capture.
fn prove_metrics(text: &str, id: &str, counts: &v1::Counts) -> Result<()> {
    let value = |name: &str| -> Result<u64> {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .with_context(|| format!("no metric {name} in\n{text}"))
    };
    let v1::Counts {
        seen,
        matched,
        submitted,
        lost,
        over_budget,
        copy_error,
        read,
        written,
        dropped_queue,
        dropped_io,
        malformed,
        stale,
        lost_on_crash,
        written_bytes,
    } = *counts;
    for (state, count) in [
        ("seen", seen),
        ("matched", matched),
        ("submitted", submitted),
        ("lost", lost),
        ("over_budget", over_budget),
        ("copy_error", copy_error),
        ("read", read),
        ("written", written),
        ("dropped_queue", dropped_queue),
        ("dropped_io", dropped_io),
        ("malformed", malformed),
        ("stale", stale),
        ("lost_on_crash", lost_on_crash),
    ] {
        let name = format!("remora_capture_packets_total{{capture=\"{id}\",state=\"{state}\"}}");
        let told = value(&name)?;
        ensure!(told == count, "{name} is {told}, the API says {count}");
    }
    let name = format!("remora_capture_written_bytes_total{{capture=\"{id}\"}}");
    let told = value(&name)?;
    ensure!(
        told == written_bytes,
        "{name} is {told}, the API says {written_bytes}"
    );
    Ok(())
}

/// Checks a file against the counts: packets, statistics block, packet ids, drop counts, readers.
///
/// # Errors
/// They disagree, or a reader does not like the file.
pub fn prove_file(path: &std::path::Path, counts: &v1::Counts) -> Result<Capture> {
    let capture = wire::readable(path)?;
    let capinfos = wire::capinfos_count(path)?;
    let found = capture.packets.len() as u64;
    ensure!(
        found == counts.written && capinfos == found,
        "written {}, in the file {found}, capinfos counts {capinfos}",
        counts.written
    );
    let bytes = std::fs::metadata(path)?.len();
    ensure!(
        bytes == counts.written_bytes,
        "{bytes} bytes, counted {}",
        counts.written_bytes
    );

    let statistics = capture.statistics_sum();
    let expected = Statistics {
        received: counts.seen,
        accepted: counts.matched,
        os_dropped: counts.lost + counts.copy_error,
        interface_dropped: counts.dropped_queue
            + counts.dropped_io
            + counts.malformed
            + counts.stale
            + counts.lost_on_crash,
        delivered: counts.written,
    };
    ensure!(
        statistics == expected,
        "the statistics block says {statistics:?}, not {expected:?}"
    );
    prove_told(&capture, counts)?;
    Ok(capture)
}

/// What the file alone tells of its losses: packet ids rise, and a gap of drop counts and ids is
/// told at the packet after it.
fn prove_told(capture: &Capture, counts: &v1::Counts) -> Result<()> {
    let mut before = None;
    let mut past = 0;
    for (at, packet) in capture.packets.iter().enumerate() {
        // From before the capture, so not in its sequence; these come first.
        if packet.comments.iter().any(|c| c.starts_with("look-back")) {
            ensure!(
                before.is_none() && packet.id.is_none(),
                "packet {at}: {packet:?}"
            );
            past += 1;
            continue;
        }
        let id = packet
            .id
            .with_context(|| format!("packet {at} has no id"))?;
        if let Some(before) = before {
            ensure!(id > before, "packet {at} has id {id} after {before}");
            ensure!(
                id - before - 1 == packet.dropped,
                "packet {at}: ids {before} and {id}, but {} told as dropped",
                packet.dropped
            );
        }
        before = Some(id);
    }
    let told: u64 = capture.packets.iter().map(|packet| packet.dropped).sum();
    let missing = counts.matched - counts.written - counts.over_budget;
    ensure!(
        told <= missing,
        "the packets tell {told} dropped, but only {missing} are missing"
    );
    if missing == 0 {
        let first = capture.packets.iter().find_map(|packet| packet.id);
        let ids = first.zip(before);
        ensure!(
            ids.is_none_or(|(first, last)| {
                last - first + 1 + past == capture.packets.len() as u64
            }),
            "packet ids {ids:?} have a gap, but nothing was lost"
        );
    }
    Ok(())
}

/// The law itself.
///
/// # Errors
/// It does not hold to the packet.
pub fn law(counts: &v1::Counts) -> Result<()> {
    let kernel = counts.submitted + counts.lost + counts.over_budget + counts.copy_error;
    ensure!(counts.matched == kernel, "law K does not hold: {counts:?}");
    ensure!(
        counts.submitted == counts.read + counts.lost_on_crash,
        "law U: {counts:?}"
    );
    let user =
        counts.written + counts.dropped_queue + counts.dropped_io + counts.malformed + counts.stale;
    ensure!(counts.read == user, "law U does not hold: {counts:?}");
    Ok(())
}

/// Nothing was lost, dropped or cut off anywhere.
///
/// # Errors
/// Something was.
pub fn complete(counts: &v1::Counts) -> Result<()> {
    ensure!(
        counts.matched == counts.written && counts.matched == counts.submitted,
        "not complete: {counts:?}"
    );
    Ok(())
}
