//! From Kubernetes' objects to what is kept of them.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerStatus, EphemeralContainer, Pod as Object, PodSpec, PodStatus,
};

use crate::target::pods::{Container, ContainerKind, Pod, PodPhase};

/// On the API server's copy of a pod that kubelet runs from a manifest file.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// There: the manifest's hash, which is the uid that the pod's cgroup has.
const HASH: &str = "kubernetes.io/config.hash";
/// Containers of a pod that are looked at: Kubernetes itself has no limit.
const CONTAINERS_MAX: usize = 256;
/// Addresses of a pod that are looked at.
const ADDRESSES_MAX: usize = 16;

/// `None` if it has no name or uid, as every pod has.
pub(super) fn pod(object: Object) -> Option<Pod> {
    let Object {
        metadata,
        spec,
        status,
    } = object;
    let uid = metadata.uid.filter(|uid| !uid.is_empty())?;
    let annotations = metadata.annotations.unwrap_or_default();
    let spec = spec.unwrap_or_default();
    let status = status.unwrap_or_default();
    let created = metadata.creation_timestamp;
    Some(Pod {
        cgroup_uid: manifest_hash(&annotations).unwrap_or_else(|| uid.clone()),
        uid,
        namespace: metadata.namespace?,
        name: metadata.name?,
        created: created.and_then(|time| Timestamp::from_nanosecond(time.0.as_nanosecond()).ok()),
        labels: metadata.labels.unwrap_or_default(),
        ips: addresses(&status),
        host_network: spec.host_network.unwrap_or(false),
        phase: match status.phase.as_deref() {
            Some("Running") => PodPhase::Running,
            Some("Succeeded" | "Failed") => PodPhase::Ended,
            _ => PodPhase::Pending,
        },
        containers: containers(spec, status),
    })
}

/// Anybody who may make pods may annotate them so. What is no hash of a manifest is not believed: so nobody
/// can name the cgroup of a pod of the API server's, whose uid has dashes.
fn manifest_hash(annotations: &BTreeMap<String, String>) -> Option<String> {
    annotations.get(MIRROR)?;
    let hash = annotations.get(HASH)?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (hash.len() == 32 && hash.bytes().all(is_digit)).then(|| hash.clone())
}

fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let first = status.pod_ip.iter();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in all.chain(first).filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(address);
        }
    }
    addresses
}

fn containers(spec: PodSpec, status: PodStatus) -> Vec<Container> {
    let init = spec.init_containers.unwrap_or_default().into_iter();
    let init = init.map(|container| {
        // A sidecar is an init container that is always restarted.
        let kind = match container.restart_policy.as_deref() {
            Some("Always") => ContainerKind::Sidecar,
            _ => ContainerKind::Init,
        };
        (container.name, container.image, kind)
    });
    let regular = spec.containers.into_iter();
    let regular = regular.map(|Spec { name, image, .. }| (name, image, ContainerKind::Regular));
    let ephemeral = spec.ephemeral_containers.unwrap_or_default().into_iter();
    let ephemeral = ephemeral
        .map(|EphemeralContainer { name, image, .. }| (name, image, ContainerKind::Ephemeral));
    let statuses: BTreeMap<String, ContainerStatus> = [
        status.init_container_statuses,
        status.container_statuses,
        status.ephemeral_container_statuses,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .map(|status| (status.name.clone(), status))
    .collect();
    let all = regular.chain(init).chain(ephemeral).take(CONTAINERS_MAX);
    all.map(|(name, image, kind)| {
        let status = statuses.get(&name);
        Container {
            id: status.and_then(current_id),
            image: image.unwrap_or_default(),
            image_id: status.map_or_else(String::new, |status| status.image_id.clone()),
            restarts: status.map_or(0, |status| u32::try_from(status.restart_count).unwrap_or(0)),
            kind,
            name,
        }
    })
    .collect()
}

/// `containerd://3f2a…` without its runtime.
fn current_id(status: &ContainerStatus) -> Option<String> {
    let id = status.container_id.as_deref()?;
    let id = id.rsplit_once("://").map_or(id, |(_, id)| id);
    (!id.is_empty()).then(|| id.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: serde_json::Value) -> Option<Pod> {
        pod(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_pod_of_every_kind_of_container_is_read() {
        let pod = read(json!({
            "metadata": {
                "name": "cart-7d9", "namespace": "shop", "labels": {"app": "cart"},
                "uid": "a65ca62e-5639-44ba-b2a1-a3cf1580c82c",
                "creationTimestamp": "2026-11-28T12:00:00Z",
            },
            "spec": {
                "containers": [{"name": "web", "image": "example/web:1"}],
                "initContainers": [
                    {"name": "setup", "image": "example/setup:1"},
                    {"name": "proxy", "image": "example/proxy:1", "restartPolicy": "Always"},
                ],
                "ephemeralContainers": [{"name": "debug", "image": "example/debug:1"}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.7",
                "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
                "containerStatuses": [{
                    "name": "web", "image": "", "ready": true, "restartCount": 2,
                    "imageID": "example/web@sha256:0f", "containerID": "containerd://3F2A",
                }],
            },
        }))
        .unwrap();
        assert_eq!(pod.full_name(), "shop/cart-7d9");
        assert!(!pod.is_static() && !pod.host_network);
        assert_eq!(pod.phase, PodPhase::Running);
        assert_eq!(pod.ips.len(), 2);
        assert_eq!(pod.created.unwrap().to_string(), "2026-11-28T12:00:00Z");
        let kinds: Vec<_> = pod
            .containers
            .iter()
            .map(|container| (container.name.as_str(), container.kind))
            .collect();
        assert_eq!(
            kinds,
            [
                ("web", ContainerKind::Regular),
                ("setup", ContainerKind::Init),
                ("proxy", ContainerKind::Sidecar),
                ("debug", ContainerKind::Ephemeral),
            ]
        );
        let web = pod.container("web").unwrap();
        assert_eq!((web.id.as_deref(), web.restarts), (Some("3f2a"), 2));
        assert_eq!(web.image_id, "example/web@sha256:0f");
        assert_eq!(pod.container("debug").unwrap().id, None);
    }

    #[test]
    fn a_pod_from_a_manifest_has_its_hash_and_no_other_may_claim_one_s_uid() {
        let annotated = |mirror: &str, hash: &str| {
            read(json!({
                "metadata": {
                    "name": "proxy", "namespace": "kube-system", "uid": "1",
                    "annotations": {mirror: "x", "kubernetes.io/config.hash": hash},
                },
            }))
            .unwrap()
            .cgroup_uid
        };
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(annotated(MIRROR, hash), hash);
        assert_eq!(annotated("other", hash), "1");
        assert_eq!(
            annotated(MIRROR, "a65ca62e-5639-44ba-b2a1-a3cf1580c82c"),
            "1"
        );
        assert_eq!(annotated(MIRROR, "../../x"), "1");
    }

    #[test]
    fn what_has_no_name_or_nothing_else_is_read_all_the_same() {
        assert_eq!(
            read(json!({"metadata": {"name": "x", "namespace": "y"}})),
            None
        );
        let bare = read(json!({"metadata": {"name": "x", "namespace": "y", "uid": "1"}})).unwrap();
        assert_eq!(bare.phase, PodPhase::Pending);
        assert_eq!(bare.containers, []);
    }
}
