//! `kind: Capture`: captures without `kubectl remora`, by objects beside their pods.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use remora_tests::{cluster::Cluster, packets::Capture, run, wait};

use crate::{
    Test,
    capture::Bed,
    shop::PORT,
    witness::{BEGIN, END, assert_equal},
};

pub(crate) const TESTS: [Test; 1] = [(
    "objects::a_capture_object_captures_and_tells_what_became_of_it",
    object,
)];

const LIMIT: Duration = Duration::from_secs(60);

fn object(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "object")?;
    let pods = bed.shop.web(&[("cart", "node-a"), ("peer", "node-b")])?;
    let [cart, peer] = pods.as_slice() else {
        anyhow::bail!("{pods:?}")
    };
    // Controllers and agents know the pod then.
    bed.start(&["pod/cart"])?.stop()?;
    let filter = format!("tcp port {PORT}");
    let witness = bed.witness(cart, "eth0", &filter)?;
    apply(&bed, "right", &filter)?;
    wait_phase(&bed, "right", "Capturing")?;
    let to = cart.address()?;
    for page in [BEGIN, "between", END] {
        bed.shop.ask(peer, to, PORT, page)?;
    }
    let theirs = witness.stop()?;
    let stop = r#"{"spec":{"stop":true}}"#;
    in_namespace(
        &bed,
        &["patch", "capture", "right", "--type=merge", "-p", stop],
    )?;
    let status = wait_phase(&bed, "right", "Finished")?;
    let shown = in_namespace(&bed, &["get", "captures"])?;
    ensure!(shown.contains("Finished"), "{shown}");

    let id = status["capture"].as_str().context("no id")?;
    let file = cluster.directory().join("object.pcapng");
    run::output(bed.user.remora()?.args(["get", id, "-w"]).arg(&file))?;
    let ours = Capture::read(&file)?.packets;
    assert_equal(&ours, &theirs)?;
    let written = status["counts"]["written"].as_u64();
    ensure!(written == Some(ours.len() as u64), "{status}");

    apply(&bed, "wrong", "tcp prt 80")?;
    let status = wait_phase(&bed, "wrong", "Failed")?;
    ensure!(status["message"].to_string().contains("prt"), "{status}");
    // Their finalizers let them go.
    in_namespace(&bed, &["delete", "captures", "--all", "--wait=true"]).map(drop)
}

fn apply(bed: &Bed<'_>, name: &str, filter: &str) -> Result<()> {
    let object = format!(
        "apiVersion: remora.dev/v1alpha1\nkind: Capture\nmetadata: {{name: {name}}}\nspec:\n  \
         selector: {{pod: {{name: cart}}}}\n  filter: {filter}\n  limits: {{duration: 5m}}\n"
    );
    bed.user.apply_in(&bed.shop.namespace, &object).map(drop)
}

/// `kubectl -n <namespace> …` by the user.
fn in_namespace(bed: &Bed<'_>, words: &[&str]) -> Result<String> {
    bed.user
        .run(&[&["-n", &bed.shop.namespace], words].concat())
}

/// The object's status, once it is in that phase.
fn wait_phase(bed: &Bed<'_>, name: &str, phase: &str) -> Result<Value> {
    let mut last = Value::Null;
    let waited = wait::until_some(LIMIT, &format!("{name} to be {phase}"), || {
        let object = bed
            .user
            .get(&["capture", name, "-n", &bed.shop.namespace])?;
        last = object["status"].clone();
        Ok((last["phase"] == phase).then(|| last.clone()))
    });
    waited.with_context(|| last.to_string())
}
