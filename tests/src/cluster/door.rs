//! A way into a network namespace: a port of the root namespace's loopback whose connections end
//! there.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};

use crate::netns;

/// Open until dropped.
#[derive(Debug)]
pub struct Door {
    outside: SocketAddr,
    closing: Arc<AtomicBool>,
    porter: Option<JoinHandle<()>>,
}

impl Door {
    /// To an address in a namespace, given by its file.
    ///
    /// # Errors
    /// No port is free.
    pub fn open(namespace: &Path, inside: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        let outside = listener.local_addr()?;
        let closing = Arc::new(AtomicBool::new(false));
        let (seen, namespace) = (Arc::clone(&closing), namespace.to_owned());
        let porter = thread::Builder::new()
            .name("door".into())
            .spawn(move || accept(&listener, &seen, &namespace, inside))?;
        Ok(Self {
            outside,
            closing,
            porter: Some(porter),
        })
    }

    /// Where it is on this side.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.outside
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        // Its accept returns for this, and it looks.
        let _ = TcpStream::connect(self.outside);
        if let Some(porter) = self.porter.take() {
            let _ = porter.join();
        }
    }
}

fn accept(listener: &TcpListener, closing: &AtomicBool, namespace: &Path, inside: SocketAddr) {
    for outer in listener.incoming() {
        if closing.load(Ordering::Relaxed) {
            return;
        }
        let Ok(outer) = outer else { continue };
        let namespace: PathBuf = namespace.to_owned();
        // Who comes while nobody listens inside finds the connection closed.
        thread::spawn(move || {
            let inner = netns::enter(&namespace, || Ok(TcpStream::connect(inside)?));
            if let Ok(inner) = inner {
                carry(&outer, &inner);
            }
        });
    }
}

/// Both directions, each to its end.
fn carry(outer: &TcpStream, inner: &TcpStream) {
    thread::scope(|scope| {
        scope.spawn(|| one_way(outer, inner));
        one_way(inner, outer);
    });
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
