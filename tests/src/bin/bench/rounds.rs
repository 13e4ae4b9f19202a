//! The rounds: in each, every subject has one run with each frame size.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::{self, Options, TestAgent},
    bpf::ForeignTcx,
    wait,
};

use crate::{
    Plan,
    bed::{Bed, Sample, Way},
    row::{Caught, Row, Run, Subject},
    tcpdump::Tcpdump,
    usage::{self, Usage},
};

/// Bytes of the Ethernet frame without FCS.
pub(crate) const SIZES: [usize; 2] = [64, 1400];
const SNAPLEN: u32 = 96;
/// Nothing of the generator's, which sends UDP.
const NO_MATCH: &str = "tcp and host 10.77.0.1";
/// Where both capturers write, so that no disk is measured.
const TMPFS: &str = "/dev/shm";
/// Most that an agent may hold there in one round.
const TMPFS_SIZE: &str = "6g";
const LIMIT: Duration = Duration::from_secs(10);

/// Measures the plan's subjects; rows in the order of [`Subject::ALL`], by way and size.
///
/// # Errors
/// A part of the bed cannot be made, or a capturer fails.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Row>> {
    let bed = Bed::lay()?;
    let directory = tempfile::Builder::new()
        .prefix("remora-bench-")
        .tempdir_in(TMPFS)?;
    let mut rows = Vec::new();
    for &way in plan.ways {
        for size in SIZES {
            rows.extend(plan.subjects.iter().map(|&subject| Row {
                way,
                subject,
                size,
                runs: Vec::new(),
            }));
        }
    }
    for number in 1..=plan.runs {
        for &way in plan.ways {
            eprintln!("round {number} of {}, {}", plan.runs, way.name());
            let mut round = Round {
                bed: &bed,
                way,
                length: plan.length,
                directory: directory.path(),
                rows: &mut rows,
            };
            round.without_capturer()?;
            round.agent()?;
            round.tcpdump()?;
        }
    }
    Ok(rows)
}

struct Round<'a> {
    bed: &'a Bed,
    way: Way,
    length: Duration,
    /// On tmpfs.
    directory: &'a Path,
    rows: &'a mut [Row],
}

