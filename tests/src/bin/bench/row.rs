//! What was measured on two paths, by subject and load.

use crate::{
    bed::{Load, Sample},
    figures::median,
    subject::Takes,
    usage::Usage,
};

/// Where the captured packets went.
#[derive(Clone, Copy, Debug, Default)]
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

/// All runs of one subject with one load; never none.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) subject: String,
    pub(crate) takes: Takes,
    pub(crate) runs: Vec<Run>,
}

impl Row {
    /// Of each run, in order.
    pub(crate) fn each(&self, of: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(of).collect()
    }

    /// Median over the runs.
    pub(crate) fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(&self.each(of))
    }

    /// Packets (of bulk: transfers) sent on the captured path, in all runs.
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
        let takes_all = self.takes == Takes::All && self.load != Load::Bulk;
        let caught = self.caught().filter(|_| takes_all)?;
        Some(self.sent().saturating_sub(caught.captured + caught.lost))
    }

    /// CPU seconds of the capturer in a run, for a million packets of the captured path that it did
    /// not lose (of bulk: for a million that it captured).
    pub(crate) fn cpu_s_per_million(&self) -> Option<Vec<f64>> {
        self.runs
            .iter()
            .map(|run| {
                let caught = run.caught.unwrap_or_default();
                let kept = match self.load {
                    Load::Udp { .. } => run.sample.captured.sent.saturating_sub(caught.lost),
                    Load::Bulk => caught.captured,
                };
                Some(run.usage?.cpu.as_secs_f64() * 1e6 / kept.max(1) as f64)
            })
            .collect()
    }

    /// The largest of the runs.
    pub(crate) fn rss_mib(&self) -> Option<f64> {
        let kib = self.runs.iter().map(|run| Some(run.usage?.rss_kib));
        Some(kib.max()?? as f64 / 1024.0)
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
            load: Load::udp(64),
            subject: "agent".into(),
            takes: Takes::All,
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
        assert!((cpu[1] - 1e-3 * 1e6 / 600.0).abs() < 1e-9, "{cpu:?}");
        assert_eq!(row.rss_mib(), Some(2.0));
    }
}
