//! The grammar of the command line.

use std::{ffi::OsString, net::SocketAddr, num::NonZeroU64, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use jiff::Timestamp;
use remora_capture::{audit::Head, session::CaptureId, upload::SinkName};
use remora_proto::client::AgentAddress;

use crate::{commands::redact::Numbers, options::CaptureOptions, timestamp::Url};

const ABOUT: &str = "Captures packets of pods, cgroups and interfaces through a node's agent";

const EXAMPLES: &str = "\
Examples:
  remora capture cgroup:/remora/web -f 'tcp port 80' -w web.pcapng -c 100
  remora capture pid:4321 -w - | tshark -r -         live, of one process's cgroup
  remora capture -i eth0 -s 96 -a duration:10 -w x.pcapng
  remora capture unit:nginx.service --store          kept by the agent; prints the capture's id
  remora list --all
  remora get 01J9ZQ3C7M8N4R5T6V7W8X9YZA -w copy.pcapng

In a cluster: kubectl remora capture deploy/cart -w cart.pcapng (this program, called kubectl-remora).
Without kubectl: remora --controller https://HOST:PORT COMMAND has the same commands.

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
or the agent's log, kept elsewhere than the captures. Of a redacted file who redacted it has signed what it was
made from (--redactor-key); all is proved with the original at hand.";

const REDACT_HELP: &str = "\
All conditions hold together. Names of addresses, the alert and the account are left out, and the file's first
comment says that it is redacted. What is left out cannot be had back from it; the manifest, which the
redaction has in it, still has the alert.

Example:
  remora redact 01J9ZQ3C7M8N4R5T6V7W8X9YZA.pcapng -w dns.pcapng --keep 'port 53' --headers-only --sign-key me.pem
  remora verify dns.pcapng --key node.pub --redactor-key me.pub --original 01J9ZQ3C7M8N4R5T6V7W8X9YZA.pcapng";

const TRIGGER_HELP: &str = "\
For a Falco that posts to nobody; in falco.yaml:
  json_output: true
  program_output: {enabled: true, keep_alive: true, program: remora trigger --stdin}

Each line has one answer on standard output: `accepted ID`, `existing ID`, `ignored REASON`, `refused CODE:
REASON`. Exit code 1: some were refused.";

const UP_HELP: &str = "\
Both run as you do, with the rules for Falco's own lists. It needs root, or CAP_BPF and CAP_NET_ADMIN. Ctrl-C
ends both in order, a second one at once. For good: the units in deploy/systemd.

Example:
  sudo remora up --data-dir /tmp/remora-try
  curl -d @alert.json http://127.0.0.1:2803/";

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

/// Where alerts come from, and go to.
#[derive(Debug, clap::Args)]
pub(crate) struct TriggerArgs {
    /// Read alerts from standard input, as JSON, a line each.
    #[arg(long)]
    pub(crate) stdin: bool,
    /// Where the controller takes alerts, on this machine.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:2803")]
    pub(crate) to: SocketAddr,
    /// File with the secret that it asks senders for (--alerts-secret).
    #[arg(long, value_name = "FILE")]
    pub(crate) secret: Option<PathBuf>,
}

/// What is tried.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Where captures, the socket and the rules are (default: a new directory in /tmp, which stays if
    /// there was a capture).
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where alerts come in; loopback alone.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:2803")]
    pub(crate) listen: SocketAddr,
    /// Rule file instead of those for Falco's own lists; give it again for more.
    #[arg(long, value_name = "FILE")]
    pub(crate) rules: Vec<PathBuf>,
    /// Settings of the agent (default: none; not those of /etc/remora).
    #[arg(long, value_name = "FILE")]
    pub(crate) agent_config: Option<PathBuf>,
    /// Settings of the controller (default: none; not those of /etc/remora).
    #[arg(long, value_name = "FILE")]
    pub(crate) controller_config: Option<PathBuf>,
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
    /// Say what evidence proves, with a public key alone: no agent, and no network but to a store that is named.
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Keep chosen packets of a capture's file, or cut their payloads, and prove what it was made from:
    /// no agent, no network.
    #[command(after_help = REDACT_HELP)]
    Redact(Box<RedactArgs>),
    /// Have an authority stamp a manifest with its time (RFC 3161). Needs no agent.
    Timestamp(TimestampArgs),
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
    /// Delete finished captures that the agent keeps. Their manifests stay, and signed tombstones say
    /// when, by whom and why.
    Delete {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<CaptureId>,
        /// Why, for the tombstone.
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
        /// Delete also what is not in its sink yet, and will be nowhere then.
        #[arg(long)]
        not_uploaded: bool,
    },
    /// Hold a capture that the agent keeps: nobody deletes it until it is released.
    Hold {
        id: CaptureId,
        /// Why, for whoever meets the hold.
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
    },
    /// Let a held capture go.
    Release { id: CaptureId },
    /// Copy a stored capture's file; a running one is followed to its end.
    Get {
        id: CaptureId,
        /// The file to write; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        write: PathBuf,
        /// Secret keys of age, as age-keygen makes them, for a capture that is encrypted.
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
    /// Work with a controller's audit log. Needs no agent.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Work with rule files: which alert starts which capture. Needs no agent.
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Give Falco's alerts to this host's controller.
    #[command(after_help = TRIGGER_HELP)]
    Trigger(TriggerArgs),
    /// Run an agent and a controller in the foreground: a try on one host, without Kubernetes.
    #[command(after_help = UP_HELP)]
    Up(UpArgs),
    /// Run a program that ends with the process that asks for it.
    #[command(hide = true)]
    WithParent {
        parent: u32,
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "WORDS"
        )]
        words: Vec<OsString>,
    },
    /// Be Wireshark's external capture program, remoradump.
    #[command(disable_help_flag = true)]
    Extcap {
        /// What Wireshark says; --help tells more.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "WORDS"
        )]
        words: Vec<OsString>,
    },
    /// Print completions for a shell.
    Completions { shell: Shell },
    /// Write manual pages and completions of all our programs, for a package.
    #[command(hide = true)]
    Manual { directory: PathBuf },
    /// Show the node and its agent.
    Status {
        /// How to print it.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
}

