//! The way to a controller's pod through the API server: port-forward, a byte stream.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, Client, api::ListParams};
use tokio::io::DuplexStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::address::CONTROLLER_PORT;

/// Label of the controller's pods, as the chart has it.
const PODS: &str = "app.kubernetes.io/name=remora-controller";
/// Name of the controller's port in its pod.
const PORT_NAME: &str = "grpc";
/// The ConfigMap with the controller's certificate authority, and its key.
pub(super) const CA_CONFIG_MAP: &str = "remora-ca";
const CA_KEY: &str = "ca.crt";

/// A controller's pod that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) pod: String,
    pub(super) port: u16,
    /// As Kubernetes sees it. It takes all pods of a node that it has not heard of for unready, whatever they are.
    pub(super) is_ready: bool,
}

/// The controller's pods that run: those that are ready first, then by their names.
///
/// # Errors
/// The API server does not answer, or refuses.
pub(super) async fn replicas(client: &Client, namespace: &str) -> kube::Result<Vec<Replica>> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels(PODS)).await?;
    let mut replicas: Vec<_> = list.items.iter().filter_map(replica).collect();
    replicas.sort_by(|a, b| (!a.is_ready, &a.pod).cmp(&(!b.is_ready, &b.pod)));
    Ok(replicas)
}

fn replica(pod: &Pod) -> Option<Replica> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let is_ready = conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True");
    let runs = is_ready || status.phase.as_deref() == Some("Running");
    if !runs || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let port = containers
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_deref() == Some(PORT_NAME))
        .and_then(|port| u16::try_from(port.container_port).ok());
    Some(Replica {
        pod: pod.metadata.name.clone()?,
        port: port.unwrap_or(CONTROLLER_PORT),
        is_ready,
    })
}

/// The controller's certificate authority, in PEM; `None` if the ConfigMap has none.
///
/// # Errors
/// The API server does not answer, or refuses.
pub(super) async fn authority(client: &Client, namespace: &str) -> kube::Result<Option<String>> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let map = maps.get_opt(CA_CONFIG_MAP).await?;
    Ok(map.and_then(|map| map.data?.remove(CA_KEY)))
}

/// What the API server said of a forwarded port that failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    pub(super) fn told(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Opens the port of a replica.
///
/// # Errors
/// The API server does not answer, or refuses.
pub(super) async fn open(
    client: &Client,
    namespace: &str,
    replica: &Replica,
) -> kube::Result<(DuplexStream, Failure)> {
    let Replica { pod, port, .. } = replica;
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let mut forwarder = pods.portforward(pod, &[*port]).await?;
    let failure = Failure::default();
    if let Some(failing) = forwarder.take_error(*port) {
        let told = failure.clone();
        tokio::spawn(async move {
            if let Some(message) = failing.await {
                *told.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
            }
        });
    }
    // Asked for one port: it is there once.
    let stream = forwarder.take_stream(*port).ok_or_else(|| {
        kube::Error::Service(io::Error::other("the API server forwards no port").into())
    })?;
    Ok((stream, failure))
}

/// gRPC over a stream that is there. When it is gone, so is the channel.
///
/// # Errors
/// There is no controller at its other end.
pub(super) async fn channel(
    endpoint: &Endpoint,
    stream: DuplexStream,
) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(TokioIo::new(stream));
    let once = service_fn(move |_: http::Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    endpoint.connect_with_connector(once).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(ready: &str, change: impl Fn(&mut serde_json::Value)) -> Option<Replica> {
        let mut pod = json!({
            "metadata": {"name": "remora-controller-a"},
            "spec": {"containers": [
                {"name": "other", "ports": [{"name": "metrics", "containerPort": 2807}]},
                {"name": "controller", "ports": [{"name": "grpc", "containerPort": 9000}]},
            ]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        change(&mut pod);
        replica(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_that_is_ready_is_a_replica_with_its_named_port() {
        let expected = |port| {
            Some(Replica {
                pod: "remora-controller-a".into(),
                port,
                is_ready: true,
            })
        };
        assert_eq!(of("True", |_| {}), expected(9000));
        let unnamed = of("True", |pod| {
            pod["spec"]["containers"][1]["ports"] = json!([]);
        });
        assert_eq!(unnamed, expected(CONTROLLER_PORT));
    }

    #[test]
    fn a_pod_that_runs_and_is_not_ready_is_one_that_is_asked_last() {
        let unready = of("False", |pod| pod["status"]["phase"] = json!("Running"));
        assert_eq!(unready.map(|replica| replica.is_ready), Some(false));
    }

    #[test]
    fn a_pod_that_does_not_run_or_goes_is_none() {
        assert_eq!(of("False", |_| {}), None);
        let pending = of("False", |pod| pod["status"]["phase"] = json!("Pending"));
        assert_eq!(pending, None);
        let going = of("True", |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
        });
        assert_eq!(going, None);
        let unknown = of("True", |pod| pod["status"] = json!({}));
        assert_eq!(unknown, None);
    }
}
