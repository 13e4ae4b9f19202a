//! One module a command that does more than ask and print.

mod audit;
mod capture;
mod custody;
mod decrypt;
mod export;
mod get;
pub(crate) mod redact;
mod rules;
mod store;
mod timestamp;
mod trigger;
mod up;
mod verify;

use anyhow::Context as _;
use clap::CommandFactory as _;
use remora_capture::session::{CaptureId, CaptureState};
use remora_proto::{
    client::{self, AgentAddress},
    convert::hold_of,
    v1::{self, capture_client::CaptureClient},
};
use tonic::transport::Channel;

use crate::{
    args::{Args, Command, Format},
    failure::answer,
    render, terminal,
};

/// How a command ended that did not fail before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The user was told on standard error.
    Faulty,
    /// Nothing is wrong with the evidence, but not all of it is proved.
    Partly,
}

/// Does what the arguments say.
///
/// # Errors
/// Nothing was done; the error says why and what to do.
pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let agent = &args.agent;
    match args.command {
        Command::Capture(args) => capture::run(agent, &args).await,
        Command::Get {
            id,
            write,
            identity: None,
        } => get::run(agent, id, &write).await,
        Command::Get {
            id,
            write,
            identity: Some(keys),
        } => decrypt::run(agent, id, &write, &keys).await,
        Command::List { all, output } => {
            let mut client = connect(agent).await?;
            let list = answer(
                agent,
                client.list(v1::ListRequest {
                    all,
                    ..v1::ListRequest::default()
                }),
            )
            .await?;
            let mut captures = Vec::new();
            let mut outcome = Outcome::Done;
            for capture in list.captures {
                match kept(capture) {
                    Ok(capture) => captures.push(capture),
                    // The others are worth seeing.
                    Err(error) => {
                        terminal::error(&error);
                        outcome = Outcome::Faulty;
                    }
                }
            }
            print(&render::list(captures, output)?)?;
            Ok(outcome)
        }
        Command::Export { ids, output } => export::run(agent, &ids, &output).await,
        Command::Verify(args) => verify::run(&args).await,
        Command::Redact(args) => redact::run(*args),
        Command::Timestamp(args) => timestamp::run(&args).await,
        Command::Show { id, custody, .. } if custody => export::custody(agent, id).await,
        Command::Show { id, output, .. } => {
            let request = v1::GetRequest { id: id.to_string() };
            let capture = answer(agent, connect(agent).await?.get(request)).await?;
            let capture = capture.capture.context("the agent's answer is empty")?;
            let kept = kept(capture)?;
            print(&render::show(&kept, output)?)
        }
        Command::Delete {
            ids,
            reason,
            not_uploaded,
        } => custody::delete(agent, &ids, (&reason, not_uploaded)).await,
        Command::Hold { id, reason } => custody::hold(agent, id, &reason).await,
        Command::Release { id } => custody::release(agent, id).await,
        Command::Stop { id } => {
            let mut client = connect(agent).await?;
            let request = v1::StopRequest { id: id.to_string() };
            let capture = known(answer(agent, client.stop(request)).await?.capture)?;
            let kept = render::Kept {
                capture,
                hold: None,
                upload: None,
            };
            print(&render::show(&kept, Format::Table)?)
        }
        Command::Audit(command) => audit::run(&command),
        Command::Rules(command) => rules::run(&command),
        Command::Trigger(args) => trigger::run(&args).await,
        Command::Up(args) => up::run(&args).await,
        Command::WithParent { parent, words } => up::run_with_parent(parent, &words),
        Command::Completions { shell } => crate::shell::completions(Args::command(), shell),
        Command::Manual { directory } => crate::shell::manual(&directory),
        Command::Extcap { .. } => unreachable!("`crate::run` answers Wireshark"),
        Command::Status { output } => {
            let mut client = client::node_client(client::connect(agent).await?);
            let status = answer(agent, client.status(v1::StatusRequest {})).await?;
            print(&render::status(agent, status, output)?)
        }
    }
}

fn print(text: &str) -> anyhow::Result<Outcome> {
    terminal::print(text).context("standard output failed")?;
    Ok(Outcome::Done)
}

async fn connect(agent: &AgentAddress) -> anyhow::Result<CaptureClient<Channel>> {
    Ok(client::capture_client(client::connect(agent).await?))
}

async fn get_state(
    agent: &AgentAddress,
    client: &mut CaptureClient<Channel>,
    id: CaptureId,
) -> anyhow::Result<CaptureState> {
    let request = v1::GetRequest { id: id.to_string() };
    known(answer(agent, client.get(request)).await?.capture)
}

/// The state that an answer must hold.
fn known(state: Option<v1::CaptureState>) -> anyhow::Result<CaptureState> {
    understand(state.context("the agent's answer is empty")?)
}

/// A capture with its hold.
fn kept(state: v1::CaptureState) -> anyhow::Result<render::Kept> {
    let hold = hold_of(&state).context("the agent's answer is not understood")?;
    let upload = state.upload.clone().map(Into::into);
    let capture = understand(state)?;
    Ok(render::Kept {
        capture,
        hold,
        upload,
    })
}

fn understand(state: v1::CaptureState) -> anyhow::Result<CaptureState> {
    state
        .try_into()
        .context("the agent's answer is not understood; do the versions differ?")
}
