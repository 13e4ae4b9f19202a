//! `remora-agent`.
#![forbid(unsafe_code)]

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use remora_agent::{
    app,
    args::{Cli, Command},
    cleanup, doctor, kernel, prepare,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Cli {
        command,
        log,
        log_json,
    } = Cli::parse();
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
        .with_ansi(std::io::stderr().is_terminal());
    if log_json {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
    let outcome = match command {
        Command::Run(args) => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_stack_size(kernel::look_back::STACK)
            .build()
            .map_err(anyhow::Error::from)
            .and_then(|runtime| runtime.block_on(app::run(*args)))
            .map(|()| ExitCode::SUCCESS),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("remora-agent: {error:#}");
        ExitCode::FAILURE
    })
}
