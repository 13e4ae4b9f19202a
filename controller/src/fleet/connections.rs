//! The connections to the agents: made at the first call, kept, and closed when nobody used them for
//! a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use remora_proto::{
    client::{self, AgentAddress, ConnectError},
    tls::TlsIdentity,
};
use tokio::time::Instant;
use tonic::transport::Channel;

/// Connections that nobody used for so long are closed.
pub const IDLE: Duration = Duration::from_secs(300);

/// How a connection begins; it is made at its first call.
pub type Dial = Arc<dyn Fn(&AgentAddress) -> Result<Channel, ConnectError> + Send + Sync>;

/// Channels by node. As many as there are agents ([`super::roster::AGENTS_MAX`]).
pub(super) struct Connections {
    dial: Dial,
    kept: Mutex<HashMap<Arc<str>, Kept>>,
}

struct Kept {
    address: AgentAddress,
    channel: Channel,
    used: Instant,
}

impl Connections {
    pub(super) fn new(dial: Dial) -> Self {
        Self {
            dial,
            kept: Mutex::default(),
        }
    }

    /// The node's channel; another if its agent has moved.
    pub(super) fn channel(
        &self,
        node: &Arc<str>,
        address: &AgentAddress,
    ) -> Result<Channel, ConnectError> {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = kept.get_mut(node).filter(|there| there.address == *address) {
            there.used = now;
            return Ok(there.channel.clone());
        }
        let channel = (self.dial)(address)?;
        let new = Kept {
            address: address.clone(),
            channel: channel.clone(),
            used: now,
        };
        kept.insert(node.clone(), new);
        Ok(channel)
    }

    /// Closes those that are idle: a channel that is dropped ends when its last call does.
    pub(super) fn close_idle(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, there| there.used.elapsed() < IDLE);
    }

    pub(super) fn len(&self) -> usize {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

/// As [`client::connect_lazy_tls`] does.
#[must_use]
pub fn secured(identity: TlsIdentity) -> Dial {
    Arc::new(move |address| client::connect_lazy_tls(address, &identity))
}

/// As [`client::connect_lazy`] does.
#[must_use]
pub fn plain() -> Dial {
    Arc::new(client::connect_lazy)
}