impl Round<'_> {
    fn add(&mut self, subject: Subject, size: usize, run: Run) -> Result<()> {
        ensure!(!wait::is_interrupted(), "interrupted");
        self.rows
            .iter_mut()
            .find(|row| (row.way, row.subject, row.size) == (self.way, subject, size))
            .context("no such row")?
            .runs
            .push(run);
        Ok(())
    }

    fn is_wanted(&self, subject: Subject) -> bool {
        self.rows.iter().any(|row| row.subject == subject)
    }

    fn send(&self, size: usize) -> Result<Sample> {
        self.bed.run(self.way, size, self.length)
    }

    fn without_capturer(&mut self) -> Result<()> {
        let plain = |sample| Run {
            sample,
            caught: None,
            usage: None,
        };
        for size in SIZES {
            let sample = self.send(size)?;
            self.add(Subject::Control, size, plain(sample))?;
        }
        if !self.is_wanted(Subject::EmptyTcx) {
            return Ok(());
        }
        let program = ForeignTcx::attach_empty(self.bed.node().netns(), self.bed.interface())?;
        for size in SIZES {
            let sample = self.send(size)?;
            self.add(Subject::EmptyTcx, size, plain(sample))?;
        }
        program.detach()
    }

    fn agent(&mut self) -> Result<()> {
        let options = Options {
            data_tmpfs: Some(TMPFS_SIZE.into()),
            ..Default::default()
        };
        let mut agent = TestAgent::start_with(self.bed.node(), options)?;
        wait::until(LIMIT, "the agent on the captured path", || {
            let taps = agent.status()?.taps;
            Ok([self.bed.interface(), self.bed.other().interface()]
                .iter()
                .all(|wanted| taps.iter().any(|tap| tap.interface == *wanted)))
        })?;
        let whole = agent::spec(v1::target::Target::Interface(self.bed.interface().into()));
        let sessions = [
            (Subject::AgentIdle, None),
            (
                Subject::AgentOtherPod,
                Some(agent::of_pod(self.bed.other())),
            ),
            (
                Subject::AgentNoMatch,
                Some(v1::CaptureSpec {
                    filter: NO_MATCH.into(),
                    ..whole.clone()
                }),
            ),
            (
                Subject::AgentSnap,
                Some(v1::CaptureSpec {
                    snaplen: SNAPLEN,
                    ..whole.clone()
                }),
            ),
            (Subject::AgentFull, Some(whole)),
        ];
        for (subject, spec) in sessions {
            if !self.is_wanted(subject) {
                continue;
            }
            for size in SIZES {
                let run = self.agent_run(&agent, spec.clone(), size)?;
                self.add(subject, size, run)?;
            }
        }
        let status = agent.end_by(Signal::SIGTERM)?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    fn agent_run(
        &self,
        agent: &TestAgent<'_>,
        spec: Option<v1::CaptureSpec>,
        size: usize,
    ) -> Result<Run> {
        let pid = agent.pid()?;
        let on_the_path = spec.as_ref().is_some_and(|spec| {
            let target = spec
                .target
                .as_ref()
                .and_then(|target| target.target.as_ref());
            matches!(target, Some(v1::target::Target::Interface(_)))
        });
        let session = spec.map(|spec| agent.capture(spec)).transpose()?;
        let before = usage::cpu(pid)?;
        let sample = self.send(size)?;
        // With the end of the capture: its packets are in the file only then.
        let state = session.map(|state| agent.stop(&state.id)).transpose()?;
        let usage = Usage {
            cpu: usage::cpu(pid)?.saturating_sub(before),
            rss_kib: usage::rss_kib(pid)?,
        };
        let caught = state.map(|state| -> Result<Caught> {
            ensure!(
                state.stop_reason() == v1::StopReason::Requested,
                "the capture ended by itself: {:?} {}",
                state.stop_reason(),
                state.message
            );
            let counts = state.counts.unwrap_or_default();
            Ok(Caught {
                captured: counts.written,
                lost: counts.matched - counts.written,
            })
        });
        Ok(Run {
            sample,
            caught: caught.transpose()?.filter(|_| on_the_path),
            usage: Some(usage),
        })
    }

    fn tcpdump(&mut self) -> Result<()> {
        let snaplen = SNAPLEN.to_string();
        let peers: [(Subject, &[&str]); 3] = [
            (Subject::TcpdumpNoMatch, &[NO_MATCH]),
            (Subject::TcpdumpSnap, &["-s", &snaplen]),
            (Subject::TcpdumpFull, &[]),
        ];
        for (subject, arguments) in peers {
            if !self.is_wanted(subject) {
                continue;
            }
            for size in SIZES {
                let run = self.tcpdump_run(subject, arguments, size)?;
                self.add(subject, size, run)?;
            }
        }
        Ok(())
    }

    fn tcpdump_run(&self, subject: Subject, arguments: &[&str], size: usize) -> Result<Run> {
        let node = self.bed.node();
        let tcpdump = Tcpdump::start(node, self.bed.interface(), arguments, self.directory)?;
        let pid = tcpdump.pid();
        let before = usage::cpu(pid)?;
        let sample = self.send(size)?;
        if subject != Subject::TcpdumpNoMatch {
            tcpdump.wait_for_block(sample.captured.sent)?;
        }
        let usage = Usage {
            cpu: usage::cpu(pid)?.saturating_sub(before),
            rss_kib: usage::rss_kib(pid)?,
        };
        Ok(Run {
            sample,
            caught: Some(tcpdump.stop()?),
            usage: Some(usage),
        })
    }
}
