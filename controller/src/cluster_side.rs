//! What the controller is in a cluster beside taking alerts: it follows the cluster and its agents,
//! lets pods join, carries out `Capture` objects, and serves `remora.v1.Cluster`.

use std::{io, path::PathBuf, sync::Arc};

use tokio::sync::{oneshot, watch};

use crate::{
    access::{ClusterAccess, Guard},
    api::{
        ClusterService,
        access::{Access, LocalAccess},
        listen::{GrpcListenError, GrpcListener},
    },
    args::RunArgs,
    audit::Audit,
    captures::Captures,
    cluster::{
        View,
        watches::{self, AgentPods, ApiServer},
    },
    dispatch::ClusterDispatch,
    fleet::{
        Fleet, connections,
        joining::Joining,
        roster::{Roster, RosterError},
    },
    metrics::Metrics,
    network::{self, NetworkError},
};

/// The cluster side cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("cannot read the agents from {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("{}: {error}", path.display())]
    Agents { path: PathBuf, error: RosterError },
    #[error(
        "the cluster's API server is not known: run in a pod with a service account, or set \
         KUBECONFIG"
    )]
    Kubernetes(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Listen(#[from] GrpcListenError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(
        "--grpc-listen by TLS needs --kubernetes: its API server is asked who calls, and what he may"
    )]
    NobodyToAsk,
}

/// A cluster side that does nothing yet.
pub(crate) struct ClusterSide {
    pub(crate) dispatch: ClusterDispatch,
    roster: watch::Sender<Arc<Roster>>,
    kubernetes: Option<(ApiServer, Option<AgentPods>)>,
    listener: Option<GrpcListener>,
    access: Arc<dyn Access>,
}

impl std::fmt::Debug for ClusterSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterSide").finish_non_exhaustive()
    }
}

impl ClusterSide {
    /// Reads the agents, finds the API server and binds the address; calls nobody.
    pub(crate) async fn build(
        run: &RunArgs,
        audit: &Audit,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, ClusterError> {
        let args = &run.cluster;
        let roster = match &args.agents {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|error| ClusterError::File(path.clone(), error))?;
                Roster::parse(&text).map_err(|error| ClusterError::Agents {
                    path: path.clone(),
                    error,
                })?
            }
            None => Roster::default(),
        };
        let kubernetes = match args.kubernetes {
            true => {
                let server = ApiServer::infer().await.map_err(ClusterError::Kubernetes)?;
                let namespace = args.agents_namespace.clone();
                let found = args.agents.is_none().then(|| AgentPods {
                    namespace: namespace.unwrap_or_else(|| server.namespace().to_owned()),
                    port: args.agents_port,
                });
                Some((server, found))
            }
            false => None,
        };
        let listener = match &args.grpc_listen {
            Some(address) => Some(GrpcListener::bind(address, &run.tls).await?),
            None => None,
        };
        let access: Arc<dyn Access> = match (&listener, &kubernetes) {
            (Some(GrpcListener::Tls(_)), None) => return Err(ClusterError::NobodyToAsk),
            (Some(GrpcListener::Tls(listener)), Some((server, _))) => {
                metrics.follow_tls("grpc", Arc::clone(listener.counts()));
                let access = ClusterAccess::new(server.reviews(run.access.token_audience.clone()));
                Arc::new(Guard::new(access, audit.clone(), metrics.clone()))
            }
            _ => Arc::new(LocalAccess),
        };
        let dial = if run.tls.tls_cert.is_some() {
            let identity = network::agents(&run.tls)?;
            metrics.follow_tls("agents", Arc::clone(identity.counts()));
            connections::secured(identity)
        } else {
            connections::plain()
        };
        let roster = watch::Sender::new(Arc::new(roster));
        let view = Arc::new(View::default());
        let fleet = Arc::new(Fleet::new(roster.subscribe(), dial));
        let joining = Arc::new(Joining::new(fleet.clone(), view.clone()));
        Ok(Self {
            dispatch: ClusterDispatch {
                view,
                fleet,
                joining,
                members_max: args.members_max,
            },
            roster,
            kubernetes,
            listener,
            access,
        })
    }

    /// Runs until `stop`, and then until its calls have ended.
    pub(crate) async fn run(self, stop: oneshot::Receiver<()>) {
        let Self {
            dispatch,
            roster,
            kubernetes,
            listener,
            access,
        } = self;
        let captures = kubernetes
            .as_ref()
            .map(|(server, _)| Captures::new(server, dispatch.clone()));
        let carry_out = async {
            match captures {
                Some(captures) => captures.run().await,
                None => std::future::pending().await,
            }
        };
        let ClusterDispatch {
            view,
            fleet,
            joining,
            members_max,
        } = dispatch;
        let follow = async {
            match kubernetes {
                Some((server, agents)) => {
                    watches::follow(server, view.clone(), agents, roster).await;
                }
                // The sender lives as long as those who listen to it.
                None => std::future::pending().await,
            }
        };
        let service =
            ClusterService::new(view.clone(), fleet, joining.clone(), access, members_max);
        let stopped = async {
            let _dropped = stop.await;
        };
        let serve = async {
            match listener {
                Some(listener) => {
                    if let Err(error) = listener.serve(service, stopped).await {
                        tracing::error!(%error, "the gRPC service ended");
                    }
                }
                None => stopped.await,
            }
        };
        tokio::select! {
            () = serve => {}
            () = follow => {}
            () = carry_out => {}
            () = joining.run() => {}
        }
    }
}
