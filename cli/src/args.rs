//! The grammar of the command line.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};
use remora_capture::{audit::Head, session::CaptureId};
use remora_proto::client::AgentAddress;

const ABOUT: &str = "Captures packets of pods, cgroups and interfaces through a node's agent";

const EXAMPLES: &str = "\
Examples:
  remora capture cgroup:/remora/web -f 'tcp port 80' -w web.pcapng -c 100
  remora capture pid:4321 -w - | tshark -r -         live, of one process's cgroup
  remora capture -i eth0 -s 96 -a duration:10 -w x.pcapng
  remora capture unit:nginx.service --store          kept by the agent; prints the capture's id
  remora list --all
  remora get 01J9ZQ3C7M8N4R5T6V7W8X9YZA -w copy.pcapng

The agent (remora-agent run) does the capturing; --agent or REMORA_AGENT says where it listens.";

const CAPTURE_EXAMPLES: &str = "\
Targets:
  cgroup:PATH      all processes in a cgroup and below it (cgroup:/system.slice), or cgroup:ID
  pid:N            the cgroup of a process
  unit:NAME        a systemd unit, with its suffix
  container:ID     a container, by 12 or more digits of its id
  -i IFACE         a network interface

Examples:
  remora capture cgroup:/remora/web -w web.pcapng tcp port 80
  remora capture pid:4321 -w - | tshark -r -
  remora capture -i eth0 -s 96 -a duration:10 -a filesize:1024 -w x.pcapng
  remora capture container:3f2a9c01d4e5 --store --wait --label case=42 --reason 'odd DNS'

Ctrl-C ends a capture in order: the last packets and the counts are still written. A second one
ends at once.";

const VERIFY_HELP: &str = "\
Exit code 0: all is proved; 3: nothing is wrong, but not all is proved (the output says what); 1:
something was changed, is missing or was added.

