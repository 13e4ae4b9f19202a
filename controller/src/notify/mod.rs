//! Tells receivers of each stored capture that has ended: what it is, its counts and digests, never packets.
//!
//! ```text
//! agents ──Watch──▶ follow ──ended──▶ compose (asks for the manifest) ──event──▶ a queue a receiver
//!                                                                                   │ one at a time
//!                                              POST, again with pauses that double ◀┘
//! ```
//! The event is an alert as Falcosidekick takes it, so Falcosidekick is a receiver as any webhook is. Each
//! event of a queue is sent, refused by its receiver, given up after [`ATTEMPTS`], or dropped because the
//! queue was full: `remora_controller_notifications_total` has the sum. An event may come twice; its `uuid` is
//! the capture's.
//!
//! What ended while no controller ran is known by the agents: a controller that starts asks each for what ended
//! within `--notify-since`, and an agent that was away for what ran before. So an event is told at least once,
//! by each controller; receivers know it again by its `uuid`.

mod event;
mod follow;
mod receiver;
mod secret;
mod url;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;

use crate::{args::NotifyArgs, fleet::Fleet, metrics::Metrics};
use follow::{Ended, Follower};
use receiver::{Delivery, Receiver};

pub use receiver::ReceiverError;
pub use secret::SecretError;
pub use url::{ReceiverUrl, UrlError};

/// Events that wait for one receiver: at some 2 KiB each half a MiB.
const QUEUE: usize = 256;
/// Captures whose manifests are waited for: all of an agent's several times over.
const ENDED: usize = 512;
/// Manifests that are asked for at a time.
const AT_ONCE: usize = 8;
/// How often an event is tried, with pauses from [`receiver::PAUSE_MIN`] on that double: about a minute.
pub const ATTEMPTS: u32 = 8;

/// What became of an event at one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notified {
    Sent,
    /// The receiver says that it will not have it.
    Refused,
    /// The receiver was away, or faulty, all the time.
    Failed,
    /// Too many wait.
    Dropped,
}

