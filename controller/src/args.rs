//! The command line and the environment; nothing else reads them.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};
use remora_proto::client::AgentAddress;

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
