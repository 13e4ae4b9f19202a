//! The whole: built from its parts, run, and ended in order.
//!
//! ```text
//! build (rules right, address bound) ─▶ run ─signal─▶ drain: healthz 503, no new connection,
//!                                                     what came is answered ─▶ end
//! ```
//! Draining ends at the latest after [`DRAIN_DEADLINE`].

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use remora_proto::client::ConnectError;

use crate::{
    agent::{Agent, START_DEADLINE},
    args::RunArgs,
    audit::{Audit, OpenError},
    http::{
        self, BODY_TIMEOUT,
        listen::{ListenError, Listener},
    },
    ingest::Ingest,
    metrics::Metrics,
    reload::{LoadError, RuleFiles},
};

/// Longest orderly end: a body that has just begun, and its answer.
pub const DRAIN_DEADLINE: Duration =
    Duration::from_secs(BODY_TIMEOUT.as_secs() + START_DEADLINE.as_secs() + 1);

/// The controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Rules(#[from] LoadError),
    #[error(transparent)]
    Agent(#[from] ConnectError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Audit(#[from] OpenError),
}

/// How the end went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every alert that came was answered.
    Whole,
    /// The deadline came first.
    CutOff,
}

/// A controller that has its address and takes no alerts yet.
#[derive(Debug)]
pub struct App {
    listener: Listener,
    address: SocketAddr,
    ingest: Arc<Ingest>,
    metrics: Arc<Metrics>,
    audit: Audit,
    rules: RuleFiles,
}

impl App {
    /// Reads the rules and binds the address. The agent need not be there.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn build(args: &RunArgs) -> Result<Self, BuildError> {
        let files = RuleFiles::load(args.rules.clone())?;
        let rules = files.subscribe();
        let agent = Agent::new(args.agent.clone())?;
        let audit = match &args.access.audit_log {
            Some(path) => Audit::open(path, args.access.rotation())?,
            None => Audit::none(),
        };
        let listener = Listener::bind(args.listen_parts()).await?;
        let address = listener.address().map_err(|source| ListenError::Bind {
            address: args.listen,
            source,
        })?;
        tracing::info!(%address, agent = %args.agent, rules = rules.borrow().len(), "taking alerts");
        let ingest = Arc::new(Ingest::new(rules, agent));
        let metrics = Metrics::new();
        if let Some(counts) = listener.counts() {
            metrics.follow_tls("alerts", Arc::clone(counts));
        }
        Ok(Self {
            listener,
            address,
            ingest,
            metrics: Arc::new(metrics),
            audit,
            rules: files,
        })
    }

    /// Where alerts come in; tells the port when the arguments left it open.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes alerts until `shutdown`, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        let Self {
            listener,
            ingest,
            metrics,
            audit,
            rules,
            ..
        } = self;
        let draining = Arc::new(AtomicBool::new(false));
        let router = http::router(
            &listener,
            ingest.clone(),
            metrics.clone(),
            draining.clone(),
            audit,
        );
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let serving = http::serve(listener, router, async {
            let _dropped = stopped.await;
        });
        let ending = async {
            shutdown.await;
            draining.store(true, Ordering::Relaxed);
            tracing::info!("draining");
            let _gone = stop.send(());
            tokio::time::sleep(DRAIN_DEADLINE).await;
        };
        tokio::select! {
            // A sender that left may have an alert in work still: the outcome is to be counted.
            () = async { serving.await; ingest.drain().await } => Drained::Whole,
            () = ending => Drained::CutOff,
            never = rules.follow(metrics) => match never {},
        }
    }
}
