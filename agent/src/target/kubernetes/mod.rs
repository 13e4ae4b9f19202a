//! Follows the API server: this node's pods, and all namespaces' labels.
//!
//! Rights that it needs: `list` and `watch` on `pods` and `namespaces`. It works without the API server, too: what
//! was told stays known, and what is not known yet is filled in when the server is there.

mod before;
mod convert;
mod watch;

use std::{path::PathBuf, str::FromStr, time::Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    core::PartialObjectMeta,
};

pub use before::Before;

use super::pods::{KnownPods, PRIVACY_LABEL};
use watch::{CONNECT_TIMEOUT, Change, READ_TIMEOUT, follow};

/// Where the API server is, and who asks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As the pod that this runs in: its service account's token, read again when it changes.
    InCluster,
    Kubeconfig(PathBuf),
}

impl FromStr for Access {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "in-cluster" => Self::InCluster,
            path => Self::Kubeconfig(path.into()),
        })
    }
}

/// There is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("failed to read the kubeconfig `{path}`")]
    Kubeconfig {
        path: PathBuf,
        source: kube::config::KubeconfigError,
    },
    #[error(
        "this runs in no pod of a cluster, or in one without a service account's token; use --kubeconfig FILE"
    )]
    InCluster(#[from] kube::config::InClusterError),
    #[error("failed to make a client of the kubeconfig")]
    Client(#[from] kube::Error),
    #[error("a node's name has letters, digits, `-` and `.`, not `{0}`; use --node")]
    Node(String),
}

/// What follows the API server.
pub struct Watch {
    client: Client,
    node: String,
    pods: KnownPods,
}

impl Watch {
    /// Asks nobody yet.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn new(access: &Access, node: &str, pods: KnownPods) -> Result<Self, AccessError> {
        // It becomes a part of a field selector.
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if node.is_empty() || node.len() > 253 || !node.bytes().all(is_name) {
            return Err(AccessError::Node(super::error::shown(node)));
        }
        let mut config = match access {
            Access::InCluster => Config::incluster()?,
            Access::Kubeconfig(path) => {
                let failed = |source| AccessError::Kubeconfig {
                    path: path.clone(),
                    source,
                };
                let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(failed)?
            }
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // A connection on which nothing comes is a dead one.
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        Ok(Self {
            client: Client::try_from(config)?,
            node: node.to_owned(),
            pods,
        })
    }

    /// For ever. The strictest privacy level is kept in `before` once the namespaces are known.
    pub async fn run(self, before: Before) {
        let Self { client, node, pods } = self;
        let own = format!("spec.nodeName={node}");
        let of_node = Api::<Pod>::all(client.clone());
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client);
        let follow_pods = follow("pods", of_node, Some(&own), |change| {
            let now = Instant::now();
            pods.change(|told| match change {
                Change::Begin => told.pods.begin_list(),
                Change::End => told.pods.end_list(now),
                Change::There(pod) => {
                    if let Some(pod) = convert::pod(pod) {
                        told.pods.apply(pod, now);
                    }
                }
                Change::Gone(pod) => {
                    if let Some(pod) = convert::pod(pod) {
                        told.pods.delete(pod, now);
                    }
                }
            });
        });
        let follow_namespaces = follow("namespaces", namespaces, None, |change| {
            pods.change(|told| match change {
                Change::Begin => told.namespaces.begin_list(),
                Change::End => told.namespaces.end_list(),
                Change::There(PartialObjectMeta { metadata, .. }) => {
                    let labels = metadata.labels.unwrap_or_default();
                    let label = labels.get(PRIVACY_LABEL).map(String::as_str);
                    told.namespaces
                        .apply(metadata.name.unwrap_or_default(), label);
                }
                Change::Gone(PartialObjectMeta { metadata, .. }) => {
                    told.namespaces.delete(&metadata.name.unwrap_or_default());
                }
            });
            if pods.has_namespaces() {
                before.write(pods.strictest());
            }
        });
        tokio::join!(follow_pods, follow_namespaces);
    }
}
