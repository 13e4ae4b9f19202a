//! The command line and the environment; nothing else reads them.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};
use remora_proto::client::AgentAddress;

use crate::{
    api::listen::GrpcAddress,
    cluster::index::{MEMBERS_DEFAULT, MEMBERS_MAX},
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
    Run(RunArgs),
    /// Work with rule files
    #[command(subcommand)]
    Rules(RulesCommand),
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The agent that captures
    #[arg(long, env = "REMORA_AGENT", default_value_t, value_name = "unix:PATH")]
    pub agent: AgentAddress,
    /// Where alerts come in; loopback only, since nobody is authenticated there
    #[arg(
        long,
        env = "REMORA_LISTEN",
        default_value = "127.0.0.1:2803",
        value_parser = loopback,
        value_name = "ADDRESS:PORT"
    )]
    pub listen: SocketAddr,
    /// Rule file; give it again for more
    #[arg(long, required = true, value_name = "FILE")]
    pub rules: Vec<PathBuf>,
    /// How log lines look; RUST_LOG says which are written
    #[arg(
        long,
        env = "REMORA_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub cluster: ClusterArgs,
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
    /// Where captures over the cluster are asked for: a Unix socket or a loopback address
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

fn members(text: &str) -> Result<usize, String> {
    let count = text.parse().ok();
    let count = count.filter(|count| (1..=MEMBERS_MAX).contains(count));
    count.ok_or_else(|| format!("use 1 to {MEMBERS_MAX}"))
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_other| "use ADDRESS:PORT, for example 127.0.0.1:2803".to_owned())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err(format!(
        "other machines could reach it, and alerts are taken without authentication; use \
         127.0.0.1:{port} or [::1]:{port}, with the sender on this machine",
        port = address.port()
    ))
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
    fn listens_on_loopback_only() {
        for listen in ["127.0.0.1:2803", "127.8.8.8:1", "[::1]:0"] {
            run_with(listen).unwrap();
        }
        for listen in [
            "0.0.0.0:2803",
            "[::]:2803",
            "192.0.2.1:2803",
            "[2001:db8::1]:2803",
        ] {
            let error = run_with(listen).unwrap_err().to_string();
            assert!(error.contains("without authentication"), "{error}");
            assert!(error.contains("127.0.0.1:2803"), "{error}");
        }
        let error = run_with("localhost:2803").unwrap_err().to_string();
        assert!(error.contains("for example 127.0.0.1:2803"), "{error}");
    }
}
