//! The controller's replicas: a connection to one of them, another when it dies.
//!
//! ```text
//!  call ─▶ the connection that is there, or the next replica's ─▶ answer or refusal ─▶ told
//!   ▲                                                    │
//!   └── another replica, each at most once ◀── gone ─────┘
//! ```

use std::{sync::Arc, time::Duration};

use anyhow::{anyhow, bail};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{Api, Client, api::PostParams};
use remora_proto::v1::cluster_client::ClusterClient;
use tokio::{
    sync::{Mutex, OnceCell},
    time::timeout,
};
use tonic::{
    Request, Response, Status,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use super::{
    address::ControllerAddress,
    credential::Credential,
    dial::{self, CONNECT_TIMEOUT, cluster_client, direct},
    failure::{Right, explain, explain_api, is_gone},
    tunnel::{self, Replica},
};

/// How long an answer may take, and the end of a capture that was stopped: a controller waits 10 s for
/// its agents.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Replicas that are tried for one call.
const TRIES_MAX: usize = 4;
/// How long the name of who may not is looked for.
const WHOAMI_TIMEOUT: Duration = Duration::from_secs(3);

/// Every replica, as one.
#[derive(Clone)]
pub(crate) struct Controllers {
    shared: Arc<Shared>,
}

struct Shared {
    way: Way,
    credential: Credential,
    /// How long an answer may take; `None`: for ever.
    patience: Option<Duration>,
    current: Mutex<Current>,
    user: OnceCell<Option<String>>,
}

/// How replicas are reached.
pub(crate) enum Way {
    /// One address, whoever is behind it.
    Direct {
        address: ControllerAddress,
        /// PEM; none for a Unix socket.
        authority: Option<Vec<u8>>,
    },
    /// Through the API server.
    Forwarded {
        client: Client,
        namespace: String,
        /// PEM, if the user gave it.
        authority: Option<Vec<u8>>,
    },
}

/// The connection that is there, and the replicas that failed, in the order they did.
#[derive(Default)]
struct Current {
    connection: Option<Connection>,
    failed: Vec<String>,
}

/// A connection to one replica.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: ClusterClient<Channel>,
    /// Who it is, for a person.
    pub(crate) name: String,
    /// The pod; empty if it has none that we know.
    pod: String,
    failure: tunnel::Failure,
}

impl Controllers {
    pub(crate) fn new(way: Way, credential: Credential, patience: Option<Duration>) -> Self {
        Self {
            shared: Arc::new(Shared {
                way,
                credential,
                patience,
                current: Mutex::default(),
                user: OnceCell::new(),
            }),
        }
    }

    /// The answer to a request, from any replica.
    ///
    /// # Errors
    /// Each replica was tried, or one refused; the error says what to do.
    pub(crate) async fn call<Q: Clone, A>(
        &self,
        right: Right<'_>,
        request: Q,
        method: impl AsyncFn(&mut ClusterClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> anyhow::Result<A> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut connection = self.connection().await?;
            let request = self.shown(request.clone()).await?;
            let call = method(&mut connection.client, request);
            let answer = match self.shared.patience {
                None => call.await,
                Some(patience) => match timeout(patience, call).await {
                    Ok(answer) => answer,
                    Err(_elapsed) => {
                        self.lost(&connection).await;
                        if tries < TRIES_MAX && self.has_others().await {
                            continue;
                        }
                        bail!(
                            "{} did not answer within {patience:?}: is it overloaded? \
                             (kubectl remora doctor; --request-timeout gives it longer)",
                            connection.name
                        );
                    }
                },
            };
            match answer {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_gone(&status) => {
                    self.lost(&connection).await;
                    if tries < TRIES_MAX && self.has_others().await {
                        continue;
                    }
                    return Err(self.explained(&connection, &status, right).await);
                }
                Err(status) => return Err(self.explained(&connection, &status, right).await),
            }
        }
    }

    /// The status of a call on `connection`, with what to do.
    pub(crate) async fn explained(
        &self,
        connection: &Connection,
        status: &Status,
        right: Right<'_>,
    ) -> anyhow::Error {
        // Only a refusal needs to know whose.
        let user = match status.code() {
            tonic::Code::PermissionDenied => self.user().await,
            _ => None,
        };
        let grant = right.grant(user.as_deref());
        let error = anyhow::Error::new(explain(&connection.name, status, &grant));
        match connection.failure.told() {
            Some(told) if is_gone(status) => error.context(told),
            _ => error,
        }
    }

    /// The connection failed: it is not used again, and its replica comes last.
    pub(crate) async fn lost(&self, connection: &Connection) {
        let mut current = self.shared.current.lock().await;
        let is_same = current
            .connection
            .as_ref()
            .is_some_and(|there| there.pod == connection.pod);
        if is_same {
            current.connection = None;
            current.failed.retain(|pod| *pod != connection.pod);
            current.failed.push(connection.pod.clone());
        }
    }

    /// Whether it is worth to try again.
    async fn has_others(&self) -> bool {
        match &self.shared.way {
            // Behind an address may be several; a socket has one.
            Way::Direct { address, .. } => matches!(address, ControllerAddress::Tls { .. }),
            Way::Forwarded {
                client, namespace, ..
            } => {
                let failed = self.shared.current.lock().await.failed.clone();
                let replicas = tunnel::replicas(client, namespace).await;
                replicas.is_ok_and(|there| there.iter().any(|r| !failed.contains(&r.pod)))
            }
        }
    }

