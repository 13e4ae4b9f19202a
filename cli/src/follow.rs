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
use bytes::Bytes;
use remora_capture::session::{CaptureId, CaptureState};
use remora_proto::{
    client::AgentAddress,
    reason::{Reason, reason_of},
    v1::{self, capture_client::CaptureClient, stream_response},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tonic::{Streaming, transport::Channel};

use crate::{
    blocks::{Joiner, Message as BlocksMessage},
    failure::{CALL_TIMEOUT, answer, explain},
    output::{Output, Written},
    signals::Interrupt,
    terminal::{self, LiveLine},
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
pub(crate) enum End<S = CaptureState> {
    /// With the final counts.
    Finished(Box<S>),
    /// We left it.
    Left,
    /// The agent or the connection failed.
    Broken(anyhow::Error),
}

/// A capture's stream, and the way to end it.
pub(crate) trait Feed {
    /// What is known of the capture after its end.
    type State;

    /// How long its end may take once it was asked for.
    const PATIENCE: Duration;

    /// The next message; a call that is given up loses none.
    ///
    /// # Errors
    /// The stream broke.
    async fn next(&mut self) -> anyhow::Result<Message<Self::State>>;

    /// Asks for the capture's end. That comes by the stream, so only a refusal is told.
    fn stop(&self) -> impl Future<Output = ()> + use<Self>;

    /// The running count, for a terminal; `received` packets came.
    fn live(&self, received: u64) -> String;

    /// The end that was asked for does not come.
    fn silent(&self) -> anyhow::Error;
}

/// A message of a stream.
#[derive(Debug)]
pub(crate) enum Message<S> {
    Blocks(Bytes),
    Finished(Box<S>),
    /// Of a newer agent.
    Unknown,
}

/// A capture of an agent.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) agent: AgentAddress,
    pub(crate) client: CaptureClient<Channel>,
    pub(crate) id: CaptureId,
}

/// Its stream.
#[derive(Debug)]
pub(crate) struct AgentFeed {
    source: Source,
    stream: Streaming<v1::StreamResponse>,
}

impl Source {
    /// Begins the stream.
    ///
    /// # Errors
    /// The agent refuses, or is gone.
    pub(crate) async fn open(mut self) -> anyhow::Result<AgentFeed> {
        let request = v1::StreamRequest {
            id: self.id.to_string(),
        };
        let stream = answer(&self.agent, self.client.stream(request)).await?;
        Ok(AgentFeed {
            source: self,
            stream,
        })
    }

    /// Asks the agent to end the capture.
    pub(crate) async fn stop(self) {
        let Self {
            agent,
            mut client,
            id,
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
                explain(&agent, &status)
            ));
        }
    }
}

impl Feed for AgentFeed {
    type State = CaptureState;

    const PATIENCE: Duration = CALL_TIMEOUT;

    async fn next(&mut self) -> anyhow::Result<Message<CaptureState>> {
        let agent = &self.source.agent;
        let message = self
            .stream
            .message()
            .await
            .map_err(|status| explain(agent, &status))?;
        let Some(message) = message else {
            bail!("the agent at {agent} went away in the middle of the capture");
        };
        Ok(match message.message {
            Some(stream_response::Message::Blocks(blocks)) => Message::Blocks(blocks),
            Some(stream_response::Message::Finished(state)) => {
                let state = state
                    .try_into()
                    .context("the agent's final state is not understood")?;
                Message::Finished(Box::new(state))
            }
            None => Message::Unknown,
        })
    }

    fn stop(&self) -> impl Future<Output = ()> + use<> {
        self.source.clone().stop()
    }

    fn live(&self, received: u64) -> String {
        format!("Packets: {received}")
    }

    fn silent(&self) -> anyhow::Error {
        let Source { agent, id, .. } = &self.source;
        anyhow!(
            "the agent at {agent} did not end the capture within {CALL_TIMEOUT:?}; \
             `remora stop {id}` tries again"
        )
    }
}

/// Follows `feed` into `output`.
///
/// # Errors
/// The output could not be started.
pub(crate) async fn follow<F: Feed>(
    mut feed: F,
    ownership: Ownership,
    mut output: Output,
    interrupt: &mut Interrupt,
) -> anyhow::Result<(Written, End<F::State>)> {
    let mut reader_gone = pin!(output.reader_gone());
    let mut writer = output.start()?;

    let mut live = LiveLine::new();
    let mut ticks = interval(LIVE_COUNT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut joiner = Joiner::default();
    let mut received = 0;
    let mut pending: Option<BlocksMessage> = None;
    let mut output_failed = false;
    let mut stopping = false;
    // Only from the stop on is silence a fault: a capture may see nothing for days.
    let mut patience = Instant::now();
    let mut stop = pin!(feed.stop());
    let mut stop_answered = false;

    let end = loop {
        let leave = tokio::select! {
            permit = writer.blocks.reserve(), if pending.is_some() => {
                let permit = permit.context("the output's thread is gone")?;
                permit.send(pending.take().unwrap_or_default());
                patience = Instant::now() + F::PATIENCE;
                false
            }
            message = feed.next(), if pending.is_none() => match message {
                Ok(Message::Blocks(blocks)) => match joiner.push(blocks) {
                    Ok(message) => {
                        received += message.packets;
                        pending = Some(message);
                        false
                    }
                    Err(error) => {
                        let error = anyhow::Error::new(error);
                        break End::Broken(error.context("the stream is not pcapng"));
                    }
                },
                Ok(Message::Finished(_)) if !joiner.is_empty() => {
                    break End::Broken(anyhow!("the stream ended within a block"));
                }
                Ok(Message::Finished(state)) => break End::Finished(state),
                Ok(Message::Unknown) => false,
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
                break End::Broken(feed.silent());
            }
            _ = ticks.tick() => {
                live.show(&feed.live(received));
                false
            }
        };
        if leave && ownership == Ownership::Other {
            break End::Left;
        }
        if leave && !stopping {
            stopping = true;
            patience = Instant::now() + F::PATIENCE;
        }
    };

    if let Some(message) = pending {
        let _thread_gone = writer.blocks.send(message).await;
    }
    drop(writer.blocks);
    let written = writer.done.await.context("the output's thread is gone")?;
    live.show(&feed.live(received));
    drop(live);
    Ok((written, end))
}
