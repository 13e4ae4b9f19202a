//! The command line and the environment; nothing else reads them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use axum::http::{HeaderName, header};
use clap::{Parser, Subcommand, ValueEnum};
use remora_proto::client::AgentAddress;
use remora_settings::{ConfigCommand, Settings};

use crate::{
    api::listen::GrpcAddress,
    audit::Rotation,
    cluster::index::{MEMBERS_DEFAULT, MEMBERS_MAX},
    http::listen::{LambdaParts, ListenParts, TlsParts},
    notify::ReceiverUrl,
    sinks::SinkSpec,
};

/// Settings of `run` by a file.
pub const SETTINGS: Settings = Settings {
    command: "run",
    file: "/etc/remora/controller.toml",
};

/// Takes Falco's alerts, decides by rules, and starts packet captures on the agent.
#[derive(Debug, Parser)]
#[command(name = "remora-controller", version, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take alerts until SIGTERM or SIGINT
    Run(Box<RunArgs>),
    /// Work with rule files
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Work with the settings file of `run`
    #[command(subcommand)]
    Config(ConfigCommand),
}

impl Args {
    /// What is wrong with flags that are right one by one.
    ///
    /// # Errors
    /// In words for a person.
    pub fn judge(self) -> Result<(), String> {
        match self.command {
            Command::Run(args) => args
                .listen_parts()
                .check()
                .map_err(|error| error.to_string()),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Settings in TOML, a key for each flag here; flags and the environment go before it (default:
    /// /etc/remora/controller.toml, if it is there). `remora-controller config show` prints one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The agent that captures
    #[arg(long, env = "REMORA_AGENT", default_value_t, value_name = "unix:PATH")]
    pub agent: AgentAddress,
    /// Where alerts come in; other addresses than loopback need TLS, and a secret or the senders' certificates
    #[arg(
        long,
        env = "REMORA_LISTEN",
        default_value = "127.0.0.1:2803",
        value_parser = address,
        value_name = "ADDRESS:PORT"
    )]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub alerts: AlertsArgs,
    #[command(flatten)]
    pub talon: TalonArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub access: AccessArgs,
    /// Rule file; give it again for more
    #[arg(long, env = "REMORA_RULES", required = true, value_name = "FILE")]
    pub rules: Vec<PathBuf>,
    /// A store that finished captures can be uploaded to, by its name in rules (`destination: NAME`) and
    /// `--destination`: s3://BUCKET[/PREFIX], gs://… or az://CONTAINER…, with ?endpoint=URL, region=, retain=30d,
    /// lock=governance|compliance (all S3), expires=15m. Credentials are the environment's (AWS_…, GOOGLE_…,
    /// AZURE_…) and stay here: agents get a URL for one object. Give it again for more
    #[arg(long = "sink", value_name = "NAME=URL")]
    pub sinks: Vec<SinkSpec>,
    /// How log lines look; RUST_LOG says which are written
    #[arg(
        long,
        env = "REMORA_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub notify: NotifyArgs,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Who is told of captures that have ended: by an alert in Falco's JSON, with counts and digests and
/// without packets.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Notifications")]
pub struct NotifyArgs {
    /// A webhook, or Falcosidekick (http://HOST:2801/), that is told of each stored capture that has ended;
    /// give it again for more. Each controller tells its receivers
    #[arg(long, value_name = "URL")]
    pub notify: Vec<ReceiverUrl>,
    /// File with a secret that notifications are signed with: header X-Remora-Signature-256, HMAC-SHA-256
    /// of the body; read again each time
    #[arg(long, value_name = "FILE", requires = "notify")]
    pub notify_secret: Option<PathBuf>,
    /// CA certificates that sign the receivers' (PEM), for https
    #[arg(long, value_name = "FILE", requires = "notify")]
    pub notify_ca: Option<PathBuf>,
    /// Tell also of what ended so long before this controller started, while there may have been none: a
    /// receiver knows by an event's uuid what it was told before; 0: nothing
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 600,
        requires = "notify"
    )]
    pub notify_since: u64,
}

/// What makes it a cluster's controller; without `--kubernetes` and `--agents` it is a host's.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "In a cluster")]
pub struct ClusterArgs {
    /// Know the cluster from its API server: by KUBECONFIG, or as a pod by its service account
    #[arg(long, env = "REMORA_KUBERNETES")]
    pub kubernetes: bool,
    /// The agents, a line each: NODE=unix:PATH; else their pods are looked for
    #[arg(long, env = "REMORA_AGENTS", value_name = "FILE")]
    pub agents: Option<PathBuf>,
    /// Namespace of the agents' pods; else this controller's own
    #[arg(long, env = "REMORA_AGENTS_NAMESPACE", value_name = "NAME")]
    pub agents_namespace: Option<String>,
    /// Port of the agents
    #[arg(long, env = "REMORA_AGENTS_PORT", default_value_t = AGENTS_PORT, value_name = "PORT")]
    pub agents_port: u16,
    /// Where captures over the cluster are asked for: a Unix socket, or an address (by TLS if there is
    /// --tls-cert, for Kubernetes tokens; else loopback alone, for everybody there)
    #[arg(
        long,
        env = "REMORA_GRPC_LISTEN",
        value_name = "unix:PATH|ADDRESS:PORT"
    )]
    pub grpc_listen: Option<GrpcAddress>,
    /// Most pods of one capture
    #[arg(
        long,
        env = "REMORA_MEMBERS_MAX",
        default_value_t = MEMBERS_DEFAULT,
        value_parser = members,
        value_name = "N"
    )]
    pub members_max: usize,
}

