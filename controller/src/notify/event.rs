//! What is told of a capture: an alert in Falco's JSON, which Falcosidekick takes at `POST /`.

use remora_capture::{
    evidence::Manifest,
    session::{CaptureId, Counts},
    text::excerpt,
};
use remora_proto::v1;
use serde_json::{Map, Value, json};

/// Longest text of a field, in characters.
const TEXT_MAX: usize = 500;
/// Files that are named, of a capture that has many.
const FILES_MAX: usize = 8;

/// Pure. The manifest's digests are told as its agent tells them.
pub(super) fn event(state: &v1::CaptureState, manifest: Option<&Manifest>) -> Value {
    let counts = Counts::from(state.counts.unwrap_or_default());
    let failed = state.phase() == v1::Phase::Failed;
    let complete = !failed && counts.missing() == 0 && manifest.is_none_or(|m| m.complete);
    let fields = fields(state, &counts, manifest);
    json!({
        "uuid": uuid(&state.id),
        "output": output(state, &counts, manifest),
        "priority": if complete { "Notice" } else { "Warning" },
        "rule": if failed { "Remora capture failed" } else { "Remora capture finished" },
        "time": time(state.finished.as_ref()),
        "source": "remora",
        "hostname": short(&state.node),
        "tags": ["remora"],
        "output_fields": fields,
    })
}

fn fields(
    state: &v1::CaptureState,
    counts: &Counts,
    manifest: Option<&Manifest>,
) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| {
        let is_empty = value.is_null() || value.as_str().is_some_and(str::is_empty);
        if !is_empty {
            fields.insert(key.to_owned(), value);
        }
    };
    let spec = state.spec.clone().unwrap_or_default();
    let trigger = spec.trigger.unwrap_or_default();
    put("remora.capture_id", state.id.clone().into());
    put(
        "remora.part_of",
        spec.part.map_or(Value::Null, |part| part.capture.into()),
    );
    put("remora.target", short(&state.resolved_target));
    put("remora.filter", short(&spec.filter));
    put("remora.phase", word(state.phase().as_str_name(), "PHASE_"));
    if state.stop_reason() != v1::StopReason::Unspecified {
        let reason = word(state.stop_reason().as_str_name(), "STOP_REASON_");
        put("remora.stop_reason", reason);
    }
    put("remora.message", short(&state.message));
    put("remora.started", time(state.started.as_ref()));
    put("remora.trigger.source", short(&trigger.source));
    put("remora.trigger.rule", short(&trigger.rule));
    put("remora.trigger.priority", short(&trigger.priority));
    put("remora.trigger.requester", short(&trigger.requester));
    put("remora.packets.matched", counts.matched.into());
    put("remora.packets.written", counts.written.into());
    put("remora.packets.missing", counts.missing().into());
    if let Some(v1::target::Target::Pod(pod)) = spec.target.and_then(|target| target.target) {
        put("k8s.ns.name", short(&pod.namespace));
        put("k8s.pod.name", short(&pod.name));
    }
    let Some(manifest) = manifest else {
        return fields;
    };
    if let Some(pod) = &manifest.pod {
        put("k8s.ns.name", short(&pod.namespace));
        put("k8s.pod.name", short(&pod.name));
    }
    put("remora.complete", manifest.complete.into());
    let link = &manifest.chain;
    put(
        "remora.chain",
        format!("{}:{}", link.chain, link.sequence).into(),
    );
    put("remora.files", manifest.files.len().into());
    for (n, file) in manifest.files.iter().take(FILES_MAX).enumerate() {
        put(&format!("remora.file.{n}.name"), short(&file.name));
        if let Some(digest) = &file.digest {
            put(&format!("remora.file.{n}.bytes"), digest.bytes.into());
            let sha256 = digest.sha256.to_string();
            put(&format!("remora.file.{n}.sha256"), sha256.into());
        }
    }
    fields
}

