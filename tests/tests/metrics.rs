//! What Prometheus gets: well formed by its own tool's judgement, and all that the dashboard asks for.

use std::{
    collections::BTreeSet,
    env,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use remora_tests::{
    agent::{Options, TestAgent},
    controller::{self, C2_RULES, TestController, c2_alert},
    http::{self, Request},
    node::Node,
    proof, traffic,
};
use serde_json::Value;

const C2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 23);
const C2_PORT: u16 = 4444;

#[test]
fn metrics_pass_promtool_and_have_what_the_dashboard_shows() -> Result<()> {
    let node = Node::new()?;
    let (web, c2) = (node.pod("web")?, node.outside("c2", C2)?);
    let agent = TestAgent::start_with(&node, Options::default())?;
    let controller = TestController::start(&agent, C2_RULES)?;
    // One of each: an alert that starts a capture, one that is refused, and packets.
    let at = SocketAddr::from((C2, C2_PORT));
    let alert = serde_json::to_vec(&c2_alert(&web, at, 43812))?;
    let answer = controller.post(&alert)?;
    ensure!(answer.status == 202, "{}", answer.body);
    let id = controller::capture_id(&answer)?;
    ensure!(controller.post(b"no alert")?.status == 400, "it is one");
    traffic::tcp_exchange(web.netns(), &c2, at, 5000)?;
    proof::prove(&agent, &agent.stop(&id)?)?;

    let address = SocketAddr::from(([127, 0, 0, 1], 2803));
    let of_controller = http::over_tcp(node.netns(), address, Request::get("/metrics"))?;
    ensure!(of_controller.status == 200, "{}", of_controller.body);
    let texts = [agent.metrics()?, of_controller.body];
    for text in &texts {
        check(text)?;
    }
    let told = texts.concat();
    let mut asked = 0;
    for query in queries()? {
        for selector in selectors(&query) {
            selector.is_answered(&told).context(query.clone())?;
            asked += 1;
        }
    }
    ensure!(asked > 10, "the dashboard asks for {asked} metrics");
    Ok(())
}

/// By Prometheus' own tool: names, help, types, units.
fn check(metrics: &str) -> Result<()> {
    let Some(promtool) = env::var_os("REMORA_PROMTOOL") else {
        println!("left out: promtool, which is not there (REMORA_PROMTOOL)");
        return Ok(());
    };
    let mut tool = Command::new(promtool);
    tool.args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut tool = tool.spawn().context("failed to start promtool")?;
    let mut input = tool.stdin.take().context("no input")?;
    input.write_all(metrics.as_bytes())?;
    drop(input);
    let ended = tool.wait_with_output()?;
    ensure!(
        ended.status.success(),
        "promtool: {}{}\n{metrics}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    Ok(())
}

/// Every query of the chart's dashboard.
fn queries() -> Result<Vec<String>> {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/remora/files/dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let mut queries = Vec::new();
    collect(&dashboard, &mut queries);
    ensure!(!queries.is_empty(), "the dashboard asks for nothing");
    Ok(queries)
}

fn collect(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            queries.extend(
                fields
                    .get("expr")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            fields.values().for_each(|field| collect(field, queries));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, queries)),
        _ => {}
    }
}

/// A metric of a query with the values that its labels shall have: `remora_x{state=~"a|b"}`.
#[derive(Debug, PartialEq, Eq)]
struct Selector<'a> {
    name: &'a str,
    /// `label="value"`, as a sample has it.
    labels: BTreeSet<String>,
}

fn selectors(query: &str) -> Vec<Selector<'_>> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    for (at, _) in query.match_indices("remora_") {
        let rest = &query[at..];
        let name = &rest[..rest.find(|c: char| !is_name(c)).unwrap_or(rest.len())];
        let within = rest[name.len()..].strip_prefix('{');
        let within = within.and_then(|rest| rest.split_once('}'));
        let labels = within.map_or("", |(labels, _)| labels);
        let pairs = labels.split(',').filter_map(|pair| {
            let (label, values) = pair.split_once('=')?;
            let values = values.trim_start_matches('~').trim_matches('"');
            Some(
                values
                    .split('|')
                    .map(move |value| format!("{label}=\"{value}\"")),
            )
        });
        found.push(Selector {
            name,
            labels: pairs.flatten().collect(),
        });
    }
    found
}

impl Selector<'_> {
    fn is_answered(&self, told: &str) -> Result<()> {
        let samples: Vec<&str> = told
            .lines()
            .filter(|line| {
                let rest = line.strip_prefix(self.name);
                rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .collect();
        ensure!(!samples.is_empty(), "nobody tells {}", self.name);
        for label in &self.labels {
            ensure!(
                samples.iter().any(|sample| sample.contains(label)),
                "{} never has {label}: {samples:?}",
                self.name
            );
        }
        Ok(())
    }
}

#[test]
fn a_querys_metrics_are_found_with_their_labels() {
    let query = r#"sum by (a) (rate(remora_x_total{state=~"b|c",d="e"}[5m])) / remora_y"#;
    let labels = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect();
    let expected = [
        Selector {
            name: "remora_x_total",
            labels: labels(&[r#"d="e""#, r#"state="b""#, r#"state="c""#]),
        },
        Selector {
            name: "remora_y",
            labels: labels(&[]),
        },
    ];
    assert_eq!(selectors(query), expected);
    let told = "remora_x_total{state=\"b\",d=\"e\"} 1\nremora_xy 2\n";
    assert!(expected[0].is_answered(told).is_err(), "no state c");
    assert!(expected[1].is_answered(told).is_err(), "another's name");
    assert!(expected[1].is_answered("remora_y 2\n").is_ok());
}