    /// The connection that is there, or a new one.
    ///
    /// # Errors
    /// No replica takes one.
    pub(crate) async fn connection(&self) -> anyhow::Result<Connection> {
        let mut current = self.shared.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok(connection.clone());
        }
        let connected = timeout(CONNECT_TIMEOUT, self.connect(&mut current.failed)).await;
        let connection = connected.map_err(|_elapsed| {
            anyhow!(
                "no connection to the controller within {CONNECT_TIMEOUT:?} (kubectl remora doctor)"
            )
        })??;
        current.connection = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self, failed: &mut Vec<String>) -> anyhow::Result<Connection> {
        match &self.shared.way {
            Way::Direct { address, authority } => Ok(Connection {
                client: cluster_client(direct(address, authority.as_deref()).await?),
                name: format!("the controller at {address}"),
                pod: String::new(),
                failure: tunnel::Failure::default(),
            }),
            Way::Forwarded {
                client,
                namespace,
                authority,
            } => {
                self.forwarded(client, namespace, authority.as_deref(), failed)
                    .await
            }
        }
    }

    async fn forwarded(
        &self,
        client: &Client,
        namespace: &str,
        authority: Option<&[u8]>,
        failed: &mut Vec<String>,
    ) -> anyhow::Result<Connection> {
        let endpoint = dial::forwarded(&self.authority(client, namespace, authority).await?)?;
        let doing = format!("the controller's pods in namespace {namespace}");
        let mut replicas = match tunnel::replicas(client, namespace).await {
            Ok(replicas) => replicas,
            Err(error) => return Err(self.refused(error, &doing, namespace).await),
        };
        // Those that failed come last, the latest of them at the end.
        replicas.sort_by_key(|replica| failed.iter().position(|pod| *pod == replica.pod));
        let any_ready = replicas.iter().any(|replica| replica.is_ready);
        let mut last = None;
        for replica in replicas {
            match self.open(client, namespace, &endpoint, &replica).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
            failed.retain(|pod| *pod != replica.pod);
            failed.push(replica.pod);
        }
        let none = format!(
            "no controller of Remora is ready in namespace {namespace}: `kubectl get pods -n \
             {namespace}` shows why; if it is installed in another one, use --remora-namespace"
        );
        Err(match last {
            Some(error) if any_ready => error,
            Some(error) => error.context(none),
            None => anyhow!(none),
        })
    }

    async fn open(
        &self,
        client: &Client,
        namespace: &str,
        endpoint: &Endpoint,
        replica: &Replica,
    ) -> anyhow::Result<Connection> {
        let pod = &replica.pod;
        let doing = format!("port-forward to {pod} in namespace {namespace}");
        let (stream, failure) = match tunnel::open(client, namespace, replica).await {
            Ok(opened) => opened,
            Err(error) => return Err(self.refused(error, &doing, namespace).await),
        };
        match tunnel::channel(endpoint, stream).await {
            Ok(channel) => Ok(Connection {
                client: cluster_client(channel),
                name: format!("the controller {pod}"),
                pod: pod.clone(),
                failure,
            }),
            Err(error) => {
                let error = anyhow::Error::new(error).context(format!(
                    "no connection to the controller {pod} on its port {}",
                    replica.port
                ));
                Err(match failure.told() {
                    Some(told) => error.context(told),
                    None => error,
                })
            }
        }
    }

    async fn authority(
        &self,
        client: &Client,
        namespace: &str,
        given: Option<&[u8]>,
    ) -> anyhow::Result<Vec<u8>> {
        if let Some(given) = given {
            return Ok(given.to_vec());
        }
        let map = tunnel::CA_CONFIG_MAP;
        let doing = format!("the ConfigMap {map} in namespace {namespace}");
        match tunnel::authority(client, namespace).await {
            Ok(Some(pem)) => Ok(pem.into_bytes()),
            Ok(None) => bail!(
                "no ConfigMap {map} with a ca.crt in namespace {namespace}: is Remora installed there? \
                 Else use --remora-namespace, or --remora-ca FILE"
            ),
            Err(error) => Err(self.refused(error, &doing, namespace).await),
        }
    }

    async fn refused(&self, error: kube::Error, doing: &str, namespace: &str) -> anyhow::Error {
        let user = match &error {
            kube::Error::Api(status) if status.code == 403 => self.user().await,
            _ => None,
        };
        explain_api(error, doing, user.as_deref(), namespace)
    }

    /// The request with the user's token. A socket needs none.
    ///
    /// # Errors
    /// There is no token.
    pub(crate) async fn shown<Q>(&self, request: Q) -> anyhow::Result<Request<Q>> {
        let mut request = Request::new(request);
        let is_local = matches!(
            self.shared.way,
            Way::Direct {
                address: ControllerAddress::Unix(_),
                ..
            }
        );
        if !is_local || self.shared.credential.is_some() {
            let bearer: AsciiMetadataValue = self.shared.credential.bearer().await?;
            request.metadata_mut().insert("authorization", bearer);
        }
        Ok(request)
    }

    /// Whom the API server takes the user for, if it says so.
    pub(crate) async fn user(&self) -> Option<String> {
        let Way::Forwarded { client, .. } = &self.shared.way else {
            return None;
        };
        let ask = async {
            let reviews = Api::<SelfSubjectReview>::all(client.clone());
            let (params, review) = (PostParams::default(), SelfSubjectReview::default());
            let answer = timeout(WHOAMI_TIMEOUT, reviews.create(&params, &review));
            let answer = answer.await.ok()?.ok()?;
            answer.status?.user_info?.username
        };
        self.shared.user.get_or_init(|| ask).await.clone()
    }

    /// The API server's client, if that is the way.
    pub(crate) fn api(&self) -> Option<&Client> {
        match &self.shared.way {
            Way::Direct { .. } => None,
            Way::Forwarded { client, .. } => Some(client),
        }
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.shared.credential
    }
}
