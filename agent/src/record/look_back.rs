//! A copy of a ring to its packets. Total: no bytes make it panic, and what is not a record of this
//! ring at its place is passed over.
//!
//! The layout is `remora_agent_common::look_back`.

use remora_agent_common::{
    look_back::{HEAD_BYTES, LOOK_BACK_CAPLEN_MAX, PAGE_BYTES, PAGE_SHIFT, RECORD_MAX, RingHead},
    record::HEADER_LEN,
};

use super::{LookBackRecord, Packet};

/// A ring's pages, copied while it went on.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Its head before the first page was copied.
    pub before: RingHead,
    /// Its head after the last.
    pub after: RingHead,
    /// Map values, one a page.
    pub pages: Vec<Box<[u8]>>,
}

/// A copy of a ring with what belongs to it.
#[derive(Clone, Debug)]
pub struct Reading {
    pub copied: Copied,
    /// When it was made, kernel time.
    pub begun_ns: u64,
}

impl Reading {
    /// It went around: older packets than its oldest are not there.
    #[must_use]
    pub fn is_overwritten(&self) -> bool {
        self.copied.oldest() > 0
    }

    /// All packets of the tap from this kernel time on are there, but for what the cutoff left out.
    #[must_use]
    pub fn reaches_ns(&self) -> u64 {
        let copied = &self.copied;
        if !self.is_overwritten() {
            return self.begun_ns;
        }
        let packets = copied.packets();
        let times = packets.iter().map(|p| p.packet.header.time_ns);
        // With several CPUs the first is not always the oldest.
        times.min().unwrap_or(self.begun_ns)
    }
}

/// A packet of the ring.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    pub packet: Packet<'a>,
    /// Hash of its flow.
    pub flow: u32,
    /// Packets of the flow's direction that the cutoff left out right before it.
    pub left_out: u32,
}

impl Recorded<'_> {
    /// Its tap was recorded in the mode `headers`, and it had more than those.
    #[must_use]
    pub fn is_headers_only(&self) -> bool {
        let wanted = self.packet.header.origlen.min(LOOK_BACK_CAPLEN_MAX);
        self.packet.data.len() < wanted as usize
    }
}

impl Copied {
    /// Its packets, oldest first by their place in the ring. Looks at most once at each place,
    /// whatever the heads say.
    #[must_use]
    pub fn packets(&self) -> Vec<Recorded<'_>> {
        let mut packets = Vec::new();
        // A head that goes backward is not one that the kernel side wrote.
        let end = self.before.position.min(self.after.position);
        let mut at = self.oldest();
        while at < end {
            match self.record(at) {
                Some((recorded, size)) => {
                    packets.push(recorded);
                    at = at.saturating_add(size);
                }
                // Where an older record was partly written over, or bytes could not be read.
                None => at = at.saturating_add(ALIGNMENT),
            }
        }
        packets
    }

    /// Bytes of records that the ring holds. Of one that was not full when its copy began, only the pages
    /// that were written are there: what came since lies in others, and has pushed nothing out.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        let copied = (self.pages.len() as u64) << PAGE_SHIFT;
        if self.before.position <= copied {
            copied.max(self.after.pages.saturating_mul(PAGE_BYTES.into()))
        } else {
            copied
        }
    }

    /// Records from here on were not written over when the last page was copied.
    fn oldest(&self) -> u64 {
        let mut oldest = self.after.position.saturating_sub(self.capacity());
        if self.after.overrun > 0 {
            // Two programs may have been held up, and the position be the earlier one's: a round
            // more covers both.
            oldest = oldest.max(self.after.overrun.saturating_add(self.capacity()));
        }
        oldest
            .checked_next_multiple_of(ALIGNMENT)
            .unwrap_or(u64::MAX)
    }

    fn record(&self, position: u64) -> Option<(Recorded<'_>, u64)> {
        let page = (position >> PAGE_SHIFT).checked_rem(self.pages.len() as u64)?;
        let page = self.pages.get(usize::try_from(page).ok()?)?;
        let offset = HEAD_BYTES as usize + (position % u64::from(PAGE_BYTES)) as usize;
        let bytes = page.get(offset..)?;
        let bytes = bytes.get(..bytes.len().min(RECORD_MAX as usize))?;
        let LookBackRecord {
            packet,
            check,
            flow,
            left_out,
        } = LookBackRecord::parse(bytes)?;
        if check != position ^ self.after.cookie {
            return None;
        }
        let size = (HEADER_LEN + packet.data.len()).next_multiple_of(ALIGNMENT as usize);
        let recorded = Recorded {
            packet,
            flow,
            left_out,
        };
        Some((recorded, size as u64))
    }
}

