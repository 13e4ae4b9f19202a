//! What was measured, by subject and frame size.

use crate::{
    bed::{Sample, Way},
    usage::Usage,
};

/// What is on the captured path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Control,
    EmptyTcx,
    AgentIdle,
    AgentOtherPod,
    AgentNoMatch,
    AgentSnap,
    AgentFull,
    TcpdumpNoMatch,
    TcpdumpSnap,
    TcpdumpFull,
}

impl Subject {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 10] = [
        Self::Control,
        Self::EmptyTcx,
        Self::AgentIdle,
        Self::AgentOtherPod,
        Self::AgentNoMatch,
        Self::AgentSnap,
        Self::AgentFull,
        Self::TcpdumpNoMatch,
        Self::TcpdumpSnap,
        Self::TcpdumpFull,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::EmptyTcx => "empty TCX program",
            Self::AgentIdle => "agent, idle",
            Self::AgentOtherPod => "agent, session on another pod",
            Self::AgentNoMatch => "agent, filter takes nothing",
            Self::AgentSnap => "agent -s 96",
            Self::AgentFull => "agent, whole packets",
            Self::TcpdumpNoMatch => "tcpdump, filter takes nothing",
            Self::TcpdumpSnap => "tcpdump -s 96 -w",
            Self::TcpdumpFull => "tcpdump -w",
        }
    }
}

/// Where the captured packets went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caught {
    /// In the file.
    pub(crate) captured: u64,
    /// By the capturer's own account.
    pub(crate) lost: u64,
}

/// One run of one subject.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) sample: Sample,
    /// `None` where nothing captures.
    pub(crate) caught: Option<Caught>,
    pub(crate) usage: Option<Usage>,
}

impl Run {
    /// Nanoseconds that a packet took longer than on the twin path, by medians.
    pub(crate) fn ns_added(&self) -> f64 {
        self.sample.captured.median_ns - self.sample.twin.median_ns
    }

    /// The same by lower quartiles, which other work on the machine moves less.
    pub(crate) fn ns_added_p25(&self) -> f64 {
        self.sample.captured.p25_ns - self.sample.twin.p25_ns
    }

    /// Speed of the captured path; that of the twin is 1.
    pub(crate) fn speed_ratio(&self) -> f64 {
        self.sample.twin.median_ns / self.sample.captured.median_ns
    }
}

/// All runs of one subject with one frame size; never none.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) way: Way,
    pub(crate) subject: Subject,
    /// Bytes of the Ethernet frame without FCS.
    pub(crate) size: usize,
    pub(crate) runs: Vec<Run>,
}

impl Row {
    /// Median over the runs.
    pub(crate) fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of).collect())
    }

    /// Packets sent on the captured path, in all runs.
    pub(crate) fn sent(&self) -> u64 {
        self.runs.iter().map(|run| run.sample.captured.sent).sum()
    }

    /// Packets captured and lost, in all runs.
    pub(crate) fn caught(&self) -> Option<Caught> {
        self.runs.iter().try_fold(
            Caught {
                captured: 0,
                lost: 0,
            },
            |sum, run| {
                let caught = run.caught?;
                Some(Caught {
                    captured: sum.captured + caught.captured,
                    lost: sum.lost + caught.lost,
                })
            },
        )
    }

    /// Packets that are in no file and in no count. (A capturer also sees the neighbour discovery
    /// of the path: a few more than were sent.)
    pub(crate) fn unaccounted(&self) -> Option<u64> {
        let takes_all = !matches!(
            self.subject,
            Subject::AgentNoMatch | Subject::TcpdumpNoMatch
        );
        let caught = self.caught().filter(|_| takes_all)?;
        Some(self.sent().saturating_sub(caught.captured + caught.lost))
    }

    /// CPU seconds of the capturer for a million packets of the captured path that it did not
    /// lose.
    pub(crate) fn cpu_s_per_million(&self) -> Option<f64> {
        let cpu: f64 = self
            .runs
            .iter()
            .map(|run| Some(run.usage?.cpu.as_secs_f64()))
            .sum::<Option<f64>>()?;
        let lost = self.caught().map_or(0, |caught| caught.lost);
        Some(cpu * 1e6 / self.sent().saturating_sub(lost).max(1) as f64)
    }

    /// The largest of the runs.
    pub(crate) fn rss_mib(&self) -> Option<f64> {
        let kib = self.runs.iter().map(|run| Some(run.usage?.rss_kib));
        Some(kib.max()?? as f64 / 1024.0)
    }
}

/// The value in the middle, or between the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bed::Path;

    fn run(captured_ns: f64, twin_ns: f64, captured: u64, lost: u64) -> Run {
        let path = |median_ns: f64| Path {
            sent: 1000,
            median_ns,
            p25_ns: median_ns - 10.0,
        };
        Run {
            sample: Sample {
                captured: path(captured_ns),
                twin: path(twin_ns),
            },
            caught: Some(Caught { captured, lost }),
            usage: Some(Usage {
                cpu: Duration::from_millis(1),
                rss_kib: 2048,
            }),
        }
    }

    #[test]
    fn a_row_tells_medians_of_differences_within_runs_and_sums_of_packets() {
        let row = Row {
            way: Way::In,
            subject: Subject::AgentFull,
            size: 64,
            runs: vec![
                run(1200.0, 1000.0, 1001, 0),
                run(5000.0, 4000.0, 500, 400),
                run(1250.0, 1000.0, 1000, 0),
            ],
        };
        assert_eq!(row.median(Run::ns_added), 250.0);
        assert_eq!(row.median(Run::ns_added_p25), 250.0);
        assert_eq!(row.median(Run::speed_ratio), 0.8);
        assert_eq!(row.sent(), 3000);
        assert_eq!(row.unaccounted(), Some(99));
        let cpu = row.cpu_s_per_million().unwrap();
        assert!((cpu - 3e-3 * 1e6 / 2600.0).abs() < 1e-9, "{cpu}");
        assert_eq!(row.rss_mib(), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }
}
