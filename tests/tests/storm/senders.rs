//! Many senders of alerts at once, and what they were answered.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use remora_capture::evidence::Digest;
use remora_tests::{
    controller::{self, c2_alert},
    http::{self, Request},
    netns::Netns,
    node::Pod,
};

/// Falco, Falcosidekick and whoever else, each with one request at a time.
const SENDERS: usize = 16;
/// How long a sender that repeats goes on.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// An alert as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Alert {
    pub(crate) body: Vec<u8>,
    pub(crate) path: &'static str,
}

impl Alert {
    /// Of a connection of `pod` to `remote`; each number is another alert.
    pub(crate) fn new(pod: &Pod, remote: SocketAddr, number: usize) -> Result<Self> {
        let port = 10_000 + u16::try_from(number % 50_000)?;
        let mut alert = c2_alert(pod, remote, port);
        alert["uuid"] = format!("00000000-0000-4000-8000-{number:012}").into();
        alert["time"] = jiff::Timestamp::now().to_string().into();
        Ok(Self {
            body: serde_json::to_vec(&alert)?,
            path: if number.is_multiple_of(2) {
                "/"
            } else {
                "/falco"
            },
        })
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.body)
    }
}

/// What one was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Which of the alerts.
    pub(crate) alert: usize,
    pub(crate) status: u16,
    pub(crate) decision: String,
    pub(crate) capture: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) took: Duration,
}

impl Answer {
    /// Worth another try: nobody decided about the alert itself.
    pub(crate) fn is_passing(&self) -> bool {
        let passing = [
            "agent_away",
            "agent_timeout",
            "agent_failed",
            "draining",
            "busy",
        ];
        self.code
            .as_deref()
            .is_some_and(|code| passing.contains(&code))
    }
}

/// How a sender takes it that nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// As Falcosidekick: once.
    Once,
    /// Until the alert is decided about.
    Repeats,
}

/// Sends all; answers in the order of the alerts. `sent` counts those that were answered.
pub(crate) fn send(
    netns: &Netns,
    to: SocketAddr,
    alerts: &[Alert],
    how: Sender,
    sent: &AtomicUsize,
) -> Result<Vec<Answer>> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(Vec::with_capacity(alerts.len()));
    thread::scope(|scope| -> Result<()> {
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(alert) = alerts.get(number) else {
                            return Ok(());
                        };
                        let answer = send_one(netns, to, alert, number, how)?;
                        sent.fetch_add(1, Ordering::Relaxed);
                        answers
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(answer);
                    }
                })
            })
            .collect();
        senders
            .into_iter()
            .try_for_each(|sender| match sender.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })?;
    let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    answers.sort_by_key(|answer| answer.alert);
    ensure!(answers.len() == alerts.len(), "{} answers", answers.len());
    Ok(answers)
}

fn send_one(
    netns: &Netns,
    to: SocketAddr,
    alert: &Alert,
    number: usize,
    how: Sender,
) -> Result<Answer> {
    let begun = Instant::now();
    loop {
        let answer = post(netns, to, alert, number);
        let settled = answer.as_ref().is_ok_and(|answer| !answer.is_passing());
        if settled || how == Sender::Once {
            return answer;
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "alert {number} is not decided about: {answer:?}"
        );
        thread::sleep(PAUSE);
    }
}

fn post(netns: &Netns, to: SocketAddr, alert: &Alert, number: usize) -> Result<Answer> {
    let begun = Instant::now();
    let response = http::over_tcp(netns, to, Request::post_json(alert.path, &alert.body))?;
    let took = begun.elapsed();
    let body = controller::json(&response)?;
    let text = |key: &str| body[key].as_str().map(str::to_owned);
    Ok(Answer {
        alert: number,
        status: response.status,
        decision: text("decision").context("no decision")?,
        capture: text("capture_id"),
        code: text("code"),
        took,
    })
}
