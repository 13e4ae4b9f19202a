//! From an alert to the capture that the default rules start for it, by the table in alerts.txt:
//! whose packets, which endpoint, which filter.

use std::collections::{BTreeMap, BTreeSet};

use remora_capture::{
    alert::{
        Alert,
        mapping::{self, Role},
    },
    session::Target,
};
use remora_rules::{Decision, NoCapture, Rules, decide, explain};
use serde_json::{Map, Value, json};

const TABLE: &str = include_str!("alerts.txt");
const DEFAULT: &str = include_str!("../../deploy/rules/falco.yaml");
const FULL_ID: &str = "ee97d9c4186f0123456789abcdef0123456789abcdef0123456789abcdef0123";

fn default_rules() -> Rules {
    Rules::parse([("falco.yaml", DEFAULT)]).unwrap()
}

/// A row of the table.
struct Row<'t> {
    rule: &'t str,
    fields: Map<String, Value>,
    target: &'t str,
    endpoint: &'t str,
    filter: &'t str,
}

fn rows() -> impl Iterator<Item = Row<'static>> {
    TABLE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let columns: Vec<_> = line.split('|').map(str::trim).collect();
            let [rule, fields, target, endpoint, filter] = columns[..] else {
                panic!("{line}")
            };
            Row {
                rule,
                fields: fields_of(fields),
                target,
                endpoint,
                filter,
            }
        })
}

fn fields_of(text: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    for field in text.split(';').map(str::trim) {
        let short: &[(&str, Value)] = match field {
            "C" => &[("container.id", json!("ee97d9c4186f"))],
            "F" => &[
                ("container.id", json!("ee97d9c4186f")),
                ("container.full_id", json!(FULL_ID)),
            ],
            "H" => &[("container.id", json!("host")), ("proc.pid", json!(4242))],
            _ => &[],
        };
        if short.is_empty() {
            let (key, value) = field.split_once('=').expect(field);
            let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
            fields.insert(key.to_owned(), value);
        }
        fields.extend(
            short
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone())),
        );
    }
    fields
}

/// The alert of a row, as Falco sends it.
fn alert(rule: &str, fields: &Map<String, Value>) -> Value {
    json!({
        "rule": rule, "priority": "Warning", "source": "syscall", "tags": ["network"],
        "time": "2026-11-24T03:00:05.478445995Z", "output": "", "hostname": "worker-1",
        "output_fields": fields,
    })
}

fn read(value: &Value) -> Alert {
    Alert::from_json(value.to_string().as_bytes()).unwrap()
}

/// The same alert as other senders write it.
fn as_others_write_it(value: &Value) -> [Value; 3] {
    let object = value.as_object().unwrap();
    let any_case = object
        .iter()
        .map(|(key, value)| (key.to_uppercase(), value.clone()))
        .collect();
    let mut numbers = value.clone();
    let mut nulls = value.clone();
    for (key, field) in object["output_fields"].as_object().unwrap() {
        if field.is_number() {
            numbers["output_fields"][key] = json!(field.to_string());
        }
    }
    for key in ["uuid", "trace_id", "nothing"] {
        nulls[key] = Value::Null;
        nulls["output_fields"][key] = json!("<NA>");
    }
    nulls["source"] = json!("syscalls");
    nulls["priority"] = json!("WARNING");
    nulls["output_fields"]["evt.time"] = json!(1_795_489_205_478_445_995_u64);
    [Value::Object(any_case), numbers, nulls]
}

fn told(alert: &Alert) -> String {
    let Some(end) = mapping::endpoint(alert) else {
        return "-".to_owned();
    };
    let role = match end.role {
        Role::Client => "client",
        Role::Server => "server",
    };
    let port = |port: Option<u16>| port.map_or("-".to_owned(), |port| port.to_string());
    format!(
        "{role} {} {}/{} {}",
        end.ip.map_or("-".to_owned(), |ip| ip.to_string()),
        port(end.port),
        port(end.client_port),
        end.protocol.map_or("-", |protocol| protocol.word()),
    )
}