/// What is verified, and by which keys.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// An agent's data directory or a copy of it, a capture's file or manifest, an archive, or a redacted
    /// file; or s3://BUCKET/PREFIX/ID (gs://, az://) in a store, with the usual variables of the environment.
    pub(crate) path: PathBuf,
    /// Public key of the node (PEM); several if it changed.
    #[arg(long, value_name = "PUB", required = true)]
    pub(crate) key: Vec<PathBuf>,
    /// The chain's head as it was published, CHAIN:NUMBER:SHA256, or a file with it: finds out
    /// whether later captures were cut off.
    #[arg(long, value_name = "HEAD")]
    pub(crate) head: Option<String>,
    /// Public key of who redacted (PEM), for a redacted file.
    #[arg(long, value_name = "PUB", conflicts_with = "head")]
    pub(crate) redactor_key: Vec<PathBuf>,
    /// The file that a redacted one was made from: each kept packet is compared with it.
    #[arg(long, value_name = "FILE", requires = "redactor_key")]
    pub(crate) original: Option<PathBuf>,
    /// Secret keys of age: looks also at what encrypted files hold.
    #[arg(long, value_name = "FILE", conflicts_with = "redactor_key")]
    pub(crate) identity: Option<PathBuf>,
    /// Certificates (PEM) of authorities whose time stamps are believed.
    #[arg(long, value_name = "FILE", conflicts_with = "redactor_key")]
    pub(crate) tsa_ca: Option<PathBuf>,
}

/// Whose manifest is stamped, and how the authority is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct TimestampArgs {
    /// The manifest, or a file of its capture beside it; the stamp is kept as ID.manifest.json.tsr.
    pub(crate) path: PathBuf,
    /// The authority, http://HOST[:PORT]/PATH or https://…
    #[arg(long, value_name = "URL", required_unless_present_any = ["request", "response"])]
    pub(crate) tsa: Option<Url>,
    /// Write the query alone, to be sent by other means.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tsa", "response"])]
    pub(crate) request: Option<PathBuf>,
    /// Take an answer that came by other means.
    #[arg(long, value_name = "FILE", conflicts_with = "tsa")]
    pub(crate) response: Option<PathBuf>,
}

/// What is kept of a capture's file.
#[derive(Debug, clap::Args)]
pub(crate) struct RedactArgs {
    /// The capture's file as the agent made it, not compressed.
    pub(crate) file: PathBuf,
    /// The file to make, FILE.pcapng; FILE.pcapng.redaction.json comes beside it.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: PathBuf,
    /// Your private key (PEM), which signs the redaction: `openssl genpkey -algorithm ed25519`.
    #[arg(long, value_name = "KEY")]
    pub(crate) sign_key: PathBuf,
    /// The capture's manifest [default: ID.manifest.json beside the file]
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// Keep packets that match, in tcpdump's language.
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) keep: String,
    /// Keep packets by Wireshark's numbers: 1-100,205,300-
    #[arg(long, value_name = "NUMBERS")]
    pub(crate) packets: Option<Numbers>,
    /// Keep packets from this time on (RFC 3339: 2026-11-24T03:00:00Z).
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<Timestamp>,
    /// Keep packets up to this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<Timestamp>,
    /// Cut each packet after its transport header.
    #[arg(long, conflicts_with = "snaplen")]
    pub(crate) headers_only: bool,
    /// Cut each packet after so many bytes.
    #[arg(short, long, value_name = "BYTES")]
    pub(crate) snaplen: Option<u32>,
    /// Why, for whoever verifies it.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) reason: String,
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
    /// The pcapng file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE", conflicts_with = "store")]
    pub(crate) write: Option<PathBuf>,
    /// End after so many packets.
    #[arg(short, long, value_name = "N")]
    pub(crate) count: Option<NonZeroU64>,
    #[command(flatten)]
    pub(crate) options: CaptureOptions,
    /// Compress the stored files (.pcapng.zst). A file of -w is when its name ends in .zst.
    #[arg(long, requires = "store", conflicts_with = "write")]
    pub(crate) compress: bool,
    /// Keep the capture in the agent's data directory, print its id and return.
    #[arg(long)]
    pub(crate) store: bool,
    /// Upload the stored files to a sink that the controllers know by this name, once the capture has ended.
    #[arg(long, value_name = "NAME", requires = "store")]
    pub(crate) destination: Option<SinkName>,
    /// Wait for the end of the stored capture; Ctrl-C stops it.
    #[arg(long, requires = "store", conflicts_with = "write")]
    pub(crate) wait: bool,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory as _;

    use super::*;
    use crate::options::Autostop;

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
        assert!(args.options.packet_buffered);
    }

    #[test]
    fn a_dash_is_standard_output() {
        assert_eq!(capture("pid:1 -w -").write, Some("-".into()));
    }

    #[test]
    fn conditions_are_read_as_dumpcap_reads_them() {
        let args = capture("-i lo -a duration:1.5 -a packets:7 -a filesize:2");
        assert_eq!(
            args.options.autostop,
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
