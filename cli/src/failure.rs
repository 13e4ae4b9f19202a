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

/// The status as one line with what to do next. A refusal with a reason says so by itself, for a
/// filter with two more lines that point at the word; what gRPC says of a lost connection does not.
pub(crate) fn explain(agent: &AgentAddress, status: &Status) -> anyhow::Error {
    let message = status.message();
    match (reason_of(status), status.code()) {
        (Some(Reason::InvalidFilter), _) => anyhow!("filter: {message}"),
        (Some(_), _) => anyhow!("{message}"),
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
