//! The field's own capturers, as people run them, with a buffer of a stated size.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_tests::{
    node::Node,
    run::{self, Proc},
    wait, wire,
};

use crate::row::Caught;

const LIMIT: Duration = Duration::from_secs(30);
/// The kernel hands over a block that is not full after a second (tcpdump's read timeout) or half of
/// one (dumpcap's).
const BLOCK_LIMIT: Duration = Duration::from_millis(1500);
/// How often tcpdump is asked for its counts meanwhile.
const ASKED: Duration = Duration::from_millis(25);

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Tcpdump,
    Dumpcap,
    Tshark,
}

impl Tool {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcpdump => "tcpdump",
            Self::Dumpcap => "dumpcap",
            Self::Tshark => "tshark",
        }
    }

    /// It prints that when it captures.
    fn ready(self) -> &'static str {
        match self {
            Self::Tcpdump => "listening on",
            Self::Dumpcap => "File: ",
            Self::Tshark => "Capture started",
        }
    }

    /// Its first line of `--version`.
    ///
    /// # Errors
    /// It is not installed.
    pub(crate) fn version(self) -> Result<String> {
        let text = run::output(run::command(self.name()).arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// How one is run.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) tool: Tool,
    /// Its kernel buffer, MiB.
    pub(crate) buffer_mib: u32,
    /// `None`: whole packets.
    pub(crate) snaplen: Option<u32>,
    /// Empty: all packets.
    pub(crate) filter: String,
    /// So many of them beside each other.
    pub(crate) count: usize,
}

impl Peer {
    /// One that captures whole packets, all of them.
    pub(crate) fn whole(tool: Tool, buffer_mib: u32) -> Self {
        Self {
            tool,
            buffer_mib,
            snaplen: None,
            filter: String::new(),
            count: 1,
        }
    }

    pub(crate) fn filtered(self, filter: &str) -> Self {
        let filter = filter.to_owned();
        Self { filter, ..self }
    }

    /// Starts it and waits until it captures; its files go to `directory`.
    ///
    /// # Errors
    /// It does not; with what it says.
    pub(crate) fn start(&self, node: &Node, interface: &str, directory: &Path) -> Result<Running> {
        let Self {
            tool,
            buffer_mib,
            snaplen,
            filter,
            count,
        } = self;
        let processes = (0..*count)
            .map(|number| {
                let name = format!("{}-{number}", tool.name());
                let file = directory.join(format!("{name}.pcap"));
                let mut command = node.command(tool.name());
                command.args(["-i", interface]);
                match tool {
                    Tool::Tcpdump => {
                        let kib = (buffer_mib << 10).to_string();
                        command.args(["-n", "-Z", "root", "-B", &kib])
                    }
                    Tool::Dumpcap => command.args(["-q", "-B", &buffer_mib.to_string()]),
                    Tool::Tshark => command.args(["-n", "-q", "-B", &buffer_mib.to_string()]),
                };
                if let Some(snaplen) = snaplen {
                    command.args(["-s", &snaplen.to_string()]);
                }
                command.arg("-w").arg(&file);
                match (tool, filter.is_empty()) {
                    (_, true) => {}
                    (Tool::Tcpdump, false) => {
                        command.arg(filter);
                    }
                    (Tool::Dumpcap | Tool::Tshark, false) => {
                        command.args(["-f", filter]);
                    }
                }
                let mut process = node.spawn(&mut command, &name)?;
                process.wait_for(tool.ready(), LIMIT)?;
                Ok((process, file))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Running {
            tool: *tool,
            processes,
        })
    }
}

/// It captures.
#[derive(Debug)]
pub(crate) struct Running {
    tool: Tool,
    processes: Vec<(Proc, PathBuf)>,
}

impl Running {
    pub(crate) fn pids(&self) -> Vec<u32> {
        let pids = self.processes.iter().map(|(process, _)| process.pid());
        pids.collect()
    }

    /// Sends all of them a signal.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.processes
            .iter()
            .try_for_each(|(process, _)| process.signal(signal))
    }

    /// Waits until it has told of all that was sent: at its end it throws away, uncounted, what is
    /// in the block that is still open. What it has not told of after a second and a half is left.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn wait_for_block(&self, sent: u64) -> Result<()> {
        let end = Instant::now() + BLOCK_LIMIT;
        while Instant::now() < end {
            wait::pace(ASKED)?;
            if self.tool != Tool::Tcpdump {
                continue;
            }
            // SIGUSR1 prints the counts so far, all on one line.
            self.signal(Signal::SIGUSR1)?;
            let told = |log: &str| {
                log.lines()
                    .rev()
                    .find_map(|line| tcpdumps(&line.strip_prefix("tcpdump: ")?.replace(", ", "\n")))
            };
            let all = self.processes.iter().all(|(process, _)| {
                told(&process.log()).is_some_and(|told| told.captured + told.lost >= sent)
            });
            if all {
                break;
            }
        }
        Ok(())
    }

    /// Ends them; what is in the files, and what their closing lines say of the rest.
    ///
    /// # Errors
    /// One does not end well.
    pub(crate) fn stop(self) -> Result<Caught> {
        let mut sum = Caught::default();
        for (mut process, file) in self.processes {
            let status = process.end_by(Signal::SIGINT, LIMIT)?;
            ensure!(
                status.success(),
                "{}: {status}, {}",
                self.tool.name(),
                process.tail()
            );
            let log = process.log();
            let caught = match self.tool {
                Tool::Tcpdump => tcpdumps(&log),
                Tool::Dumpcap | Tool::Tshark => {
                    wireshark_lost(&log).map(|lost| Caught { captured: 0, lost })
                }
            };
            let caught = caught.with_context(|| process.tail())?;
            sum.lost += caught.lost;
            sum.captured += match self.tool {
                Tool::Tcpdump => caught.captured,
                Tool::Dumpcap | Tool::Tshark => wire::capinfos_count(&file)?,
            };
            fs::remove_file(&file)?;
        }
        Ok(sum)
    }
}

