//! A small API server of Kubernetes for faults that the real one does not produce on demand: lists, watches
//! as newline-delimited JSON, metadata alone where that is asked for, field selectors, old versions.
//!
//! ```text
//!  put, delete ──▶ Objects { version, objects, log } ──▶ list: what is there, in pages
//!  fault ────────▶ faults                            └─▶ watch: the log from a version on, then live
//! ```
//! What it serves is faithful for `GET` of pods and namespaces; nothing else is there.

mod answer;
mod body;
mod objects;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{runtime::Runtime, sync::watch, task::JoinSet};

use crate::netns::Netns;
use objects::Objects;
pub use objects::{Fault, Kind};

/// Running until it is dropped; what it serves outlives a stop.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    objects: Mutex<Objects>,
    /// The version of the last change, for watches.
    version: watch::Sender<u64>,
}

impl Shared {
    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiServer {
    /// On a port of 127.0.0.1 of a namespace.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start(netns: &Netns) -> Result<Self> {
        let listener = listen(netns, ([127, 0, 0, 1], 0).into())?;
        let mut server = Self {
            shared: Arc::new(Shared {
                objects: Mutex::default(),
                version: watch::Sender::new(0),
            }),
            address: listener.local_addr()?,
            running: None,
        };
        server.serve(listener)?;
        Ok(server)
    }

    /// Nobody listens any more, and all connections are gone.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Listens again, at the same port.
    ///
    /// # Errors
    /// The port is taken.
    pub fn resume(&mut self, netns: &Netns) -> Result<()> {
        let listener = listen(netns, self.address)?;
        self.serve(listener)
    }

    fn serve(&mut self, listener: TcpListener) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::clone(&self.shared);
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let shared = &shared;
                    let service = service_fn(|request| answer::answer(shared, request));
                    let connection =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // A client that goes away is none of the server's business.
                    let _gone = connection.await;
                });
            }
        });
        self.running = Some(runtime);
        Ok(())
    }

    /// A kubeconfig that leads here, readable for all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn kubeconfig(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join("kubeconfig");
        let server = format!("http://{}", self.address);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: '{server}'}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
             users: [{{name: test, user: {{}}}}]\n"
        );
        fs::write(&path, text).context("failed to write a kubeconfig")?;
        Ok(path)
    }

    /// Makes an object or changes it.
    ///
    /// # Panics
    /// It has no name.
    pub fn put(&self, kind: Kind, object: Value) {
        let version = self.shared.objects().put(kind, object);
        self.shared.version.send_replace(version);
    }

    /// # Panics
    /// There is no such object.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        let version = self.shared.objects().delete(kind, namespace, name);
        self.shared.version.send_replace(version);
    }

    /// The next requests that it is for meet it, in their order.
    pub fn fault(&self, fault: Fault) {
        self.shared.objects().faults.push(fault);
        // Watches that are open look whether it is for them.
        self.shared.version.send_modify(|_| {});
    }

    /// Faults that nobody has met yet.
    #[must_use]
    pub fn faults_left(&self) -> usize {
        self.shared.objects().faults.len()
    }

    /// Nobody can go on from a version before this moment's.
    pub fn forget_history(&self) {
        self.shared.objects().forget_history();
    }

    /// Requests that were answered: `list pods`, `watch namespaces`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.objects().requests.clone()
    }
}

fn listen(netns: &Netns, address: SocketAddr) -> Result<TcpListener> {
    netns.enter(|| TcpListener::bind(address).context("failed to listen as an API server"))
}