fn check(rules: &Rules, row: &Row<'_>, value: &Value) {
    let alert = read(value);
    assert_eq!(told(&alert), row.endpoint, "{value}");
    let Decision::Capture(plans) = decide(rules, &alert) else {
        panic!("no rule: {value}")
    };
    assert_eq!(plans.len(), 1, "{value}");
    match plans[0].capture(&alert) {
        Ok(wanted) => {
            assert_eq!(wanted.spec.target.to_string(), row.target, "{value}");
            assert_eq!(wanted.spec.filter.text(), row.filter, "{value}");
        }
        Err(error) => {
            let expected = row.target.strip_prefix("error: ").expect("a target");
            assert!(error.to_string().contains(expected), "{error}: {value}");
            assert!(matches!(error, NoCapture::Target(_)), "{error}");
        }
    }
}

#[test]
fn each_alert_of_the_table_is_captured_as_it_says_whoever_wrote_it() {
    let rules = default_rules();
    let mut count = 0;
    for row in rows() {
        let value = alert(row.rule, &row.fields);
        check(&rules, &row, &value);
        for other in as_others_write_it(&value) {
            check(&rules, &row, &other);
        }
        count += 1;
    }
    assert!(count >= 120, "{count}");
}

/// Falco's rules that the default rules name, as they stand there: `- NAME   # list`.
fn named() -> BTreeSet<&'static str> {
    let lists = ["# stable", "# incubating", "# sandbox", "# retired"];
    DEFAULT
        .lines()
        .filter_map(|line| {
            let list = lists.iter().find(|list| line.ends_with(*list))?;
            line.trim_end_matches(list).trim().strip_prefix("- ")
        })
        .collect()
}

#[test]
fn each_rule_of_falcos_lists_is_in_the_table_and_decided_by_name() {
    let rules = default_rules();
    let named = named();
    assert_eq!(named.len(), 29);
    let in_table: BTreeMap<_, _> = rows().map(|row| (row.rule, row.fields)).collect();
    for name in named {
        let fields = in_table
            .get(name)
            .unwrap_or_else(|| panic!("not in the table: {name}"));
        let mut value = alert(name, fields);
        // By its name, whatever its priority and tags.
        value["priority"] = json!("Debug");
        value["tags"] = json!([]);
        let alert = read(&value);
        let explanation = explain(&rules, &alert);
        assert_eq!(explanation.captures().count(), 1, "{explanation}");
    }
}

#[test]
fn a_pods_cgroup_is_the_one_around_its_containers() {
    let uid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
    let low = uid.replace('-', "_");
    let id = &FULL_ID;
    for (path, expected) in [
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{low}.slice/cri-containerd-{id}.scope"
            ),
            Some(format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{low}.slice"
            )),
        ),
        (
            format!("/kubepods.slice/kubepods-pod{low}.slice/crio-{id}.scope/container"),
            Some(format!("/kubepods.slice/kubepods-pod{low}.slice")),
        ),
        (
            format!("/kubepods/besteffort/pod{uid}/{id}"),
            Some(format!("/kubepods/besteffort/pod{uid}")),
        ),
        // A static pod's UID is a hash.
        (
            format!("/kubepods/burstable/pod{}/{id}", "0f".repeat(16)),
            Some(format!("/kubepods/burstable/pod{}", "0f".repeat(16))),
        ),
        (format!("/system.slice/docker-{id}.scope"), None),
        ("/machine.slice/pod-of-mine.slice".to_owned(), None),
        (format!("/kubepods/../pod{uid}/{id}"), None),
        ("/".to_owned(), None),
    ] {
        let fields = json!({"container.id": "ee97d9c4186f",
            "thread.cgroups": format!("cpuset={path} cpu={path} memory={path}")});
        let alert = read(&alert("r", fields.as_object().unwrap()));
        assert_eq!(
            mapping::pod(&alert),
            expected.map(Target::CgroupPath),
            "{path}"
        );
    }
}
