//! The command line; the only reader of arguments and environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use remora_agent_common::SESSION_SLOTS;
use remora_capture::{session::LookBackMode, text::age};
use remora_settings::{ConfigCommand, Settings};

#[cfg(feature = "kubernetes")]
use crate::target::{kubernetes::Access, pods::word};
use crate::{
    budget::{Sizes, TooSmall},
    kernel::{InterfaceHook, pins::PIN_DIRECTORY},
    session::{Rate, RateError, Rates},
    target::ModeRule,
    telemetry::AdminAddress,
    upload::SinkHost,
    writer::memory::COMMON_BATCHES,
};

/// Settings of `run` by a file.
pub const SETTINGS: Settings = Settings {
    command: "run",
    file: "/etc/remora/agent.toml",
};

/// Remora's node agent: captures packets in the kernel, for `remora` and the controller.
#[derive(Debug, Parser)]
#[command(name = "remora-agent", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// What to log: error, warn, info, debug, or a filter like `remora_agent=debug`
    #[arg(long, global = true, env = "REMORA_LOG", default_value = "info")]
    pub log: String,

    /// Log lines as JSON
    #[arg(long, global = true)]
    pub log_json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// Remove what an agent with `--pin` left in the kernel
    Cleanup(CleanupArgs),
    /// Give directories to the agent's user, for it alone
    Prepare(PrepareArgs),
    /// Say what this kernel and these rights allow, and what to do about the rest
    Doctor(DoctorArgs),
    /// Work with the settings file of `run`
    #[command(subcommand)]
    Config(ConfigCommand),
}

impl Cli {
    /// What is wrong with flags that are right one by one.
    ///
    /// # Errors
    /// In words for a person.
    pub fn judge(self) -> Result<(), String> {
        match self.command {
            Command::Run(args) => {
                args.sizes().map_err(|error| error.to_string())?;
                let RunArgs {
                    retention, quota, ..
                } = *args;
                let checked = retention.checked(quota).map(drop);
                checked.map_err(|error| error.to_string())
            }
            _ => Ok(()),
        }
    }
}

const RUN_HELP: &str = "\
Rights: CAP_BPF and CAP_NET_ADMIN, nothing else; no root. For example:
  setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs \\
    --inh-caps=-all,+bpf,+net_admin --ambient-caps=-all,+bpf,+net_admin \\
    remora-agent run --socket /run/remora/agent.sock --data-dir /var/lib/remora

