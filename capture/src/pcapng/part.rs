//! Which file of a set one is: its name, and what its section says.

use crate::session::Removed;

/// What the files hold together, removed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets, each once however many segments it was cut into.
    pub packets: u64,
    /// Packet blocks.
    pub blocks: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// A file of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// Time of its first packet, for the first file the start; nanoseconds of UTC.
    pub time_ns: u64,
}

impl Part {
    /// `STEM_000001_20261124112233ENDING`, the time in UTC: sorts by number (up to a million
    /// files) and collides with no other.
    #[must_use]
    pub fn name(self, stem: &str, ending: &str) -> String {
        let Self { number, time_ns } = self;
        let time = jiff::Timestamp::from_nanosecond(time_ns.into()).unwrap_or_default();
        format!(
            "{stem}_{number:06}_{}{ending}",
            time.strftime("%Y%m%d%H%M%S")
        )
    }
}

/// What a file's section says of its place in the set, so that a set tells what it held even when
/// its first files are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub number: u32,
    /// What the files before it held.
    pub before: Totals,
}

impl Place {
    pub(super) fn comment(self) -> String {
        let Self { number, before } = self;
        let Totals {
            packets,
            blocks,
            bytes,
        } = before;
        format!(
            "file {number} of a set; before it: packets={packets} blocks={blocks} bytes={bytes}"
        )
    }

    /// From a section's comment; `None` if it says something else.
    pub(super) fn of_comment(text: &str) -> Option<Self> {
        let (number, before) = text
            .strip_prefix("file ")?
            .split_once(" of a set; before it: ")?;
        let mut counts = before.split(' ').zip(["packets=", "blocks=", "bytes="]);
        let mut count = || {
            let (text, name) = counts.next()?;
            text.strip_prefix(name)?.parse().ok()
        };
        Some(Self {
            number: number.parse().ok()?,
            before: Totals {
                packets: count()?,
                blocks: count()?,
                bytes: count()?,
            },
        })
    }

    /// What is gone if this file is the first that is there.
    #[must_use]
    pub fn removed(self) -> Removed {
        let Totals {
            packets,
            blocks,
            bytes,
        } = self.before;
        Removed {
            files: u64::from(self.number.saturating_sub(1)),
            packets,
            blocks,
            bytes,
        }
    }
}
