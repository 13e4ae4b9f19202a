//! A large capture takes no more memory than a small one.

use std::{env, fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1;
use remora_tests::{fault_proxy::Fault, node::Node, traffic::Stream};

use super::{Bed, PORT};

/// Bytes of the capture; 2147483648 is 2 GiB.
const BYTES: &str = "REMORA_SINK_BYTES";
const BYTES_HERE: u64 = 256 << 20;
/// What the agent may take more at its most, in KiB.
const GROWTH_MAX: u64 = 24 << 10;
const FRAME: u64 = 1400;

fn kib(pid: u32, what: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {what}"))?.parse()?)
}

#[test]
fn a_large_capture_is_uploaded_in_constant_memory() -> Result<()> {
    let bytes: u64 = match env::var(BYTES) {
        Ok(text) => text.parse().context(BYTES)?,
        Err(_) => BYTES_HERE,
    };
    let node = Node::new()?;
    let bed = Bed::new(&node, &["--quota=8GiB"])?;
    // Nothing is sent before the memory is looked at.
    bed.proxy.always(Some(Fault::Answer(503)));
    let id = bed.start()?.id;
    let stream = Stream {
        size: FRAME as usize,
        rate: 100_000,
        ..Stream::new(bed.api.ipv4(), PORT, bytes / FRAME + 1)
    };
    let mut left = stream.count;
    while left > 0 {
        // A generator ends within a minute.
        let part = Stream {
            count: left.min(1_000_000),
            ..stream
        };
        part.send(|tool| bed.web.command(tool))?;
        left -= part.count;
    }
    let state = bed.agent.stop(&id)?;
    let written = state.counts.context("no counts")?.written_bytes;
    ensure!(
        written >= bytes / 2,
        "{written} bytes of {bytes} were captured"
    );
    bed.agent.manifest(&id)?;
    // What hashing and writing took is given back, and the peak counted anew.
    let pid = bed.agent.pid()?;
    thread::sleep(Duration::from_secs(1));
    fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let before = kib(pid, "VmRSS:")?;
    bed.proxy.always(None);
    let _controller = bed.controller("")?;
    let upload = bed.wait_upload(&id, "a verified upload", |upload| {
        upload.phase() == v1::UploadPhase::Verified
    })?;
    let peak = kib(pid, "VmHWM:")?;
    println!(
        "{} bytes uploaded: the agent has {before} KiB before and {peak} KiB at the most",
        upload.bytes
    );
    assert!(upload.bytes > written);
    assert!(peak <= before + GROWTH_MAX, "{before} KiB, then {peak} KiB");
    Ok(())
}
