//! `remora-controller`: arguments, log, signals; the rest is in the library.
#![forbid(unsafe_code)]

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::CommandFactory as _;
use remora_controller::{
    app::{App, DRAIN_DEADLINE, Drained},
    args::{Args, Command, LogFormat, RulesCommand, RunArgs, SETTINGS},
};
use remora_rules::Rules;
use remora_settings::ConfigCommand;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args: Args = match SETTINGS.parse(std::env::args_os()) {
        Ok(args) => args,
        Err(fault) => fault.exit("remora-controller"),
    };
    let result = match args.command {
        Command::Run(args) => {
            if let Err(error) = args.listen_parts().check() {
                let kind = clap::error::ErrorKind::ValueValidation;
                Args::command().error(kind, error).exit();
            }
            run(*args)
        }
        Command::Rules(RulesCommand::Check { files }) => check(&files),
        Command::Config(command) => config(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("remora-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(files: &[PathBuf]) -> anyhow::Result<()> {
    let rules = Rules::load(files)?;
    write!(std::io::stdout(), "{rules}").context("cannot write the result")
}

fn config(command: ConfigCommand) -> anyhow::Result<()> {
    let text = match command {
        ConfigCommand::Check { file } => SETTINGS.check(file.as_deref(), Args::judge)?,
        ConfigCommand::Show => SETTINGS.show::<Args>(),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write the result")
}

#[tokio::main]
async fn run(args: RunArgs) -> anyhow::Result<()> {
    init_log(args.log_format);
    // Before the address is bound: who sees us listen may already stop us.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let app = App::build(&args).await?;
    let drained = app
        .run(async {
            // SIGTERM from systemd or the kubelet, SIGINT from a terminal: both mean end in order.
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM"),
                _ = interrupt.recv() => tracing::info!("SIGINT"),
            }
        })
        .await;
    match drained {
        Drained::Whole => tracing::info!("ended, every alert answered"),
        Drained::CutOff => tracing::warn!("not drained within {DRAIN_DEADLINE:?}, ending now"),
    }
    Ok(())
}

fn init_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would tell them where log lines just failed to go, and panic.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
