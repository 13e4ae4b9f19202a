//! From Falco Talon's own calls to files with exactly the packets of the endpoint.

mod beside;
mod recorded;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result};
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, recorded},
    controller::{self, C2_RULES, TestController, c2_alert},
    http::{Request, Response},
    netns::Netns,
    node::{Node, Pod},
    packets::{self, Packet},
    proof, run, traffic,
    wire::Tcpdump,
};
use serde_json::{Value, json};

const C2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 23);
const C2_PORT: u16 = 4444;
/// Of a rule for stock Talon.
const PARAMETERS: &str = r#"{"aws_lambda_name": "remora-capture", "remora_look_back": "20s", "remora_duration": 30,
    "remora_filter": "host ${remote.ip} and ${remote.proto?} port ${remote.port}"}"#;

struct Scene {
    web: Pod,
    c2: Netns,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        Ok(Self {
            web: node.pod("web")?,
            c2: node.outside("c2", C2)?,
            node,
        })
    }

    /// The pod talks to its C2 host and, on another port, to the same host. Less than the flow cutoff.
    fn talk(&self) -> Result<()> {
        for port in [C2_PORT, 443] {
            traffic::tcp_exchange(self.web.netns(), &self.c2, (C2, port).into(), 3000)?;
        }
        Ok(())
    }

    /// An alert of this moment, as Talon has it: without Falcosidekick's id.
    fn alert(&self) -> Result<Value> {
        let mut alert = c2_alert(&self.web, (C2, C2_PORT).into(), 43812);
        alert["time"] = jiff::Timestamp::now().to_string().into();
        alert.as_object_mut().context("an object")?.remove("uuid");
        Ok(alert)
    }

    /// What `trigger` begins has the endpoint's packets from before it and after it, all that tcpdump has
    /// which ran from the beginning.
    fn proves(
        &self,
        agent: &TestAgent<'_>,
        trigger: impl FnOnce(&Value) -> Result<Response>,
    ) -> Result<(String, v1::Trigger)> {
        recorded(agent, &[&self.web])?;
        let tcpdump = Tcpdump::start(
            |tool| self.node.command(tool),
            self.web.interface(),
            "",
            self.node.directory(),
        )?;
        self.talk()?;
        let id = controller::capture_id(&trigger(&self.alert()?)?)?;
        self.talk()?;
        let end = SocketAddr::from((C2, 9));
        traffic::datagram(self.web.netns(), end, b"remora test: end")?;
        tcpdump.wait_for_frame("the end", |frame| frame.ends_with(b"remora test: end"))?;
        let proven = proof::prove(agent, &agent.stop(&id)?)?;
        proof::complete(&proven.counts)?;
        let expected = of_endpoint(&tcpdump.stop()?.packets);
        packets::assert_same(&proven.capture.packets, &expected)?;
        let past = |packet: &&Packet| packet.comments.iter().any(|c| c.starts_with("look-back"));
        let past = proven.capture.packets.iter().filter(past).count();
        assert!(past >= 7 && expected.len() - past >= 7, "{past}");
        let comments = proven.capture.comments.join("\n");
        assert!(comments.contains("falco-talon.rule"), "{comments}");
        let trigger = agent.get(&id)?.spec.context("no spec")?.trigger;
        Ok((id, trigger.context("no trigger")?))
    }
}

fn of_endpoint(packets: &[Packet]) -> Vec<Packet> {
    let is_of_endpoint = |packet: &&Packet| {
        let frame = &packet.data;
        let ports = [&frame[34..36], &frame[36..38]];
        frame[12..14] == [8, 0] && frame[23] == 6 && ports.contains(&&C2_PORT.to_be_bytes()[..])
    };
    packets.iter().filter(is_of_endpoint).cloned().collect()
}

#[test]
fn a_call_of_stock_talon_gives_the_endpoints_packets_and_its_next_attempt_the_same_capture()
-> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let controller = TestController::start_for_talon(&agent, C2_RULES)?;
    let (id, trigger) =
        scene.proves(&agent, |alert| controller.invoke("one", alert, PARAMETERS))?;
    assert_eq!(trigger.source, "falco-talon");
    assert_eq!(trigger.requester, "access key AKIDREMORATEST");
    assert_eq!(trigger.reason, "rule `C2 traffic`, action `Remora capture`");
    // The capture has ended, and is still the call's.
    let again = controller.invoke("one", &scene.alert()?, PARAMETERS)?;
    assert_eq!(controller::capture_id(&again)?, id);
    assert_eq!(controller::json(&again)?["decision"], "existing");
    let other = controller.invoke("two", &scene.alert()?, PARAMETERS)?;
    assert_ne!(controller::capture_id(&other)?, id);
    assert_eq!(agent.list(true)?.len(), 2);
    Ok(())
}

#[test]
fn a_call_of_the_actionner_gives_the_endpoints_packets() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let controller = TestController::start(&agent, C2_RULES)?;
    let (_, trigger) = scene.proves(&agent, |alert| {
        let mut event = alert.clone();
        event["context"] = json!({"falco-talon.rule": "C2 traffic"});
        let parameters = json!({
            "look_back": "20s", "duration": "30s",
            "filter": "host ${remote.ip} and ${remote.proto?} port ${remote.port}",
        });
        let action = json!({"name": "Capture", "parameters": parameters});
        let body = serde_json::to_vec(&json!({"event": event, "action": action}))?;
        controller.request(Request::post_json("/v1/triggers/talon", &body))
    })?;
    assert_eq!(trigger.reason, "rule `C2 traffic`, action `Capture`");
    Ok(())
}

/// Falco's `program_output`: the program's account is the controller's, and the file is as exact.
#[test]
fn alerts_by_lines_are_captures_and_all_are_accounted_for() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let controller = TestController::start(&agent, C2_RULES)?;
    let alert = scene.alert()?;
    let mut quiet = alert.clone();
    quiet["rule"] = "Terminal shell in container".into();
    let lines = [
        alert.to_string(),
        quiet.to_string(),
        "not an alert".to_owned(),
        "x".repeat(100_000),
        String::new(),
        alert.to_string(),
    ];
    let file = scene.node.directory().join("alerts.jsonl");
    fs::write(&file, lines.join("\n"))?;
    let program = run::remora_program("remora")?;
    let mut command = scene.node.command(program);
    command
        .args(["trigger", "--stdin"])
        .stdin(fs::File::open(&file)?);
    let output = command.output()?;
    let (told, account) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    let words: Vec<&str> = told
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let expected = ["accepted", "ignored", "refused", "refused", "existing"];
    assert_eq!(words, expected, "{told}{account}");
    assert!(told.contains("refused invalid_alert: "), "{told}");
    assert!(
        told.contains("refused too_large: a line has more than "),
        "{told}"
    );
    let sum = "5 alerts received: 1 accepted, 1 existing, 1 ignored, 2 refused";
    assert!(account.contains(sum), "{account}");
    assert_eq!(output.status.code(), Some(1));
    // The line that was too long never left.
    let metrics = controller.request(Request::get("/metrics"))?.body;
    assert!(
        metrics.contains("remora_controller_alerts_received_total 4\n"),
        "{metrics}"
    );

    let id = told.split_whitespace().nth(1).context("no id")?.to_owned();
    let beacon = SocketAddr::from((C2, C2_PORT));
    traffic::tcp_exchange(scene.web.netns(), &scene.c2, beacon, 3000)?;
    let proven = proof::prove(&agent, &agent.stop(&id)?)?;
    proof::complete(&proven.counts)?;
    assert!(proven.capture.packets.len() >= 7);
    Ok(())
}
