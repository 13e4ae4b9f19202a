//! What lasts: a stream or a watch, for as long as its reader may have it, and the account of what he got.

use std::sync::Arc;

use tokio::{
    sync::mpsc::{Receiver, Sender},
    time::{Instant, interval_at},
};
use tonic::Status;

use super::access::{ALLOW_FOR, Access, Caller, Verb, Wish};

/// Whose it is, and what it is about.
pub(super) struct Relay {
    pub(super) access: Arc<dyn Access>,
    pub(super) caller: Caller,
    pub(super) verb: Verb,
    /// `None`: in no namespace.
    pub(super) namespace: Option<String>,
    pub(super) target: String,
    pub(super) capture: String,
}

impl Relay {
    fn wish(&self) -> Wish<'_> {
        Wish::new(self.verb, self.namespace.as_deref(), &self.capture).about(&self.target, "")
    }

    /// Hands on all that comes, while the caller may have it; `bytes`: of packets in a message.
    pub(super) async fn run<T>(
        self,
        mut from: Receiver<Result<T, Status>>,
        to: Sender<Result<T, Status>>,
        bytes: fn(&T) -> u64,
    ) {
        let mut read = 0;
        let mut again = interval_at(Instant::now() + ALLOW_FOR, ALLOW_FOR);
        let fault = loop {
            tokio::select! {
                biased;
                _ = again.tick() => {
                    if let Err(denied) = self.access.still(&self.caller, self.wish()).await {
                        let _gone = to.send(Err(denied)).await;
                        break "the right was taken away";
                    }
                }
                message = from.recv() => {
                    let Some(message) = message else { break "" };
                    let in_it = message.as_ref().map_or(0, bytes);
                    if to.send(message).await.is_err() {
                        break "the reader went away";
                    }
                    read += in_it;
                }
                () = to.closed() => break "the reader went away",
            }
        };
        if self.verb == Verb::Read {
            self.access
                .read(&self.caller, self.wish(), read, fault)
                .await;
        }
    }
}
