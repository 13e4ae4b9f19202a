//! `Capture` objects, as a user applies them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use remora_tests::{cluster::Cluster, packets::Capture, run, wait, wire};

use crate::{
    Test,
    capture::Bed,
    node_agent::NodeAgent,
    shop::PORT,
    witness::{BEGIN, END, Witness, assert_equal},
};

pub(crate) const TESTS: [Test; 3] = [
    (
        "objects::an_object_captures_its_pods_and_tells_what_became_of_them",
        deployment,
    ),
    ("objects::what_cannot_be_carried_out_says_why", wrong),
    ("objects::a_deleted_object_ends_its_capture_first", deleted),
];

const LIMIT: Duration = Duration::from_secs(60);

/// An object in the bed's namespace.
pub(crate) struct Object<'a> {
    bed: &'a Bed<'a>,
    name: &'static str,
}

impl<'a> Object<'a> {
    pub(crate) fn applied(bed: &'a Bed<'a>, name: &'static str, spec: Value) -> Result<Self> {
        let object = json!({
            "apiVersion": "remora.dev/v1alpha1",
            "kind": "Capture",
            "metadata": {"name": name},
            "spec": spec,
        });
        bed.shop.apply(&object.to_string())?;
        Ok(Self { bed, name })
    }

    fn get(&self) -> Result<Value> {
        let namespace = &self.bed.shop.namespace;
        self.bed
            .shop
            .kubectl()
            .get(&["-n", namespace, "capture", self.name])
    }

    pub(crate) fn patch(&self, spec: Value) -> Result<()> {
        let patch = json!({ "spec": spec }).to_string();
        let words = ["patch", "capture", self.name, "--type=merge", "-p", &patch];
        self.bed.shop.run(&words).map(drop)
    }

    /// Waits until its status is `wanted`.
    fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let met = wait::until_some(LIMIT, what, || {
            last = self.get()?["status"].clone();
            Ok(wanted(&last).then(|| last.clone()))
        });
        met.with_context(|| format!("{last:#}"))
    }

    pub(crate) fn wait_phase(&self, phase: &str) -> Result<Value> {
        self.wait(phase, |status| status["phase"] == phase)
    }
}

pub(crate) fn condition<'v>(status: &'v Value, kind: &str) -> Result<&'v Value> {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .find(|condition| condition["type"] == kind)
        .with_context(|| format!("no condition {kind} in {status:#}"))
}

