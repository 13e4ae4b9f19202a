//! The cluster that is simulated: who is where, by number.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Pods of one deployment; each is on another node.
pub(crate) const REPLICAS: usize = 10;
/// Pods of one namespace.
const NAMESPACE_PODS: usize = 500;

#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
}

impl World {
    pub(crate) fn node(&self, pod: usize) -> usize {
        pod % self.nodes
    }

    pub(crate) fn node_name(number: usize) -> String {
        format!("worker-{number:05}")
    }

    pub(crate) fn namespace(pod: usize) -> String {
        format!("team-{:04}", pod / NAMESPACE_PODS)
    }

    pub(crate) fn deployment(pod: usize) -> String {
        format!("app-{:05}", pod / REPLICAS)
    }

    fn set(pod: usize) -> String {
        format!("{}-6d9f8c6b5", Self::deployment(pod))
    }

    pub(crate) fn pod_name(pod: usize) -> String {
        format!("{}-{:05x}", Self::set(pod), pod)
    }

    pub(crate) fn uid(pod: usize) -> String {
        format!("0b9c5a4e-6a0b-4c1e-9a57-{pod:012x}")
    }

    pub(crate) fn address(pod: usize) -> Ipv4Addr {
        let [_, a, b, c] = (pod as u32).to_be_bytes();
        Ipv4Addr::new(10, a, b, c)
    }

    /// About as long as what an API server sends of a small pod.
    pub(crate) fn pod(&self, pod: usize, version: u64) -> Value {
        let app = Self::deployment(pod);
        let containers: Vec<_> = ["app", "proxy"]
            .iter()
            .map(|name| {
                json!({
                    "name": name, "image": format!("registry.example/{app}/{name}:1.4.2"),
                    "env": (0..10).map(|n| json!({"name": format!("SETTING_{n}"), "value": "some value of it"})).collect::<Vec<_>>(),
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                    "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
                })
            })
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": Self::pod_name(pod), "namespace": Self::namespace(pod), "uid": Self::uid(pod),
                "resourceVersion": version.to_string(), "creationTimestamp": "2026-11-24T03:00:05Z",
                "labels": {"app": app, "pod-template-hash": "6d9f8c6b5", "team": Self::namespace(pod)},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": Self::set(pod), "uid": "u", "controller": true}],
                "managedFields": (0..3).map(|n| json!({
                    "manager": format!("manager-{n}"), "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}, "f:team": {}}}, "f:spec": {"f:containers": {"k:{\"name\":\"app\"}": {".": {}, "f:image": {}, "f:env": {}}}}},
                })).collect::<Vec<_>>(),
            },
            "spec": {"nodeName": Self::node_name(self.node(pod)), "containers": containers, "serviceAccountName": "default"},
            "status": {"phase": "Running", "podIPs": [{"ip": Self::address(pod).to_string()}]},
        })
    }

    pub(crate) fn sets(&self) -> usize {
        self.pods / REPLICAS
    }

    pub(crate) fn replica_set(number: usize) -> Value {
        let pod = number * REPLICAS;
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {
                "name": Self::set(pod), "namespace": Self::namespace(pod),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": Self::deployment(pod), "uid": "d", "controller": true}],
            },
        })
    }

    pub(crate) fn slice(number: usize) -> Value {
        let first = number * REPLICAS;
        let endpoints: Vec<_> = (first..first + REPLICAS)
            .map(|pod| json!({"addresses": [Self::address(pod).to_string()], "targetRef": {"kind": "Pod", "name": Self::pod_name(pod)}}))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{}-x", Self::deployment(first)), "namespace": Self::namespace(first),
                "labels": {"kubernetes.io/service-name": Self::deployment(first)},
            },
            "endpoints": endpoints,
        })
    }

    /// An alert of a pod's connection to another pod, as Falcosidekick sends it.
    pub(crate) fn alert(&self, number: usize, rule: &str, pod: usize, other: usize) -> Value {
        let (own, remote) = (Self::address(pod), Self::address(other));
        json!({
            "uuid": format!("e7bcd738-6957-4276-af83-{number:012x}"),
            "output": format!("Critical {rule} | connection={own}:43812->{remote}:4444"),
            "priority": "Critical", "rule": rule, "source": "syscall",
            "time": jiff::Timestamp::now().to_string(), "hostname": Self::node_name(self.node(pod)),
            "tags": ["network"],
            "output_fields": {
                "container.id": format!("{pod:012x}"), "evt.type": "connect", "fd.l4proto": "tcp",
                "fd.name": format!("{own}:43812->{remote}:4444"), "fd.type": "ipv4",
                "fd.sip": remote.to_string(), "fd.sport": 4444, "fd.cip": own.to_string(), "fd.cport": 43812,
                "k8s.ns.name": Self::namespace(pod), "k8s.pod.name": Self::pod_name(pod), "k8s.pod.uid": Self::uid(pod),
            },
        })
    }
}

/// What is done about an alert.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    /// Of `remora:capture`.
    parameter: &'static str,
    /// How many of ten alerts are its.
    pub(crate) of_ten: usize,
    /// Pods that an alert's captures are of.
    pub(crate) pods: u64,
}

pub(crate) const RULES: [Rule; 4] = [
    Rule {
        name: "at the container",
        parameter: "scope: container",
        of_ten: 5,
        pods: 1,
    },
    Rule {
        name: "at the deployment",
        parameter: "scope: deployment",
        of_ten: 3,
        pods: REPLICAS as u64,
    },
    Rule {
        name: "at the service",
        parameter: "scope: service",
        of_ten: 1,
        pods: REPLICAS as u64,
    },
    Rule {
        name: "at both ends",
        parameter: "both_ends: true",
        of_ten: 1,
        pods: 2,
    },
];

/// The controller's rule file.
pub(crate) fn rules() -> String {
    let rule = |Rule {
                    name, parameter, ..
                }: &Rule| {
        format!(
            "- rule: {name}\n  match:\n    rules: [{name}]\n  actions:\n    - action: capture {name}\n      \
             actionner: remora:capture\n      parameters: {{duration: 30s, look_back: 10s, {parameter}}}\n"
        )
    };
    RULES.iter().map(rule).collect()
}
