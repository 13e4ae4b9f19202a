//! `remora capture`: starts a capture and follows it to its end.

use std::path::Path;

use anyhow::bail;
use remora_capture::session::{CaptureState, SessionSpec, Target, Writing};
use remora_proto::{
    client::AgentAddress,
    v1::{self, capture_client::CaptureClient},
};
use tonic::transport::Channel;

use super::{Outcome, connect, known, store};
use crate::{
    args::CaptureArgs,
    failure::answer,
    follow::{Ownership, Source, follow},
    output::Output,
    render::closing,
    signals::Interrupt,
    spec::{dump, requester, spec, writing},
    terminal,
};

/// # Errors
/// The capture did not start.
pub(super) async fn run(agent: &AgentAddress, args: &CaptureArgs) -> anyhow::Result<Outcome> {
    if args.options.dump {
        println!("{}", dump(args)?);
        return Ok(Outcome::Done);
    }
    let spec = spec(args, &requester())?;
    tell_what_cannot_match(&spec);
    match &args.write {
        Some(path) => {
            let writing = writing(&args.options, Some(path), args.compress);
            stream(agent, &spec, path, writing).await
        }
        None if args.store => store::run(agent, &spec, args.wait).await,
        None => bail!(
            "packets are not printed here; use -w FILE, -w - | tshark -r -, or --store to let the \
             agent keep them"
        ),
    }
}

async fn stream(
    agent: &AgentAddress,
    spec: &SessionSpec,
    path: &Path,
    writing: Writing,
) -> anyhow::Result<Outcome> {
    let mut client = connect(agent).await?;
    let output = Output::open(path, writing)?;
    let mut interrupt = Interrupt::install()?;
    let state = match start(agent, &mut client, spec).await {
        Ok(state) => state,
        Err(error) => {
            output.discard();
            return Err(error);
        }
    };
    terminal::note(&start_line(&state));
    let source = Source {
        agent: agent.clone(),
        client,
        id: state.id,
    };
    let feed = match source.clone().open().await {
        Ok(feed) => feed,
        Err(error) => {
            output.discard();
            source.stop().await;
            return Err(error);
        }
    };
    let (written, end) = follow(feed, Ownership::Own, output, &mut interrupt).await?;
    Ok(closing::tell(&written, &end, Ownership::Own))
}

/// Whether the target has such packets is known on its node alone; the file says it, too.
fn tell_what_cannot_match(spec: &SessionSpec) {
    let programs = spec.filter.meaning().programs();
    let of_interface = matches!(spec.target, Target::Interface(_));
    if !of_interface && programs.is_some_and(|programs| programs.raw.is_none()) {
        terminal::note(
            "the filter asks for an Ethernet header; packets of loopback and host services have \
             none and are left out",
        );
    }
}

/// Starts the capture. A signal that comes meanwhile waits: the answer has the id without which
/// nothing can be stopped.
///
/// # Errors
/// The agent refused.
pub(super) async fn start(
    agent: &AgentAddress,
    client: &mut CaptureClient<Channel>,
    spec: &SessionSpec,
) -> anyhow::Result<CaptureState> {
    let request = v1::StartRequest {
        spec: Some(spec.into()),
        idempotency_key: String::new(),
        ..Default::default()
    };
    known(answer(agent, client.start(request)).await?.capture)
}

pub(super) fn start_line(state: &CaptureState) -> String {
    let target = match state.resolved_target.as_str() {
        "" => state.spec.target.to_string(),
        resolved => resolved.to_owned(),
    };
    format!("capturing on {target}, capture {}", state.id)
}