SIGTERM and SIGINT end it in order: captures are closed with exact counts, or, with --pin, go on
without it (all but streams) until the next agent. A second one ends it at once. `remora status`
asks it how it is.";

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Settings in TOML, a key for each flag here; flags and the environment go before it (default:
    /// /etc/remora/agent.toml, if it is there). `remora-agent config show` prints one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Unix socket to serve on (mode 0660)
    #[arg(long, value_name = "PATH", default_value = "/run/remora/agent.sock")]
    pub socket: PathBuf,

    /// Directory for captures (mode 0700)
    #[arg(long, value_name = "DIR", default_value = "/var/lib/remora")]
    pub data_dir: PathBuf,

    /// Most that captures may take there, like 512MiB or 10GiB
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_size)]
    pub quota: u64,

    #[command(flatten)]
    pub retention: RetentionArgs,

    /// Key that signs manifests, an ed25519 private key in PEM (default: DIR/keys/node.key in the data
    /// directory, made at the first start). A key that lies elsewhere than the captures proves more
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Encrypt finished files to this public key, so that the node can read them no more: age1…, or a file
    /// with one a line; give it again for more, any of whose secret keys decrypts
    #[arg(long, value_name = "KEY|FILE")]
    pub encrypt_to: Vec<String>,

    /// Memory for all of it, like 32MiB on a small device: the sizes of the ring and of look-back, and how
    /// many captures run at a time, follow from it
    #[arg(
        long, value_name = "SIZE", value_parser = parse_size,
        conflicts_with_all = ["ring_size", "look_back_memory", "look_back_pod"]
    )]
    pub memory: Option<u64>,

    /// Size of the kernel's ring, a power of two from 256KiB to 1GiB
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_size)]
    pub ring_size: u64,

    /// Memory for look-back, shared by the node's pods; 0 for none
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    pub look_back_memory: u64,

    /// Most of it that one pod gets
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_size)]
    pub look_back_pod: u64,

    /// Seconds that the last packets of a pod stay readable after it is gone, as far as that memory
    /// goes; 0 for none
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = parse_keep)]
    pub look_back_keep: u64,

    /// How much of its packets look-back keeps of a pod: payload (all), headers (up to the end of the
    /// transport header), off
    #[arg(long, value_name = "MODE", default_value = "payload")]
    pub look_back_mode: LookBackMode,

    /// Another mode for cgroups whose path, or that of one around them, fits PATTERN (`*`: any
    /// characters); the first that fits counts. Until it is known who is behind an interface, the
    /// strictest of all modes holds
    #[arg(long = "look-back-rule", value_name = "PATTERN=MODE")]
    pub look_back_rules: Vec<ModeRule>,

    /// Bytes of each flow's direction that look-back keeps, so that a bulk transfer does not push
    /// the rest out; 0 keeps all
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = parse_size)]
    pub flow_cutoff: u64,

    #[command(flatten)]
    pub rates: RateArgs,

    /// Group whose members may use the socket, by name or number
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,

    #[command(flatten)]
    pub network: NetworkArgs,

    #[command(flatten)]
    pub sink: SinkArgs,

    /// Serve /metrics and /healthz there: unix:PATH or 127.0.0.1:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<AdminAddress>,

    /// Mount point of the cgroup2 tree (default: as the machine has it mounted)
    #[arg(long, value_name = "PATH")]
    pub cgroup_root: Option<PathBuf>,

    /// How programs come onto interfaces: by TCX links (Linux 6.6) or by filters of the qdisc clsact
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    pub attach: Attach,

    /// Captures outlive the agent: programs, counters and the ring are kept in a directory of a bpffs
    /// (one an agent), and the next agent goes on with them. `remora-agent cleanup` removes them
    #[arg(
        long, value_name = "DIR", num_args = 0..=1, default_missing_value = PIN_DIRECTORY
    )]
    pub pin: Option<PathBuf>,

    /// This node's name, in Kubernetes the one of its Node object (default: the host name)
    #[arg(
        long,
        visible_alias = "node-name",
        value_name = "NAME",
        env = "NODE_NAME"
    )]
    pub node: Option<String>,

    /// Know this node's pods by name, and keep to their namespaces' privacy levels (label
    /// remora.dev/privacy): the API server's kubeconfig, or `in-cluster`. The right that it takes is list
    /// and watch of pods and namespaces
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "FILE|in-cluster")]
    pub kubeconfig: Option<Access>,

    /// Privacy level of pods for as long as the API server has never told of the namespaces: payload,
    /// headers or none (then captures of pods are refused)
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "LEVEL", default_value = "none", value_parser = parse_level)]
    pub privacy_unlisted: LookBackMode,
}

impl RunArgs {
    /// The sizes of what takes memory: of one budget, or each as its flag says.
    ///
    /// # Errors
    /// The budget is too small.
    pub fn sizes(&self) -> Result<Sizes, TooSmall> {
        match self.memory {
            Some(budget) => Sizes::of(budget),
            None => Ok(Sizes {
                ring_bytes: self.ring_size,
                look_back_bytes: self.look_back_memory,
                look_back_pod_bytes: self.look_back_pod,
                sessions: SESSION_SLOTS,
                common_batches: COMMON_BATCHES,
            }),
        }
    }
}

/// Where captures may be uploaded to, by URLs that controllers hand out; the agent has no credentials of a store.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sinks")]
pub struct SinkArgs {
    /// Upload to this origin alone: HOST (https) or http://HOST:PORT; give it again for more (default: any by
    /// https, and by http those on loopback)
    #[arg(long, value_name = "ORIGIN")]
    pub sink_host: Vec<SinkHost>,

    /// CA certificates that sign the stores' (PEM), instead of the machine's
    #[arg(long, value_name = "FILE")]
    pub sink_ca: Option<PathBuf>,
}

