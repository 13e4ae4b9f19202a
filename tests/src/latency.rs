//! How long a trigger takes, and tcpdump for the same.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use remora_proto::v1;

use crate::{agent::TestAgent, packets::Capture, run::Proc};

/// How long a tcpdump may take for one packet.
const LIMIT: Duration = Duration::from_secs(10);

/// Of a number of triggers.
#[derive(Clone, Debug, Default)]
pub struct Triggers {
    /// From the question to the answer.
    pub answered: Vec<Duration>,
    /// From the question to the kernel's time of the first packet that is captured.
    pub to_first: Vec<Duration>,
}

impl Triggers {
    /// Triggers once by `trigger`, which answers with the capture's id, waits for its first packet,
    /// and stops it.
    ///
    /// # Errors
    /// There is no capture, or no packet.
    pub fn add(
        &mut self,
        agent: &TestAgent<'_>,
        trigger: impl FnOnce() -> Result<String>,
    ) -> Result<()> {
        let asked = now()?;
        let begun = Instant::now();
        let id = trigger()?;
        self.answered.push(begun.elapsed());
        self.to_first
            .push(first_packet(agent, &id)?.saturating_sub(asked));
        agent.stop(&id)?;
        Ok(())
    }
}

/// Since the epoch.
///
/// # Errors
/// The clock is before it.
pub fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// A capture's first packet, in time since the epoch.
fn first_packet(agent: &TestAgent<'_>, id: &str) -> Result<Duration> {
    let packet = |state: &v1::CaptureState| state.first_packet.is_some();
    let state = agent.wait_state(id, "a first packet", packet)?;
    let time = state.first_packet.context("no packet")?;
    Ok(Duration::new(
        time.seconds.try_into()?,
        time.nanos.try_into()?,
    ))
}

/// From the start of a tcpdump that writes at once (`-U --immediate-mode`) to its first packet's time.
///
/// # Errors
/// It fails, or has no packet within ten seconds.
pub fn spawned_tcpdump(
    place: impl FnOnce(&str) -> Command,
    interface: &str,
    filter: &str,
    directory: &Path,
) -> Result<Duration> {
    let file = directory.join("spawned.pcap");
    let _ = fs::remove_file(&file);
    let asked = now()?;
    let mut command = place("tcpdump");
    command
        .args(["-i", interface, "-n", "-U", "--immediate-mode"])
        .args(["-c", "1", "-Z", "root", "-w"])
        .arg(&file)
        .arg(filter);
    let mut process = Proc::spawn(&mut command, directory, "spawned")?;
    process.wait_success(LIMIT)?;
    let capture = Capture::read(&file)?;
    let first = capture.packets.first().context("tcpdump has no packet")?;
    Ok(first.time.saturating_sub(asked))
}

/// The time that a share of the others are not above; 0.5 is the median.
///
/// # Panics
/// There is none.
#[must_use]
pub fn quantile(times: &[Duration], share: f64) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share).round() as usize]
}
