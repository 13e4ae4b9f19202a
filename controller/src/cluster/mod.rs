//! The cluster as the API server tells it. The only place that knows kube.
//!
//! [`index`] is what is known, without any input or output; [`watches`] tell it; [`View`] is what
//! the rest of the controller asks.

pub mod index;
pub mod watches;

use std::{
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use index::{Index, Member, Members, NoMembers};
use remora_capture::session::Selector;
use tokio::time::Instant;

/// What is known of the cluster. Answers come from memory: nobody waits for the API server.
#[derive(Debug)]
pub struct View {
    index: RwLock<Index>,
    began: Instant,
    synced: AtomicBool,
}

impl Default for View {
    fn default() -> Self {
        Self {
            index: RwLock::default(),
            began: Instant::now(),
            synced: AtomicBool::new(false),
        }
    }
}

impl View {
    /// As [`Index::members`], now.
    ///
    /// # Errors
    /// [`NoMembers`].
    pub fn members(
        &self,
        selector: &Selector,
        since: Duration,
        most: usize,
    ) -> Result<Members, NoMembers> {
        self.read(|index| index.members(selector, since, self.began.elapsed(), most))
    }

    /// As [`Index::version`].
    #[must_use]
    pub fn version(&self) -> u64 {
        self.read(Index::version)
    }

    /// All kinds of objects were listed once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Asks the index.
    pub fn read<T>(&self, ask: impl FnOnce(&Index) -> T) -> T {
        let index = self.index.read();
        ask(&index.unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Tells the index; `tell` gets the time by its clock.
    pub fn write(&self, tell: impl FnOnce(&mut Index, Duration)) {
        let index = self.index.write();
        let mut index = index.unwrap_or_else(std::sync::PoisonError::into_inner);
        tell(&mut index, self.began.elapsed());
    }

    /// From now on what is not known is not there.
    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Where a pod with this address is.
    #[must_use]
    pub fn at_address(&self, address: std::net::IpAddr) -> Option<Member> {
        self.read(|index| index.at_address(address))
    }
}
