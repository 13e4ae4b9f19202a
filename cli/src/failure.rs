//! What went wrong with the agent, and what the user can do.

use std::{future::Future, time::Duration};

use anyhow::anyhow;
use remora_proto::{
    client::AgentAddress,
    reason::{Reason, reason_of},
};
use tonic::{Code, Response, Status};

/// How long the agent may take to answer a call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Awaits the answer to a call, for [`CALL_TIMEOUT`] at most.
///
/// # Errors
/// What [`explain`] makes of the status.
pub(crate) async fn answer<T>(
    agent: &AgentAddress,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(explain(agent, &status)),
        Err(_elapsed) => Err(anyhow!(
            "the agent at {agent} did not answer within {CALL_TIMEOUT:?}: is it stopped or \
             overloaded? (remora-agent doctor)"
        )),
    }
}

/// The status as one line with what to do next. The agent's message keeps its lines: a filter's
/// error points at the word with two more.
pub(crate) fn explain(agent: &AgentAddress, status: &Status) -> anyhow::Error {
    let message = status.message();
    match (reason_of(status), status.code()) {
        (Some(Reason::InvalidFilter), _) => anyhow!("filter: {message}"),
        (Some(Reason::SessionLimit), _) => {
            anyhow!("{message}; `remora list` shows what runs, `remora stop ID` ends one")
        }
        (Some(Reason::CaptureNotFound), _) => {
            anyhow!("{message}; `remora list --all` shows the captures")
        }
        (Some(Reason::TargetNotFound), _) => {
            anyhow!("{message}; is it on the node of the agent at {agent}?")
        }
        (Some(Reason::QuotaExceeded), _) => {
            anyhow!("{message}; `remora status` shows the store")
        }
        (Some(Reason::PermissionDenied), _) => {
            anyhow!("{message}; use sudo, or ask for the agent's group")
        }
        (Some(Reason::StreamTaken), _) => {
            anyhow!("{message}; a streamed capture has one reader, --store keeps it for more")
        }
        (Some(Reason::Draining), _) => {
            anyhow!("{message}; try again when it runs anew")
        }
        (Some(Reason::Kernel), _) => {
            anyhow!("{message}; `remora-agent doctor` tells what this kernel allows")
        }
        (Some(Reason::InvalidSpec | Reason::TargetUnsupported | Reason::Unimplemented), _) => {
            anyhow!("{message}")
        }
        (None, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled) => {
            anyhow!("the agent at {agent} went away ({message}); is remora-agent running?")
        }
        (None, Code::Unimplemented) => {
            anyhow!("the agent at {agent} does not know this call: is it older than this remora?")
        }
        (None, code) => anyhow!("the agent at {agent} refused: {message} ({code:?})"),
    }
}

#[cfg(test)]
mod tests {
    use remora_proto::reason;

    use super::*;

    #[test]
    fn every_refusal_keeps_the_agents_words_on_one_line() {
        for reason in Reason::ALL {
            let status = reason::status(Code::Internal, reason, "as it is");
            let line = explain(&AgentAddress::default(), &status).to_string();
            assert!(
                line.contains("as it is") && line.lines().count() == 1,
                "{line}"
            );
        }
    }

    #[test]
    fn a_lost_connection_asks_whether_the_agent_runs() {
        let line = explain(&AgentAddress::default(), &Status::unavailable("reset")).to_string();
        assert!(line.contains("is remora-agent running?"), "{line}");
    }
}
