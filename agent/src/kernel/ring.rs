//! The ring's reading end.
//!
//! ```text
//! consumer page (ours to write) │ producer page │ data │ the same data again
//!   position up to which the       position up to        so that a record never
//!   kernel may write over          which is reserved     has to be put together
//! ```
//! (kernel/bpf/ringbuf.c, v6.18.) Positions only grow; modulo the ring's size they are places in it.
//! A reader of its own instead of aya's, which gives each record back when it was looked at: records
//! of captures that outlive the agent are given back when they are in their files.

use std::{
    fmt, io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
    unistd::{SysconfVar, sysconf},
};

use super::KernelError;
use crate::writer::{Frontier, RecordSource, Waker};

/// The kernel wakes the reader when one part of this many of the ring is waiting.
pub const WAKE_PARTS: u32 = 8;

/// Before each record: its length and two flags, then where it is (linux/bpf.h, v6.18).
const RECORD_HEAD: u64 = 8;
/// It is being written.
const BUSY: u32 = 1 << 31;
/// It was given up.
const DISCARDED: u32 = 1 << 30;

/// Each giving back takes the word that the kernel reads for each record from its CPU, so it is done for a
/// part of the ring at a time.
const GIVE_BACK_PARTS: u64 = 64;

/// When a record is given back to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GiveBack {
    /// When those after it are asked for: a [`GIVE_BACK_PARTS`]th of the ring at a time, and all before the
    /// reader waits.
    Read,
    /// When [`RecordSource::release`] says so.
    Told,
}

/// Owned by the consumer's thread.
///
/// The ring's descriptor is polled edge-triggered: only the kernel side's forced wake-ups end a
/// wait early, not each record, so that records come in batches.
pub struct Ring {
    records: Records,
    give_back: GiveBack,
    epoll: Epoll,
    wake: Arc<EventFd>,
    /// What the programs logged goes into the agent's own log.
    log: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    pub(super) fn new(
        map: RingBuf<MapData>,
        bytes: u32,
        give_back: GiveBack,
        log: Option<EbpfLogger<&'static dyn log::Log>>,
    ) -> Result<Self, KernelError> {
        let failed = |errno: Errno| KernelError::Io("set up the ring's reader", errno.into());
        let wake =
            EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(failed)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll
            .add(map.as_fd(), EpollEvent::new(edge, 0))
            .map_err(failed)?;
        epoll.add(&wake, EpollEvent::new(edge, 1)).map_err(failed)?;
        let records = Records::new(map, bytes)
            .map_err(|error| KernelError::Io("map the ring into memory", error))?;
        Ok(Self {
            records,
            give_back,
            epoll,
            wake: Arc::new(wake),
            log,
        })
    }

    /// Goes on at a position that is further than where it is: what is before it was handled.
    pub(super) fn skip_to(&mut self, position: u64) {
        if position > self.records.position {
            self.records.position = position;
            self.records.produced = position;
            self.records.release(position);
        }
    }
}

impl RecordSource for Ring {
    fn next(&mut self, visit: &mut dyn FnMut(u64, &[u8])) -> bool {
        if self.give_back == GiveBack::Read {
            self.records.release_parts();
        }
        match self.records.next() {
            Some((position, record)) => {
                visit(position, record);
                true
            }
            None => false,
        }
    }

    fn position(&self) -> u64 {
        self.records.position
    }

    fn capacity(&self) -> u64 {
        self.records.bytes
    }

    fn release(&mut self, position: u64) {
        self.records.release(position);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let timeout = timeout.map_or(EpollTimeout::NONE, |timeout| {
            EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX)
        });
        // An interrupted wait is one that ended early.
        if let Err(error) = self.epoll.wait(&mut [EpollEvent::empty(); 2], timeout)
            && error != Errno::EINTR
        {
            tracing::error!(%error, "failed to wait for the ring");
        }
    }

    fn waker(&self) -> Waker {
        Waker::new(Arc::clone(&self.wake))
    }

    fn frontier(&self) -> Frontier {
        let producer = Arc::clone(&self.records.producer);
        Frontier::new(move || producer.word(0).load(Ordering::Acquire))
    }
}

