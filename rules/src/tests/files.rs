//! Rule files, right and wrong.

use proptest::prelude::*;

use super::*;

#[test]
fn a_file_that_would_match_by_accident_is_refused_with_line_and_remedy() {
    for (text, expected) in [
        (
            matching("priorty: Error"),
            "rules.yaml:2: unknown key `priorty`; did you mean `priority`?",
        ),
        (matching("xyzzy: 1"), "rules.yaml:2: unknown key `xyzzy`"),
        (
            matching("priority: '>='"),
            "rules.yaml:2: `>=` is not a priority condition; use a name like Warning, or >=Warning, <Error",
        ),
        (
            matching("priority: ''"),
            "rules.yaml:2: `` is not a priority condition; use a name like Warning, or >=Warning, <Error",
        ),
        (
            matching("priority: '>= Error'"),
            "rules.yaml:2: `>= Error` is not a priority condition; use a name like Warning, or >=Warning, <Error",
        ),
        (
            matching("priority: 4"),
            "rules.yaml:2: `4` is not a priority condition; use a name like Warning, or >=Warning, <Error",
        ),
        (
            matching("rules: []"),
            "rules.yaml:2: an empty condition would match every alert; take it out or fill it in",
        ),
        (
            matching("tags: []"),
            "rules.yaml:2: an empty condition would match every alert; take it out or fill it in",
        ),
        (
            matching("tags: ['a,']"),
            "rules.yaml:2: an empty condition would match every alert; take it out or fill it in",
        ),
        (
            matching("output_fields: ['']"),
            "rules.yaml:2: an empty condition would match every alert; take it out or fill it in",
        ),
        (
            matching("output_fields: [k]"),
            "rules.yaml:2: `k` is not a condition; use KEY=VALUE or KEY!=VALUE, several joined by commas",
        ),
        (
            matching("output_fields: [=x]"),
            "rules.yaml:2: `=x` is not a condition; use KEY=VALUE or KEY!=VALUE, several joined by commas",
        ),
        (
            matching("output_fields: ['fd.sport>=1024']"),
            "rules.yaml:2: `fd.sport>=1024` is not a condition; use KEY=VALUE or KEY!=VALUE, several joined by commas",
        ),
        (
            matching("output_fields: ['a = b']"),
            "rules.yaml:2: `a = b` is not a condition; use KEY=VALUE or KEY!=VALUE, several joined by commas",
        ),
        (
            matching("output_fields: [a==b]"),
            "rules.yaml:2: the value in `a==b` has an operator in it (Talon would drop the condition and match everything); match by another field",
        ),
        (
            matching("output_fields: ['a!=b!c']"),
            "rules.yaml:2: the value in `a!=b!c` has an operator in it (Talon would drop the condition and match everything); match by another field",
        ),
    ] {
        assert_eq!(error(&text), expected, "{text}");
    }
}

