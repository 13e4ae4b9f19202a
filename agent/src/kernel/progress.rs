//! The ring reader's progress, in its map.

use std::{io, os::unix::fs::MetadataExt as _};

use aya::maps::{Array, MapData};
use remora_agent_common::checkpoint::Checkpoint;

use super::{KernelError, layouts::Layout, tables::failed};
use crate::writer::progress::KeepCheckpoint;

/// What a reader of pinned maps goes on with.
pub struct Progress {
    pub keep: Box<dyn KeepCheckpoint>,
    pub last: Box<Checkpoint>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

struct CheckpointMap(Array<MapData, Layout<Checkpoint>>);

impl KeepCheckpoint for CheckpointMap {
    fn keep(&mut self, checkpoint: &Checkpoint) {
        let Self(map) = self;
        if let Err(error) = map.set(0, Layout(*checkpoint), 0) {
            tracing::error!(%error, "failed to keep how far the ring was read");
        }
    }
}

impl Progress {
    /// # Errors
    /// The kernel refuses, or the interfaces meant are those of another network namespace.
    pub(super) fn of(map: Array<MapData, Layout<Checkpoint>>) -> Result<Self, KernelError> {
        let Layout(mut last) = map.get(&0, 0).map_err(failed("CHECKPOINT"))?;
        let netns = std::fs::metadata("/proc/self/ns/net")
            .map_err(|error| KernelError::Io("look at the network namespace", error))?
            .ino();
        if last.netns != 0 && last.netns != netns {
            return Err(KernelError::Io(
                "go on with pinned maps: they are of another network namespace; use another \
                 directory, or remove them by `remora-agent cleanup`",
                io::ErrorKind::Unsupported.into(),
            ));
        }
        last.netns = netns;
        Ok(Self {
            keep: Box::new(CheckpointMap(map)),
            last: Box::new(last),
        })
    }
}
