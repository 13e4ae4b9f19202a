//! tcpdump with its own defaults, as people run it: `tcpdump -i … -w …`.

use std::{fs, path::Path, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_tests::{
    node::Node,
    run::{self, Proc},
    wait,
};

use crate::row::Caught;

const LIMIT: Duration = Duration::from_secs(20);
/// The kernel hands over a block that is not full after a second (tcpdump's read timeout).
const BLOCK_LIMIT: Duration = Duration::from_millis(1500);
/// How often it is asked for its counts meanwhile.
const ASKED: Duration = Duration::from_millis(25);

/// A running tcpdump.
#[derive(Debug)]
pub(crate) struct Tcpdump {
    process: Proc,
    file: PathBuf,
}

impl Tcpdump {
    /// Starts it and waits until it listens; its file goes to `directory`.
    ///
    /// # Errors
    /// It does not; with what it says.
    pub(crate) fn start(
        node: &Node,
        interface: &str,
        arguments: &[&str],
        directory: &Path,
    ) -> Result<Self> {
        let file = directory.join("tcpdump.pcap");
        let mut command = node.command("tcpdump");
        command
            .args(["-i", interface, "-n", "-Z", "root", "-w"])
            .arg(&file)
            .args(arguments);
        let mut process = node.spawn(&mut command, "tcpdump")?;
        process.wait_for("listening on", LIMIT)?;
        Ok(Self { process, file })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until it has told of all that was sent: at its end it throws away, uncounted, what is
    /// in the block that is still open. What it has not told of after a second and a half is left.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn wait_for_block(&self, sent: u64) -> Result<()> {
        let end = std::time::Instant::now() + BLOCK_LIMIT;
        while std::time::Instant::now() < end {
            // SIGUSR1 prints the counts so far, all on one line.
            self.process.signal(Signal::SIGUSR1)?;
            wait::pace(ASKED)?;
            let log = self.process.log();
            let told = log
                .lines()
                .rev()
                .find_map(|line| parse(&line.strip_prefix("tcpdump: ")?.replace(", ", "\n")));
            if told.is_some_and(|caught| caught.captured + caught.lost >= sent) {
                break;
            }
        }
        Ok(())
    }

    /// Ends it; what its closing lines say.
    ///
    /// # Errors
    /// It does not end well.
    pub(crate) fn stop(mut self) -> Result<Caught> {
        let status = self.process.end_by(Signal::SIGINT, LIMIT)?;
        ensure!(
            status.success(),
            "tcpdump: {status}, {}",
            self.process.tail()
        );
        fs::remove_file(&self.file)?;
        parse(&self.process.log()).with_context(|| self.process.tail())
    }
}

/// The counts in what it prints at its end, each on a line of its own.
fn parse(text: &str) -> Option<Caught> {
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

/// "tcpdump version 4.99.3".
///
/// # Errors
/// There is none.
pub(crate) fn version() -> Result<String> {
    let text = run::output(run::command("tcpdump").arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_tcpdump_are_read() {
        let text = "tcpdump: listening on x, link-type EN10MB (Ethernet), snapshot length 96\n\
                    tcpdump: 7 packets captured, 9 packets received by filter, 0 packets dropped by kernel\n\
                    1 packet captured\n12 packets received by filter\n11 packets dropped by kernel\n";
        let caught = parse(text).unwrap();
        assert_eq!((caught.captured, caught.lost), (1, 11));
        assert!(parse("tcpdump: eth9: No such device exists").is_none());
    }
}
