//! Agents for the runs: started as a subject needs them, kept for the next that needs the same.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent},
    wait, wire,
};

use crate::{
    bed::Bed,
    row::Caught,
    subject::{AgentSetup, Capture, Tier},
    usage,
};

/// Most that an agent may hold on tmpfs at a time.
const TMPFS_SIZE: &str = "8g";
/// Never reached: each run's files are removed.
const QUOTA: &str = "1024GiB";
/// Until it is on all veths, which are perhaps thousands.
const LIMIT: Duration = Duration::from_secs(600);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// An agent is quiet when it took less than this of a core in that time, which comes after the first
/// looks behind all its veths.
const QUIET: Duration = Duration::from_millis(250);
const QUIET_SHARE: f64 = 0.02;
/// How long machine code may be in coming.
const TIER_LIMIT: Duration = Duration::from_secs(3);
/// Longer than a grace period, by far.
const GRACE: Duration = Duration::from_millis(100);

/// The one that runs, if one does.
#[derive(Debug)]
pub(crate) struct Agents<'a> {
    bed: &'a Bed,
    running: Option<(AgentSetup, TestAgent<'a>)>,
}

impl<'a> Agents<'a> {
    pub(crate) fn new(bed: &'a Bed) -> Self {
        let running = None;
        Self { bed, running }
    }

    /// An agent of that kind, on all veths of the node, with nothing to do.
    ///
    /// # Errors
    /// It does not start, or the one before does not end.
    pub(crate) fn get(&mut self, setup: AgentSetup) -> Result<&TestAgent<'a>> {
        let (same, agent) = match self.running.take() {
            Some((as_now, agent)) if as_now == setup => (as_now, agent),
            before => {
                self.running = before;
                self.end()?;
                (setup, start(self.bed, setup)?)
            }
        };
        Ok(&self.running.insert((same, agent)).1)
    }

    /// None runs any more.
    ///
    /// # Errors
    /// It does not end well.
    pub(crate) fn end(&mut self) -> Result<()> {
        if let Some((_, mut agent)) = self.running.take() {
            let status = agent.end_by(Signal::SIGTERM)?;
            ensure!(status.success(), "the agent ended with {status}");
        }
        Ok(())
    }
}

/// Starts one, and waits until it is on every veth of the node and quiet.
///
/// # Errors
/// It does not come to that.
pub(crate) fn start(bed: &Bed, setup: AgentSetup) -> Result<TestAgent<'_>> {
    let mut arguments = vec!["--quota".to_owned(), QUOTA.to_owned()];
    arguments.extend(setup.recording.arguments().iter().map(|&a| a.to_owned()));
    let options = Options {
        data_tmpfs: Some(TMPFS_SIZE.into()),
        ring_size: format!("{}MiB", setup.ring_mib),
        arguments,
        ..Default::default()
    };
    let agent = TestAgent::start_with(bed.node(), options)?;
    wait::until(LIMIT, "the agent on all veths", || {
        wait::pace(LOOK)?;
        Ok(agent.status()?.taps.len() >= bed.veths()?)
    })?;
    let pid = agent.pid()?;
    wait::until(LIMIT, "a quiet agent", || {
        let before = usage::cpu(&[pid])?;
        wait::pace(QUIET)?;
        let took = usage::cpu(&[pid])?.saturating_sub(before);
        Ok(took.as_secs_f64() < QUIET_SHARE * QUIET.as_secs_f64())
    })?;
    Ok(agent)
}

/// Starts a subject's sessions and waits for the tier that it needs.
///
/// # Errors
/// One is refused.
pub(crate) fn begin(agent: &TestAgent<'_>, capture: &Capture) -> Result<Vec<v1::CaptureState>> {
    let before = machine_codes(agent)?;
    let states = capture
        .sessions
        .iter()
        .map(|spec| Ok(agent.capture(spec.clone())?))
        .collect::<Result<Vec<_>>>()?;
    if capture.tier == Tier::MachineCode {
        wait::until(TIER_LIMIT, "machine code of the filter", || {
            Ok(machine_codes(agent)? > before)
        })?;
        // Counted when it is loaded; the tap's packets go there a grace period later.
        wait::pace(GRACE)?;
    }
    Ok(states)
}

/// Whether the sessions' filters become machine code.
///
/// # Errors
/// A session is refused.
pub(crate) fn reaches_tier(agent: &TestAgent<'_>, capture: &Capture) -> Result<bool> {
    let before = machine_codes(agent)?;
    let started = begin(
        agent,
        &Capture {
            tier: Tier::Any,
            ..capture.clone()
        },
    )?;
    let came = wait::until(TIER_LIMIT, "machine code", || {
        Ok(machine_codes(agent)? > before)
    });
    end(agent, &started)?;
    ensure!(!wait::is_interrupted(), "interrupted");
    Ok(came.is_ok())
}

/// Ends sessions; what capinfos then finds in their files, and what the agent says of the rest. The
/// files go.
///
/// # Errors
/// One ended by itself, or its file cannot be read.
pub(crate) fn end(agent: &TestAgent<'_>, sessions: &[v1::CaptureState]) -> Result<Caught> {
    let mut sum = Caught::default();
    for session in sessions {
        let state = agent.stop(&session.id)?;
        ensure!(
            state.stop_reason() == v1::StopReason::Requested,
            "a capture ended by itself: {:?} {}",
            state.stop_reason(),
            state.message
        );
        let counts = state.counts.unwrap_or_default();
        let file = agent.file(&state);
        sum.captured += wire::capinfos_count(&file)?;
        sum.lost += counts.matched - counts.written;
        fs::remove_file(file)?;
    }
    Ok(sum)
}

/// How many programs of machine code the agent has loaded so far.
fn machine_codes(agent: &TestAgent<'_>) -> Result<u64> {
    let metrics = agent.metrics()?;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix("remora_filter_programs_loaded_total "))
        .and_then(|value| value.trim().parse().ok());
    Ok(value.unwrap_or(0))
}