fn deployment(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "object")?;
    let peer = bed.shop.web(&[("peer", "node-b")])?.remove(0);
    let pods = bed.shop.deployment("cart", 2)?;
    let filter = format!("tcp port {PORT}");
    let mut witnesses = Vec::new();
    for pod in &pods {
        witnesses.push(bed.witness(pod, "eth0", &filter)?);
    }
    let spec = json!({
        "selector": {"workload": {"kind": "Deployment", "name": "cart"}},
        "filter": filter, "limits": {"duration": "10m"}, "reason": "INC-4711",
    });
    let object = Object::applied(&bed, "cart", spec)?;
    let status = object.wait("both parts", |status| {
        let parts = status["nodes"].as_array().into_iter().flatten();
        let runs = |part: &&Value| part["phase"] == "Capturing";
        status["phase"] == "Capturing" && parts.filter(runs).count() == 2
    })?;
    ensure!(
        condition(&status, "Accepted")?["status"] == "True",
        "{status:#}"
    );
    for pod in &pods {
        for page in [BEGIN, "between", END] {
            bed.shop.ask(&peer, pod.address()?, PORT, page)?;
        }
    }
    let theirs = witnesses
        .into_iter()
        .map(Witness::stop)
        .collect::<Result<Vec<_>>>()?;
    let parts = status["nodes"].as_array().context("no parts")?;
    let of_ten_minutes = || -> Result<usize> {
        let mut found = 0;
        for part in parts {
            let [node, id] = [&part["node"], &part["capture"]].map(|text| text.as_str());
            let agent = NodeAgent::on(cluster, node.context("no node")?)?;
            let shown = agent.run(&["show", id.context("no id")?])?;
            found += usize::from(shown.contains("600s"));
        }
        Ok(found)
    };
    ensure!(of_ten_minutes()? == 2, "the agents show no limit of 600s");
    object.patch(json!({"limits": {"duration": "20m"}}))?;
    wait::until(LIMIT, "the parts to last longer", || {
        Ok(of_ten_minutes()? == 0)
    })?;
    object.patch(json!({"stop": true}))?;
    let status = object.wait_phase("Finished")?;

    let id = status["capture"].as_str().context("no id")?;
    let file = cluster.directory().join("object.pcapng");
    let mut get = bed.user.remora()?;
    get.args(["get", id, "-n", &bed.shop.namespace, "-w"])
        .arg(&file);
    run::output(&mut get)?;
    wire::assert_readable(&file)?;
    let capture = Capture::read(&file)?;
    for (pod, theirs) in pods.iter().zip(&theirs) {
        let owner = format!("{}/", bed.owner(pod));
        let is_of = |interface: u32| {
            let interface = capture.interfaces.get(interface as usize);
            interface.is_some_and(|interface| interface.name.starts_with(&owner))
        };
        let mut ours = capture.packets.clone();
        ours.retain(|packet| is_of(packet.interface));
        assert_equal(&ours, theirs).with_context(|| pod.name.clone())?;
    }
    let written = status["counts"]["written"].as_u64();
    ensure!(written == Some(capture.packets.len() as u64), "{status:#}");
    ensure!(status["counts"]["missing"] == 0, "{status:#}");
    ensure!(
        condition(&status, "Complete")?["status"] == "True",
        "{status:#}"
    );
    let files = status["files"].as_array().context("no files")?;
    let digests = files.iter().filter_map(|file| file["sha256"].as_str());
    ensure!(
        digests.filter(|digest| digest.len() == 64).count() == 2,
        "{status:#}"
    );

    let table = bed.shop.run(&["get", "captures"])?;
    ensure!(
        table.contains("PHASE") && table.contains("Finished"),
        "{table}"
    );
    let events = bed
        .shop
        .run(&["get", "events", "-o", "jsonpath={.items[*].message}"])?;
    ensure!(
        events.contains(id) && events.contains("sha256:"),
        "{events}"
    );

    // Of a capture that is over nothing is waited for; and it is removed when its time is.
    object.patch(json!({"ttlSecondsAfterFinished": 1}))?;
    wait::until(LIMIT, "the object to be removed", || {
        Ok(object.get().is_err())
    })
}

fn wrong(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "wrong")?;
    let spec = json!({"selector": {"service": "none"}, "filter": "tcp prot 80"});
    let status = Object::applied(&bed, "typo", spec)?.wait_phase("Failed")?;
    let accepted = condition(&status, "Accepted")?;
    ensure!(accepted["reason"] == "InvalidFilter", "{status:#}");
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("prot") && message.contains('^'),
        "{message}"
    );

    let spec = json!({"selector": {"service": "none"}, "limits": {"duration": "5s"}});
    let nobody = Object::applied(&bed, "nobody", spec)?;
    let status = nobody.wait_phase("Failed")?;
    ensure!(
        condition(&status, "Accepted")?["reason"] == "NoPods",
        "{status:#}"
    );

    let spec = json!({"selector": {"pod": {"name": "later"}}, "limits": {"duration": "10m"}});
    let later = Object::applied(&bed, "later", spec)?;
    later.wait_phase("Pending")?;
    bed.shop.web(&[("later", "node-a")])?;
    later.wait_phase("Capturing")?;
    later.patch(json!({"stop": true}))?;
    later.wait_phase("Finished")?;
    // Nothing holds what is over.
    bed.shop
        .run(&["delete", "capture", "typo", "nobody", "later"])
        .map(drop)
}

fn deleted(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "delete")?;
    bed.shop.web(&[("alone", "node-a")])?;
    let spec = json!({"selector": {"pod": {"name": "alone"}}, "limits": {"duration": "1h"}});
    let object = Object::applied(&bed, "alone", spec)?;
    let status = object.wait_phase("Capturing")?;
    let id = status["capture"].as_str().context("no id")?;
    bed.shop.run(&["delete", "capture", "alone"])?;
    let mut list = bed.user.remora()?;
    list.args(["list", "-n", &bed.shop.namespace]);
    let listed = run::output(&mut list)?;
    ensure!(!listed.contains(id), "it still runs: {listed}");
    Ok(())
}
