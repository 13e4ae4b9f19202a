//! A capture's packets, of all its parts, as one pcapng.
//!
//! ```text
//! agent a ──▶ ┐   one message of each is asked for at a time; while much waits, only of those that
//! agent b ──▶ ├─▶ the others wait for  ──▶ Merge ──▶ whole blocks ──▶ reader
//! (joined) ─▶ ┘
//! ```
//! When the reader goes, so do the streams from the agents: captures that have no other
//! destination end by that.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use remora_capture::{
    merge::{Account, Bounds, Merge, Origin, SourceId},
    pcapng::{Section, whole_blocks},
    session::{CaptureId, Selector},
};
use remora_proto::{
    limits::STREAM_BLOCKS_BYTES_MAX,
    v1::{self, cluster_stream_response::Message, stream_response},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::{Status, Streaming};

use crate::fleet::{
    Fleet,
    whole::{self, Silent, Told},
};

/// How often packets are looked at whose turn comes by the clock.
const SETTLE_EVERY: Duration = Duration::from_millis(100);
/// How often is looked for parts that joined, and for the end.
const PARTS_EVERY: Duration = Duration::from_secs(1);
/// What went wrong with single parts, at most.
const FAILURES_MAX: usize = 20;

type Sender = mpsc::Sender<Result<v1::ClusterStreamResponse, Status>>;
type Blocks = Streaming<v1::StreamResponse>;
type Next = BoxFuture<'static, (SourceId, Blocks, Result<Option<v1::StreamResponse>, Status>)>;

/// Bytes of packets in a message.
pub(super) fn bytes(response: &v1::ClusterStreamResponse) -> u64 {
    match &response.message {
        Some(Message::Blocks(blocks)) => blocks.len() as u64,
        Some(Message::Finished(_)) | None => 0,
    }
}

/// The reader went away.
struct Gone;

/// The streams of a capture on their way into one.
pub(super) struct Merged {
    fleet: Arc<Fleet>,
    id: CaptureId,
    capture: v1::ClusterCapture,
    silent: Vec<Silent>,
    merge: Merge,
    bounds: Bounds,
    began: Instant,
    /// By node and the session's id there.
    sources: HashMap<(String, String), SourceId>,
    nodes: HashMap<SourceId, String>,
    asked: FuturesUnordered<Next>,
    /// Streams of which nothing is asked for now.
    parked: HashMap<SourceId, Blocks>,
    failures: Vec<String>,
}

impl Merged {
    pub(super) fn new(
        fleet: Arc<Fleet>,
        id: CaptureId,
        capture: v1::ClusterCapture,
        silent: Vec<Silent>,
    ) -> Self {
        let bounds = if whole::is_over(&capture) {
            Bounds::STORED
        } else {
            Bounds::LIVE
        };
        let selector = capture
            .selector
            .clone()
            .and_then(|s| Selector::try_from(s).ok());
        let selected = selector.map_or_else(String::new, |selector| match selector.namespace() {
            Some(namespace) => format!("{selector} in namespace {namespace}"),
            None => selector.to_string(),
        });
        let section = Section {
            application: concat!("remora-controller ", env!("CARGO_PKG_VERSION")),
            comments: &[format!("capture {id} of {selected}, merged from its parts")],
            ..Section::default()
        };
        Self {
            fleet,
            id,
            capture,
            silent,
            merge: Merge::new(&section, bounds),
            bounds,
            began: Instant::now(),
            sources: HashMap::new(),
            nodes: HashMap::new(),
            asked: FuturesUnordered::new(),
            parked: HashMap::new(),
            failures: Vec::new(),
        }
    }

    /// Sends all of it, then the final state.
    pub(super) async fn send(mut self, told: Vec<Told>, sender: Sender) {
        self.open(told).await;
        if self.pump(&sender).await.is_err() {
            tracing::debug!(capture = %self.id, "the stream's reader went away");
            return;
        }
        let Self {
            merge,
            mut capture,
            failures,
            fleet,
            id,
            mut silent,
            ..
        } = self;
        let (rest, account) = merge.finish();
        if send_blocks(&sender, rest).await.is_err() {
            return;
        }
        let (told, late) = fleet.known_parts(id).await;
        silent.extend(late);
        silent.sort_by(|a, b| a.node.cmp(&b.node));
        silent.dedup_by(|a, b| a.node == b.node);
        if let Some(now) = whole::whole(&id.to_string(), told, &silent) {
            capture = now;
        }
        capture.message = message(&capture.message, account, &failures);
        let finished = v1::ClusterStreamResponse {
            message: Some(Message::Finished(capture)),
        };
        let _gone = sender.send(Ok(finished)).await;
    }

    async fn pump(&mut self, sender: &Sender) -> Result<(), Gone> {
        let mut settle = interval(SETTLE_EVERY);
        settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut parts = interval(PARTS_EVERY);
        parts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        parts.reset();
        let is_live = self.bounds.hold.is_some();
        loop {
            self.ask();
            if self.asked.is_empty() && (!is_live || whole::is_over(&self.capture)) {
                return Ok(());
            }
            tokio::select! {
                Some((id, blocks, message)) = self.asked.next() => self.came(id, blocks, message),
                _ = settle.tick() => {}
                _ = parts.tick(), if is_live => self.look().await,
                () = sender.closed() => return Err(Gone),
            }
            let ready = self.merge.take(self.began.elapsed());
            send_blocks(sender, ready).await?;
        }
    }

    /// Asks for the next message of each stream, or of those alone that the others wait for while
    /// much waits.
    fn ask(&mut self) {
        let is_live = self.bounds.hold.is_some();
        let has_room = is_live && self.merge.waiting_bytes() < self.bounds.bytes / 2;
        let ready: Vec<SourceId> = if has_room {
            self.parked.keys().copied().collect()
        } else {
            self.merge.wanted().collect()
        };
        for id in ready {
            if let Some(mut blocks) = self.parked.remove(&id) {
                self.asked.push(Box::pin(async move {
                    let message = blocks.message().await;
                    (id, blocks, message)
                }));
            }
        }
    }

    fn came(
        &mut self,
        id: SourceId,
        blocks: Blocks,
        message: Result<Option<v1::StreamResponse>, Status>,
    ) {
        let failure = match message.map(|message| message.and_then(|message| message.message)) {
            Ok(Some(stream_response::Message::Blocks(bytes))) => {
                match self.merge.push(id, &bytes, self.began.elapsed()) {
                    Ok(()) => {
                        self.parked.insert(id, blocks);
                        return;
                    }
                    Err(error) => error.to_string(),
                }
            }
            Ok(Some(stream_response::Message::Finished(_))) => {
                self.merge.end(id);
                return;
            }
            Ok(None) => "its stream ended without its final state".to_owned(),
            Err(status) => format!("its stream broke: {}", status.message()),
        };
        self.merge.end(id);
        let node = self.nodes.get(&id).cloned().unwrap_or_default();
        tracing::warn!(capture = %self.id, node, failure, "a part's packets end early");
        self.fail(&node, &failure);
    }

    fn fail(&mut self, node: &str, failure: &str) {
        if self.failures.len() < FAILURES_MAX {
            let failure = remora_capture::text::shown(failure);
            self.failures.push(format!("node {node}: {failure}"));
        }
    }

    /// Parts that joined, and how all stand.
    async fn look(&mut self) {
        let (told, silent) = self.fleet.known_parts(self.id).await;
        if let Some(now) = whole::whole(&self.id.to_string(), told.clone(), &silent) {
            self.capture = now;
        }
        self.silent = silent;
        self.open(told).await;
    }

    /// Opens the streams of parts that are not read yet, side by side.
    async fn open(&mut self, told: Vec<Told>) {
        let fresh: Vec<_> = told
            .into_iter()
            .map(|told| (told.node, told.state.id))
            .filter(|key| !self.sources.contains_key(key))
            .collect();
        let fleet = &self.fleet;
        let opens = fresh.into_iter().map(|(node, session)| async move {
            let clock = fleet.clock(&node).await;
            let stream = match fleet.agent(&node) {
                Ok(agent) => agent.stream(&session).await,
                Err(error) => Err(error),
            };
            (node, session, clock, stream)
        });
        for (node, session, clock, stream) in futures_util::future::join_all(opens).await {
            let origin = Origin {
                node: node.clone(),
                clock,
            };
            let Some(id) = self.merge.add(origin) else {
                self.fail(&node, "there are too many parts");
                continue;
            };
            self.sources.insert((node.clone(), session), id);
            self.nodes.insert(id, node.clone());
            match stream {
                Ok(blocks) => {
                    self.parked.insert(id, blocks);
                }
                Err(error) => {
                    self.merge.end(id);
                    self.fail(&node, &error.text);
                }
            }
        }
    }
}

/// In messages that are not too large, each of whole blocks.
async fn send_blocks(sender: &Sender, blocks: Vec<u8>) -> Result<(), Gone> {
    let mut rest = bytes::Bytes::from(blocks);
    while !rest.is_empty() {
        let fitting = whole_blocks(&rest, STREAM_BLOCKS_BYTES_MAX).bytes;
        // The largest block there is fits; more never stands together.
        let piece = rest.split_to(if fitting == 0 { rest.len() } else { fitting });
        let response = v1::ClusterStreamResponse {
            message: Some(Message::Blocks(piece)),
        };
        sender.send(Ok(response)).await.map_err(|_closed| Gone)?;
    }
    Ok(())
}

fn message(told: &str, account: Account, failures: &[String]) -> String {
    let mut texts: Vec<String> = [told]
        .iter()
        .filter(|t| !t.is_empty())
        .map(|t| (*t).to_owned())
        .collect();
    if account.late > 0 {
        texts.push(format!(
            "{} of {} packets are out of order, by {:?} at most, and say so",
            account.late, account.packets, account.latest
        ));
    }
    texts.extend_from_slice(failures);
    texts.join("; ")
}
