//! Everything that the real Falcosidekick and Talon sent, from the request to the file: each is sent with this
//! pod's container in the place of the recorded one, and its capture is what tcpdump has of the endpoint that the
//! alert names, from before it and after it.

use std::{collections::BTreeMap, fs, net::Ipv6Addr, path::PathBuf};

use anyhow::ensure;
use remora_capture::evidence::Manifest;
use remora_tests::{agent::Options, http, run};

use super::*;

/// Of the recorded alerts; as long as what stands in their place.
const CONTAINERS: [&str; 3] = ["ee97d9c4186f", "5ac1fcb2b3a4", "9d5cf8c39a3b"];
const C2_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xbad);
const NTP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const CALLER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
/// When all requests are answered.
const BETWEEN: &[u8] = b"remora test: between";
const RULES: &str = "
- rule: any
  actions:
    - action: capture
      actionner: remora:capture
      parameters: {look_back: 30s, duration: 10m}
";

/// How the requests of a folder come in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Webhook,
    Lambda,
    Actionner,
}

/// A recorded request with our container in it.
struct Recorded {
    name: String,
    head: String,
    body: String,
}

fn recorded_in(folder: &str, pod: &Pod) -> Result<Vec<Recorded>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(folder);
    let mut all = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "http") {
            continue;
        }
        let text = String::from_utf8(fs::read(&path)?)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
        let mut body = body.to_owned();
        for container in CONTAINERS {
            // In full it is filled up with zeroes.
            body = body.replace(&format!("{container:0<64}"), pod.container_id());
            body = body.replace(container, &pod.container_id()[..container.len()]);
        }
        let name = path.file_name().context("a name")?.to_string_lossy();
        all.push(Recorded {
            name: format!("{folder}/{name}"),
            head: head.to_owned(),
            body,
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// The filter in tcpdump's words that the alert's capture must come to; `None` where the alert names nobody here,
/// or not what the rule's filter asks for.
fn expected(event: &Value, way: Way) -> Option<&'static str> {
    let rule = event["rule"].as_str().unwrap_or_default();
    let container = &event["output_fields"]["container.id"];
    match rule {
        _ if container.as_str().is_none_or(|id| id.len() < 12) => None,
        "Outbound Connection to C2 Servers" => Some("host 198.51.100.23 and tcp port 4444"),
        _ if rule.starts_with("Remora test") => Some("host 198.51.100.23 and tcp port 4444"),
        "Base64 Encoded Shell" | "Odd JSON shapes" => Some("host 198.51.100.23 and port 4444"),
        "Network Connection outside Local Subnet" => Some("host 2001:db8::bad and tcp port 443"),
        "Unexpected UDP Traffic" => Some("host 203.0.113.9 and udp port 123"),
        // Talon's rule asks for the port of the other end, which is the client's.
        "Unexpected inbound connection source" => Some(match way {
            Way::Webhook => "host 203.0.113.77 and tcp port 8080",
            _ => "host 203.0.113.77 and tcp port 40000",
        }),
        _ if way == Way::Webhook => Some("tcp or udp"),
        _ => None,
    }
}

struct Wide {
    scene: Scene,
    other: Netns,
}

impl Wide {
    /// With all hosts that the recorded alerts name.
    fn new() -> Result<Self> {
        let scene = Scene::new()?;
        let other = scene.node.outside("other", NTP)?;
        other.ip(&format!("addr add {CALLER}/24 dev eth0"))?;
        let router = "2001:db8::1";
        let node = scene.node.netns();
        node.ip(&format!("-6 addr add {router}/64 dev up-c2 nodad"))?;
        let c2 = &scene.c2;
        c2.ip(&format!("-6 addr add {C2_V6}/64 dev eth0 nodad"))?;
        c2.ip(&format!("-6 route add default via {router}"))?;
        Ok(Self { scene, other })
    }

    /// To each endpoint, and beside it. Less than the flow cutoff.
    fn talk(&self) -> Result<()> {
        let web = self.scene.web.netns();
        self.scene.talk()?;
        for port in [443, 444] {
            traffic::tcp_exchange(web, &self.scene.c2, (C2_V6, port).into(), 2000)?;
        }
        for port in [123, 124] {
            traffic::datagram(web, (NTP, port).into(), b"what time is it")?;
        }
        for port in [8080, 8081] {
            let at = (self.scene.web.ipv4(), port).into();
            // By its second address.
            self.other.ip(&format!(
                "route replace 10.77.0.0/24 via 203.0.113.1 src {CALLER}"
            ))?;
            traffic::tcp_exchange(&self.other, web, at, 2000)?;
        }
        Ok(())
    }

    /// Frames of a file that tcpdump's filter takes.
    fn judged(&self, file: &std::path::Path, filter: &str) -> Result<Vec<Packet>> {
        let target = self.scene.node.directory().join("judged.pcap");
        let mut tcpdump = run::command("tcpdump");
        tcpdump.arg("-r").arg(file).arg("-w").arg(&target);
        run::output(tcpdump.args(["-Z", "root", filter]))?;
        Ok(packets::Capture::read(&target)?.packets)
    }
}

/// Sends it; `None` if it is no trigger.
fn send(
    controller: &TestController<'_>,
    node: &Node,
    one: &Recorded,
    way: Way,
) -> Result<Option<Response>> {
    let header = |name: &str| {
        let mut lines = one
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "));
        lines.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
    };
    if way == Way::Lambda {
        if !one.head.contains("/invocations") || one.name.contains("dryrun") {
            return Ok(None);
        }
        // The signature is of the recorded body.
        let call = header("amz-sdk-invocation-id").zip(header("amz-sdk-request"));
        let call = call.context("no call")?;
        return controller.invoke_body(call, one.body.as_bytes()).map(Some);
    }
    let (line, rest) = one.head.split_once("\r\n").context("no line")?;
    let recorded = format!(
        "Content-Length: {}",
        header("content-length").context("no length")?
    );
    ensure!(rest.contains(&recorded), "{}", one.name);
    let rest = rest.replace(&recorded, &format!("Content-Length: {}", one.body.len()));
    let bytes = format!("{line}\r\nConnection: close\r\n{rest}\r\n\r\n{}", one.body);
    http::bytes_over_tcp(node.netns(), controller.address(), bytes.as_bytes()).map(Some)
}

/// The capture's alert, or one that joined it, as it came.
fn has_alert(manifest: &Manifest, text: &str) -> bool {
    let joined = manifest.amendments.kept.iter();
    let mut joined = joined.filter_map(|amendment| amendment.alert.as_ref());
    manifest.trigger.alert == text || joined.any(|alert| alert.text == text)
}

fn every_request(folders: &[&str], way: Way, least: usize) -> Result<()> {
    let wide = Wide::new()?;
    let scene = &wide.scene;
    let off = ["--rate-node=off", "--rate-namespace=off", "--rate-rule=off"];
    let options = Options {
        arguments: off.map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let agent = TestAgent::start_with(&scene.node, options)?;
    let controller = TestController::start_for_talon(&agent, RULES)?;
    recorded(&agent, &[&scene.web])?;
    let tcpdump = Tcpdump::start(
        |tool| scene.node.command(tool),
        scene.web.interface(),
        "",
        scene.node.directory(),
    )?;
    wide.talk()?;
    // By the capture: what it must come to, and the alerts that it must have.
    let mut captures = BTreeMap::<String, (&str, Vec<String>)>::new();
    let mut sent = 0;
    for folder in folders {
        for mut one in recorded_in(folder, &scene.web)? {
            if way == Way::Actionner {
                // A pod needs its cgroup in the alert, or the cluster.
                one.body = one
                    .body
                    .replace(r#""scope":"pod""#, r#""scope":"container""#);
            }
            let Some(answer) = send(&controller, &scene.node, &one, way)? else {
                continue;
            };
            sent += 1;
            let mut event: Value = serde_json::from_str(&one.body)?;
            if way == Way::Actionner {
                event = event["event"].take();
            }
            let Some(filter) = expected(&event, way) else {
                assert_eq!(answer.status, 422, "{}: {}", one.name, answer.body);
                continue;
            };
            let id = controller::capture_id(&answer).with_context(|| one.name.clone())?;
            let alert = match way {
                Way::Actionner => {
                    let end = one.body.find(r#","action":{"#).context("no action")?;
                    one.body[r#"{"event":"#.len()..end].to_owned()
                }
                _ => one.body,
            };
            let (told, alerts) = captures.entry(id).or_insert((filter, Vec::new()));
            assert_eq!(*told, filter, "{}: it joined another's", one.name);
            alerts.push(alert);
        }
    }
    assert!(sent >= least, "{sent} requests");
    let end = SocketAddr::from((C2, 9));
    traffic::datagram(scene.web.netns(), end, BETWEEN)?;
    wide.talk()?;
    traffic::datagram(scene.web.netns(), end, b"remora test: end")?;
    tcpdump.wait_for_frame("the end", |frame| frame.ends_with(b"remora test: end"))?;
    let file = tcpdump.file().to_owned();
    let states: Vec<_> = captures
        .keys()
        .map(|id| agent.stop(id))
        .collect::<Result<_>>()?;
    let seen = tcpdump.stop()?.packets;
    let between = seen.iter().find(|packet| packet.data.ends_with(BETWEEN));
    let between = between.context("no mark")?.time;
    for state in states {
        let (filter, alerts) = &captures[&state.id];
        let proven = proof::prove(&agent, &state)?;
        proof::complete(&proven.counts)?;
        let mut wanted = wide.judged(&file, filter)?;
        // Some of Talon's actions ask for nothing from before the alert.
        let looks_back = state.spec.as_ref().is_some_and(|s| s.look_back.is_some());
        wanted.retain(|packet| looks_back || packet.time > between);
        // Of the whole pod's traffic what the kernel says by itself is left out: neighbours and routers.
        let ours = match *filter {
            "tcp or udp" => wide.judged(&proven.path, filter)?,
            _ => proven.capture.packets,
        };
        packets::assert_same(&ours, &wanted).with_context(|| format!("{filter}: {state:?}"))?;
        assert_eq!(wanted.is_empty(), filter.ends_with("40000"), "{filter}");
        let manifest = agent.manifest(&state.id)?;
        for alert in alerts {
            assert!(
                has_alert(&manifest, alert),
                "{filter}: {alert}: {manifest:?}"
            );
        }
    }
    println!("{sent} requests, {} captures", captures.len());
    Ok(())
}

#[test]
fn each_request_of_the_real_falcosidekick_is_a_file_of_its_alerts_endpoint() -> Result<()> {
    every_request(
        &["falcosidekick-webhook", "falcosidekick-talon"],
        Way::Webhook,
        36,
    )
}

#[test]
fn each_request_of_the_real_talon_is_a_file_of_its_alerts_endpoint() -> Result<()> {
    let folders = [
        "talon-lambda",
        "talon-lambda-v0.3.0",
        "sidekick-talon-lambda",
    ];
    every_request(&folders, Way::Lambda, 30)
}

#[test]
fn each_request_of_the_actionner_is_a_file_of_its_alerts_endpoint() -> Result<()> {
    every_request(&["talon-remora-capture"], Way::Actionner, 2)
}
