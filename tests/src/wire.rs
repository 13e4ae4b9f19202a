//! The field's own tools: tcpdump as the peer, and the readers of tcpdump and Wireshark.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    name,
    packets::Capture,
    run::{self, Proc},
    wait,
};

/// How long a peer may take to start or stop.
const LIMIT: Duration = Duration::from_secs(20);
/// Holds any packet there is, 64 KiB GSO with its Ethernet header; a smaller slot than tcpdump's
/// default makes more of them in the same buffer.
const SNAPLEN: &str = "66000";

/// A running `tcpdump -w`.
#[derive(Debug)]
pub struct Tcpdump {
    process: Proc,
    file: PathBuf,
}

impl Tcpdump {
    /// Starts it where `place` leads to and waits until it listens.
    ///
    /// # Errors
    /// It does not; with what it says.
    pub fn start(
        place: impl FnOnce(&str) -> Command,
        interface: &str,
        filter: &str,
        directory: &Path,
    ) -> Result<Self> {
        let file = directory.join(format!("tcpdump-{interface}.pcap"));
        let mut command = place("tcpdump");
        command
            .args([
                "-i",
                interface,
                "-n",
                "-U",
                "--immediate-mode",
                "-B",
                "65536",
            ])
            .args(["-s", SNAPLEN, "-Z", "root", "-w"])
            .arg(&file);
        if !filter.is_empty() {
            command.arg(filter);
        }
        let mut process = Proc::spawn(&mut command, directory, &format!("tcpdump-{interface}"))?;
        process.wait_for("listening on", LIMIT)?;
        Ok(Self { process, file })
    }

    /// Where its packets go; complete after [`Self::stop`].
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Waits until its file has a frame that `wanted` takes.
    ///
    /// # Errors
    /// None came.
    pub fn wait_for_frame(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<()> {
        wait::until(LIMIT, what, || {
            // It may be in the middle of a packet.
            let read = Capture::read(&self.file);
            Ok(read.is_ok_and(|capture| capture.frames().any(&wanted)))
        })
    }

    /// Stops it; its packets, none of which the kernel dropped.
    ///
    /// # Errors
    /// It dropped some, or does not end.
    pub fn stop(mut self) -> Result<Capture> {
        self.process.end_by(Signal::SIGINT, LIMIT)?;
        let log = self.process.log();
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "tcpdump lost packets: {log}"
        );
        Capture::read(&self.file)
    }
}

/// Which readers there are, if not all: `REMORA_TEST_READERS=capinfos,tcpdump`.
const READERS: &str = "REMORA_TEST_READERS";

fn readers() -> String {
    std::env::var(READERS).unwrap_or_else(|_unset| "tshark,capinfos,tcpdump".into())
}

/// Whether the tests have a reader.
#[must_use]
pub fn has_reader(name: &str) -> bool {
    readers().split(',').any(|reader| reader == name)
}

/// Reads a file with tshark, capinfos and tcpdump; each must end with 0. Only where
/// `REMORA_TEST_READERS` says so (a small virtual machine), one is left out.
///
/// # Errors
/// One of them does not like the file.
pub fn assert_readable(file: &Path) -> Result<()> {
    for reader in readers().split(',') {
        let mut command = run::command(reader);
        match reader {
            // Quiet: it reads every block, and printing is what takes its time.
            "tshark" => command.args(["-n", "-q", "-r"]),
            "tcpdump" => command.args(["-n", "-r"]),
            _ => &mut command,
        };
        run::output(command.arg(file))?;
    }
    Ok(())
}

/// Like [`assert_readable`], also of a compressed file: tcpdump, which reads none, gets what zstd
/// makes of it. Answers what `pcap-file` finds in it.
///
/// # Errors
/// One of them does not like the file.
pub fn readable(file: &Path) -> Result<Capture> {
    if file.extension().is_none_or(|extension| extension != "zst") {
        assert_readable(file)?;
        return Capture::read(file);
    }
    let directory = name::directory()?;
    run::output(run::command("tshark").args(["-n", "-q", "-r"]).arg(file))?;
    run::output(run::command("capinfos").arg(file))?;
    let plain = directory.path().join("plain.pcapng");
    run::output(
        run::command("zstd")
            .args(["-q", "-d", "-f"])
            .arg(file)
            .arg("-o")
            .arg(&plain),
    )?;
    run::output(run::command("tcpdump").args(["-n", "-r"]).arg(&plain))?;
    Capture::read(&plain)
}

/// How many packets capinfos counts.
///
/// # Errors
/// It does not like the file.
pub fn capinfos_count(file: &Path) -> Result<u64> {
    let text = run::output(run::command("capinfos").arg("-cM").arg(file))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Number of packets:"))
        .and_then(|count| count.trim().parse().ok())
        .with_context(|| format!("no count in {text}"))
}

/// What `tshark -r FILE` prints, with more arguments.
///
/// # Errors
/// It does not like the file.
pub fn tshark(file: &Path, arguments: &[&str]) -> Result<String> {
    run::output(run::command("tshark").arg("-r").arg(file).args(arguments))
}

/// The values of fields, one row a packet.
///
/// # Errors
/// There is no such field, or tshark does not like the file.
pub fn tshark_fields(file: &Path, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = run::command("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    Ok(run::output(&mut command)?
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect())
}

/// Runs a program that may fail, and says how it ended.
///
/// # Errors
/// It cannot be started, or hangs.
pub fn run_to_end(command: &mut Command) -> Result<Output> {
    run::finish(command)
}
