//! `remora verify`, and `remora show --custody`.

use remora_capture::evidence::{Manifest, Report, Verdict};

use super::{columns, shown, unit};

/// What was found, the worst last.
pub(crate) fn report(report: &Report) -> String {
    let mut text = String::new();
    for (word, lines) in [
        ("proved", &report.proved),
        ("NOT PROVED", &report.unproved),
        ("BROKEN", &report.broken),
    ] {
        for line in lines {
            text.push_str(&format!("{word}: {}\n", shown(line)));
        }
    }
    text.push_str(match report.verdict() {
        Verdict::Proved => "All of it is as it was signed.\n",
        Verdict::Partly => "Nothing is wrong, but not all is proved.\n",
        Verdict::Broken => "THIS IS NOT WHAT WAS SIGNED.\n",
    });
    text
}

/// The capture's story; `later`: what came after the manifest was signed.
pub(crate) fn custody(manifest: &Manifest, later: &[String]) -> String {
    let trigger = &manifest.trigger;
    let link = &manifest.chain;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![format!("{name}:"), value]);
        }
    };
    row("Capture", manifest.capture_id.to_string());
    row("Node", shown(&manifest.node).to_string());
    let why = [
        ("", &trigger.source),
        ("rule ", &trigger.rule),
        ("priority ", &trigger.priority),
        ("because ", &trigger.reason),
    ];
    let why: Vec<_> = why
        .iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(word, text)| format!("{word}{}", shown(text)))
        .collect();
    row("Triggered by", why.join(", "));
    if let Some(time) = trigger.time {
        row("It happened", time.to_string());
    }
    if let Some(alert) = manifest.alert_sha256 {
        let bytes = trigger.alert.len();
        row("Alert", format!("{bytes} bytes, SHA-256 {alert}"));
    }
    let joined = manifest.amendments.alerts();
    if joined > 0 {
        let kept = manifest.amendments.kept.len() as u64;
        let left_out = manifest.amendments.left_out;
        let more = match left_out {
            0 => String::new(),
            n => format!(", {n} of them only counted: there is room for {kept}"),
        };
        row("Joined by", format!("{joined} alerts while it ran{more}"));
    }
    row("Requester", shown(&trigger.requester).to_string());
    row("Let in", shown(&manifest.caller).to_string());
    row("Target", shown(&manifest.target.to_string()).to_string());
    row("Found as", shown(&manifest.resolved_target).to_string());
    let filter = match manifest.filter.as_str() {
        "" => "none: all packets".to_owned(),
        filter => shown(filter).to_string(),
    };
    row("Filter", filter);
    if let Some(programs) = manifest.programs {
        row("Its program", format!("SHA-256 {}", programs.ethernet));
    }
    for (name, time) in [
        ("First packet", manifest.first_packet),
        ("Last packet", manifest.last_packet),
    ] {
        row(name, time.map(|time| time.to_string()).unwrap_or_default());
    }
    let error = manifest.clock.error_ns;
    row(
        "Clock",
        format!(
            "{}, within {error} ns of the machine's UTC",
            shown(&manifest.clock.source)
        ),
    );
    let counts = &manifest.counts;
    let ended = manifest.stop_reason.map_or("", |reason| reason.text());
    row("Ended", ended.to_owned());
    row("Note", shown(&manifest.message).to_string());
    if let Some(recovered) = &manifest.recovered {
        row("Recovered", shown(&recovered.statement).to_string());
    }
    row(
        "Packets",
        format!(
            "{} matched, {} written, {} missing{}",
            counts.matched,
            counts.written,
            counts.missing(),
            if manifest.complete {
                ": complete"
            } else {
                ": NOT COMPLETE"
            }
        ),
    );
    for file in &manifest.files {
        let digest = file.digest.map_or_else(
            || "GONE when it was to be hashed".to_owned(),
            |digest| format!("{}, SHA-256 {}", unit::bytes(digest.bytes), digest.sha256),
        );
        row(
            "File",
            format!(
                "{}, {}, {digest}",
                shown(&file.name),
                unit::packets(file.packets)
            ),
        );
    }
    row(
        "Made by",
        format!(
            "{} {} on {}, eBPF object {}",
            shown(&manifest.tool.name),
            shown(&manifest.tool.version),
            shown(&manifest.tool.kernel),
            manifest.bpf_object_sha256
        ),
    );
    let previous = link.previous.map_or_else(
        || "the first".to_owned(),
        |digest| format!("after {digest}"),
    );
    row(
        "Chain",
        format!("number {} of {}, {previous}", link.sequence, link.chain),
    );
    row(
        "Signed by",
        format!(
            "key {} (by the agent's word; `remora verify` proves it)",
            manifest.key_id
        ),
    );
    let story: Vec<_> = manifest
        .custody
        .iter()
        .map(|step| {
            let (who, action) = (
                shown(&step.who).to_string(),
                shown(&step.action).to_string(),
            );
            vec![format!("  {}", step.at), who, action]
        })
        .collect();
    let later: String = later
        .iter()
        .map(|line| format!("  {}\n", shown(line)))
        .collect();
    format!("{}\nCustody:\n{}{later}", columns(&rows), columns(&story))
}
