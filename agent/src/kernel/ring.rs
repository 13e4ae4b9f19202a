//! The ring's reading end.

use std::{fmt, os::fd::AsFd as _, sync::Arc, time::Duration};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};

use super::KernelError;
use crate::writer::{RecordSource, Waker};

/// The kernel wakes the reader when one part of this many of the ring is waiting.
pub const WAKE_PARTS: u32 = 8;

/// Owned by the consumer's thread.
///
/// The ring's descriptor is polled edge-triggered: only the kernel side's forced wake-ups end a
/// wait early, not each record, so that records come in batches.
pub struct Ring {
    records: RingBuf<MapData>,
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
        records: RingBuf<MapData>,
        log: Option<EbpfLogger<&'static dyn log::Log>>,
    ) -> Result<Self, KernelError> {
        let failed = |errno: Errno| KernelError::Io("set up the ring's reader", errno.into());
        let wake =
            EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(failed)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll
            .add(records.as_fd(), EpollEvent::new(edge, 0))
            .map_err(failed)?;
        epoll.add(&wake, EpollEvent::new(edge, 1)).map_err(failed)?;
        Ok(Self {
            records,
            epoll,
            wake: Arc::new(wake),
            log,
        })
    }
}

impl RecordSource for Ring {
    fn next(&mut self, visit: &mut dyn FnMut(&[u8])) -> bool {
        match self.records.next() {
            Some(record) => {
                visit(&record);
                true
            }
            None => false,
        }
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
}
