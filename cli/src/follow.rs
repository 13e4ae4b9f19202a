//! A capture's stream into an output, until its end.
//!
//! ```text
//!                 ┌ signal, output failed, reader gone ┐
//!  agent ─ Stream ─▶ one message ─▶ queue ─▶ writer     │
//!    ▲                                                 │
//!    └──────────────── Stop (own capture) ◀────────────┘   then on to the final message
//! ```
//! While the queue is full the stream is not read, but signals are heard. Someone else's capture
//! is left instead of stopped.

use std::{pin::pin, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use remora_capture::session::{CaptureId, CaptureState};
use remora_proto::{
    client::AgentAddress,
    reason::{Reason, reason_of},
    v1::{self, capture_client::CaptureClient, stream_response::Message},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tonic::{Streaming, transport::Channel};

use crate::{
    blocks::{Joiner, Message as BlocksMessage},
    failure::{CALL_TIMEOUT, answer, explain},
    output::{Output, Written},
    signals::Interrupt,
    terminal::{self, LiveCount},
};

/// How often the live count changes.
const LIVE_COUNT_INTERVAL: Duration = Duration::from_millis(500);

/// Whose capture is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Ours: it ends with us.
    Own,
    /// It goes on without us.
    Other,
}

/// How the stream ended.
#[derive(Debug)]
pub(crate) enum End {
    /// With the final counts.
    Finished(Box<CaptureState>),
    /// We left it.
    Left,
    /// The agent or the connection failed.
    Broken(anyhow::Error),
}

/// A capture of an agent, as its stream's reader sees it.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) agent: &'a AgentAddress,
    pub(crate) client: CaptureClient<Channel>,
    pub(crate) id: CaptureId,
    pub(crate) ownership: Ownership,
}

impl Source<'_> {
    /// Begins the stream.
    ///
    /// # Errors
    /// The agent refuses, or is gone.
    pub(crate) async fn open(&mut self) -> anyhow::Result<Streaming<v1::StreamResponse>> {
        let request = v1::StreamRequest {
            id: self.id.to_string(),
        };
        answer(self.agent, self.client.stream(request)).await
    }

    /// Asks the agent to end the capture. Its end comes by the stream, so only a refusal is told.
    pub(crate) async fn stop(self) {
        let Self {
            agent,
            mut client,
            id,
            ownership: _,
        } = self;
        let request = v1::StopRequest { id: id.to_string() };
        let Ok(answer) = tokio::time::timeout(CALL_TIMEOUT, client.stop(request)).await else {
            return;
        };
        if let Err(status) = answer
            && reason_of(&status) != Some(Reason::CaptureNotFound)
        {
            terminal::note(&format!(
                "remora: stop failed: {:#}",
                explain(agent, &status)
            ));
        }
    }
}

/// Follows `stream` of `source` into `output`.
///
/// # Errors
/// The output could not be started.
pub(crate) async fn follow(
    source: Source<'_>,
    mut stream: Streaming<v1::StreamResponse>,
    mut output: Output,
    interrupt: &mut Interrupt,
) -> anyhow::Result<(Written, End)> {
    let Source {
        agent,
        id,
        ownership,
        ..
    } = source;
    let mut reader_gone = pin!(output.reader_gone());
    let mut writer = output.start()?;

    let mut live = LiveCount::new();
    let mut ticks = interval(LIVE_COUNT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut joiner = Joiner::default();
    let mut received = 0;
    let mut pending: Option<BlocksMessage> = None;
    let mut output_failed = false;
    let mut stopping = false;
    // Only from the stop on is silence a fault: a capture may see nothing for days.
    let mut patience = Instant::now();
    let mut stop = pin!(source.stop());
    let mut stop_answered = false;

    let end = loop {
        let leave = tokio::select! {
            permit = writer.blocks.reserve(), if pending.is_some() => {
                let permit = permit.context("the output's thread is gone")?;
                permit.send(pending.take().unwrap_or_default());
                patience = Instant::now() + CALL_TIMEOUT;
                false
            }
            message = next(agent, &mut stream, &mut joiner), if pending.is_none() => match message {
                Ok(Next::Blocks(message)) => {
                    received += message.packets;
                    pending = Some(message);
                    false
                }
                Ok(Next::Finished(state)) => break End::Finished(state),
                Ok(Next::Unknown) => false,
                Err(error) => break End::Broken(error),
            },
            () = interrupt.requested(), if !stopping => true,
            () = &mut reader_gone, if !stopping => true,
            _ = &mut writer.failed, if !output_failed => {
                output_failed = true;
                true
            }
            () = &mut stop, if stopping && !stop_answered => {
                stop_answered = true;
                false
            }
            () = sleep_until(patience), if stopping && pending.is_none() => {
                break End::Broken(anyhow!(
                    "the agent at {agent} did not end the capture within {CALL_TIMEOUT:?}; \
                     `remora stop {id}` tries again"
                ));
            }
            _ = ticks.tick() => {
                live.show(received);
                false
            }
        };
        if leave && ownership == Ownership::Other {
            break End::Left;
        }
        if leave && !stopping {
            stopping = true;
            patience = Instant::now() + CALL_TIMEOUT;
        }
    };

    if let Some(message) = pending {
        let _thread_gone = writer.blocks.send(message).await;
    }
    drop(writer.blocks);
    let written = writer.done.await.context("the output's thread is gone")?;
    live.show(received);
    drop(live);
    Ok((written, end))
}

enum Next {
    Blocks(BlocksMessage),
    Finished(Box<CaptureState>),
    /// Of a newer agent.
    Unknown,
}

async fn next(
    agent: &AgentAddress,
    stream: &mut Streaming<v1::StreamResponse>,
    joiner: &mut Joiner,
) -> anyhow::Result<Next> {
    let message = stream
        .message()
        .await
        .map_err(|status| explain(agent, &status))?;
    let Some(message) = message else {
        bail!("the agent at {agent} went away in the middle of the capture");
    };
    match message.message {
        Some(Message::Blocks(blocks)) => {
            let message = joiner
                .push(blocks)
                .context("the agent's stream is not pcapng")?;
            Ok(Next::Blocks(message))
        }
        Some(Message::Finished(_)) if !joiner.is_empty() => {
            bail!("the agent's stream ended within a block")
        }
        Some(Message::Finished(state)) => {
            let state = state
                .try_into()
                .context("the agent's final state is not understood")?;
            Ok(Next::Finished(Box::new(state)))
        }
        None => Ok(Next::Unknown),
    }
}
