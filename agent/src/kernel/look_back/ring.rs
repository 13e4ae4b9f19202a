//! A ring: its map, and copies of it.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aya::maps::{Array, MapData};
use remora_agent_common::{
    look_back::{HEAD_BYTES, PAGE_BYTES, PAGE_SHIFT, PAGE_VALUE, RECORD_MAX, RingHead},
    record::HEADER_LEN,
};

use super::super::{KernelError, layouts::Layout, tables::failed};
use crate::record::look_back::{Copied, Reading};

/// `BPF_F_INNER_MAP`, as the object's map has it.
const INNER_MAP: u32 = 1 << 12;
/// Silence after which a flow's bytes are counted anew: a beacon is recorded each time, however
/// long its connection has been there; a bulk transfer is never so long silent.
const FLOW_PAUSE: Duration = Duration::from_secs(2);
type Page = [u8; PAGE_VALUE];
pub(super) type RingMap = Array<MapData, Layout<Page>>;

/// In its slot.
pub(super) struct Ring {
    pub(super) map: RingMap,
    pub(super) slot: u32,
    pub(super) pages: u32,
    pub(super) begun_ns: u64,
}

impl Ring {
    pub(super) fn reading(&self) -> Result<Reading, KernelError> {
        Ok(Reading {
            copied: self.copy()?,
            begun_ns: self.begun_ns,
        })
    }

    fn copy(&self) -> Result<Copied, KernelError> {
        let before = self.head()?;
        let written = (before.position >> PAGE_SHIFT) + 1;
        let mut pages = (0..self.pages)
            .take(usize::try_from(written).unwrap_or(usize::MAX))
            .map(|page| self.page(page))
            .collect::<Result<Vec<_>, _>>()?;
        // A pod that said little is kept in little memory.
        if written <= u64::from(self.pages)
            && let Some(last) = pages.last_mut()
        {
            let used = HEAD_BYTES + before.position as u32 % PAGE_BYTES;
            *last = last.iter().copied().take(used as usize).collect();
        }
        let after = self.head()?;
        Ok(Copied {
            before,
            after,
            pages,
        })
    }

    fn page(&self, page: u32) -> Result<Box<[u8]>, KernelError> {
        let Layout(bytes) = self.map.get(&page, 0).map_err(failed("LOOK_BACK"))?;
        Ok(Box::new(bytes))
    }

    fn head(&self) -> Result<RingHead, KernelError> {
        Ok(head(&self.page(0)?))
    }
}

/// Copied once, by the first who waited until no program writes it any more.
pub(super) struct Frozen(Mutex<Held>);

/// A slot that a copied ring does not need any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenBack {
    pub(super) slot: u32,
    pub(super) pages: u32,
}

enum Held {
    InKernel(Ring),
    Copied(Arc<Reading>),
}

impl Frozen {
    pub(super) fn new(ring: Ring) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Held::InKernel(ring))))
    }

    /// Of user space's memory.
    pub(super) fn bytes(&self) -> u64 {
        let Self(held) = self;
        match &*held.lock().unwrap_or_else(PoisonError::into_inner) {
            Held::InKernel(_) => 0,
            Held::Copied(reading) => reading
                .copied
                .pages
                .iter()
                .map(|page| page.len() as u64)
                .sum(),
        }
    }

    /// Copies it, once; with what is given back if this was the time.
    pub(super) fn copy(&self) -> Result<(Arc<Reading>, Option<GivenBack>), KernelError> {
        let Self(held) = self;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let given_back = match &*held {
            Held::Copied(reading) => return Ok((Arc::clone(reading), None)),
            Held::InKernel(ring) => GivenBack {
                slot: ring.slot,
                pages: ring.pages,
            },
        };
        let reading = Self::of(&held)?;
        *held = Held::Copied(Arc::clone(&reading));
        Ok((reading, Some(given_back)))
    }

    fn of(held: &Held) -> Result<Arc<Reading>, KernelError> {
        match held {
            Held::Copied(reading) => Ok(Arc::clone(reading)),
            Held::InKernel(ring) => ring.reading().map(Arc::new),
        }
    }
}

/// A ring's map, ready to be written. `flow_cutoff` 0: none.
pub(super) fn made(pages: u32, flow_cutoff: u64) -> Result<RingMap, KernelError> {
    let mut map = empty(pages)?;
    let head = RingHead {
        cookie: random()?,
        pages: pages.into(),
        cutoff: match flow_cutoff {
            0 => u64::MAX,
            bytes => bytes,
        },
        pause_ns: u64::try_from(FLOW_PAUSE.as_nanos()).unwrap_or(u64::MAX),
        snaplen: RECORD_MAX - HEADER_LEN as u32,
        ..RingHead::default()
    };
    let mut first = Box::new(Layout([0; PAGE_VALUE]));
    first.0[..HEAD_BYTES as usize].copy_from_slice(&head_bytes(&head));
    map.set(0, *first, 0).map_err(failed("LOOK_BACK"))?;
    Ok(map)
}

pub(super) fn empty(pages: u32) -> Result<RingMap, KernelError> {
    RingMap::create(pages, INNER_MAP).map_err(failed("LOOK_BACK"))
}

fn random() -> Result<u64, KernelError> {
    let mut bytes = [0; 8];
    // SAFETY: the buffer has the 8 bytes that the call is told of; as few are never cut short.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got) == Ok(bytes.len()) {
        Ok(u64::from_ne_bytes(bytes))
    } else {
        Err(KernelError::Io(
            "get a random number",
            io::Error::last_os_error(),
        ))
    }
}

fn head(page: &[u8]) -> RingHead {
    let word = |n: usize| {
        page.get(n * 8..n * 8 + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    };
    RingHead {
        position: word(0),
        cookie: word(1),
        pages: word(2),
        cutoff: word(3),
        pause_ns: word(4),
        snaplen: word(5) as u32,
        reserved: 0,
        packets: word(6),
        cut_packets: word(7),
        cut_bytes: word(8),
        copy_errors: word(9),
        overrun: word(10),
        reserved_end: [0; 5],
    }
}

fn head_bytes(head: &RingHead) -> [u8; HEAD_BYTES as usize] {
    let words = [
        head.position,
        head.cookie,
        head.pages,
        head.cutoff,
        head.pause_ns,
        head.snaplen.into(),
        head.packets,
        head.cut_packets,
        head.cut_bytes,
        head.copy_errors,
        head.overrun,
    ];
    let mut bytes = [0; HEAD_BYTES as usize];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_where_the_programs_write_it() {
        let written = RingHead {
            position: 1,
            cookie: 2,
            pages: 3,
            cutoff: 4,
            pause_ns: 5,
            snaplen: 6,
            packets: 7,
            cut_packets: 8,
            cut_bytes: 9,
            copy_errors: 10,
            overrun: 11,
            ..RingHead::default()
        };
        let bytes = head_bytes(&written);
        assert_eq!(head(&bytes), written);
        assert_eq!(std::mem::offset_of!(RingHead, snaplen), 40);
        assert_eq!(std::mem::offset_of!(RingHead, packets), 48);
        assert_eq!(std::mem::offset_of!(RingHead, overrun), 80);
    }
}