/// Port of agents that are called over the network.
const AGENTS_PORT: u16 = 2804;

impl ClusterArgs {
    /// There is a cluster.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.kubernetes || self.agents.is_some()
    }
}

impl Default for ClusterArgs {
    fn default() -> Self {
        Self {
            kubernetes: false,
            agents: None,
            agents_namespace: None,
            agents_port: AGENTS_PORT,
            grpc_listen: None,
            members_max: MEMBERS_DEFAULT,
        }
    }
}

/// Who may send alerts.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Senders of alerts")]
pub struct AlertsArgs {
    /// File with a secret that each alert must show, as `Authorization: Bearer SECRET`; read again when
    /// it changes
    #[arg(long, value_name = "FILE")]
    pub alerts_secret: Option<PathBuf>,
    /// Another header that shows it
    #[arg(
        long,
        value_name = "NAME",
        default_value = "authorization",
        requires = "alerts_secret"
    )]
    pub alerts_header: Option<HeaderName>,
    /// Certificate for taking alerts by TLS 1.3 (PEM; other addresses than loopback: --tls-cert)
    #[arg(long, value_name = "FILE", requires = "alerts_tls_key")]
    pub alerts_tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "alerts_tls_cert")]
    pub alerts_tls_key: Option<PathBuf>,
    /// CA certificates that sign the senders' (PEM): each must show one
    #[arg(long, value_name = "FILE", requires = "alerts_tls_client_san")]
    pub alerts_tls_ca: Option<PathBuf>,
    /// A name (DNS or URI) that a sender's certificate may have; give it again for more
    #[arg(long, value_name = "NAME", requires = "alerts_tls_ca")]
    pub alerts_tls_client_san: Vec<String>,
}

/// Falco Talon as it is, by its actionner `aws:lambda`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Falco Talon's aws:lambda")]
pub struct TalonArgs {
    /// File with the access key that Talon signs with (AWS_ACCESS_KEY_ID); read again when it changes.
    /// Without it there are no routes for aws:lambda
    #[arg(long, value_name = "FILE", requires = "talon_secret_key_file")]
    pub talon_access_key_file: Option<PathBuf>,
    /// File with its secret key (AWS_SECRET_ACCESS_KEY); read again when it changes
    #[arg(long, value_name = "FILE", requires = "talon_access_key_file")]
    pub talon_secret_key_file: Option<PathBuf>,
    /// Most that Talon's clock may be away from this one, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = CLOCK_SKEW,
          value_parser = clap::value_parser!(u64).range(1..=900))]
    pub talon_clock_skew: u64,
}

/// As AWS has it, in seconds.
const CLOCK_SKEW: u64 = 300;

impl Default for TalonArgs {
    fn default() -> Self {
        Self {
            talon_access_key_file: None,
            talon_secret_key_file: None,
            talon_clock_skew: CLOCK_SKEW,
        }
    }
}

/// The controller's certificate: for those who call it, and for the agents that it calls.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "TLS (1.3; all files are read again when they change)")]
pub struct TlsArgs {
    /// The controller's certificate, its intermediates after it (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// CA certificates that sign the agents' and the clients' (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// A name (DNS or URI) that an agent's certificate may have; give it again for more
    #[arg(long, value_name = "NAME", default_value = "remora-agent")]
    pub agent_san: Vec<String>,
    /// A name that lets a client of the gRPC API in by its certificate, as user `remora:tls:NAME` of
    /// Kubernetes; all others show a token. Give it again for more
    #[arg(long, value_name = "NAME", requires = "tls_cert")]
    pub tls_client_san: Vec<String>,
}

/// Who may do what, and the account of it.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Rights")]
pub struct AccessArgs {
    /// Tokens of callers must be for this audience (default: the API server's own)
    #[arg(long, value_name = "NAME")]
    pub token_audience: Option<String>,
    /// Write each decision and each read of packets there, before it is told. A log that cannot be
    /// written lets nothing happen
    #[arg(long, value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Bytes after which the audit log's next file begins
    #[arg(long, value_name = "BYTES", default_value_t = Rotation::default().bytes,
          value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub audit_bytes: u64,
    /// Full files of it that are kept
    #[arg(long, value_name = "N", default_value_t = Rotation::default().files,
          value_parser = clap::value_parser!(u32).range(1..=9999))]
    pub audit_files: u32,
}

