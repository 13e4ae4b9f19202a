//! One alert to the controller, as HTTP/1.1.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::Deserialize;

use super::{Answer, Decision};

/// How long a connection and an answer may take: the controller gives its agent a second.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// Where alerts go.
#[derive(Debug)]
pub(super) struct Controller {
    address: SocketAddr,
    secret: Option<String>,
}

/// What the controller answers with.
#[derive(Deserialize)]
struct Body {
    decision: String,
    capture_id: Option<String>,
    code: Option<String>,
    reason: Option<String>,
}

impl Controller {
    pub(super) fn new(address: SocketAddr, secret: Option<String>) -> Self {
        Self { address, secret }
    }

    /// Posts an alert. Without an answer it is posted once more: the same alert is one capture.
    pub(super) fn post(&self, alert: &[u8]) -> Answer {
        let answer = self.exchange(alert).or_else(|_first| self.exchange(alert));
        answer.map(|bytes| read(&bytes)).unwrap_or_else(|error| {
            let reason = format!(
                "the controller at {} does not answer ({error}); is remora-controller running?",
                self.address
            );
            Answer::refused("controller_away", reason)
        })
    }

    fn exchange(&self, alert: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&self.address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let authorization = match &self.secret {
            Some(secret) => format!("Authorization: Bearer {secret}\r\n"),
            None => String::new(),
        };
        let head = format!(
            "POST /falco HTTP/1.1\r\nHost: {}\r\nUser-Agent: remora-trigger\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n{authorization}\r\n",
            self.address,
            alert.len()
        );
        // One that is refused by its head may be answered before it is all written.
        let written = stream.write_all(&[head.as_bytes(), alert].concat());
        let mut bytes = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            written?;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }
}

fn read(answer: &[u8]) -> Answer {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let body = end.and_then(|end| serde_json::from_slice::<Body>(&answer[end + 4..]).ok());
    let Some(Body {
        decision,
        capture_id,
        code,
        reason,
    }) = body
    else {
        return Answer::refused("no_answer", "who answered is no remora-controller");
    };
    let reason = reason.unwrap_or_default();
    let (decision, told) = match (decision.as_str(), capture_id) {
        ("accepted", Some(id)) => (Decision::Accepted, id),
        ("existing", Some(id)) => (Decision::Existing, id),
        ("ignored", _) => (Decision::Ignored, reason),
        _ => return Answer::refused(code.as_deref().unwrap_or("no_answer"), reason),
    };
    Answer { decision, told }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_controllers_answers_are_believed() {
        let of = |body: &str| {
            let answer = read(format!("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{body}").as_bytes());
            format!("{} {}", answer.decision.word(), answer.told)
        };
        assert_eq!(
            of(r#"{"decision":"accepted","capture_id":"01JD"}"#),
            "accepted 01JD"
        );
        assert_eq!(
            of(r#"{"decision":"existing","capture_id":"01JD"}"#),
            "existing 01JD"
        );
        let ignored = r#"{"decision":"ignored","reason":"no rule matches"}"#;
        assert_eq!(of(ignored), "ignored no rule matches");
        let refused = r#"{"decision":"refused","code":"busy","reason":"later"}"#;
        assert_eq!(of(refused), "refused busy: later");
        for body in ["", "{}", "<html>", r#"{"decision":"accepted"}"#] {
            assert!(of(body).starts_with("refused no_answer: "), "{body}");
        }
        assert_eq!(read(b"").decision, Decision::Refused);
    }
}
