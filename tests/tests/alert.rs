//! From a Falco alert to a file with exactly the packets of the endpoint it names.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, recorded},
    controller::{self, C2_RULES, TestController, c2_alert},
    http::Request,
    netns::Netns,
    node::{Node, Pod},
    packets::{Capture, Packet},
    proof, run, traffic,
    wire::Tcpdump,
};

const C2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 23);
const C2_PORT: u16 = 4444;

/// A node with a pod, a neighbour and a C2 host.
struct Scene {
    web: Pod,
    api: Pod,
    c2: Netns,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        Ok(Self {
            web: node.pod("web")?,
            api: node.pod("api")?,
            c2: node.outside("c2", C2)?,
            node,
        })
    }

    /// The pod talks to its C2 host, and to others.
    fn traffic(&self) -> Result<()> {
        for _ in 0..3 {
            let beacon = SocketAddr::from((C2, C2_PORT));
            traffic::tcp_exchange(self.web.netns(), &self.c2, beacon, 20_000)?;
            // The same host, another port; the same port, another host; another pod, same host.
            traffic::tcp_exchange(self.web.netns(), &self.c2, (C2, 443).into(), 5000)?;
            let other = SocketAddr::from((self.api.ipv4(), C2_PORT));
            traffic::tcp_exchange(self.web.netns(), self.api.netns(), other, 5000)?;
            traffic::tcp_exchange(self.api.netns(), &self.c2, beacon, 5000)?;
            traffic::ping(self.web.netns(), C2.into(), 1)?;
        }
        Ok(())
    }
}

fn of_endpoint(packets: &[Packet]) -> Vec<Packet> {
    packets
        .iter()
        .filter(|packet| {
            let frame = &packet.data;
            let tcp = frame[12..14] == [8, 0] && frame[23] == 6;
            tcp && (frame[26..30] == C2.octets() || frame[30..34] == C2.octets())
                && (frame[34..36] == C2_PORT.to_be_bytes()
                    || frame[36..38] == C2_PORT.to_be_bytes())
        })
        .cloned()
        .collect()
}

#[test]
fn an_alert_gives_a_file_with_exactly_the_endpoints_packets() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let controller = TestController::start(&agent, C2_RULES)?;
    let tcpdump = Tcpdump::start(
        |tool| scene.node.command(tool),
        scene.web.interface(),
        "",
        scene.node.directory(),
    )?;
    let alert = serde_json::to_vec(&c2_alert(&scene.web, (C2, C2_PORT).into(), 43812))?;
    let answer = controller.post(&alert)?;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let id = controller::capture_id(&answer)?;
    scene.traffic()?;
    traffic::datagram(
        scene.web.netns(),
        SocketAddr::from((C2, 9)),
        b"remora test: end",
    )?;
    tcpdump.wait_for_frame("the end", |frame| frame.ends_with(b"remora test: end"))?;
    let proven = proof::prove(&agent, &agent.stop(&id)?)?;
    proof::complete(&proven.counts)?;
    let tcpdump = tcpdump.stop()?;
    let expected = of_endpoint(&tcpdump.packets);
    assert!(expected.len() > 20, "{} packets", expected.len());
    remora_tests::packets::assert_same(&proven.capture.packets, &expected)?;
    assert_provenance(&agent, &id, &alert, &proven.capture)?;
    // The reader needs nothing of ours to see why the file exists.
    let capinfos = run::output(run::command("capinfos").arg(&proven.path))?;
    assert!(
        capinfos.contains("Outbound Connection to C2 Servers"),
        "{capinfos}"
    );
    Ok(())
}

/// The endpoint's packets by a filter with holes, from before the alert, too: as many as tcpdump has
/// that ran from the beginning.
#[test]
fn a_template_takes_the_endpoints_packets_from_before_the_alert_too() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    recorded(&agent, &[&scene.web])?;
    let rules = C2_RULES.replace(
        "duration: 10s",
        "{duration: 30s, look_back: 20s, filter: 'host ${remote.ip} and ${remote.proto?} port ${service.port?}'}",
    );
    let controller = TestController::start(&agent, &rules)?;
    let tcpdump = Tcpdump::start(
        |tool| scene.node.command(tool),
        scene.web.interface(),
        "",
        scene.node.directory(),
    )?;
    // Less than the flow cutoff.
    let talk = || -> Result<()> {
        for port in [C2_PORT, 443] {
            traffic::tcp_exchange(scene.web.netns(), &scene.c2, (C2, port).into(), 3000)?;
        }
        Ok(())
    };
    talk()?;
    let mut alert = c2_alert(&scene.web, (C2, C2_PORT).into(), 43812);
    alert["time"] = jiff::Timestamp::now().to_string().into();
    let id = controller::capture_id(&controller.post(&serde_json::to_vec(&alert)?)?)?;
    talk()?;
    traffic::datagram(
        scene.web.netns(),
        SocketAddr::from((C2, 9)),
        b"remora test: end",
    )?;
    tcpdump.wait_for_frame("the end", |frame| frame.ends_with(b"remora test: end"))?;
    let proven = proof::prove(&agent, &agent.stop(&id)?)?;
    let packets = &proven.capture.packets;
    remora_tests::packets::assert_same(packets, &of_endpoint(&tcpdump.stop()?.packets))?;
    let past = |packet: &&Packet| packet.comments.iter().any(|c| c.starts_with("look-back"));
    let past = packets.iter().filter(past).count();
    assert!(
        past >= 7 && packets.len() - past >= 7,
        "{past} of {}",
        packets.len()
    );
    Ok(())
}

