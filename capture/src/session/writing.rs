//! How a capture's files are written.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Limits, SpecError};
use crate::pcapng::FILES_MAX;

/// Smallest size at which files rotate, in bytes.
pub const ROTATION_BYTES_MIN: u64 = 4096;

/// What the files are made like. A stream is always one plain pcapng: its reader does this itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Writing {
    pub rotation: Rotation,
    pub compression: Compression,
    pub durability: Durability,
}

/// When a file ends and the next begins. A packet longer than a whole file gets one of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rotation {
    /// Bytes of pcapng (before compression) that no file exceeds.
    pub file_bytes: Option<NonZeroU64>,
    /// Files begin at multiples of it from the capture's start, by the packets' times.
    pub interval: Option<Duration>,
    /// With `file_bytes`: files that are kept, the oldest goes. Else: files after which the
    /// capture ends.
    pub files: Option<NonZeroU32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    #[default]
    None,
    /// `.pcapng.zst`
    Zstd,
}

/// What becomes of a packet that the network stack has not cut into segments yet (GSO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuperPackets {
    /// One block, with a comment that tells its segments.
    #[default]
    Whole,
    /// A block for each segment, as the wire would have carried it, all with the packet's id.
    /// Counts and limits are of packets all the same.
    Segmented,
}

/// When what was written is on the disk, so that it outlasts the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// When the kernel thinks so; the last file when it is closed.
    #[default]
    Cached,
    /// After 250 ms or 4 MiB, and every file when it is closed (fdatasync): for evidence.
    Synced,
}

impl Writing {
    /// # Errors
    /// [`SpecError::Writing`].
    pub fn validate(&self, limits: &Limits) -> Result<(), SpecError> {
        self.rotation.validate()?;
        if self.rotation.is_on() && limits.file_bytes.is_some() {
            return Err(SpecError::Writing(
                "a file size limit is for a capture of one file; with rotation use a number of \
                 files (-W), of packets (-c) or a time (-a duration)",
            ));
        }
        Ok(())
    }
}

impl Compression {
    /// How a file's name ends.
    #[must_use]
    pub fn ending(self) -> &'static str {
        match self {
            Self::None => ".pcapng",
            Self::Zstd => ".pcapng.zst",
        }
    }
}

impl Rotation {
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.file_bytes.is_some() || self.interval.is_some()
    }

    /// The oldest file goes when there are too many.
    #[must_use]
    pub fn is_ring(&self) -> bool {
        self.file_bytes.is_some() && self.files.is_some()
    }

    /// How long a capture lasts whose number of files is its end.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        match (self.interval, self.files) {
            (Some(interval), Some(files)) if self.file_bytes.is_none() => {
                Some(interval.saturating_mul(files.get()))
            }
            _ => None,
        }
    }

    /// # Errors
    /// [`SpecError::Writing`].
    pub fn validate(&self) -> Result<(), SpecError> {
        let refuse = |why| Err(SpecError::Writing(why));
        if self
            .file_bytes
            .is_some_and(|n| n.get() < ROTATION_BYTES_MIN)
        {
            return refuse("a file of a set has at least 4096 bytes");
        }
        if self.interval.is_some_and(|i| i < Duration::from_secs(1)) {
            return refuse("files rotate every second at the most often");
        }
        if self.files.is_some() && !self.is_on() {
            return refuse(
                "a number of files needs a size (-C) or a time (-G) at which they rotate",
            );
        }
        if self.files.is_some_and(|n| n.get() > FILES_MAX) {
            return refuse("a set has at most 9999 files");
        }
        Ok(())
    }
}
