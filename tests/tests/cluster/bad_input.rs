//! What cannot be: objects with each field wrong in turn. Each is refused, or says why, and nothing is captured.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use remora_tests::{cluster::Cluster, run, wait};

use crate::{
    Test,
    capture::Bed,
    objects::{Object, condition},
};

pub(crate) const TESTS: [Test; 1] = [(
    "bad_input::an_object_with_a_wrong_field_is_refused_or_says_why",
    fields,
)];

/// A spec, a field of it, and what the API server says of that.
fn wrong_fields() -> Vec<(Value, &'static str)> {
    let with = |field: &str, value: Value| {
        let mut spec = json!({"selector": {"pod": {"name": "cart"}}});
        spec[field] = value;
        spec
    };
    let selecting = |selector: Value| json!({ "selector": selector });
    vec![
        (json!({}), "spec.selector"),
        (selecting(json!({})), "exactly one of"),
        (
            selecting(json!({"pod": {"name": "cart"}, "service": "cart"})),
            "exactly one of",
        ),
        (selecting(json!({"pod": {}})), "spec.selector.pod.name"),
        (
            selecting(json!({"pod": {"name": ""}})),
            "spec.selector.pod.name",
        ),
        (
            selecting(json!({"pod": {"name": "Cart"}})),
            "spec.selector.pod.name",
        ),
        (
            selecting(json!({"pod": {"name": "../cart"}})),
            "spec.selector.pod.name",
        ),
        (
            selecting(json!({"pod": {"name": "cart", "container": "A_b"}})),
            "spec.selector.pod.container",
        ),
        (
            selecting(json!({"workload": {"kind": "CronJob", "name": "cart"}})),
            "spec.selector.workload.kind",
        ),
        (
            selecting(json!({"workload": {"kind": "Deployment", "name": "-x"}})),
            "spec.selector.workload.name",
        ),
        (
            selecting(json!({"service": "a.b"})),
            "spec.selector.service",
        ),
        (selecting(json!({"labels": ""})), "spec.selector.labels"),
        (
            selecting(json!({"labels": "a=\u{1b}[31m"})),
            "spec.selector.labels",
        ),
        (with("filter", json!("a".repeat(4097))), "spec.filter"),
        (with("filter", json!(80)), "spec.filter"),
        (with("snaplen", json!(0)), "spec.snaplen"),
        (with("snaplen", json!(262_145)), "spec.snaplen"),
        (with("snaplen", json!("96")), "spec.snaplen"),
        (with("direction", json!("Sideways")), "spec.direction"),
        (with("limits", json!({"packets": 0})), "spec.limits.packets"),
        (
            with("limits", json!({"packets": -1})),
            "spec.limits.packets",
        ),
        (
            with("limits", json!({"fileBytes": 10})),
            "spec.limits.fileBytes",
        ),
        (
            with("limits", json!({"duration": "soon"})),
            "spec.limits.duration",
        ),
        (
            with("limits", json!({"duration": "0s"})),
            "more than 0s and at most 168h",
        ),
        (
            with("limits", json!({"duration": "169h"})),
            "more than 0s and at most 168h",
        ),
        (with("lookBack", json!("1d")), "spec.lookBack"),
        (with("lookBack", json!("2h")), "at most 1h"),
        (with("segment", json!("yes")), "spec.segment"),
        (
            json!({
                "selector": {"service": "cart"}, "segment": true,
                "limits": {"fileBytes": 4096},
            }),
            "not known beforehand",
        ),
        (with("fixed", json!(3)), "spec.fixed"),
        (
            with("destination", json!("s3://bucket")),
            "spec.destination",
        ),
        (with("destination", json!("")), "spec.destination"),
        (with("reason", json!("a".repeat(1025))), "spec.reason"),
        (with("stop", json!("true")), "spec.stop"),
        (
            with("ttlSecondsAfterFinished", json!(-1)),
            "spec.ttlSecondsAfterFinished",
        ),
        (with("filtre", json!("tcp")), "filtre"),
    ]
}

