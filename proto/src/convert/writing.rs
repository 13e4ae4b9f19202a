//! How files are written, and what they came to.

use std::num::{NonZeroU32, NonZeroU64};

use remora_capture::session::{Compression, Durability, Files, Removed, Rotation, Writing};

use super::{ConvertError, known, time};
use crate::v1;

impl TryFrom<v1::Writing> for Writing {
    type Error = ConvertError;

    fn try_from(writing: v1::Writing) -> Result<Self, ConvertError> {
        let v1::Writing {
            rotate_bytes,
            rotate_interval,
            files,
            compression,
            sync,
        } = writing;
        let interval = time::duration(
            "spec.writing.rotate_interval",
            rotate_interval.unwrap_or_default(),
        )?;
        Ok(Self {
            rotation: Rotation {
                file_bytes: NonZeroU64::new(rotate_bytes),
                interval: Some(interval).filter(|interval| !interval.is_zero()),
                files: NonZeroU32::new(files),
            },
            compression: match known("spec.writing.compression", compression)? {
                v1::Compression::Unspecified => Compression::None,
                v1::Compression::Zstd => Compression::Zstd,
            },
            durability: if sync {
                Durability::Synced
            } else {
                Durability::Cached
            },
        })
    }
}

impl From<&Writing> for v1::Writing {
    fn from(writing: &Writing) -> Self {
        let Writing {
            rotation,
            compression,
            durability,
        } = *writing;
        let Rotation {
            file_bytes,
            interval,
            files,
        } = rotation;
        Self {
            rotate_bytes: file_bytes.map_or(0, NonZeroU64::get),
            rotate_interval: interval.map(time::duration_out),
            files: files.map_or(0, NonZeroU32::get),
            compression: match compression {
                Compression::None => v1::Compression::Unspecified,
                Compression::Zstd => v1::Compression::Zstd,
            }
            .into(),
            sync: durability == Durability::Synced,
        }
    }
}

impl From<v1::Files> for Files {
    fn from(files: v1::Files) -> Self {
        let v1::Files {
            count,
            removed,
            removed_packets,
            removed_blocks,
            removed_bytes,
            blocks,
        } = files;
        Self {
            count,
            removed: Removed {
                files: removed,
                packets: removed_packets,
                blocks: removed_blocks,
                bytes: removed_bytes,
            },
            blocks,
        }
    }
}

impl From<Files> for v1::Files {
    fn from(files: Files) -> Self {
        let Files {
            count,
            removed:
                Removed {
                    files: removed,
                    packets,
                    blocks: removed_blocks,
                    bytes,
                },
            blocks,
        } = files;
        Self {
            count,
            removed,
            removed_packets: packets,
            removed_blocks,
            removed_bytes: bytes,
            blocks,
        }
    }
}