#[test]
fn a_wrong_entry_is_refused_with_line_and_remedy() {
    for (text, expected) in [
        (
            "- rule: r\n",
            "rules.yaml:1: rule `r` has no actions; add `actions:` with a `remora:capture`",
        ),
        (
            "- rule: r\n  actions: []\n",
            "rules.yaml:1: rule `r` has no actions; add `actions:` with a `remora:capture`",
        ),
        (
            "\n- match: {}\n",
            "rules.yaml:2: neither a rule nor an action; start it with `rule: NAME` or `action: NAME`",
        ),
        (
            "- rule: ''\n",
            "rules.yaml:1: neither a rule nor an action; start it with `rule: NAME` or `action: NAME`",
        ),
        (
            "- rule: r\n  action: a\n",
            "rules.yaml:1: both a rule and an action; make two entries of it",
        ),
        (
            "- rule: r\n  actions:\n    - action: a\n",
            "rules.yaml:3: action `a` has no `actionner`; add `actionner: remora:capture` here or to a default action of that name",
        ),
        (
            "- rule: r\n  actions:\n    - actionner: remora:capture\n",
            "rules.yaml:3: neither a rule nor an action; start it with `rule: NAME` or `action: NAME`",
        ),
        (
            "- action: a\n  actionner: kubernetes:terminate\n",
            "rules.yaml:2: `kubernetes:terminate` is not an actionner of Remora's; it has `remora:capture` (keep Talon's rules in a file of their own)",
        ),
        (
            "- action: a\n  match: {}\n",
            "rules.yaml:1: `match` means nothing in a default action; it belongs to a rule",
        ),
        (
            "- rule: r\n  parameters: {}\n",
            "rules.yaml:1: `parameters` means nothing in a rule; it belongs to an action",
        ),
        (
            "- action: a\n  actionner: remora:capture\n  output: {target: aws:s3}\n",
            "rules.yaml:3: `output` means nothing here: captures go into the agent's data directory; take the `output` block out",
        ),
        (
            "- action: a\n- action: b\n- action: a\n",
            "rules.yaml:3: action `a` was there before, in line 1 of rules.yaml; give it another name",
        ),
        (
            "- rule: r\n  actions:\n    - {action: a, actionner: 'remora:capture'}\n    - {action: a, actionner: 'remora:capture'}\n",
            "rules.yaml:4: action `a` was there before, in line 3 of rules.yaml; give it another name",
        ),
        (
            "- action: a\n  continue: yes\n",
            "rules.yaml:2: `continue` is true or false, not `yes`",
        ),
        (
            "- action: a\n  continue: 1\n",
            "rules.yaml:2: `continue` is true or false, not `1`",
        ),
        (
            "- rule: r\n  dry_run: maybe\n  actions: [{action: a, actionner: 'remora:capture'}]\n",
            "rules.yaml:2: `dry_run` is true or false, not `maybe`",
        ),
        (
            "- rule: r\n  rule: s\n",
            "rules.yaml:2: not the YAML that was expected: duplicate mapping key: rule",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "rules.yaml:1: not the YAML that was expected: a list belongs here, like `[a, b]`",
        ),
        (
            "- action: a\n---\n- action: b\n",
            "rules.yaml:3: a second YAML document; put it into a file of its own",
        ),
        ("- rule: r\n\tmatch: {}\n", ""),
        ("- rule: \u{1b}[2J\u{202e}\n", ""),
    ] {
        let error = error(text);
        assert!(error.starts_with(expected), "{text}\n{error}");
        assert!(!error.contains(['\u{1b}', '\u{202e}']), "{error:?}");
    }
}

#[test]
fn a_value_of_the_wrong_shape_is_told_in_plain_words() {
    let wrong = |place: String, expected: &str| {
        let error = error(&place);
        let expected = format!("not the YAML that was expected: {expected} belong");
        assert!(error.contains(&expected), "{place}\n{error}");
    };
    for (block, expected) in [
        ("rules: x", "a list"),
        ("tags: {a: b}", "a list"),
        ("priority: [Error]", "a word or a number"),
        ("source: [syscall]", "a text"),
    ] {
        wrong(matching(block), expected);
    }
    for (block, expected) in [
        ("labels: x", "keys"),
        ("labels: {a: [1]}", "a word or a number"),
        ("filter: [tcp]", "a text"),
        ("duration: [1]", "a word or a number"),
    ] {
        wrong(with(block), expected);
    }
    wrong("- rule: r\n  match: 7\n".to_owned(), "keys");
    wrong("- rule: r\n  actions: 7\n".to_owned(), "a list");
}

#[test]
fn parameters_have_defaults_and_units() {
    let default = parameters("");
    assert_eq!(
        (default.scope, default.traffic),
        (Scope::Container, Traffic::Endpoint)
    );
    assert_eq!(default.filter, RuleFilter::Fixed(Filter::default()));
    assert_eq!(default.limits.duration, Some(Duration::from_secs(30)));
    assert_eq!(
        (default.limits.packets, default.limits.file_bytes),
        (None, None)
    );
    assert_eq!(
        (default.snaplen, default.look_back),
        (Snaplen::MAX, Duration::ZERO)
    );

    let all = parameters(
        "traffic: remote-host, filter: tcp and port 443, duration: 1m 30s, look_back: 15, \
         max_packets: 1000, max_bytes: 64MiB, snaplen: 96",
    );
    assert_eq!(all.traffic, Traffic::RemoteHost);
    assert_eq!(
        all.filter,
        RuleFilter::Fixed("tcp and port 443".parse().unwrap())
    );
    assert_eq!(all.limits.duration, Some(Duration::from_secs(90)));
    assert_eq!(all.look_back, Duration::from_secs(15));
    assert_eq!(all.limits.packets.unwrap().get(), 1000);
    assert_eq!(all.limits.file_bytes.unwrap().get(), 64 << 20);
    assert_eq!(all.snaplen.get(), 96);
    for (text, seconds) in [("30", 30), ("30s", 30), ("5m", 300), ("2h", 7200)] {
        let duration = parameters(&format!("duration: {text}")).limits.duration;
        assert_eq!(duration, Some(Duration::from_secs(seconds)), "{text}");
    }
    for (text, bytes) in [("65536", 65536), ("512KiB", 512 << 10), ("1 GiB", 1 << 30)] {
        let limit = parameters(&format!("max_bytes: {text}")).limits.file_bytes;
        assert_eq!(limit.unwrap().get(), bytes, "{text}");
    }
    assert_eq!(parameters("snaplen: 0").snaplen, Snaplen::MAX);
}

