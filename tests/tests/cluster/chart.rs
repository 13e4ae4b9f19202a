//! The chart, as it is shipped, on a real API server and real nodes.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use remora_tests::{
    cluster::{
        Cluster,
        release::{self, AGENTS, NAMESPACE, Release, chart},
    },
    manifests, run, wait,
};

use crate::{
    Test,
    installed::{USER, remora, taken},
};

/// First of all that needs Remora.
pub(crate) const FIRST: [Test; 2] = [
    (
        "chart::agents_have_two_capabilities_and_no_way_to_more",
        confined,
    ),
    (
        "chart::manifests_and_chart_pass_a_dry_run_on_the_server",
        dry_run,
    ),
];
/// Last of all: Remora is gone then.
pub(crate) const LAST: [Test; 1] = [(
    "chart::an_upgrade_keeps_secrets_and_an_uninstall_leaves_nothing",
    upgrade_and_uninstall,
)];

/// CAP_BPF (39) and CAP_NET_ADMIN (12).
const CAPABILITIES: &str = "0000008000001000";
/// Where the chart has an agent keep its captures.
const CAPTURES: &str = "/var/lib/remora";
const LIMIT: Duration = Duration::from_secs(60);

/// What the kernel says of each agent's process.
fn confined(cluster: &Cluster) -> Result<()> {
    remora(cluster)?;
    let agents = cluster.kubectl().pods(NAMESPACE, AGENTS)?;
    ensure!(agents.len() == cluster.nodes().len(), "{agents:?}");
    for agent in agents {
        let node = cluster.node(&agent.node)?;
        let pids = node.processes_of(&agent, "agent")?;
        ensure!(!pids.is_empty(), "no process of {}", agent.name);
        for pid in pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            for (key, expected) in [
                ("CapEff", CAPABILITIES),
                ("CapPrm", CAPABILITIES),
                ("CapBnd", CAPABILITIES),
                ("CapInh", "0000000000000000"),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
                ("Uid", "65532\t65532\t65532\t65532"),
                ("Gid", "65532\t65532\t65532\t65532"),
            ] {
                let line = status.lines().find_map(|line| line.strip_prefix(key));
                let value = line.map(|value| value.trim_start_matches(':').trim());
                ensure!(value == Some(expected), "{key} is {value:?}: {status}");
            }
        }
    }
    Ok(())
}

fn dry_run(cluster: &Cluster) -> Result<()> {
    // The namespace is there then, which a dry run does not make.
    remora(cluster)?;
    let kubectl = cluster.kubectl();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/remora.yaml");
    let apply = |file: &Path| {
        let mut command = kubectl.command("kubectl");
        command.args([
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
        ]);
        run::output(command.arg("-f").arg(file))
    };
    let said = apply(&manifests)?;
    ensure!(said.contains("daemonset.apps/remora-agent"), "{said}");

    let mut lint = kubectl.command("helm");
    run::output(lint.args(["lint", "--strict"]).arg(chart()))?;
    let mut template = kubectl.command("helm");
    template.args(["template", "remora", "--namespace", NAMESPACE]);
    let rendered = run::output(template.arg(chart()))?;
    let file = cluster.directory().join("rendered.yaml");
    fs::write(&file, rendered)?;
    let said = apply(&file)?;
    ensure!(said.contains("deployment.apps/remora-controller"), "{said}");
    Ok(())
}

fn upgrade_and_uninstall(cluster: &Cluster) -> Result<()> {
    let release = taken(cluster)?;
    let kubectl = cluster.kubectl();
    let secrets = || {
        let data = "jsonpath={.items[?(@.type!='helm.sh/release.v1')].data}";
        kubectl.run(&["get", "secrets", "-n", NAMESPACE, "-o", data])
    };
    let before = secrets()?;
    ensure!(before.contains("tls.key"), "no certificates");
    release.upgrade(&[&release::subjects(&[USER]), "--set=log=debug"])?;
    ensure!(
        secrets()? == before,
        "an upgrade makes certificates and secrets anew"
    );
    release.uninstall()?;

    // The resource stays, with what is told of captures; nothing else does.
    let kinds = "ds,deploy,rs,pods,svc,cm,secrets,sa,roles,rolebindings,pdb,netpol,endpointslices";
    wait::until(LIMIT, "the end of what was installed", || {
        let list = kubectl.get(&[kinds, "-n", NAMESPACE])?;
        let objects = list["items"].as_array().context("no list")?;
        let mut names = objects.iter().map(|object| &object["metadata"]["name"]);
        Ok(names.all(|name| name == "kube-root-ca.crt" || name == "default"))
    })?;
    let wide = kubectl.run(&["get", "clusterroles,clusterrolebindings", "-o", "name"])?;
    ensure!(!wide.contains("remora"), "{wide}");
    captures_are_as_signed(cluster)?;
    let crds = kubectl.run(&["get", "crds", "-o", "name"])?;
    ensure!(crds.contains("captures.remora.dev"), "{crds}");
    Release::remove_rest(kubectl)?;
    let crds = kubectl.run(&["get", "crds", "-o", "name"])?;
    ensure!(!crds.contains("remora"), "{crds}");
    Ok(())
}

/// What all tests before this one have left on the nodes: evidence outlives the release.
fn captures_are_as_signed(cluster: &Cluster) -> Result<()> {
    let mut all = 0;
    for node in cluster.nodes() {
        let captures = node.file(CAPTURES);
        let proved = manifests::prove(&captures).with_context(|| node.name().to_owned())?;
        println!("{}: {proved} manifests", node.name());
        all += proved;
        let mut verify = run::command(run::remora_program("remora")?);
        verify.arg("verify").arg(&captures);
        for key in fs::read_dir(captures.join("keys"))? {
            let key = key?.path();
            if key.extension().is_some_and(|ending| ending == "pub") {
                verify.arg("--key").arg(key);
            }
        }
        let verified = run::finish(&mut verify)?;
        let told = String::from_utf8_lossy(&verified.stdout);
        // Not all: nobody published the head, and streamed captures are signed by nobody.
        ensure!(
            told.contains("Nothing is wrong"),
            "{}: {told}{}",
            node.name(),
            String::from_utf8_lossy(&verified.stderr)
        );
    }
    ensure!(all > 0, "no capture was kept");
    Ok(())
}
