//! How fast a trigger is: printed beside what tcpdump needs in the same run.
//!
//! Times are those of a shared machine: they are shown, not asserted (but for being there at all). The data
//! directory is on tmpfs: ext4 without a journal looks for an inode that was not freed within the last seconds
//! (`recently_deleted`, fs/ext4/ialloc.c), which took this test, with its two hundred captures' files and on a disk
//! where others delete, twice as long.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    controller::{self, C2_RULES, TestController, c2_alert},
    http::Request,
    latency::{self, Triggers},
    node::Node,
    traffic::{self, Stream},
    wait,
};
use serde_json::{Value, json};

const TRIGGERS: usize = 200;
/// Of Falco Talon's two ways each.
const TALONS: usize = 50;
const TCPDUMPS: usize = 20;
/// As a rule for Talon has them.
const PARAMETERS: &str =
    r#"{"aws_lambda_name": "remora-capture", "remora_filter": "udp port ${remote.port}"}"#;
/// Packets per second of the stream that is captured: the first one comes within 0.05 ms.
const RATE: u64 = 20_000;
const LIMIT: Duration = Duration::from_secs(10);

/// One row: what was measured, from how many, p50, p99 and the largest, in milliseconds.
fn row(what: &str, times: &[Duration]) {
    let at = |share: f64| latency::quantile(times, share).as_secs_f64() * 1e3;
    println!(
        "{what:<60} {:>5} {:>9.3} {:>9.3} {:>9.3}",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

#[test]
fn two_hundred_triggers_beside_tcpdump() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    // Each alert begins a capture here, which is what is measured.
    let off = ["--rate-node", "--rate-namespace", "--rate-rule"];
    let options = Options {
        arguments: off.iter().map(|flag| format!("{flag}=off")).collect(),
        data_tmpfs: Some("256m".into()),
        ..Options::default()
    };
    let agent = TestAgent::start_with(&node, options)?;
    let controller = TestController::start_for_talon(&agent, C2_RULES)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let stream = Stream {
        rate: RATE,
        ..Stream::new(api.ipv4(), 9000, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;

    let mut started = Triggers::default();
    for _ in 0..TRIGGERS {
        let spec = of_pod_filtered(&web, "udp port 9000");
        started.add(&agent, || Ok(agent.capture(spec)?.id))?;
    }

    // The alert of a connection to the stream's endpoint; each with a port of its own, for the
    // same alert twice is the same capture.
    let alert = |number: usize| -> Result<Value> {
        let remote = SocketAddr::from((api.ipv4(), 9000));
        let mut alert = c2_alert(&web, remote, 20_000 + u16::try_from(number)?);
        alert["output_fields"]["fd.l4proto"] = "udp".into();
        alert["uuid"] = format!("00000000-0000-4000-8000-{number:012}").into();
        Ok(alert)
    };
    let mut alerted = Triggers::default();
    for number in 0..TRIGGERS {
        let body = serde_json::to_vec(&alert(number)?)?;
        alerted.add(&agent, || controller::capture_id(&controller.post(&body)?))?;
    }
    // The calls as the real Talon makes them.
    let mut invoked = Triggers::default();
    for number in 0..TALONS {
        let (call, alert) = (number.to_string(), alert(TRIGGERS + number)?);
        invoked.add(&agent, || {
            controller::capture_id(&controller.invoke(&call, &alert, PARAMETERS)?)
        })?;
    }
    let mut acted = Triggers::default();
    for number in 0..TALONS {
        let event = alert(TRIGGERS + TALONS + number)?;
        let parameters = json!({"filter": "udp port ${remote.port}"});
        let action = json!({"name": "Capture", "parameters": parameters});
        let body = serde_json::to_vec(&json!({"event": event, "action": action}))?;
        let request = Request::post_json("/v1/triggers/talon", &body);
        acted.add(&agent, || {
            controller::capture_id(&controller.request(request)?)
        })?;
    }

    let spawned = (0..TCPDUMPS)
        .map(|_| {
            let place = |program: &str| node.command(program);
            let directory = node.directory();
            latency::spawned_tcpdump(place, web.interface(), "udp port 9000", directory)
        })
        .collect::<Result<Vec<_>>>()?;
    sender.stop()?;

    println!(
        "{:<60} {:>5} {:>9} {:>9} {:>9}",
        "milliseconds", "n", "p50", "p99", "max"
    );
    row("Start sent -> answered, armed", &started.answered);
    row(
        "Start sent -> first packet's kernel time",
        &started.to_first,
    );
    row(
        "alert POST sent -> answered with the capture's id",
        &alerted.answered,
    );
    row(
        "alert POST sent -> first packet's kernel time",
        &alerted.to_first,
    );
    row(
        "Talon's aws:lambda call sent -> first packet's kernel time",
        &invoked.to_first,
    );
    row(
        "Talon's remora:capture call sent -> first packet's time",
        &acted.to_first,
    );
    row(
        "tcpdump -U --immediate-mode spawned -> first packet",
        &spawned,
    );
    Ok(())
}

#[test]
fn every_packet_after_the_answer_of_start_is_in_the_capture() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    for round in 0..50 {
        let state = agent.capture(of_pod_filtered(&web, "udp port 9000"))?;
        traffic::datagram(web.netns(), (api.ipv4(), 9000).into(), &[round])?;
        let counts = agent.stop(&state.id)?.counts.context("no counts")?;
        assert_eq!(
            (counts.matched, counts.written),
            (1, 1),
            "round {round}: {counts:?}"
        );
    }
    // Two captures that are asked for at once are both armed when they are answered.
    let ids = thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| agent.capture(of_pod_filtered(&web, "udp port 9000"))))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect::<Result<Vec<v1::CaptureState>, _>>()
    })?;
    traffic::datagram(web.netns(), (api.ipv4(), 9000).into(), b"both")?;
    for state in ids {
        wait::until(LIMIT, "the packet", || {
            Ok(agent
                .get(&state.id)?
                .counts
                .is_some_and(|counts| counts.written == 1))
        })?;
        agent.stop(&state.id)?;
    }
    Ok(())
}
