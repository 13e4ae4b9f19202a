//! A capture's stream to its one reader.

use std::time::Duration;

use bytes::Bytes;
use remora_capture::{
    pcapng::{Finished, Totals, Whole},
    session::StopReason,
};
use tokio::{runtime::Handle, sync::mpsc, time::timeout};

use crate::{
    session::ChunkReceiver,
    writer::{AppendError, Blocks, Sink},
};

/// Chunks between the writer and the reader's connection: with the writer's own queue some
/// 12 MiB, beyond which a slow reader loses packets. They are batches like those in the queue, and
/// bounded with them.
const CHUNKS: usize = 16;
/// A reader that takes nothing for so long is gone.
const STALL: Duration = Duration::from_secs(10);

/// Sends batches as they are: whole blocks.
#[derive(Debug)]
pub struct StreamSink {
    /// `None` once the reader is gone.
    reader: Option<mpsc::Sender<Bytes>>,
    runtime: Handle,
    totals: Totals,
}

impl StreamSink {
    /// A stream and its reading end.
    #[must_use]
    pub fn new(runtime: Handle) -> (Self, ChunkReceiver) {
        let (reader, chunks) = mpsc::channel(CHUNKS);
        (
            Self {
                reader: Some(reader),
                runtime,
                totals: Totals::default(),
            },
            chunks,
        )
    }
}

impl Sink for StreamSink {
    fn append(&mut self, blocks: Blocks, counted: Whole) -> Result<(), AppendError> {
        let Some(reader) = &self.reader else {
            return Err(gone("the stream's reader is gone"));
        };
        let room = room(&self.runtime, reader).map(|room| room.send(Bytes::from_owner(blocks)));
        if let Err(problem) = room {
            self.reader = None;
            return Err(gone(problem));
        }
        self.totals.packets += counted.packets;
        self.totals.blocks += counted.blocks;
        self.totals.bytes += counted.bytes as u64;
        Ok(())
    }

    fn totals(&self) -> Totals {
        self.totals
    }

    fn finish(&mut self) -> (Finished, Result<(), String>) {
        self.reader = None;
        (Finished::default(), Ok(()))
    }
}

/// Room for one batch. Blocks the writer's thread for [`STALL`] at the most.
fn room<'a>(
    runtime: &Handle,
    reader: &'a mpsc::Sender<Bytes>,
) -> Result<mpsc::Permit<'a, Bytes>, &'static str> {
    match runtime.block_on(async { timeout(STALL, reader.reserve()).await }) {
        Ok(room) => room.map_err(|_closed| "the stream's reader went away"),
        Err(_elapsed) => Err("the stream's reader took nothing for 10 seconds"),
    }
}

fn gone(problem: &str) -> AppendError {
    AppendError {
        reason: StopReason::ReaderGone,
        problem: problem.to_owned(),
    }
}