The key: keys/*.pub in the agent's data directory, from a copy that you trust. The head: `remora status`
or the agent's log, kept elsewhere than the captures.";

const VERIFY_AUDIT_HELP: &str = "\
Exit code 0: all is proved; 3: nothing is wrong, but not all is proved (the output says what); 1:
something was changed, is missing or was added.

The head: from the controller's log (`the audit log goes on`, `was rotated`) or an earlier `verify`, kept
elsewhere. A head of an earlier line proves the log up to there.";

/// The command line of `remora`.
#[derive(Debug, Parser)]
#[command(name = "remora", version, about = ABOUT, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the agent listens.
    #[arg(long, global = true, env = "REMORA_AGENT", value_name = "unix:PATH",
          default_value_t = AgentAddress::default())]
    pub(crate) agent: AgentAddress,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Capture packets, much as tcpdump does.
    Capture(Box<CaptureArgs>),
    /// List captures that run.
    List {
        /// Finished captures too.
        #[arg(long, short)]
        all: bool,
        /// How to print them.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Show all that is known of one capture.
    Show {
        id: CaptureId,
        /// How to print it.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
        /// Its story from the signed manifest: who asked and why, what was done, by whom.
        #[arg(long, conflicts_with = "output")]
        custody: bool,
    },
    /// Say what evidence proves, with a public key alone: no agent, no network.
    #[command(after_help = VERIFY_HELP)]
    Verify {
        /// An agent's data directory or a copy of it, a capture's file or manifest, or an archive.
        path: PathBuf,
        /// Public key of the node (PEM); several if it changed.
        #[arg(long, value_name = "PUB", required = true)]
        key: Vec<PathBuf>,
        /// The chain's head as it was published, CHAIN:NUMBER:SHA256, or a file with it: finds out
        /// whether later captures were cut off.
        #[arg(long, value_name = "HEAD")]
        head: Option<String>,
    },
    /// Write captures with all that proves them into one archive.
    Export {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<CaptureId>,
        /// FILE.tar or FILE.tar.zst
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Stop a capture and show its final counts.
    Stop { id: CaptureId },
    /// Copy a stored capture's file; a running one is followed to its end.
    Get {
        id: CaptureId,
        /// The file to write; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        write: PathBuf,
    },
    /// Work with a controller's audit log. Needs no agent.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Work with rule files: which alert starts which capture. Needs no agent.
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Show the node and its agent.
    Status {
        /// How to print it.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Say whether a log is as it was written: each line holds the SHA-256 of the one before.
    #[command(after_help = VERIFY_AUDIT_HELP)]
    Verify {
        /// The log; its older files FILE.1, FILE.2, … beside it are read, too.
        file: PathBuf,
        /// The last line as it was published, NUMBER:SHA256: finds out whether the end was cut off or
        /// changed.
        #[arg(long, value_name = "HEAD")]
        head: Option<Head>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RulesCommand {
    /// Say whether rule files are right, as the controller would take them together.
    Check {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Say what an alert would start: which rule, which target, which filter, or why not. Exit code
    /// 1 if nothing.
    #[command(after_help = "Example:
  remora rules test rules.yaml --alert alert.json")]
    Test {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The alert as Falco or Falcosidekick sends it, in JSON; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        alert: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// `-Q`, in tcpdump's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectionArg {
    /// Into the target.
    In,
    /// Out of the target.
    Out,
    #[default]
    Inout,
}

#[derive(Debug, clap::Args)]
#[command(
    override_usage = "remora capture [OPTIONS] TARGET [FILTER…]\n       \
                      remora capture [OPTIONS] -i IFACE [FILTER…]",
    after_help = CAPTURE_EXAMPLES
)]
pub(crate) struct CaptureArgs {
    /// TARGET (see below), then the filter's words if there is no -f.
    #[arg(value_name = "WORDS")]
    pub(crate) words: Vec<String>,
    /// Capture on a network interface.
    #[arg(short, long, value_name = "IFACE")]
    pub(crate) interface: Option<String>,
    /// Only packets that match, in tcpdump's language.
    #[arg(short, long, value_name = "FILTER")]
    pub(crate) filter: Option<String>,
    /// Print the filter's programs as tcpdump -d does, for Ethernet and for raw IP, and end.
    #[arg(short, long)]
    pub(crate) dump: bool,
    /// The pcapng file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE", conflicts_with = "store")]
    pub(crate) write: Option<PathBuf>,
    /// Bytes kept of each packet: 1 to 262144, of which 0 or nothing means the last.
    #[arg(short, long, alias = "snapshot-length", value_name = "BYTES")]
    pub(crate) snaplen: Option<u64>,
    /// End after so many packets.
    #[arg(short, long, value_name = "N")]
    pub(crate) count: Option<NonZeroU64>,
    /// End at duration:SECONDS, packets:N or filesize:KIB, whichever comes first.
    #[arg(short, long, value_name = "CONDITION")]
    pub(crate) autostop: Vec<Autostop>,
    /// Begin another file before one gets larger: in millions of bytes, or in KiB, MiB or GiB with
    /// k, m or g after the number.
    #[arg(short = 'C', long, value_name = "SIZE", value_parser = rotate_size)]
    pub(crate) rotate_size: Option<NonZeroU64>,
    /// Begin another file every so many seconds. Names get a number and the time of their first
    /// packet: web.pcapng is web_000001_20261124112233.pcapng.
    #[arg(short = 'G', long, value_name = "SECONDS", value_parser = duration)]
    pub(crate) rotate_seconds: Option<Duration>,
    /// With -C: keep so many files, removing the oldest. With -G alone: end after so many.
    #[arg(short = 'W', long, value_name = "N")]
    pub(crate) files: Option<NonZeroU32>,
    /// Compress the stored files (.pcapng.zst). A file of -w is when its name ends in .zst.
    #[arg(long, requires = "store", conflicts_with = "write")]
    pub(crate) compress: bool,
    /// Write packets that are larger than the wire carries (GSO) as the segments that it would have
    /// carried, with their lengths and checksums. A packet's segments have its one packet id.
    #[arg(long)]
    pub(crate) segment: bool,
    /// Have what was written on the disk after 250 ms or 4 MiB, so that it outlasts the machine.
    #[arg(long)]
    pub(crate) sync: bool,
    /// Write packets as they come. That is so in any case (a packet is in the file some 5 ms after it
    /// passed); taken for tcpdump's sake.
    #[arg(short = 'U', long)]
    pub(crate) packet_buffered: bool,
    /// Direction, as the target sees it.
    #[arg(short = 'Q', long, value_enum, default_value_t)]
    pub(crate) direction: DirectionArg,
    /// Keep the capture in the agent's data directory, print its id and return.
    #[arg(long)]
    pub(crate) store: bool,
    /// Wait for the end of the stored capture; Ctrl-C stops it.
    #[arg(long, requires = "store", conflicts_with = "write")]
    pub(crate) wait: bool,
    /// A name that the file shows for an address.
    #[arg(long, value_name = "ADDR=NAME")]
    pub(crate) name: Vec<Name>,
    /// A label of the capture.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Label>,
    /// Begin so long before now: 30s, 2m. The agent keeps the last packets of pods behind a veth,
    /// also of those that died in the last two minutes;
    /// `-c` counts from now on, `-a filesize:` gives half of the file to them at most.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) look_back: Option<Duration>,
    /// Why, for the capture's record.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

/// dumpcap's `-a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Autostop {
    Duration(Duration),
    Packets(NonZeroU64),
    /// In bytes; written in KiB.
    FileBytes(NonZeroU64),
}

impl FromStr for Autostop {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (what, value) = text.split_once(':').unwrap_or((text, ""));
        let number = || {
            value
                .parse()
                .with_context(|| format!("`{value}` is not a number over 0"))
        };
        Ok(match what {
            "duration" => Self::Duration(duration(value)?),
            "packets" => Self::Packets(number()?),
            "filesize" => {
                let bytes = number()?.checked_mul(NonZeroU64::new(1024).expect("not 0"));
                Self::FileBytes(bytes.context("more bytes than can be counted")?)
            }
            _ => bail!("use duration:SECONDS, packets:N or filesize:KIB"),
        })
    }
}

/// `--name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) address: IpAddr,
    pub(crate) name: String,
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (address, name) = text.split_once('=').context("use ADDR=NAME")?;
        let address = address
            .parse()
            .context("use ADDR=NAME with an IPv4 or IPv6 address")?;
        Ok(Self {
            address,
            name: name.to_owned(),
        })
    }
}

/// `--label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Label {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => bail!("use KEY=VALUE"),
        }
    }
}

/// tcpdump's `-C`: millions of bytes, or a number with k, m or g for powers of 1024.
fn rotate_size(text: &str) -> anyhow::Result<NonZeroU64> {
    let (number, unit) = match text.chars().last().map(|c| c.to_ascii_lowercase()) {
        Some('k') => (&text[..text.len() - 1], 1 << 10),
        Some('m') => (&text[..text.len() - 1], 1 << 20),
        Some('g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1_000_000),
    };
    let number: u64 = number
        .parse()
        .ok()
        .context("use millions of bytes, or a number with k, m or g")?;
    let bytes = number
        .checked_mul(unit)
        .context("more bytes than can be counted")?;
    NonZeroU64::new(bytes).context("a file of 0 bytes holds nothing")
}

/// Seconds (`10`, `0.5`), or a number with its unit (`500ms`, `2m`, `1h30m`).
fn duration(text: &str) -> anyhow::Result<Duration> {
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).context("not a length of time");
    }
    let duration: jiff::SignedDuration = text
        .parse()
        .ok()
        .context("use seconds, or a number with a unit like 30s or 2m")?;
    duration
        .try_into()
        .ok()
        .context("a length of time is not negative")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn capture(line: &str) -> CaptureArgs {
        let words = ["remora", "capture"]
            .into_iter()
            .chain(line.split_whitespace());
        match Args::try_parse_from(words).unwrap().command {
            Command::Capture(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_grammar_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_may_stand_among_the_words() {
        let args = capture("pid:1 -w f -c 5 tcp -U port 80");
        assert_eq!(args.words, ["pid:1", "tcp", "port", "80"]);
        assert_eq!(args.count, NonZeroU64::new(5));
        assert!(args.packet_buffered);
    }

    #[test]
    fn a_dash_is_standard_output() {
        assert_eq!(capture("pid:1 -w -").write, Some("-".into()));
    }

    #[test]
    fn conditions_are_read_as_dumpcap_reads_them() {
        let args = capture("-i lo -a duration:1.5 -a packets:7 -a filesize:2");
        assert_eq!(
            args.autostop,
            [
                Autostop::Duration(Duration::from_millis(1500)),
                Autostop::Packets(NonZeroU64::new(7).unwrap()),
                Autostop::FileBytes(NonZeroU64::new(2048).unwrap()),
            ]
        );
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        for (flag, value) in [
            ("-a", "duration:-1"),
            ("-a", "duration:nan"),
            ("-a", "duration:inf"),
            ("-a", "duration:1e300"),
            ("-a", "duration:"),
            ("-a", "packets:0"),
            ("-a", "packets:-1"),
            ("-a", "filesize:18446744073709551615"),
            ("-a", "files:3"),
            ("-c", "0"),
            ("-c", "1e3"),
            ("-s", "-1"),
            ("-C", "0"),
            ("-C", "m"),
            ("-C", "1t"),
            ("-C", "99999999999g"),
            ("-G", "-1"),
            ("-W", "0"),
            ("-Q", "sideways"),
            ("--name", "web=10.0.0.1"),
            ("--label", "=x"),
            ("--label", "x"),
            ("--look-back", "-5s"),
            ("--look-back", "soon"),
        ] {
            let words = ["remora", "capture", "pid:1", &format!("{flag}={value}")];
            assert!(
                Args::try_parse_from(words).is_err(),
                "{flag} {value} was taken"
            );
        }
    }

    #[test]
    fn sizes_are_tcpdumps() {
        for (text, bytes) in [
            ("1", 1_000_000),
            ("8k", 8192),
            ("2M", 2 << 20),
            ("1g", 1 << 30),
        ] {
            assert_eq!(rotate_size(text).unwrap().get(), bytes, "{text}");
        }
    }

    #[test]
    fn lengths_of_time_have_units_or_are_seconds() {
        for (text, millis) in [
            ("10", 10_000),
            ("0.25", 250),
            ("500ms", 500),
            ("1m30s", 90_000),
        ] {
            assert_eq!(
                duration(text).unwrap(),
                Duration::from_millis(millis),
                "{text}"
            );
        }
    }

    #[test]
    fn storing_and_writing_exclude_each_other_and_waiting_needs_storing() {
        for line in ["pid:1 --store -w f", "pid:1 --wait -w f"] {
            let words = ["remora", "capture"]
                .into_iter()
                .chain(line.split_whitespace());
            assert!(Args::try_parse_from(words).is_err(), "{line} was taken");
        }
    }

    #[test]
    fn the_agent_may_stand_before_or_after_the_command() {
        let expected = AgentAddress::Unix("/x.sock".into());
        for words in [
            ["remora", "--agent", "unix:/x.sock", "list"],
            ["remora", "list", "--agent", "unix:/x.sock"],
        ] {
            assert_eq!(Args::try_parse_from(words).unwrap().agent, expected);
        }
    }
}