/// The alert stands in the file's comments and in the capture's state, byte for byte.
fn assert_provenance(
    agent: &TestAgent<'_>,
    id: &str,
    alert: &[u8],
    capture: &Capture,
) -> Result<()> {
    let spec = agent.get(id)?.spec.context("no spec")?;
    let trigger = spec.trigger.context("no trigger")?;
    assert_eq!(
        trigger.source, "falcosidekick",
        "who sent it, by its User-Agent"
    );
    assert_eq!(trigger.priority, "Critical");
    assert_eq!(trigger.alert, alert);
    let text = std::str::from_utf8(alert)?;
    let comments = capture.comments.join("\n");
    assert!(
        comments.contains(text),
        "the alert is not in the file's comments: {comments}"
    );
    let name = capture.names.get(&C2.into()).map(String::as_str);
    assert_eq!(name, Some("c2.example"));
    Ok(())
}

#[test]
fn the_same_alert_again_is_the_same_capture() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let controller = TestController::start(&agent, C2_RULES)?;
    let alert = serde_json::to_vec(&c2_alert(&scene.web, (C2, C2_PORT).into(), 43812))?;
    let first = controller.post(&alert)?;
    let again = controller.request(Request::post_json("/falco", &alert))?;
    assert_eq!(
        controller::capture_id(&first)?,
        controller::capture_id(&again)?
    );
    assert_eq!(controller::json(&again)?["decision"], "existing");
    assert_eq!(agent.list(true)?.len(), 1);
    Ok(())
}

#[test]
fn a_rule_that_does_not_match_starts_nothing_and_says_so() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let controller = TestController::start(&agent, C2_RULES)?;
    let mut alert = c2_alert(&scene.web, (C2, C2_PORT).into(), 43812);
    alert["rule"] = "Terminal shell in container".into();
    let answer = controller.post(&serde_json::to_vec(&alert)?)?;
    assert_eq!(
        (
            answer.status,
            controller::json(&answer)?["decision"].as_str()
        ),
        (200, Some("ignored"))
    );
    alert["rule"] = "Outbound Connection to C2 Servers".into();
    alert["priority"] = "Notice".into();
    let answer = controller.post(&serde_json::to_vec(&alert)?)?;
    assert_eq!(controller::json(&answer)?["decision"], "ignored");
    assert_eq!(agent.list(true)?.len(), 0);
    Ok(())
}

#[test]
fn an_alert_without_an_agent_is_refused_at_once_and_taken_when_it_is_back() -> Result<()> {
    let scene = Scene::new()?;
    let mut agent = TestAgent::start(&scene.node)?;
    let controller = TestController::start(&agent, C2_RULES)?;
    let alert = serde_json::to_vec(&c2_alert(&scene.web, (C2, C2_PORT).into(), 43812))?;
    agent.end_by(nix::sys::signal::Signal::SIGTERM)?;
    let answer = controller.post(&alert)?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("remora-agent"), "{}", answer.body);
    agent.start_again()?;
    let id = controller::capture_id(&controller.post(&alert)?)?;
    assert_eq!(agent.get(&id)?.phase(), v1::Phase::Capturing);
    Ok(())
}

#[test]
fn the_rules_duration_ends_the_capture() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let rules = C2_RULES.replace("duration: 10s", "duration: 1s");
    let controller = TestController::start(&agent, &rules)?;
    let alert = serde_json::to_vec(&c2_alert(&scene.web, (C2, C2_PORT).into(), 43812))?;
    let id = controller::capture_id(&controller.post(&alert)?)?;
    let state = agent.wait_final(&id, Duration::from_secs(10))?;
    assert_eq!(state.stop_reason(), v1::StopReason::Duration);
    Ok(())
}
