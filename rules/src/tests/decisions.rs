//! What rules decide about alerts.

use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn every_condition_must_hold_and_each_holds_for_what_it_says() {
    for (block, expected) in [
        ("", true),
        ("rules: [Outbound Connection to C2 Servers]", true),
        ("rules: [Nope, Outbound Connection to C2 Servers]", true),
        ("rules: [outbound connection to c2 servers]", false),
        ("rules: ['*']", false),
        ("tags: [network]", true),
        ("tags: [Network]", false),
        ("tags: ['network, T1071']", true),
        ("tags: ['network,network']", true),
        ("tags: ['network, missing']", false),
        ("tags: ['network, missing', T1071]", true),
        ("tags: [NIST_800-53_AC-3]", true),
        ("output_fields: [k8s.ns.name=shop]", true),
        ("output_fields: ['k8s.ns.name!=shop']", false),
        ("output_fields: ['k8s.ns.name=shop, fd.sport=4444']", true),
        ("output_fields: ['k8s.ns.name=shop,fd.sport=443']", false),
        ("output_fields: [k8s.ns.name=other, fd.sport=4444]", true),
        (
            "output_fields: ['k8s.ns.name!=kube-system, k8s.ns.name!=falco']",
            true,
        ),
        ("output_fields: [fd.is_server=false]", true),
        ("output_fields: [proc.tty=34816]", true),
        ("output_fields: [user.loginuid=-1]", true),
        // Digits as they came: Talon compares 1.234567e+06 and never matches these two.
        ("output_fields: [proc.pid=1234567]", true),
        ("output_fields: [evt.time=1795489205478445995]", true),
        (
            "output_fields: ['proc.cmdline=xmrig -o c2.example:4444']",
            true,
        ),
        ("output_fields: ['proc.aname[2]=event-generator']", true),
        ("output_fields: [K8S.NS.NAME=shop]", false),
        ("output_fields: [absent=x]", false),
        ("output_fields: ['absent!=x']", true),
        ("output_fields: ['k8s.ns.name=\"shop\"']", true),
        // Absent, however it is written, and present.
        ("output_fields: [k8s.pod.name=<nil>]", true),
        ("output_fields: [k8s.pod.name=]", true),
        ("output_fields: ['k8s.pod.name!=<NA>']", false),
        ("output_fields: ['k8s.ns.name!=<NA>']", true),
        ("output_fields: ['k8s.pod.name!=x']", true),
        ("priority: Critical", true),
        ("priority: critical", true),
        ("priority: Warning", false),
        ("priority: =Critical", true),
        ("priority: '>=Warning'", true),
        ("priority: '>Critical'", false),
        ("priority: '<Error'", false),
        ("priority: '<=Critical'", true),
        ("source: syscall", true),
        ("source: k8s_audit", false),
        (
            "rules: [Outbound Connection to C2 Servers], priority: Warning",
            false,
        ),
        (
            "tags: [network], source: syscall, priority: '>=Error'",
            true,
        ),
    ] {
        assert_eq!(matches(block, &c2()), expected, "{block}");
    }
}

#[test]
fn an_alert_without_a_known_priority_fulfils_no_priority_condition() {
    for priority in [json!(null), json!(""), json!("<NA>")] {
        let mut value = c2();
        value["priority"] = priority;
        for condition in ["'<=Emergency'", "'>=Debug'", "'<Debug'", "Debug"] {
            assert!(
                !matches(&format!("priority: {condition}"), &value),
                "{condition} {value}"
            );
        }
        assert!(matches("", &value));
    }
}

#[test]
fn rules_apply_in_order_until_one_stops() {
    let text = "
- rule: dry
  dry_run: true
  actions: [{action: d, actionner: 'remora:capture'}]
- rule: first
  actions:
    - {action: a, actionner: 'remora:capture'}
    - {action: b, actionner: 'remora:capture', continue: false}
    - {action: c, actionner: 'remora:capture'}
- rule: other
  match: {rules: [Other]}
  continue: false
  actions: [{action: o, actionner: 'remora:capture'}]
- rule: last
  continue: false
  actions: [{action: l, actionner: 'remora:capture'}]
- rule: never
  actions: [{action: n, actionner: 'remora:capture'}]
";
    let rules = rules(text);
    let alert = alert(&c2());
    let Decision::Capture(plans) = decide(&rules, &alert) else {
        panic!("ignored")
    };
    let plans: Vec<_> = plans
        .iter()
        .map(|p| (&p.rule.name[..], &p.action.name[..]))
        .collect();
    assert_eq!(plans, [("first", "a"), ("first", "b"), ("last", "l")]);
}

#[test]
fn a_dry_run_that_stops_keeps_later_rules_from_acting() {
    let text = matching("") + "- rule: s\n  actions: [{action: a, actionner: 'remora:capture'}]\n";
    let text = text.replacen(
        "- rule: r",
        "- rule: r\n  dry_run: 'true'\n  continue: false",
        1,
    );
    assert_eq!(
        decide(&rules(&text), &alert(&c2())),
        Decision::Ignore(Ignored::DryRun("r"))
    );
}

#[test]
fn the_example_rules_are_right_and_catch_what_they_say() {
    let text = include_str!("../../../deploy/rules/example.yaml");
    let rules = rules(text);
    let decided = |rule: &str, priority: &str, tags: serde_json::Value| {
        let mut value = c2();
        value["rule"] = json!(rule);
        value["priority"] = json!(priority);
        value["tags"] = tags;
        match decide(&rules, &alert(&value)) {
            Decision::Capture(plans) => {
                assert_eq!(plans.len(), 1, "{rule}");
                plans[0].rule.name.clone()
            }
            Decision::Ignore(_) => "-".to_owned(),
        }
    };
    for (rule, priority, expected) in [
        (
            "Outbound Connection to C2 Servers",
            "Warning",
            "Command and control",
        ),
        (
            "Detect outbound connections to common miner pool ports",
            "Critical",
            "Command and control",
        ),
        ("Unexpected UDP Traffic", "Notice", "Unexpected connection"),
        (
            "Contact K8S API Server From Container",
            "Notice",
            "Unexpected connection",
        ),
        (
            "Netcat Remote Code Execution in Container",
            "Warning",
            "Network tool in a container",
        ),
        ("My own rule", "Error", "Anything else on the network"),
        ("My own rule", "Notice", "-"),
    ] {
        assert_eq!(
            decided(rule, priority, json!(["network"])),
            expected,
            "{rule}"
        );
    }
    assert_eq!(
        decided("Terminal shell in container", "Notice", json!(["shell"])),
        "-"
    );
}

proptest! {
    #[test]
    fn a_parsed_condition_matches_the_field_it_names(value in "[A-Za-z0-9 ./:_-]{1,20}") {
        let value = value.trim();
        prop_assume!(!value.is_empty());
        let mut fields = c2();
        fields["output_fields"]["proc.name"] = json!(value);
        let equal = format!("output_fields: ['proc.name={value}']");
        let unequal = format!("output_fields: ['proc.name!={value}']");
        prop_assert!(matches(&equal, &fields));
        prop_assert!(!matches(&unequal, &fields));
    }
}
