//! `remora capture --store`: the agent keeps the file.

use anyhow::{Context as _, bail};
use remora_capture::session::{CaptureId, CaptureState, SessionSpec};
use remora_proto::{
    client::AgentAddress,
    v1::{self, capture_client::CaptureClient},
};
use tonic::{Code, transport::Channel};

use super::{
    Outcome,
    capture::{start, start_line},
    connect, get_state, known,
};
use crate::{
    failure::{answer, explain},
    follow::{End, Ownership},
    output::Written,
    render::closing,
    signals::Interrupt,
    terminal::{self, LiveLine},
};

/// Starts the capture and prints its id; with `wait` goes on to its end.
///
/// # Errors
/// The capture did not start, or its end cannot be awaited.
pub(super) async fn run(
    agent: &AgentAddress,
    spec: &SessionSpec,
    wait: bool,
) -> anyhow::Result<Outcome> {
    let mut client = connect(agent).await?;
    let interrupt = if wait {
        Some(Interrupt::install()?)
    } else {
        None
    };
    let state = start(agent, &mut client, spec).await?;
    terminal::print(&format!("{}\n", state.id)).context("standard output failed")?;
    terminal::note(&start_line(&state));
    let Some(mut interrupt) = interrupt else {
        return Ok(Outcome::Done);
    };

    let mut watcher = client.clone();
    let ended = tokio::select! {
        state = ended(agent, &mut watcher, state.id) => state?,
        () = interrupt.requested() => {
            let request = v1::StopRequest { id: state.id.to_string() };
            known(answer(agent, client.stop(request)).await?.capture)?
        }
    };
    let written = Written {
        packets: ended.counts.written,
        ..Written::default()
    };
    Ok(closing::tell(
        &written,
        &End::Finished(Box::new(ended)),
        Ownership::Own,
    ))
}

/// Waits for the capture's end and shows its count on the way.
async fn ended(
    agent: &AgentAddress,
    client: &mut CaptureClient<Channel>,
    id: CaptureId,
) -> anyhow::Result<CaptureState> {
    let mut live = LiveLine::new();
    loop {
        let request = v1::WatchRequest { id: id.to_string() };
        let mut events = answer(agent, client.watch(request)).await?;
        // It may have ended before we watched.
        let mut state = get_state(agent, client, id).await?;
        while !state.phase.is_final() {
            live.show(&format!("Packets: {}", state.counts.written));
            match events.message().await {
                Ok(Some(event)) => state = known(event.capture)?,
                Ok(None) => bail!("the agent at {agent} went away; `remora show {id}` tells more"),
                // Events came faster than we took them: look again.
                Err(status) if status.code() == Code::DataLoss => break,
                Err(status) => return Err(explain(agent, &status)),
            }
        }
        if state.phase.is_final() {
            return Ok(state);
        }
    }
}
