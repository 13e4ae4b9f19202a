//! A capture's stream to its one reader.

use std::time::Duration;

use bytes::Bytes;
use remora_capture::session::StopReason;
use tokio::{runtime::Handle, sync::mpsc, time::timeout};

use crate::{
    session::ChunkReceiver,
    writer::{AppendError, Sink},
};

/// Chunks between the writer and the reader's connection: with the writer's own queue some
/// 12 MiB, beyond which a slow reader loses packets.
const CHUNKS: usize = 16;
/// A reader that takes nothing for so long is gone.
const STALL: Duration = Duration::from_secs(10);

/// Sends batches as they are: whole blocks.
#[derive(Debug)]
pub struct StreamSink {
    /// `None` once the reader is gone.
    reader: Option<mpsc::Sender<Bytes>>,
    runtime: Handle,
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
            },
            chunks,
        )
    }
}

impl Sink for StreamSink {
    fn append(&mut self, blocks: Vec<u8>) -> Result<Option<Vec<u8>>, AppendError> {
        let Some(reader) = &self.reader else {
            return Err(gone(blocks, "the stream's reader is gone"));
        };
        let problem = match room(&self.runtime, reader) {
            Ok(room) => {
                room.send(Bytes::from(blocks));
                return Ok(None);
            }
            Err(problem) => problem,
        };
        self.reader = None;
        Err(gone(blocks, problem))
    }

    fn finish(&mut self) -> Result<(), String> {
        self.reader = None;
        Ok(())
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

fn gone(blocks: Vec<u8>, problem: &str) -> AppendError {
    AppendError {
        taken: 0,
        blocks,
        reason: StopReason::ReaderGone,
        problem: problem.to_owned(),
    }
}