/// The counts in what tcpdump prints at its end, each on a line of its own.
fn tcpdumps(text: &str) -> Option<Caught> {
    let count = |what: &str| {
        text.lines().rev().find_map(|line| {
            let (count, rest) = line.split_once(' ')?;
            let rest = rest.replacen("packet ", "packets ", 1);
            (rest == what).then(|| count.parse::<u64>().ok())?
        })
    };
    Some(Caught {
        captured: count("packets captured")?,
        lost: count("packets dropped by kernel")?,
    })
}

/// What dumpcap says that it lost: "Packets received/dropped on interface 'x': 900/100 (pcap:60/…".
/// tshark says it only if there was some: "100 packets dropped from x".
fn wireshark_lost(text: &str) -> Option<u64> {
    for line in text.lines().rev() {
        if let Some((_, counts)) = line
            .strip_prefix("Packets received/dropped on interface ")
            .and_then(|rest| rest.rsplit_once("': "))
        {
            let (_, dropped) = counts.split_once('/')?;
            return dropped.split(' ').next()?.parse().ok();
        }
        if let Some((count, _)) = line.split_once(" packets dropped from ") {
            return count.trim().parse().ok();
        }
    }
    text.contains("packets captured").then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_tcpdump_are_read() {
        let text = "tcpdump: listening on x, link-type EN10MB (Ethernet), snapshot length 96\n\
                    tcpdump: 7 packets captured, 9 packets received by filter, 0 packets dropped by kernel\n\
                    1 packet captured\n12 packets received by filter\n11 packets dropped by kernel\n";
        let caught = tcpdumps(text).unwrap();
        assert_eq!((caught.captured, caught.lost), (1, 11));
        assert!(tcpdumps("tcpdump: eth9: No such device exists").is_none());
    }

    #[test]
    fn closing_lines_of_dumpcap_and_tshark_are_read() {
        let text = "Packets captured: 900\n\
                    Packets received/dropped on interface 'veth': 900/100 (pcap:60/dumpcap:40/flushed:0/ps_ifdrop:0) (90.0%)\n";
        assert_eq!(wireshark_lost(text), Some(100));
        assert_eq!(
            wireshark_lost("12 packets dropped from veth\n900 packets captured\n"),
            Some(12)
        );
        assert_eq!(wireshark_lost("900 packets captured\n"), Some(0));
        assert_eq!(wireshark_lost("dumpcap: there is no such device"), None);
    }
}