/// Records start at multiples of it.
const ALIGNMENT: u64 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use remora_agent_common::{
        ABI_VERSION,
        look_back::PAGE_VALUE,
        record::{HOOK_TCX_INGRESS, KIND_LOOK_BACK, RecordHeader},
        session::DIRECTION_INGRESS,
    };

    use super::*;
    use crate::record::tests::bytes_of;

    const COOKIE: u64 = 0x1234_5678_9abc_def0;

    /// Writes as the kernel side does.
    struct Ring {
        head: RingHead,
        pages: Vec<Box<[u8]>>,
    }

    impl Ring {
        fn new(pages: u64) -> Self {
            Self {
                head: RingHead {
                    cookie: COOKIE,
                    pages,
                    ..RingHead::default()
                },
                pages: (0..pages)
                    .map(|_| vec![0; PAGE_VALUE].into_boxed_slice())
                    .collect(),
            }
        }

        fn write(&mut self, time_ns: u64, len: u32, finished: bool) {
            let position = self.head.position;
            let header = RecordHeader {
                abi: ABI_VERSION,
                kind: KIND_LOOK_BACK,
                hook: HOOK_TCX_INGRESS,
                caplen: len,
                time_ns,
                parity: if finished { position ^ COOKIE } else { 0 },
                tap: 5,
                tap_generation: 2,
                origlen: len,
                direction: DIRECTION_INGRESS,
                ..RecordHeader::default()
            };
            let bytes = bytes_of(&header, &vec![time_ns as u8; len as usize]);
            let page = (position >> PAGE_SHIFT) % self.head.pages;
            let offset = HEAD_BYTES as usize + (position % u64::from(PAGE_BYTES)) as usize;
            self.pages[page as usize][offset..offset + bytes.len()].copy_from_slice(&bytes);
            self.head.position += bytes.len().next_multiple_of(8) as u64;
        }

        fn copied(self) -> Copied {
            Copied {
                before: self.head,
                after: self.head,
                pages: self.pages,
            }
        }
    }

    fn times(copied: &Copied) -> Vec<u64> {
        let packets = copied.packets();
        assert!(packets.iter().all(|p| {
            p.packet
                .data
                .iter()
                .all(|b| *b == p.packet.header.time_ns as u8)
        }));
        packets.iter().map(|p| p.packet.header.time_ns).collect()
    }

    #[test]
    fn bytes_that_look_like_a_record_of_another_place_are_none() {
        let mut ring = Ring::new(1);
        ring.write(1, 200, true);
        let forged = ring.pages[0][HEAD_BYTES as usize..][..64].to_vec();
        ring.write(2, 200, true);
        // A packet that carries a header it has seen: at an offset where a reader that is looking
        // for the next record would find it.
        let at = HEAD_BYTES as usize + 264 + 64;
        ring.pages[0][at..at + 64].copy_from_slice(&forged);
        // The record before it is made unreadable.
        ring.pages[0][HEAD_BYTES as usize + 264] ^= 1;
        ring.write(3, 10, true);
        let copied = ring.copied();
        assert_eq!(times(&copied), [1, 3]);
    }

    #[test]
    fn after_an_overrun_a_round_of_the_ring_is_not_believed() {
        let mut ring = Ring::new(1);
        for time in 0..100 {
            ring.write(time, 10_000, true);
        }
        ring.head.overrun = ring.head.position - 30_000;
        assert_eq!(ring.copied().packets().len(), 0);
    }

    proptest! {
        #[test]
        fn the_newest_packets_that_fit_are_found_in_order(
            pages in 1u64..5,
            lens in prop::collection::vec((0u32..RECORD_MAX - 64, prop::bool::weighted(0.95)), 0..150),
            later in 0usize..20,
        ) {
            let mut ring = Ring::new(pages);
            let written: Vec<_> = (1..).zip(lens).map(|(time, (len, finished))| {
                let position = ring.head.position;
                ring.write(time, len, finished);
                (position, time, finished)
            }).collect();
            let before = ring.head;
            // What is written between the first head and the last page.
            for _ in 0..later {
                ring.write(0, 777, true);
            }
            let copied = Copied { before, after: ring.head, pages: ring.pages };
            let oldest = copied.after.position.saturating_sub(copied.capacity());
            let expected: Vec<u64> = written.iter()
                .filter(|(position, _, finished)| *finished && *position >= oldest)
                .map(|(_, time, _)| *time)
                .collect();
            prop_assert_eq!(times(&copied), expected);
        }

        #[test]
        fn a_ring_that_is_not_full_has_lost_nothing_by_what_comes_while_it_is_copied(
            pages in 2u64..5, early in 0usize..20, later in 0usize..20,
        ) {
            let mut ring = Ring::new(pages);
            for time in 1..=early as u64 {
                ring.write(time, 6000, true);
            }
            let before = ring.head;
            let copied_pages = ((before.position >> PAGE_SHIFT) + 1).min(pages) as usize;
            for _ in 0..later {
                ring.write(0, 6000, true);
            }
            let after = ring.head;
            ring.pages.truncate(copied_pages);
            let copied = Copied { before, after, pages: ring.pages };
            prop_assert_eq!(times(&copied), (1..=early as u64).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_are_read_to_the_end(
            seed in prop::collection::vec(any::<u8>(), 64..512),
            position in any::<u64>(), before in any::<i16>(), pages in 0usize..3,
            near in any::<bool>(), overrun in prop::option::of(any::<u64>()),
        ) {
            let position = if near { position % (1 << 20) } else { position };
            let page: Box<[u8]> = seed.iter().copied().cycle().take(PAGE_VALUE).collect();
            let after = RingHead {
                position, pages: pages as u64, overrun: overrun.unwrap_or(0), ..RingHead::default()
            };
            let before = RingHead {
                position: position.saturating_add_signed(i64::from(before) << 40), ..after
            };
            let copied = Copied { before, after, pages: vec![page; pages] };
            prop_assert!(copied.packets().len() <= pages * PAGE_BYTES as usize / 64);
        }
    }
}
