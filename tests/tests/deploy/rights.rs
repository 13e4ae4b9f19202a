//! What a set of manifests may do in a cluster and on its nodes, as lines that a person can review.

use serde_json::Value;

/// Objects of a manifest with several.
pub(crate) fn documents(manifest: &str) -> anyhow::Result<Vec<Value>> {
    let mut documents = Vec::new();
    for text in manifest.split("\n---") {
        let value: Value =
            serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{error}: in {text}"))?;
        if !value.is_null() {
            documents.push(value);
        }
    }
    Ok(documents)
}

/// One line for each right; an object that has none is a line, too.
pub(crate) fn of(documents: &[Value]) -> Vec<String> {
    let mut lines: Vec<String> = documents
        .iter()
        .flat_map(|object| {
            let name = format!(
                "{} {}",
                word(&object["kind"]),
                word(&object["metadata"]["name"])
            );
            match word(&object["kind"]).as_str() {
                "ClusterRole" | "Role" => rules(&name, object),
                "ClusterRoleBinding" | "RoleBinding" => binding(&name, object),
                "DaemonSet" | "Deployment" | "Job" => {
                    pod(&name, &object["spec"]["template"]["spec"])
                }
                _ => vec![name],
            }
        })
        .collect();
    lines.sort();
    lines
}

fn rules(name: &str, role: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for rule in each(&role["rules"]) {
        for group in each(&rule["apiGroups"]) {
            for resource in each(&rule["resources"]) {
                let group = match word(group).as_str() {
                    "" => "core".to_owned(),
                    group => group.to_owned(),
                };
                let named = words(&rule["resourceNames"]);
                let only = if named.is_empty() {
                    String::new()
                } else {
                    format!(" named {named}")
                };
                let resource = word(resource);
                lines.push(format!(
                    "{name}: {} {group}/{resource}{only}",
                    words(&rule["verbs"])
                ));
            }
        }
        for url in each(&rule["nonResourceURLs"]) {
            lines.push(format!("{name}: {} {}", words(&rule["verbs"]), word(url)));
        }
    }
    lines
}

fn binding(name: &str, binding: &Value) -> Vec<String> {
    let role = &binding["roleRef"];
    let role = format!("{} {}", word(&role["kind"]), word(&role["name"]));
    each(&binding["subjects"])
        .map(|subject| {
            format!(
                "{name}: {role} for {} {}/{}",
                word(&subject["kind"]),
                word(&subject["namespace"]),
                word(&subject["name"])
            )
        })
        .collect()
}

fn pod(name: &str, pod: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for key in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        if pod[key] == true {
            lines.push(format!("{name}: {key}"));
        }
    }
    let account = word(&pod["serviceAccountName"]);
    lines.push(format!("{name}: account {account}"));
    for kind in ["initContainers", "containers"] {
        for container in each(&pod[kind]) {
            let name = format!("{name}: {kind} {}", word(&container["name"]));
            lines.push(format!("{name}: {}", confinement(pod, container)));
            lines.extend(mounts(&name, pod, container));
        }
    }
    lines
}

fn confinement(pod: &Value, container: &Value) -> String {
    let (own, shared) = (&container["securityContext"], &pod["securityContext"]);
    let either = |key: &str| match &own[key] {
        Value::Null => shared[key].clone(),
        set => set.clone(),
    };
    let capabilities = &own["capabilities"];
    format!(
        "user {}, escalation {}, privileged {}, read-only root {}, seccomp {}, drop {}, add {}",
        either("runAsUser"),
        own["allowPrivilegeEscalation"],
        own["privileged"],
        own["readOnlyRootFilesystem"],
        word(&either("seccompProfile")["type"]),
        words(&capabilities["drop"]),
        words(&capabilities["add"]),
    )
}

fn mounts(name: &str, pod: &Value, container: &Value) -> Vec<String> {
    each(&container["volumeMounts"])
        .map(|mount| {
            let volume = each(&pod["volumes"])
                .find(|volume| volume["name"] == mount["name"])
                .cloned()
                .unwrap_or_default();
            let what = match &volume["hostPath"] {
                Value::Null => volume
                    .as_object()
                    .and_then(|volume| volume.keys().find(|key| *key != "name").cloned())
                    .unwrap_or_default(),
                host => format!("the node's {}", word(&host["path"])),
            };
            let how = if mount["readOnly"] == true {
                "reads"
            } else {
                "writes"
            };
            format!("{name}: {how} {what} at {}", word(&mount["mountPath"]))
        })
        .collect()
}

pub(crate) fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn words(list: &Value) -> String {
    each(list).map(word).collect::<Vec<_>>().join(",")
}

#[test]
fn a_right_that_is_added_is_a_line_that_is_added() {
    let manifest = "kind: Role\nmetadata: {name: r}\nrules:\n- {apiGroups: [\"\"], resources: [pods], \
                    verbs: [get]}\n---\nkind: DaemonSet\nmetadata: {name: d}\nspec: {template: {spec: \
                    {hostPID: true, containers: [{name: c, securityContext: {capabilities: {add: \
                    [BPF]}}, volumeMounts: [{name: v, mountPath: /m}]}], volumes: [{name: v, hostPath: \
                    {path: /h}}]}}}\n";
    let lines = of(&documents(manifest).unwrap());
    assert_eq!(
        lines,
        [
            "DaemonSet d: account ",
            "DaemonSet d: containers c: user null, escalation null, privileged null, read-only root \
             null, seccomp , drop , add BPF",
            "DaemonSet d: containers c: writes the node's /h at /m",
            "DaemonSet d: hostPID",
            "Role r: get core/pods",
        ]
    );
}
