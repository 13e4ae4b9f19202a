//! What cannot be: targets that nobody has, objects with a wrong field, filters with a typo. Each is refused
//! with what to do about it, and nothing is captured.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use remora_tests::{
    cluster::{Cluster, kubectl::Kubectl, pods::KubePod},
    run, wait,
};

use crate::{
    Test,
    capture::Bed,
    objects::{Object, condition},
    shop::{POD_LIMIT, PORT, Shop},
    witness::{BEGIN, contains},
};

pub(crate) const TESTS: [Test; 4] = [
    (
        "bad_input::a_target_that_nobody_has_is_refused_and_named",
        nobody,
    ),
    (
        "bad_input::an_object_with_a_wrong_field_is_refused_or_says_why",
        fields,
    ),
    ("bad_input::a_typo_in_a_filter_is_pointed_at", typo),
    (
        "bad_input::names_and_labels_as_long_and_odd_as_can_be_are_captured_whole",
        odd_names,
    ),
];

/// Words after `kubectl remora capture`, and what is said.
const TARGETS: [(&[&str], &str); 16] = [
    (&["pod/none"], "`none`"),
    (&["deploy/none"], "`none`"),
    (&["sts/none"], "`none`"),
    (&["ds/none"], "`none`"),
    (&["job/none"], "`none`"),
    (&["svc/none"], "`none`"),
    (&["-l", "app=none"], "app=none"),
    (&["pod/cart", "-c", "none"], "none"),
    // Not what is meant: a path, a shell's words, a terminal's.
    (&["pod/../../etc/passwd"], "is not the name"),
    (&["pod/cart;reboot"], "is not the name"),
    (&["pod/$(reboot)"], "is not the name"),
    (&["pod/\u{1b}]0;x\u{7}"], r"\u{1b}"),
    (&["cronjob/cart"], "selects nothing known"),
    (&["-l", "app in ("], "app in ("),
    (&["-l", "a=b,=,c"], "`=` in the label selector"),
    (&["-l", "\u{202e}=x"], "label selector"),
];

fn nobody(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "nobody")?;
    bed.shop.web(&[("cart", "node-a")])?;
    bed.start(&["pod/cart"])?.stop()?;
    let long = format!("pod/{}", "a".repeat(300));
    let many = format!("a in ({})", "b,".repeat(600));
    let mut targets: Vec<(&[&str], &str)> = TARGETS.to_vec();
    let long = [long.as_str()];
    let many = ["-l", many.as_str()];
    targets.push((&long, "is not the name"));
    targets.push((&many, "1024"));
    for (words, told) in targets {
        let said = refused(&bed.user, &bed.shop, words)?;
        ensure!(said.contains(told), "{words:?}: {said}");
        ensure!(
            !said.contains(['\u{1b}', '\u{7}', '\u{202e}']),
            "{words:?} writes to the terminal: {said:?}"
        );
    }
    none_runs(&bed)
}

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

fn typo(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "typo")?;
    bed.shop.web(&[("cart", "node-a")])?;
    bed.start(&["pod/cart"])?.stop()?;
    for (filter, at) in [
        ("tcp prot 80", "prot"),
        ("udp prot 53 and host 10.0.0.1", "prot"),
    ] {
        let said = refused(&bed.user, &bed.shop, &["pod/cart", "-f", filter])?;
        pointed(&said, filter, at)?;
        let spec = json!({"selector": {"pod": {"name": "cart"}}, "filter": filter});
        let status = Object::applied(&bed, "typo", spec)?.wait_phase("Failed")?;
        let message = status["message"].as_str().unwrap_or_default();
        pointed(message, filter, at)?;
        bed.shop.run(&["delete", "capture", "typo"])?;
    }
    none_runs(&bed)
}

/// The filter is quoted, and the `^` below it is at the word.
fn pointed(said: &str, filter: &str, at: &str) -> Result<()> {
    let mut lines = said.lines().skip_while(|line| !line.contains(filter));
    let (quoted, mark) = (lines.next(), lines.next());
    let (quoted, mark) = quoted.zip(mark).with_context(|| said.to_owned())?;
    let word = quoted.find(at).context("no word")?;
    let mark = mark.find('^').with_context(|| said.to_owned())?;
    ensure!(
        (word..word + at.len()).contains(&mark),
        "it points beside {at}: {said}"
    );
    Ok(())
}

fn odd_names(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "odd")?;
    let peer = bed.shop.web(&[("peer", "node-a")])?.remove(0);
    // A name may have 253 characters, of which kubelet's directories take some 200; a label's value has 63, and its
    // key a prefix of 253.
    let name = format!("{}.{}", ["a-0"; 48].join("."), "z");
    let key = format!(
        "{}.example.org/{}",
        ["x"; 100].join("."),
        "K.1_2-3".repeat(9)
    );
    let value = format!("V{}9", "._-".repeat(20));
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {(key.clone()): value, "app": "odd"}},
        "spec": {
            "nodeName": "node-a", "terminationGracePeriodSeconds": 1,
            "hostname": "odd",
            "containers": [{
                "name": "c".repeat(63),
                "image": remora_tests::cluster::image::BUSYBOX,
                "imagePullPolicy": "Never",
                "command": ["/bin/httpd", "-f", "-p", PORT.to_string(), "-h", "/www"],
                "startupProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
            }],
        },
    });
    bed.shop.apply(&pod.to_string())?;
    let which = format!("pod/{name}");
    let kubectl = cluster.kubectl();
    kubectl.wait_pods(&bed.shop.namespace, &[&which], POD_LIMIT)?;
    let pod: KubePod = bed.shop.pod(&name)?;
    let labels = format!("{key}={value}");
    for target in [&[which.as_str()][..], &["-l", &labels]] {
        let mut capturing = bed.start(target)?;
        bed.shop.ask(&peer, pod.address()?, PORT, BEGIN)?;
        bed.finish(&mut capturing, &peer, &pod)?;
        let captured = capturing.stop()?;
        let ours = captured.of(&bed.owner(&pod));
        ensure!(
            ours.len() == captured.capture.packets.len(),
            "{} of {} packets are by the pod's whole name",
            ours.len(),
            captured.capture.packets.len()
        );
        ensure!(ours.iter().any(|packet| contains(&packet.data, BEGIN)));
    }
    Ok(())
}

/// What `kubectl remora capture` says when it refuses.
fn refused(user: &Kubectl, shop: &Shop<'_>, words: &[&str]) -> Result<String> {
    let file = shop.cluster.directory().join("refused.pcapng");
    let mut command = user.remora()?;
    command.arg("capture").args(words);
    command.args(["-n", &shop.namespace, "-w"]).arg(&file);
    let ended = run::finish(&mut command)?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(
        matches!(ended.status.code(), Some(1 | 2)),
        "{words:?}: {}, {said}",
        ended.status
    );
    ensure!(!file.exists(), "{words:?} leaves a file");
    Ok(said)
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