#[test]
fn a_wrong_parameter_is_refused_with_line_and_remedy() {
    for (text, expected) in [
        (
            "scope: pods",
            "5: `pods` is not a scope; use container, pod, deployment, service or node",
        ),
        (
            "scope: flow",
            "5: `flow` tells which packets, not whose; write `traffic: flow`",
        ),
        (
            "traffic: pod",
            "5: `pod` is no traffic; use flow, endpoint, remote-host, protocol or all",
        ),
        (
            "destination: 's3://bucket'",
            "5: `destination` is `store`, the agent's data directory, or the name of a controller's sink \
             (lower-case letters, digits, `-`), not `s3://bucket`",
        ),
        (
            "labels: {pod: mine}",
            "5: label `pod` is set by Remora itself; give yours another name",
        ),
        ("labels: [a]", "5: not the YAML that was expected: "),
        (
            "fallback: tcp",
            "5: `fallback` is for a `filter` with holes (`${remote.ip}`); this one has none",
        ),
        (
            "filter: 'host ${remote.ip}', fallback: 'prot 80'",
            "5: filter: `prot` (word 1) is a name",
        ),
        (
            "filter: 'host ${remote.port}'",
            "5: filter template: `${remote.port}` is not an address, which belongs there",
        ),
        (
            "filter: 'host ${remote.ipp}'",
            "5: filter template: `${remote.ipp}` is nothing that an alert has; there are ${remote.ip}, ${remote.port}, ${remote.proto}, ${service.port}, ${own.ip}, ${own.port} and ${field:KEY}; did you mean `${remote.ip}`?",
        ),
        (
            "filter: 'host ${remote.ip?} and prot 80'",
            "5: filter template, filled in as `host 192.0.2.7 and prot 80`: `prot` (word 4) is a name",
        ),
        (
            "filter: 'tcp or prot 80'",
            "5: filter: `prot` (word 3) is a name",
        ),
        (
            "duration: 0",
            "3: a capture lasts more than 0 and at most 7 days, not 0ns",
        ),
        (
            "duration: 8d",
            "5: `duration` is a length of time like 30s, 5m or 2h, not `8d`",
        ),
        (
            "duration: 200h",
            "3: a capture lasts more than 0 and at most 7 days",
        ),
        (
            "duration: -1",
            "5: `duration` is a length of time like 30s, 5m or 2h, not `-1`",
        ),
        (
            "duration: -5s",
            "5: `duration` is a length of time like 30s, 5m or 2h, not `-5s`",
        ),
        (
            "duration: 1e9",
            "5: `duration` is a length of time like 30s, 5m or 2h, not `1000000000`",
        ),
        (
            "duration: soon",
            "5: `duration` is a length of time like 30s, 5m or 2h, not `soon`",
        ),
        (
            "max_packets: 0",
            "5: `max_packets` is a whole number above 0, not `0`",
        ),
        (
            "max_packets: 1.5",
            "5: `max_packets` is a whole number above 0, not `1.5`",
        ),
        (
            "max_packets: 99999999999999999999",
            "5: `max_packets` is a whole number above 0, not `",
        ),
        (
            "max_bytes: 1",
            "3: a file limit of 1 bytes leaves no room for packets; use 1024 or more",
        ),
        (
            "max_bytes: 64MB",
            "5: `max_bytes` is a number of bytes above 0 like 65536, 512KiB or 64MiB, not `64MB`",
        ),
        (
            "max_bytes: 99999999999999GiB",
            "5: `max_bytes` is a number of bytes above 0",
        ),
        (
            "snaplen: 262145",
            "5: snaplen 262145 is out of range; use 1 to 262144",
        ),
        (
            "snaplen: 4294967296",
            "5: snaplen 4294967296 is out of range; use 1 to 262144",
        ),
        (
            "durration: 5s",
            "5: unknown key `durration`; did you mean `duration`?",
        ),
    ] {
        let error = error(&with(text));
        assert!(
            error.starts_with(&format!("rules.yaml:{expected}")),
            "{text}\n{error}"
        );
    }
}

