//! Ring records without a kernel.

use std::{
    mem::offset_of,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed},
        },
    },
    thread,
    time::Duration,
};

use nix::sys::eventfd::EventFd;
use remora_agent::{
    session::Meter,
    writer::{Frontier, RecordSource, Waker},
};
use remora_agent_common::{
    ABI_VERSION,
    record::{HEADER_LEN, HOOK_TCX_EGRESS, KIND_PACKET, RecordHeader, SIZE_CLASSES},
    session::DIRECTION_INGRESS,
};

/// The tap and the session that the records are of.
pub(super) const TAP: u32 = 1;
pub(super) const GENERATION: u32 = 1;
/// Bytes of different records, as many as the agent's ring has.
const POOL: usize = 16 << 20;
/// Packets that may be under way to the file, in bytes: what a lane queues (8 MiB) is never full, for
/// here is no kernel that would keep or lose the rest.
const UNDER_WAY: usize = 4 << 20;
/// How long the writer is left alone when that is reached.
const PAUSE: Duration = Duration::from_micros(20);
/// And when there is nothing to do.
const QUIET: Duration = Duration::from_millis(1);

/// Gives the same records again and again, as fast as they are written.
pub(super) struct FromMemory {
    pool: Vec<u8>,
    record: usize,
    frame: usize,
    at: usize,
    given: u64,
    packets: u64,
    meter: Arc<Meter>,
    /// The session's lane is open.
    open: Arc<AtomicBool>,
    event: Arc<EventFd>,
}

impl FromMemory {
    pub(super) fn new(
        packets: u64,
        frame: usize,
        meter: Arc<Meter>,
        open: Arc<AtomicBool>,
    ) -> nix::Result<Self> {
        let class = SIZE_CLASSES.iter().find(|&&c| c >= HEADER_LEN + frame);
        let record = *class.ok_or(nix::errno::Errno::EMSGSIZE)?;
        let pool = (0..POOL / record).flat_map(|number| {
            let mut bytes = header(frame as u32, number as u64);
            // Any frame; each with bytes of its own.
            bytes.resize(HEADER_LEN + frame, number as u8);
            bytes.resize(record, 0);
            bytes
        });
        Ok(Self {
            pool: pool.collect(),
            record,
            frame,
            at: 0,
            given: 0,
            packets,
            meter,
            open,
            event: Arc::new(EventFd::new()?),
        })
    }

    fn under_way(&self) -> u64 {
        let Meter {
            written,
            dropped_queue,
            dropped_io,
            ..
        } = &*self.meter;
        let ended = [written, dropped_queue, dropped_io].map(|counter| counter.load(Relaxed));
        self.given - ended.iter().sum::<u64>()
    }

    fn may_go_on(&self) -> bool {
        self.given < self.packets
            && self.open.load(Acquire)
            && self.under_way() < (UNDER_WAY / self.frame) as u64
    }
}

impl RecordSource for FromMemory {
    fn next(&mut self, visit: &mut dyn FnMut(u64, &[u8])) -> bool {
        if !self.may_go_on() {
            return false;
        }
        visit(self.position(), &self.pool[self.at..self.at + self.record]);
        self.given += 1;
        self.at = (self.at + self.record) % self.pool.len();
        true
    }

    fn position(&self) -> u64 {
        self.given * self.record as u64
    }

    fn capacity(&self) -> u64 {
        self.pool.len() as u64
    }

    fn release(&mut self, _: u64) {}

    fn wait(&mut self, _: Option<Duration>) {
        let busy = self.open.load(Relaxed) && self.given < self.packets;
        thread::sleep(if busy { PAUSE } else { QUIET });
    }

    fn waker(&self) -> Waker {
        // It looks again by itself.
        Waker::new(Arc::clone(&self.event))
    }

    fn frontier(&self) -> Frontier {
        // There is one session, and all is its own.
        Frontier::new(|| 0)
    }
}

/// As the kernel side writes it.
fn header(frame: u32, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset_of!(RecordHeader, abi), &ABI_VERSION.to_ne_bytes());
    put(offset_of!(RecordHeader, kind), &[KIND_PACKET]);
    put(offset_of!(RecordHeader, hook), &[HOOK_TCX_EGRESS]);
    put(offset_of!(RecordHeader, caplen), &frame.to_ne_bytes());
    put(
        offset_of!(RecordHeader, time_ns),
        &(1_000_000_000 + number).to_ne_bytes(),
    );
    // Slot 0, with its generation's lowest bit.
    put(offset_of!(RecordHeader, sessions), &1u64.to_ne_bytes());
    put(
        offset_of!(RecordHeader, parity),
        &u64::from(GENERATION & 1).to_ne_bytes(),
    );
    put(offset_of!(RecordHeader, tap), &TAP.to_ne_bytes());
    put(
        offset_of!(RecordHeader, tap_generation),
        &GENERATION.to_ne_bytes(),
    );
    put(offset_of!(RecordHeader, origlen), &frame.to_ne_bytes());
    put(offset_of!(RecordHeader, direction), &[DIRECTION_INGRESS]);
    put(offset_of!(RecordHeader, protocol), &0x0800u16.to_ne_bytes());
    bytes
}