impl AccessArgs {
    /// When the audit log's next file begins.
    #[must_use]
    pub fn rotation(&self) -> Rotation {
        Rotation {
            bytes: self.audit_bytes,
            files: self.audit_files,
        }
    }
}

impl RunArgs {
    /// Where and how alerts are taken.
    #[must_use]
    pub fn listen_parts(&self) -> ListenParts {
        let AlertsArgs {
            alerts_secret,
            alerts_header,
            alerts_tls_cert,
            alerts_tls_key,
            alerts_tls_ca,
            alerts_tls_client_san,
        } = &self.alerts;
        let header = alerts_header.clone().unwrap_or(header::AUTHORIZATION);
        let TlsArgs {
            tls_cert, tls_key, ..
        } = &self.tls;
        let own = alerts_tls_cert.clone().zip(alerts_tls_key.clone());
        let shared = || tls_cert.clone().zip(tls_key.clone());
        let wants_tls = !self.listen.ip().is_loopback() || alerts_tls_ca.is_some();
        let own = own.or_else(|| wants_tls.then(shared).flatten());
        let TalonArgs {
            talon_access_key_file,
            talon_secret_key_file,
            talon_clock_skew,
        } = &self.talon;
        let keys = talon_access_key_file
            .clone()
            .zip(talon_secret_key_file.clone());
        ListenParts {
            address: self.listen,
            lambda: keys.map(|(access_key, secret_key)| LambdaParts {
                access_key,
                secret_key,
                skew: Duration::from_secs(*talon_clock_skew),
            }),
            secret: alerts_secret.clone().map(|path| (path, header)),
            tls: own.map(|(cert, key)| TlsParts {
                cert,
                key,
                clients: alerts_tls_ca
                    .clone()
                    .map(|ca| (ca, alerts_tls_client_san.clone())),
            }),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Say whether rule files are right, as `run` would take them together
    Check {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_other| "use ADDRESS:PORT, for example 127.0.0.1:2803".to_owned())
}

fn members(text: &str) -> Result<usize, String> {
    let count = text.parse().ok();
    let count = count.filter(|count| (1..=MEMBERS_MAX).contains(count));
    count.ok_or_else(|| format!("use 1 to {MEMBERS_MAX}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run_with(listen: &str) -> Result<Args, clap::Error> {
        let line = [
            "remora-controller",
            "run",
            "--rules",
            "r.yaml",
            "--listen",
            listen,
        ];
        Args::try_parse_from(line)
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_has_a_key_and_the_template_is_right() {
        let mut program = Args::command();
        program.build();
        let run = program.find_subcommand("run").unwrap();
        let flags = run.get_arguments().filter_map(clap::Arg::get_long);
        let flags: Vec<_> = flags
            .filter(|flag| !["config", "help"].contains(flag))
            .collect();
        assert!(flags.len() > 20, "{flags:?}");
        assert_eq!(SETTINGS.names(Args::command()), flags);
        let shown = SETTINGS.show::<Args>();
        for flag in &flags {
            assert!(shown.contains(&format!("# {flag} = ")), "{flag}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.toml");
        std::fs::write(&path, shown + "rules = ['r.yaml']").unwrap();
        SETTINGS.check(Some(&path), Args::judge).unwrap();
    }

    #[test]
    fn an_address_is_one_with_a_port() {
        let error = run_with("localhost:2803").unwrap_err().to_string();
        assert!(error.contains("for example 127.0.0.1:2803"), "{error}");
    }

    #[test]
    fn halves_of_tls_are_refused_with_the_other_half() {
        for (given, missing) in [
            (&["--alerts-tls-cert", "c"][..], "--alerts-tls-key"),
            (&["--alerts-tls-key", "k"], "--alerts-tls-cert"),
            (&["--alerts-tls-ca", "a"], "--alerts-tls-client-san"),
            (&["--alerts-tls-client-san", "a"], "--alerts-tls-ca"),
            (&["--alerts-header", "x-secret"], "--alerts-secret"),
            (&["--tls-cert", "c"], "--tls-key"),
            (&["--tls-key", "k"], "--tls-cert"),
            (&["--talon-access-key-file", "a"], "--talon-secret-key-file"),
            (&["--talon-secret-key-file", "s"], "--talon-access-key-file"),
        ] {
            let line = ["remora-controller", "run", "--rules", "r.yaml"];
            let error = Args::try_parse_from(line.iter().chain(given)).unwrap_err();
            assert!(error.to_string().contains(missing), "{error}");
        }
        run_with("0.0.0.0:2803").unwrap();
    }
}