/// A spec that the schema takes, the condition's reason, and what it says.
fn wrong_meanings() -> Vec<(Value, &'static str, &'static str)> {
    let labels = |text: &str| json!({"selector": {"labels": text}, "limits": {"duration": "3s"}});
    let filter = |text: &str| json!({"selector": {"pod": {"name": "cart"}}, "filter": text});
    vec![
        (labels("app in ("), "Selector", "app in ("),
        (labels("app=none"), "NoPods", "app=none"),
        (filter("tcp prot 80"), "InvalidFilter", "prot"),
        (filter("host example.org"), "InvalidFilter", "example.org"),
        (filter("tcp port 99999"), "InvalidFilter", "99999"),
        (filter("(tcp"), "InvalidFilter", "^"),
        (
            json!({"selector": {"pod": {"name": "cart", "container": "none"}}, "limits": {"duration": "3s"}}),
            "NotStarted",
            "none",
        ),
    ]
}

fn fields(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "fields")?;
    bed.shop.web(&[("cart", "node-a")])?;
    bed.start(&["pod/cart"])?.stop()?;
    let cases = wrong_fields();
    println!("{} specs that the schema refuses", cases.len());
    for (spec, told) in cases {
        let refused = Object::applied(&bed, "wrong", spec.clone());
        let refused = refused.err().with_context(|| format!("taken: {spec}"))?;
        let said = format!("{refused:#}");
        ensure!(said.contains(told), "{spec}: {said}");
    }
    let there = bed.shop.run(&["get", "captures", "-o", "name"])?;
    ensure!(there.trim().is_empty(), "{there}");

    for (spec, reason, told) in wrong_meanings() {
        let object = Object::applied(&bed, "meaning", spec.clone())?;
        let status = object.wait_phase("Failed")?;
        let accepted = condition(&status, "Accepted")?;
        ensure!(accepted["reason"] == reason, "{spec}: {status:#}");
        let message = status["message"].as_str().unwrap_or_default();
        ensure!(message.contains(told), "{spec}: {message}");
        bed.shop.run(&["delete", "capture", "meaning"])?;
    }
    none_runs(&bed)?;

    // What runs stays as it was written.
    let spec = json!({"selector": {"pod": {"name": "cart"}}, "limits": {"duration": "10m"}});
    let object = Object::applied(&bed, "runs", spec)?;
    object.wait_phase("Capturing")?;
    for (patch, told) in [
        (json!({"filter": "tcp"}), "stays as it is"),
        (
            json!({"selector": {"pod": {"name": "other"}}}),
            "stays as it is",
        ),
        (json!({"limits": {"duration": "1m"}}), "only be made longer"),
        (json!({"limits": {"packets": 5}}), "stay as they are"),
    ] {
        let refused = object.patch(patch.clone()).err();
        let refused = refused.with_context(|| format!("taken: {patch}"))?;
        let said = format!("{refused:#}");
        ensure!(said.contains(told), "{patch}: {said}");
    }
    object.patch(json!({"stop": true}))?;
    let refused = object.patch(json!({"stop": false})).err();
    let said = format!("{:#}", refused.context("a capture goes on again")?);
    ensure!(said.contains("stays stopped"), "{said}");
    object.wait_phase("Finished").map(drop)
}

/// No capture of the namespace runs.
fn none_runs(bed: &Bed<'_>) -> Result<()> {
    let mut list = bed.user.remora()?;
    list.args(["list", "-n", &bed.shop.namespace, "-o", "json"]);
    let listed: Value = serde_json::from_str(&run::output(&mut list)?)?;
    let listed = listed.as_array().context("no list")?;
    ensure!(listed.is_empty(), "{listed:?}");
    // Nor is one about to.
    wait::pace(std::time::Duration::from_millis(10))
}