/// What is kept, and how long. What goes leaves its manifest and a signed tombstone; what is held
/// (`remora hold`) stays.
#[derive(Debug, Args)]
#[command(next_help_heading = "Retention")]
pub struct RetentionArgs {
    /// Delete captures that ended so long ago, like 30d, 12h, 90m or 45s (default: never)
    #[arg(long, value_name = "DURATION", value_parser = parse_age)]
    pub keep_age: Option<Duration>,

    /// Delete the oldest captures when all take more than this, which must be less than --quota: what
    /// running captures may write until there is room again lies between. The newest stays in any case
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub keep_bytes: Option<u64>,

    /// Most that the signed captures of one namespace may take: more are refused or, with --keep-bytes,
    /// its oldest go. Captures that run are not cut
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub namespace_quota: Option<u64>,
}

impl RetentionArgs {
    /// # Errors
    /// Room would never be made.
    pub fn checked(self, quota: u64) -> Result<Self, RetentionError> {
        match self.keep_bytes {
            Some(keep) if keep >= quota => Err(RetentionError { keep, quota }),
            _ => Ok(self),
        }
    }
}

/// Flags contradict each other.
#[derive(Debug, thiserror::Error)]
#[error(
    "--keep-bytes {keep} is not less than --quota {quota}: captures would end for want of room before \
     any is made; lower it, to nine tenths of the quota for example"
)]
pub struct RetentionError {
    keep: u64,
    quota: u64,
}

/// How many captures alerts may begin. An alert that joins a capture begins none, and what a person
/// starts is never refused by a rate.
#[derive(Debug, Args)]
#[command(next_help_heading = "Storms of alerts")]
pub struct RateArgs {
    /// Captures that alerts begin on this node: so many at once, and as many again in so many seconds, or
    /// off
    #[arg(long, value_name = "NUMBER/SECONDS", default_value = "24/60s", value_parser = parse_rate)]
    pub rate_node: OptionalRate,

    /// Of them those of one namespace
    #[arg(long, value_name = "NUMBER/SECONDS", default_value = "16/60s", value_parser = parse_rate)]
    pub rate_namespace: OptionalRate,

    /// Of them those by one rule
    #[arg(long, value_name = "NUMBER/SECONDS", default_value = "16/60s", value_parser = parse_rate)]
    pub rate_rule: OptionalRate,
}

/// A rate, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionalRate(pub Option<Rate>);

impl RateArgs {
    #[must_use]
    pub fn rates(&self) -> Rates {
        Rates {
            node: self.rate_node.0,
            namespace: self.rate_namespace.0,
            rule: self.rate_rule.0,
        }
    }
}

fn parse_rate(text: &str) -> Result<OptionalRate, RateError> {
    if text == "off" {
        return Ok(OptionalRate(None));
    }
    text.parse().map(|rate| OptionalRate(Some(rate)))
}

/// Serving controllers on the network: mutual TLS (1.3), or nothing.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Serve on this address too, for controllers (usual port: 2804). Only by TLS and only for clients
    /// with a certificate
    #[arg(
        long, value_name = "ADDRESS:PORT", env = "REMORA_LISTEN",
        requires_all = ["tls_cert", "tls_key", "tls_ca", "tls_client_san"]
    )]
    pub listen: Option<SocketAddr>,

    /// This agent's certificate, its intermediates after it (PEM). It and the other two files are read
    /// again when they change
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub tls_key: Option<PathBuf>,

    /// CA certificates that sign clients' (PEM)
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub tls_ca: Option<PathBuf>,

    /// A name that lets a client in: its certificate's subjectAltName has it, as DNS name or URI
    /// (spiffe://…). Give it again for more
    #[arg(long, value_name = "NAME", requires = "listen")]
    pub tls_client_san: Vec<String>,
}

/// A way onto interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// The better one that the kernel has
    Auto,
    Tcx,
    Clsact,
}

impl Attach {
    /// `None`: whatever the kernel has.
    #[must_use]
    pub fn hook(self) -> Option<InterfaceHook> {
        match self {
            Self::Auto => None,
            Self::Tcx => Some(InterfaceHook::Tcx),
            Self::Clsact => Some(InterfaceHook::Clsact),
        }
    }
}

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Directory of the pins
    #[arg(long, value_name = "DIR", default_value = PIN_DIRECTORY)]
    pub pin: PathBuf,
}

