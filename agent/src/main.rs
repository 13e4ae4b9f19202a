//! `remora-agent`.
#![forbid(unsafe_code)]

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use remora_agent::{
    app,
    args::{Cli, Command, SETTINGS},
    cleanup, doctor, prepare,
};
use remora_settings::ConfigCommand;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Cli {
        command,
        log,
        log_json,
    } = match SETTINGS.parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(fault) => fault.exit("remora-agent"),
    };
    let filter = match EnvFilter::try_new(&log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("remora-agent: --log: {error}");
            return ExitCode::from(2);
        }
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would tell them where log lines just failed to go, and panic.
        .log_internal_errors(false);
    if log_json {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
    let outcome = match command {
        Command::Run(args) => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_stack_size(app::STACK)
            .build()
            .map_err(anyhow::Error::from)
            .and_then(|runtime| runtime.block_on(app::run(*args)))
            .map(|()| ExitCode::SUCCESS),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Config(command) => config(command),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("remora-agent: {error:#}");
        ExitCode::FAILURE
    })
}

fn config(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    let text = match command {
        ConfigCommand::Check { file } => SETTINGS.check::<Cli>(file.as_deref(), Cli::judge)?,
        ConfigCommand::Show => SETTINGS.show::<Cli>(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
