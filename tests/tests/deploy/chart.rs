//! The chart: what it renders, with which rights, and which values it refuses.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use remora_tests::run;

use super::{golden, rights, root};

/// Values that users have, each with a name: arguments of Helm.
const SETS: [(&str, &[&str]); 6] = [
    ("default", &[]),
    ("pins", &["--set=agent.pin=on"]),
    ("remove", &["--set=agent.pin=remove"]),
    (
        "certManager",
        &["--set=tls.mode=certManager", "--set=crds.install=false"],
    ),
    (
        "existing",
        &[
            "--set=tls.mode=existingSecret",
            "--set=crds.keep=false",
            "--set=access.aggregate=true",
            "--set=networkPolicy.enabled=false",
        ],
    ),
    (
        "everything",
        &[
            "--set=monitoring.serviceMonitor.enabled=true",
            "--set=monitoring.dashboard.enabled=true",
            "--set=image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "--set=image.pullSecrets={mine}",
            "--set=access.subjects[0].kind=Group",
            "--set=access.subjects[0].name=responders",
            "--set=access.subjects[0].apiGroup=rbac.authorization.k8s.io",
            "--set-string=rules.files.mine\\.yaml=- action: x",
            "--set-json=agent.affinity={\"nodeAffinity\":{}}",
            "--set=agent.extraArgs={--attach=tcx}",
            "--set=controller.sinks={evidence=s3://bucket/prefix}",
            "--set=controller.sinkSecret=mine",
            "--set=agent.retention.keepAge=30d",
            "--set=agent.retention.keepBytes=3GiB",
            "--set=agent.retention.namespaceQuota=1GiB",
            "--set=agent.rates.rule=off",
            "--set=controller.notify={http://falcosidekick.falco:2801/}",
        ],
    ),
];

/// A value that is refused, and a word of the refusal.
const WRONG: [(&str, &str); 23] = [
    ("agent.pin=maybe", "pin"),
    ("agent.port=0", "port"),
    ("agent.port=65536", "port"),
    ("agent.user=0", "user"),
    ("agent.dataDir=captures", "dataDir"),
    ("agent.quota=4GB", "quota"),
    ("agent.lookBack.mode=all", "mode"),
    ("agent.retention.keepAge=soon", "keepAge"),
    ("agent.retention.keepBytes=most", "keepBytes"),
    ("agent.rates.node=0/60s", "node"),
    ("controller.notify={falcosidekick:2801}", "notify"),
    ("agent.hostPID=false", "hostPID"),
    (
        "agent.terminationGracePeriodSeconds=5",
        "terminationGracePeriodSeconds",
    ),
    ("controller.replicas=0", "replicas"),
    ("controller.replicas=many", "replicas"),
    ("controller.sinks={s3://bucket}", "sinks"),
    ("image.digest=sha256:12", "digest"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("tls.mode=none", "mode"),
    ("tls.days=0", "days"),
    ("rules.files.mine=x", "mine"),
    ("monitoring.serviceMonitor.interval=soon", "interval"),
    ("tsl.mode=generate", "tsl"),
];

/// Where Helm is, or `None` after saying that it is not.
fn helm() -> Option<PathBuf> {
    let found = env::var_os("REMORA_HELM").map(PathBuf::from);
    if found.is_none() {
        println!("skipped: no Helm here; `cargo xtask cluster build` makes it");
    }
    found
}

fn chart() -> PathBuf {
    root().join("deploy/helm/remora")
}

fn template(helm: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = run::command(helm);
    command.args(["template", "remora"]).arg(chart());
    command.args(["--namespace=remora"]).args(arguments);
    run::output(&mut command)
}

#[test]
fn rights_are_those_of_the_list_and_no_more() -> Result<()> {
    let mut manifest = String::new();
    for entry in sorted(&root().join("deploy/manifests"))? {
        manifest += &fs::read_to_string(entry)?;
        manifest += "\n---\n";
    }
    golden("rights.txt", &rights::of(&rights::documents(&manifest)?))
}

#[test]
fn each_set_of_values_renders_with_the_rights_of_its_list() -> Result<()> {
    let Some(helm) = helm() else { return Ok(()) };
    let mut lines = Vec::new();
    let default = rights::of(&rights::documents(&template(&helm, &[])?)?);
    for (name, arguments) in SETS {
        let found = rights::of(&rights::documents(&template(&helm, arguments)?)?);
        if name == "default" {
            lines.extend(found.iter().map(|line| format!("{name}: {line}")));
            continue;
        }
        // The others by what they add and leave out.
        let differs = |sign: &str, from: &[String], of: &[String]| -> Vec<String> {
            from.iter()
                .filter(|line| !of.contains(line))
                .map(|line| format!("{name}: {sign} {line}"))
                .collect()
        };
        lines.extend(differs("+", &found, &default));
        lines.extend(differs("-", &default, &found));
    }
    golden("rights-by-values.txt", &lines)
}

#[test]
fn it_passes_helm_s_own_lint() -> Result<()> {
    let Some(helm) = helm() else { return Ok(()) };
    for (_, arguments) in SETS {
        let mut command = run::command(&helm);
        command
            .args(["lint", "--strict"])
            .arg(chart())
            .args(arguments);
        run::output(&mut command)?;
    }
    Ok(())
}

#[test]
fn the_committed_manifests_are_what_it_renders() -> Result<()> {
    let Some(helm) = helm() else { return Ok(()) };
    let rendered = rights::documents(&template(
        &helm,
        &[
            "--set=tls.mode=existingSecret",
            "--set=alerts.existingSecret=remora-alerts",
        ],
    )?)?;
    let mut committed = Vec::new();
    for path in sorted(&root().join("deploy/manifests"))? {
        committed.extend(rights::documents(&fs::read_to_string(path)?)?);
    }
    // Helm makes it itself.
    committed.retain(|document| document["kind"] != "Namespace");
    let named = |documents: &[serde_json::Value]| {
        let mut named: Vec<String> = documents.iter().map(ToString::to_string).collect();
        named.sort();
        named
    };
    ensure!(
        named(&rendered) == named(&committed),
        "deploy/manifests is not what the chart renders: run `cargo xtask manifests` and commit"
    );
    Ok(())
}

#[test]
fn wrong_values_are_refused_with_their_name() -> Result<()> {
    let Some(helm) = helm() else { return Ok(()) };
    for (wrong, word) in WRONG {
        let mut command = run::command(&helm);
        command.args(["template", "remora"]).arg(chart());
        command.arg(format!("--set={wrong}"));
        let output = run::finish(&mut command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            bail!("{wrong} was taken");
        }
        ensure!(
            said.contains("schema") && said.contains(word),
            "{wrong}: {said}"
        );
    }
    Ok(())
}

/// The manifests in a directory, by name.
fn sorted(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    paths.sort();
    ensure!(!paths.is_empty(), "no manifests in {}", directory.display());
    Ok(paths)
}