#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// User and group of the agent, by number
    #[arg(long, value_name = "UID")]
    pub owner: u32,

    /// Directories that are there
    #[arg(required = true, value_name = "DIR")]
    pub directories: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Directory where an agent with --pin would keep its pins
    #[arg(long, value_name = "DIR", default_value = PIN_DIRECTORY)]
    pub pin: PathBuf,

    /// Mount point of the cgroup2 tree (default: as the machine has it mounted)
    #[arg(long, value_name = "PATH")]
    pub cgroup_root: Option<PathBuf>,
}

/// [`age`], or what it looks like.
fn parse_age(text: &str) -> Result<Duration, String> {
    age(text).ok_or_else(|| "use a number with d, h, m or s, like 30d".to_owned())
}

/// Seconds, with or without an `s`; at most a day.
fn parse_keep(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse() {
        Ok(seconds) if seconds <= 86_400 => Ok(seconds),
        _ => Err("not a number of seconds from 0 to 86400".to_owned()),
    }
}

/// A privacy level in the words of the namespaces' label.
#[cfg(feature = "kubernetes")]
fn parse_level(text: &str) -> Result<LookBackMode, String> {
    let all = [
        LookBackMode::Payload,
        LookBackMode::Headers,
        LookBackMode::Off,
    ];
    let level = all.into_iter().find(|level| word(*level) == text);
    level.ok_or_else(|| "use payload, headers or none".to_owned())
}

/// Bytes from a number with an optional unit: KiB, MiB, GiB (K, M, G).
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return Err("use a number with KiB, MiB or GiB, like 16MiB".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "use a number with KiB, MiB or GiB, like 16MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_has_a_key_and_the_template_is_right() {
        let mut program = Cli::command();
        program.build();
        let run = program.find_subcommand("run").unwrap();
        let flags = run.get_arguments().filter_map(clap::Arg::get_long);
        let flags: Vec<_> = flags
            .filter(|flag| !["config", "help"].contains(flag))
            .collect();
        assert!(flags.len() > 20 && flags.contains(&"log-json"), "{flags:?}");
        assert_eq!(SETTINGS.names(Cli::command()), flags);
        let shown = SETTINGS.show::<Cli>();
        for flag in flags {
            assert!(shown.contains(&format!("# {flag} = ")), "{flag}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, shown).unwrap();
        SETTINGS.check::<Cli>(Some(&path), |_| Ok(())).unwrap();
    }

    #[test]
    fn nothing_listens_on_the_network_without_all_that_tls_needs() {
        let all = [
            ("--listen", "127.0.0.1:2804"),
            ("--tls-cert", "c"),
            ("--tls-key", "k"),
            ("--tls-ca", "a"),
            ("--tls-client-san", "controller.remora.svc"),
        ];
        let run = |flags: &[(&str, &str)]| {
            let words = flags.iter().flat_map(|(flag, value)| [*flag, *value]);
            Cli::try_parse_from(["remora-agent", "run"].into_iter().chain(words))
        };
        run(&all).unwrap();
        run(&[]).unwrap();
        for missing in 0..all.len() {
            let some: Vec<_> = (0..all.len())
                .filter(|n| *n != missing)
                .map(|n| all[n])
                .collect();
            let error = run(&some).unwrap_err().to_string();
            assert!(error.contains(all[missing].0), "{error}");
        }
    }

    #[test]
    fn ages_have_a_unit_and_room_is_made_before_there_is_none() {
        assert_eq!(parse_age("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(parse_age("90m"), Ok(Duration::from_secs(5400)));
        for bad in [
            "",
            "d",
            "0s",
            "30",
            "-1d",
            "1.5h",
            "99999999999999999999d",
            "99999d",
            "1ä",
        ] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
        let keep = |bytes| RetentionArgs {
            keep_age: None,
            keep_bytes: bytes,
            namespace_quota: None,
        };
        assert!(keep(None).checked(5).is_ok());
        assert!(keep(Some(4)).checked(5).is_ok());
        let error = keep(Some(5)).checked(5).unwrap_err().to_string();
        assert!(error.contains("--quota 5"), "{error}");
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(parse_size("256KiB"), Ok(256 << 10));
        assert_eq!(parse_size("16M"), Ok(16 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "MiB", "-1", "1.5MiB", "16MB", "99999999999GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
