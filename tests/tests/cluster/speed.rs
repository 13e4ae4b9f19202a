//! How soon: from an alert to the capture that is armed on its node, and from a pod's interface to its recording. Times
//! are those of a shared machine: they are shown, not asserted.

use std::{
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use remora_tests::{
    cluster::{
        Cluster,
        pods::{KubePod, in_network},
    },
    controller::capture_id,
    latency::{self, quantile},
    traffic::{self, Stream},
    wait,
};

use crate::{
    Test,
    alerts::Sender,
    capture::Bed,
    installed::upgrade,
    node_agent::{Calls, NodeAgent},
};

pub(crate) const TESTS: [Test; 1] = [(
    "speed::alerts_arm_their_captures_whether_the_api_server_is_there_or_not",
    alerts,
)];

const LIMIT: Duration = Duration::from_secs(60);
/// With the API server there, and as many without it.
const TRIGGERS: usize = 150;
const PORT: u16 = 9998;
/// Packets per second: of two that follow each other the second comes within half a millisecond.
const RATE: u64 = 2000;
const RULE: &str = "A test is measured";

/// Without a look-back, so that a capture's first packet is one that came when it was armed.
fn rules() -> String {
    format!(
        "- action: Capture the stream
  actionner: remora:capture
  parameters:
    filter: udp port {PORT}
    duration: 60s
    max_packets: 100000
- rule: Whatever a test measures
  match:
    rules: [{RULE}]
  actions:
    - action: Capture the stream
"
    )
}

fn alerts(cluster: &Cluster) -> Result<()> {
    // Each alert begins a capture, which is what is measured.
    let off = |rate: &str| format!("--set=agent.rates.{rate}=off");
    let rates = ["node", "namespace", "rule"].map(off);
    let rules = json!({"falco": false, "files": {"speed.yaml": rules()}});
    let rules = format!("--set-json=rules={rules}");
    let [node, namespace, rule] = &rates;
    upgrade(cluster, &[node, namespace, rule, &rules])?;
    let measured = measure(cluster);
    upgrade(cluster, &[])?;
    measured
}

fn measure(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "speed")?;
    let pods = bed.shop.web(&[("from", "node-a"), ("to", "node-a")])?;
    let [from, to] = pods.as_slice() else {
        anyhow::bail!("{pods:?}")
    };
    let agent = NodeAgent::on(cluster, "node-a")?;
    agent.wait_recorded(from)?;
    let calls = Calls::to(&agent)?;
    let sender = Sender::to_first(cluster)?;
    let node = cluster.node("node-a")?;
    let (here, there) = (node.network_of(from)?, node.network_of(to)?);
    let directory = cluster.directory();
    let _sink = traffic::sink(PORT, directory, |tool: &Path| in_network(&there, tool))?;
    let stream = Stream {
        rate: RATE,
        ..Stream::new(to.address()?, PORT, 0)
    };
    let stream = stream.send_until_stopped(directory, |tool| in_network(&here, tool))?;
    // The connections are made.
    Times::of(0..1, from, &sender, &calls)?;

    let with = Times::of(1..1 + TRIGGERS, from, &sender, &calls)?;
    cluster.control_plane().stop_api()?;
    let without = Times::of(1 + TRIGGERS..1 + 2 * TRIGGERS, from, &sender, &calls);
    cluster.control_plane().start_api()?;
    let without = without?;
    stream.stop()?;
    println!("{TRIGGERS} alerts each, in milliseconds: p50, p99, longest");
    with.show("with the API server");
    without.show("without the API server");
    Ok(())
}

/// Of alerts, one after the other.
#[derive(Default)]
struct Times {
    /// From the request to the answer, which comes when the capture is armed.
    answered: Vec<Duration>,
    /// From the request to the kernel's time of the capture's first packet.
    first: Vec<Duration>,
}

impl Times {
    fn of(numbers: Range<usize>, pod: &KubePod, sender: &Sender, calls: &Calls) -> Result<Self> {
        let mut times = Self::default();
        for number in numbers {
            let alert = alert(pod, number)?;
            let (asked, begun) = (latency::now()?, Instant::now());
            let answer = sender.post(&alert)?;
            times.answered.push(begun.elapsed());
            ensure!(
                answer.body.contains("accepted"),
                "{}: {}",
                answer.status,
                answer.body
            );
            let capture = capture_id(&answer)?;
            let part = wait::until_some(LIMIT, "a first packet", || {
                let part = calls.part_of(&capture)?;
                Ok(part.first_packet.is_some().then_some(part))
            })?;
            let first = part.first_packet.context("no packet")?;
            let first = Duration::new(first.seconds.try_into()?, first.nanos.try_into()?);
            times.first.push(first.saturating_sub(asked));
            calls.stop(&part.id)?;
        }
        Ok(times)
    }

    fn show(&self, when: &str) {
        for (what, times) in [
            ("answered, armed", &self.answered),
            ("first packet", &self.first),
        ] {
            let at = |share: f64| quantile(times, share).as_secs_f64() * 1e3;
            println!(
                "{when}, {what}: {:.2} {:.2} {:.2}",
                at(0.5),
                at(0.99),
                at(1.0)
            );
        }
    }
}

/// As Falco has it; each is another.
fn alert(pod: &KubePod, number: usize) -> Result<Value> {
    let container = pod.container("web")?;
    Ok(json!({
        "uuid": format!("00000000-0000-4000-8000-{number:012}"),
        "rule": RULE,
        "priority": "Warning",
        "source": "syscall",
        "time": jiff::Timestamp::now().to_string(),
        "hostname": pod.node,
        "output": format!("alert {number}"),
        "output_fields": {
            "container.id": &container[..12],
            "evt.type": "connect",
            "k8s.ns.name": pod.namespace,
            "k8s.pod.name": pod.name,
        },
    }))
}