fn output(state: &v1::CaptureState, counts: &Counts, manifest: Option<&Manifest>) -> String {
    let mut output = format!(
        "Capture {} of {} on node {}: {} packets matched, {} written, {} missing",
        state.id,
        excerpt(&state.resolved_target, TEXT_MAX),
        excerpt(&state.node, TEXT_MAX),
        counts.matched,
        counts.written,
        counts.missing(),
    );
    let files = manifest.map(|manifest| manifest.files.as_slice());
    let first = files.and_then(<[_]>::first);
    if let Some(digest) = first.and_then(|file| file.digest.as_ref()) {
        output += &format!("; sha256:{}", digest.sha256);
    }
    output
}

/// A ULID's 128 bits as a UUID is written.
fn uuid(id: &str) -> Value {
    let Ok(id) = id.parse::<CaptureId>() else {
        return Value::Null;
    };
    let [low, high] = id.words();
    let hex = format!("{high:016x}{low:016x}");
    let [a, b, c, d, e] = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    format!("{a}-{b}-{c}-{d}-{e}").into()
}

fn short(text: &str) -> Value {
    excerpt(text, TEXT_MAX).to_string().into()
}

/// A name of the protocol in lower case, without what all of its kind begin with.
fn word(name: &str, begin: &str) -> Value {
    let name = name.strip_prefix(begin).unwrap_or(name);
    name.to_lowercase().into()
}

fn time(time: Option<&prost_types::Timestamp>) -> Value {
    let time = time.and_then(|time| jiff::Timestamp::new(time.seconds, time.nanos).ok());
    time.map_or(Value::Null, |time| format!("{time:.9}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> v1::CaptureState {
        v1::CaptureState {
            id: "01J9ZQ3C7M8N4R5T6V7W8X9YZA".into(),
            phase: v1::Phase::Finished.into(),
            stop_reason: v1::StopReason::Duration.into(),
            node: "w1".into(),
            resolved_target: "pod shop/cart\u{1b}[2J".into(),
            finished: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 5,
            }),
            counts: Some(v1::Counts {
                matched: 9,
                written: 7,
                lost: 2,
                ..Default::default()
            }),
            spec: Some(v1::CaptureSpec {
                filter: "tcp port 443".into(),
                target: Some(v1::Target {
                    target: Some(v1::target::Target::Pod(v1::Pod {
                        namespace: "shop".into(),
                        name: "cart".into(),
                        ..Default::default()
                    })),
                }),
                trigger: Some(v1::Trigger {
                    rule: "Outbound Connection to C2 Servers".into(),
                    alert: b"secret words of the alert".to_vec().into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn an_event_is_an_alert_with_counts_and_without_what_is_secret_or_wild() {
        let event = event(&ended(), None);
        assert_eq!(event["priority"], "Warning", "two packets are missing");
        assert_eq!(event["rule"], "Remora capture finished");
        assert_eq!(event["source"], "remora");
        assert_eq!(event["time"], "2023-11-14T22:13:20.000000005Z");
        // The same 128 bits in the other alphabet.
        assert_eq!(event["uuid"], "01927f71-b0f4-4549-82e8-db3f11d4fbea");
        let fields = &event["output_fields"];
        assert_eq!(fields["remora.packets.missing"], 2);
        assert_eq!(fields["remora.stop_reason"], "duration");
        assert_eq!(fields["k8s.ns.name"], "shop");
        assert_eq!(fields["remora.filter"], "tcp port 443");
        assert_eq!(fields["remora.message"], Value::Null);
        let text = event.to_string();
        assert!(
            !text.contains("secret words") && !text.contains("u001b"),
            "{text}"
        );
    }

    #[test]
    fn one_that_lacks_nothing_is_a_notice_and_one_that_failed_says_so() {
        let mut state = ended();
        state.counts = None;
        assert_eq!(event(&state, None)["priority"], "Notice");
        state.phase = v1::Phase::Failed.into();
        let failed = event(&state, None);
        assert_eq!(
            (&failed["priority"], &failed["rule"]),
            (&"Warning".into(), &"Remora capture failed".into())
        );
    }
}