/// The ring in memory.
struct Records {
    /// Its descriptor is what `epoll` watches.
    _map: RingBuf<MapData>,
    consumer: Pages,
    producer: Arc<Pages>,
    /// Bytes of a page, where the data begin in `producer`.
    page: usize,
    /// Bytes of the ring, a power of two.
    bytes: u64,
    /// Of the next record.
    position: u64,
    /// What the kernel may write over.
    released: u64,
    /// As it was when it was last looked at.
    produced: u64,
}

impl Records {
    fn new(map: RingBuf<MapData>, bytes: u32) -> io::Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
        let page = usize::try_from(page).map_err(io::Error::other)?;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let consumer = Pages::of(&map, 0, page, writable)?;
        let len = page + 2 * bytes as usize;
        let producer = Arc::new(Pages::of(&map, page, len, libc::PROT_READ)?);
        // What a reader before this one gave back.
        let position = consumer.word(0).load(Ordering::Acquire);
        Ok(Self {
            _map: map,
            consumer,
            producer,
            page,
            bytes: bytes.into(),
            position,
            released: position,
            produced: position,
        })
    }

    fn release(&mut self, position: u64) {
        if position != self.released {
            self.released = position;
            // The kernel reads it before it writes over what is before it.
            self.consumer.word(0).store(position, Ordering::Release);
        }
    }

    /// Gives back what was read, if that is much, or all that was there.
    fn release_parts(&mut self) {
        let read = self.position - self.released;
        if read >= self.bytes / GIVE_BACK_PARTS || self.position >= self.produced {
            self.release(self.position);
        }
    }

    /// The next record and where it is.
    fn next(&mut self) -> Option<(u64, &[u8])> {
        loop {
            if self.position >= self.produced {
                // Whoever submits a record after this look sees what was given back.
                fence(Ordering::SeqCst);
                self.produced = self.producer.word(0).load(Ordering::Acquire);
                if self.position >= self.produced {
                    return None;
                }
            }
            let place = self.page + (self.position & (self.bytes - 1)) as usize;
            // Set at last by who submits the record.
            let head = self.producer.half(place).load(Ordering::Acquire);
            if head & BUSY != 0 {
                return None;
            }
            let len = head & !DISCARDED;
            let begun = self.position;
            self.position += (RECORD_HEAD + u64::from(len)).next_multiple_of(8);
            if head & DISCARDED == 0 {
                let record = self
                    .producer
                    .bytes(place + RECORD_HEAD as usize, len as usize);
                return Some((begun, record));
            }
        }
    }
}

/// Memory that is shared with the kernel; unmapped when dropped.
struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is not bound to a thread.
unsafe impl Send for Pages {}
// SAFETY: what changes is read and written as atomics, see `word` and `half`.
unsafe impl Sync for Pages {}

impl Pages {
    fn of(map: &RingBuf<MapData>, offset: usize, len: usize, access: i32) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                access,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, len })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len, "in the mapping");
        // SAFETY: aligned (a mapping is to its page) and within the mapping, which lives as long as
        // `self`; the kernel changes it as a whole, too.
        unsafe { self.start.add(at).cast().as_ref() }
    }

    fn half(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len, "in the mapping");
        // SAFETY: as above.
        unsafe { self.start.add(at).cast().as_ref() }
    }

    /// Bytes of a record that was submitted and is not released: the kernel does not change them.
    fn bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at + len <= self.len, "in the mapping");
        // SAFETY: within the mapping, and nobody writes there, see above.
        unsafe { std::slice::from_raw_parts(self.start.add(at).as_ptr(), len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        let unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, 0, "a mapping of ours");
    }
}
