//! A ring: its map, and copies of it.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
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

/// A ring in its slot.
pub(super) struct Ring {
    map: RingMap,
    pub(super) slot: u32,
    pub(super) pages: u32,
    /// When its tap's programs began to find it, kernel time.
    pub(super) begun_ns: u64,
}

impl Ring {
    /// The ring that `map` is, which lies in `slot`.
    pub(super) fn new(map: RingMap, slot: u32, pages: u32) -> Self {
        Self {
            map,
            slot,
            pages,
            begun_ns: 0,
        }
    }

    /// Makes it as if it were new: nothing of the one who had it is left. No program has it.
    pub(super) fn empty(&mut self, flow_cutoff: u64) -> Result<(), KernelError> {
        let zeroes = page_of_zeroes();
        let written = (self.head()?.position >> PAGE_SHIFT) + 1;
        let pages = u32::try_from(written).map_or(self.pages, |written| written.min(self.pages));
        for page in 1..pages {
            self.map
                .set(page, Box::as_ref(&zeroes), 0)
                .map_err(failed("LOOK_BACK"))?;
        }
        write_head(&mut self.map, self.pages, flow_cutoff)
    }

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

/// A ring that no program finds any more. It is copied once, by the first who waited until none
/// writes it.
pub(super) struct Frozen {
    held: Mutex<Held>,
    /// Of the copy; 0 until it is made.
    bytes: AtomicU64,
}

enum Held {
    InKernel(Ring),
    Copied(Arc<Reading>),
}

impl Frozen {
    pub(super) fn new(ring: Ring) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::new(Held::InKernel(ring)),
            bytes: AtomicU64::new(0),
        })
    }

    pub(super) fn is_copied(&self) -> bool {
        self.bytes() > 0
    }

    /// Of user space's memory; a copy is never without a byte.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The copy; with the ring itself if this was the time that it was made.
    pub(super) fn copy(&self) -> Result<(Arc<Reading>, Option<Ring>), KernelError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = match &*held {
            Held::Copied(reading) => return Ok((Arc::clone(reading), None)),
            Held::InKernel(ring) => Arc::new(ring.reading()?),
        };
        let pages = reading.copied.pages.iter();
        let bytes = pages.map(|page| page.len() as u64).sum();
        self.bytes.store(bytes, Ordering::Relaxed);
        match std::mem::replace(&mut *held, Held::Copied(Arc::clone(&reading))) {
            Held::InKernel(ring) => Ok((reading, Some(ring))),
            Held::Copied(_) => Ok((reading, None)),
        }
    }
}

/// A ring's map, ready to be written. `flow_cutoff` 0: none.
pub(super) fn made(pages: u32, flow_cutoff: u64) -> Result<RingMap, KernelError> {
    let mut map = empty(pages)?;
    write_head(&mut map, pages, flow_cutoff)?;
    Ok(map)
}

fn write_head(map: &mut RingMap, pages: u32, flow_cutoff: u64) -> Result<(), KernelError> {
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
    let mut first = page_of_zeroes();
    first.0[..HEAD_BYTES as usize].copy_from_slice(&head_bytes(&head));
    map.set(0, Box::as_ref(&first), 0)
        .map_err(failed("LOOK_BACK"))
}

fn page_of_zeroes() -> Box<Layout<Page>> {
    Box::new(Layout([0; PAGE_VALUE]))
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