#[test]
fn a_default_action_completes_the_rules_of_all_files_and_the_rule_wins() {
    let one = "
- rule: r
  actions:
    - action: a
      parameters: {duration: 5s}
- rule: s
  actions:
    - action: a
      actionner: remora:capture
      continue: false
";
    let two = "
- action: a
  actionner: remora:capture
  parameters: {duration: 1h, traffic: all, max_packets: 7}
  continue: true
";
    let rules = Rules::parse([("one", one), ("two", two)]).unwrap();
    let [first, second] = [0, 1].map(|n| &rules.rules[n].actions[0]);
    assert_eq!(first.capture.limits.duration, Some(Duration::from_secs(5)));
    assert_eq!(
        second.capture.limits.duration,
        Some(Duration::from_secs(3600))
    );
    for action in [first, second] {
        assert_eq!(action.capture.traffic, Traffic::All);
        assert_eq!(action.capture.limits.packets.unwrap().get(), 7);
    }
    assert_eq!(
        (first.after, second.after),
        (Continue::Next, Continue::Stop)
    );

    let twice = Rules::parse([("one", one), ("uno", one)])
        .unwrap_err()
        .to_string();
    assert_eq!(
        twice,
        "uno:2: rule `r` was there before, in line 2 of one; give it another name"
    );
}

#[test]
fn files_without_rules_are_right() {
    for text in ["", "\n", "# - rule: r\n", "null\n", "---\n", "\u{feff}"] {
        assert!(rules(text).is_empty(), "{text:?}");
    }
    let crlf = matching("tags: [network]").replace('\n', "\r\n");
    assert_eq!(rules(&crlf).len(), 1);
    assert_eq!(rules(&format!("\u{feff}{}", matching(""))).len(), 1);
}

#[test]
fn anchors_and_merge_keys_work() {
    let text = "
- rule: r
  actions: &actions
    - &base {action: a, actionner: 'remora:capture', parameters: {duration: 5s}}
- rule: s
  actions: *actions
- rule: t
  actions:
    - <<: *base
      action: b
";
    let rules = rules(text);
    assert_eq!(rules.len(), 3);
    assert_eq!(rules.rules[2].actions[0].name, "b");
    assert_eq!(
        rules.rules[2].actions[0].capture,
        rules.rules[0].actions[0].capture
    );
}

#[test]
fn yaml_bombs_are_refused_quickly() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let list = vec![format!("*a{}", n - 1); 10].join(", ");
        laughs += &format!("a{n}: &a{n} [{list}]\n");
    }
    let in_tags = format!(
        "- rule: r\n  match:\n    tags: {}\n",
        (0..12).fold("x".to_owned(), |inner, n| format!(
            "&b{n} [{inner}, {inner}]"
        )
        .chars()
        .take(1 << 19)
        .collect())
    );
    let nested = "[".repeat(100_000);
    let blocks: String = (0..2000)
        .map(|n| format!("{}-\n", " ".repeat(n % 200)))
        .collect();
    let large = "#".repeat(FILE_MAX + 1);
    let many = (0..=RULES_MAX)
        .map(|n| matching("").replace("rule: r", &format!("rule: r{n}")))
        .collect();
    let start = std::time::Instant::now();
    for text in [laughs, in_tags, nested, blocks, large, many] {
        error(&text);
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn the_summary_names_each_rule_and_capture() {
    let text = with("duration: 5s, filter: tcp")
        .replace("- rule: r", "- rule: \"r\\e[2J\"\n  dry_run: true");
    assert_eq!(
        rules(&text).to_string(),
        "ok: 1 rule\n  r\\u{1b}[2J (dry run): a [endpoint, 5s, tcp]\n"
    );
}

proptest! {
    #[test]
    fn no_text_breaks_the_parser(text in "(- (rule|action|match): ?|[-:{}\\[\\]&*!|>'\"%@`#,?\\n ]|[a-z]{1,3}|\\PC){0,60}") {
        let _either = Rules::parse([("f", text.as_str())]);
    }
}