impl Notified {
    pub const ALL: [Self; 4] = [Self::Sent, Self::Refused, Self::Failed, Self::Dropped];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// An event as it is posted.
type Body = Arc<str>;

/// Follows agents, and tells.
#[derive(Debug)]
pub(crate) struct Notifier {
    receivers: Vec<Receiver>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    /// What ended later is told, if it is not too long before the start.
    since: Option<Timestamp>,
}

impl Notifier {
    /// Calls nobody yet; `None`: there is nobody to tell.
    pub(crate) fn build(
        args: &NotifyArgs,
        fleet: Arc<Fleet>,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Self>, ReceiverError> {
        if args.notify.is_empty() {
            return Ok(None);
        }
        let receivers = Receiver::all(args)?;
        Ok(Some(Self {
            receivers,
            fleet,
            metrics: metrics.clone(),
            since: since(args.notify_since, Timestamp::now()),
        }))
    }

    /// For ever.
    pub(crate) async fn run(&self) {
        let (ended, waiting) = mpsc::channel(ENDED);
        let (queues, receiving): (Vec<_>, Vec<_>) = self
            .receivers
            .iter()
            .map(|receiver| {
                let (queue, events) = mpsc::channel(QUEUE);
                (queue, self.deliver(receiver, events))
            })
            .unzip();
        tokio::join!(
            self.follow(ended),
            self.compose(waiting, queues),
            join_all(receiving)
        );
    }

    /// Each agent that there is, as long as there is.
    async fn follow(&self, ended: mpsc::Sender<Ended>) {
        let mut roster = self.fleet.subscribe();
        let mut following = FuturesUnordered::new();
        let mut followed: Vec<Arc<str>> = Vec::new();
        loop {
            let nodes: Vec<Arc<str>> = roster.borrow_and_update().nodes().cloned().collect();
            for node in nodes {
                if let Err(at) = followed.binary_search(&node) {
                    followed.insert(at, node.clone());
                    let follower = Follower::new(node, ended.clone(), self.since);
                    following.push(follower.run(&self.fleet, || self.drop_for_all()));
                }
            }
            tokio::select! {
                changed = roster.changed() => if changed.is_err() {
                    // No other agent comes any more.
                    while following.next().await.is_some() {}
                    return;
                },
                Some(gone) = following.next() => followed.retain(|node| *node != gone),
            }
        }
    }

    /// Events of what has ended, into each receiver's queue.
    async fn compose(&self, waiting: mpsc::Receiver<Ended>, queues: Vec<mpsc::Sender<Body>>) {
        let mut events = ReceiverStream::new(waiting)
            .map(|ended| async move {
                let manifest = ended.manifest().await;
                event::event(&ended.state, manifest.as_ref())
            })
            .buffer_unordered(AT_ONCE);
        while let Some(event) = events.next().await {
            self.hand_out(&event.to_string().into(), &queues);
        }
    }

    fn hand_out(&self, body: &Body, queues: &[mpsc::Sender<Body>]) {
        for (queue, receiver) in queues.iter().zip(&self.receivers) {
            if queue.try_send(body.clone()).is_err() {
                tracing::warn!(
                    receiver = %receiver.url(),
                    "{QUEUE} notifications wait for this receiver: one was dropped"
                );
                self.metrics.notified(Notified::Dropped);
            }
        }
    }

    fn drop_for_all(&self) {
        tracing::warn!("{ENDED} captures wait to be notified: one is not");
        for _receiver in &self.receivers {
            self.metrics.notified(Notified::Dropped);
        }
    }

    async fn deliver(&self, receiver: &Receiver, mut events: mpsc::Receiver<Body>) {
        while let Some(body) = events.recv().await {
            let notified = self.deliver_one(receiver, &body).await;
            self.metrics.notified(notified);
        }
    }

    async fn deliver_one(&self, receiver: &Receiver, body: &Body) -> Notified {
        let mut pause = receiver::PAUSE_MIN;
        for attempt in 1..=ATTEMPTS {
            let url = receiver.url();
            match receiver.post(body).await {
                Delivery::Taken => return Notified::Sent,
                Delivery::Refused(status) => {
                    tracing::warn!(receiver = %url, %status, "a notification was refused");
                    return Notified::Refused;
                }
                Delivery::Failed(why) if attempt == ATTEMPTS => {
                    tracing::warn!(receiver = %url, why, "a notification was given up");
                }
                Delivery::Failed(why) => {
                    if attempt == 1 {
                        tracing::warn!(receiver = %url, why, "a notification waits");
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(receiver::PAUSE_MAX);
                }
            }
        }
        Notified::Failed
    }
}

/// `None`: what ended before is not told.
fn since(seconds: u64, now: Timestamp) -> Option<Timestamp> {
    let before = Duration::from_secs(seconds);
    (seconds > 0).then(|| now.checked_sub(before).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpListener};

    use super::*;
    use crate::fleet::{connections, roster::Roster};

    /// A fleet without agents.
    fn nobody() -> Arc<Fleet> {
        let (_, roster) = tokio::sync::watch::channel(Arc::new(Roster::default()));
        Arc::new(Fleet::new(roster, connections::plain()))
    }

    fn notifier(urls: &[String]) -> (Notifier, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        let args = NotifyArgs {
            notify: urls.iter().map(|url| url.parse().unwrap()).collect(),
            ..NotifyArgs::default()
        };
        let notifier = Notifier::build(&args, nobody(), &metrics).unwrap().unwrap();
        (notifier, metrics)
    }

    fn counted(metrics: &Metrics, result: &str) -> bool {
        let line = format!("remora_controller_notifications_total{{result=\"{result}\"}} 1\n");
        metrics.text().contains(&line)
    }

    /// A receiver that answers each request so.
    async fn answering(status: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _read = stream.read(&mut request).await;
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                let _sent = stream.write_all(answer.as_bytes()).await;
            }
        });
        url
    }

    #[tokio::test]
    async fn an_event_is_sent_or_refused() {
        for (status, expected) in [
            ("204 No Content", Notified::Sent),
            ("401 Unauthorized", Notified::Refused),
            ("404 Not Found", Notified::Refused),
        ] {
            let (notifier, _) = notifier(&[answering(status).await]);
            let told = notifier
                .deliver_one(&notifier.receivers[0], &"{}".into())
                .await;
            assert_eq!(told, expected, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_stays_away_is_given_up_after_a_minute() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", closed.local_addr().unwrap());
        drop(closed);
        let (notifier, _) = notifier(&[url]);
        let began = tokio::time::Instant::now();
        let told = notifier
            .deliver_one(&notifier.receivers[0], &"{}".into())
            .await;
        assert_eq!(told, Notified::Failed);
        assert!(began.elapsed() > std::time::Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_full_queue_drops_for_its_receiver_alone_and_counts() {
        let urls = ["http://a/", "http://b/"].map(str::to_owned);
        let (notifier, metrics) = notifier(&urls);
        let (small, _full) = mpsc::channel(1);
        let (large, mut events) = mpsc::channel(2);
        let queues = [small, large];
        for body in ["1", "2"] {
            notifier.hand_out(&body.into(), &queues);
        }
        assert!(counted(&metrics, "dropped"), "{}", metrics.text());
        assert_eq!(events.try_recv().as_deref(), Ok("1"));
        assert_eq!(events.try_recv().as_deref(), Ok("2"));
    }

    #[test]
    fn a_receiver_by_tls_needs_to_know_who_may_sign_it() {
        let args = NotifyArgs {
            notify: vec!["https://h/".parse().unwrap()],
            ..NotifyArgs::default()
        };
        let error = Notifier::build(&args, nobody(), &Arc::default()).unwrap_err();
        assert!(error.to_string().contains("give --notify-ca"), "{error}");
    }
}
