//! Keys and alerts that somebody made up.

use anyhow::{Context as _, Result, ensure};
use remora_proto::{
    reason::{Reason, reason_of},
    v1,
};
use remora_tests::agent::{TestAgent, of_pod, of_pod_filtered};
use tonic::Code;

use crate::{Scene, law, unlimited};

/// Bytes of the longest alert.
const ALERT_BYTES: usize = remora_capture::alert::ALERT_BYTES_MAX;

fn seconds(seconds: i64) -> Option<v1::Limits> {
    Some(v1::Limits {
        duration: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..v1::Limits::default()
    })
}

fn request(spec: v1::CaptureSpec, key: &str, alert: &str) -> v1::StartRequest {
    v1::StartRequest {
        spec: Some(v1::CaptureSpec {
            limits: seconds(60),
            trigger: Some(v1::Trigger {
                rule: "r".into(),
                alert: alert.as_bytes().to_vec().into(),
                ..v1::Trigger::default()
            }),
            ..spec
        }),
        coalescing_key: key.into(),
        idempotency_key: String::new(),
    }
}

#[test]
fn keys_that_cannot_be_are_refused_and_counted() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start_with(&scene.node, unlimited())?;
    let web = &scene.pods[0];
    let long = "k".repeat(129);
    for key in [&*long, "a b", "a\nb", "\u{1b}[2J", "ключ", "\u{0}"] {
        let refused = agent.start_request(request(of_pod(web), key, ""));
        let status = refused.err().with_context(|| format!("{key:?} is taken"))?;
        assert_eq!(
            (status.code(), reason_of(&status)),
            (Code::InvalidArgument, Some(Reason::InvalidSpec)),
            "{key:?}"
        );
    }
    let streamed = v1::CaptureSpec {
        destination: v1::Destination::Stream.into(),
        ..of_pod(web)
    };
    let status = agent.start_request(request(streamed, "k", "")).err();
    let status = status.context("a stream is joined")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(agent.list(true)?.len(), 0);
    let counted = law::counted(&agent.metrics()?, law::OF_AGENT)?;
    assert_eq!((counted["refused"], counted["accepted"]), (7, 0));
    let longest = "!".repeat(128);
    agent.start_request(request(of_pod(web), &longest, ""))?;
    Ok(())
}

/// A key alone joins nothing: what would be captured must be the same.
#[test]
fn a_key_of_another_capture_joins_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start_with(&scene.node, unlimited())?;
    let [web, api, _] = &scene.pods;
    let first = agent.start_request(request(of_pod_filtered(web, "tcp port 80"), "k", "a"))?;
    ensure!(!first.existing && !first.coalesced);
    for other in [
        of_pod_filtered(api, "tcp port 80"),
        of_pod_filtered(web, "tcp port 81"),
        v1::CaptureSpec {
            snaplen: 96,
            ..of_pod_filtered(web, "tcp port 80")
        },
        v1::CaptureSpec {
            direction: v1::Direction::Egress.into(),
            ..of_pod_filtered(web, "tcp port 80")
        },
    ] {
        let started = agent.start_request(request(other, "k", "b"))?;
        ensure!(!started.existing, "{started:?}");
    }
    let joined = agent.start_request(request(of_pod_filtered(web, "tcp port 80"), "k", "c"))?;
    ensure!(joined.existing && joined.coalesced, "{joined:?}");
    let id = |answer: &v1::StartResponse| answer.capture.as_ref().map(|c| c.id.clone());
    assert_eq!(id(&joined), id(&first));
    // Nor does one without a key, or with another.
    for key in ["", "other"] {
        let spec = of_pod_filtered(web, "tcp port 80");
        let started = agent.start_request(request(spec, key, "d"))?;
        ensure!(!started.existing, "{key:?}");
    }
    Ok(())
}

#[test]
fn the_longest_alerts_are_known_by_their_digests_when_there_is_no_more_room() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start_with(&scene.node, unlimited())?;
    let web = &scene.pods[0];
    // Control characters, which JSON makes six times as long.
    let alert = |number: u32| {
        let begin = format!("{number:08}\n\u{1b}");
        format!("{begin}{}", "\u{1}".repeat(ALERT_BYTES - begin.len()))
    };
    let mut id = String::new();
    for number in 0..40 {
        let started = agent.start_request(request(of_pod(web), "k", &alert(number)))?;
        assert_eq!(started.coalesced, number > 0);
        id = started.capture.context("no state")?.id;
    }
    let too_long = "x".repeat(ALERT_BYTES + 1);
    let refused = agent.start_request(request(of_pod(web), "k", &too_long));
    let status = refused.err().context("taken")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    agent.stop(&id)?;
    let manifest = agent.manifest(&id)?;
    let kept = &manifest.amendments.kept;
    assert_eq!((kept.len(), manifest.amendments.left_out), (39, 0));
    for (number, amendment) in (1..).zip(kept) {
        let joined = amendment.alert.as_ref().context("no alert")?;
        let sent = alert(number);
        assert_eq!(
            joined.sha256,
            remora_capture::evidence::Digest::of(sent.as_bytes())
        );
        let text = if number == 1 { &*sent } else { "" };
        ensure!(joined.text == text, "text of alert {number}");
    }
    Ok(())
}

/// Without an idempotency key each is another alert, and beyond the bound they are counted.
#[test]
fn alerts_beyond_the_bound_are_counted_in_the_manifest() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start_with(&scene.node, unlimited())?;
    let web = &scene.pods[0];
    let bound = remora_capture::amendment::AMENDMENTS_MAX as u64;
    let mut id = String::new();
    for number in 0..bound + 11 {
        let alert = format!("{{\"number\":{number}}}");
        let started = agent.start_request(request(of_pod(web), "k", &alert))?;
        id = started.capture.context("no state")?.id;
    }
    agent.stop(&id)?;
    let amendments = agent.manifest(&id)?.amendments;
    assert_eq!(amendments.kept.len() as u64, bound);
    assert_eq!(amendments.left_out, 10);
    assert_eq!(amendments.alerts(), bound + 10);
    Ok(())
}
