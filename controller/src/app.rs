//! The whole: built from its parts, run, and ended in order.
//!
//! ```text
//! build (rules right, address bound) ─▶ run ─signal─▶ drain: healthz 503, no new connection,
//!                                                     what came is answered ─▶ end
//! ```
//! Draining ends at the latest after [`DRAIN_DEADLINE`].

use std::{
    convert::Infallible,
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
    cluster_side::{ClusterError, ClusterSide},
    dispatch::Dispatch,
    fleet::Fleet,
    http::{
        self, BODY_TIMEOUT,
        listen::{ListenError, Listener},
    },
    ingest::Ingest,
    metrics::Metrics,
    notify::{Notifier, ReceiverError},
    reload::{Knows, LoadError, RuleFiles},
    sinks::{self, Courier, Sinks},
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
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Sink(#[from] sinks::BuildError),
    #[error(transparent)]
    Notify(#[from] ReceiverError),
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
    notifier: Option<Notifier>,
    cluster: Option<ClusterSide>,
    /// If there is a sink.
    courier: Option<Courier>,
}

impl App {
    /// Reads the rules and binds the address. The agent need not be there.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn build(args: &RunArgs) -> Result<Self, BuildError> {
        let knows = if args.cluster.is_wanted() {
            Knows::Cluster
        } else {
            Knows::Host
        };
        let files = RuleFiles::load(args.rules.clone(), knows)?;
        let rules = files.subscribe();
        let audit = match &args.access.audit_log {
            Some(path) => Audit::open(path, args.access.rotation())?,
            None => Audit::none(),
        };
        let metrics = Arc::new(Metrics::new());
        let (dispatch, cluster) = match knows {
            Knows::Host => (Dispatch::One(Agent::new(args.agent.clone())?), None),
            Knows::Cluster => {
                let side = ClusterSide::build(args, &audit, &metrics).await?;
                (Dispatch::Cluster(side.dispatch.clone()), Some(side))
            }
        };
        let fleet = match &dispatch {
            Dispatch::One(_) => Arc::new(Fleet::of_host(args.agent.clone())),
            Dispatch::Cluster(cluster) => Arc::clone(&cluster.fleet),
        };
        let sinks = Sinks::build(&args.sinks)?;
        let courier = if sinks.is_empty() {
            None
        } else {
            Some(Courier {
                sinks,
                fleet: Arc::clone(&fleet),
                audit: audit.clone(),
                metrics: Arc::clone(&metrics),
            })
        };
        let notifier = Notifier::build(&args.notify, fleet, &metrics)?;
        let listener = Listener::bind(args.listen_parts()).await?;
        if let Some(counts) = listener.counts() {
            metrics.follow_tls("alerts", Arc::clone(counts));
        }
        let address = listener.address().map_err(|source| ListenError::Bind {
            address: args.listen,
            source,
        })?;
        let rules_count = rules.borrow().len();
        match knows {
            Knows::Host => {
                tracing::info!(%address, agent = %args.agent, rules = rules_count, "taking alerts");
            }
            Knows::Cluster => {
                tracing::info!(%address, rules = rules_count, "taking alerts of a cluster");
            }
        }
        let ingest = Arc::new(Ingest::new(rules, dispatch));
        Ok(Self {
            listener,
            address,
            ingest,
            metrics,
            audit,
            rules: files,
            notifier,
            cluster,
            courier,
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
            notifier,
            cluster,
            courier,
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
        let (stop_cluster, cluster_stopped) = tokio::sync::oneshot::channel();
        let cluster = async {
            match cluster {
                Some(cluster) => cluster.run(cluster_stopped).await,
                None => drop(cluster_stopped.await),
            }
        };
        let carry = async {
            match courier {
                Some(courier) => courier.run().await,
                None => std::future::pending().await,
            }
        };
        let notify = async {
            if let Some(notifier) = &notifier {
                // It ends with the agents' list, which is when all ends.
                notifier.run().await;
            }
            std::future::pending::<Infallible>().await
        };
        let ending = async {
            shutdown.await;
            draining.store(true, Ordering::Relaxed);
            tracing::info!("draining");
            let _gone = stop.send(());
            let _gone = stop_cluster.send(());
            tokio::time::sleep(DRAIN_DEADLINE).await;
        };
        tokio::select! {
            // A sender that left may have an alert in work still: the outcome is to be counted.
            () = async { tokio::join!(async { serving.await; ingest.drain().await }, cluster); } => Drained::Whole,
            () = ending => Drained::CutOff,
            never = notify => match never {},
            never = rules.follow(metrics) => match never {},
            never = carry => match never {},
        }
    }
}
