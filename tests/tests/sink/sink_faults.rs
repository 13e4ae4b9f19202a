//! What goes wrong between the agent and the store, and in them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::TestAgent,
    fault_proxy::{Fault, Seen},
    node::Node,
    wait,
};
use tonic::Code;

use super::{Bed, LIMIT, PACKETS, text};

/// PUTs that the store took, by their object.
fn taken(seen: &[Seen]) -> BTreeMap<String, usize> {
    let mut taken = BTreeMap::new();
    let puts = seen.iter().filter(|one| one.method == "PUT");
    for one in puts.filter(|one| one.status == Some(200)) {
        *taken.entry(one.path.clone()).or_default() += 1;
    }
    taken
}

#[test]
fn refusals_broken_connections_flipped_bits_and_lost_answers_end_in_one_whole_object_each()
-> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, &[])?;
    bed.proxy.next(&[
        Fault::Answer(503),
        Fault::Answer(500),
        Fault::Cut(300_000),
        Fault::Flip(1_000_000),
        Fault::Unanswered,
    ]);
    let _controller = bed.controller("")?;
    let id = bed.captured(PACKETS)?;
    let upload = bed.verified(&id)?;
    assert_eq!(bed.proxy.left(), 0);
    // The answer that was lost is a failure that the store had taken: it is found there, and not sent again.
    assert_eq!(upload.failures, 5, "{upload:?}");
    assert_eq!(bed.metric("remora_uploads_total{result=\"verified\"}")?, 3);
    let refused = bed.metric("remora_uploads_total{result=\"refused\"}")?;
    let unreachable = bed.metric("remora_uploads_total{result=\"unreachable\"}")?;
    assert_eq!(refused + unreachable, 5);
    let taken = taken(&bed.proxy.seen());
    assert!(
        taken.len() == 3 && taken.values().all(|n| *n == 1),
        "{taken:?}"
    );
    // The store itself found the bit.
    let digests = bed.proxy.seen();
    let bad = digests.iter().filter(|one| one.status == Some(400)).count();
    assert_eq!(bad, 1, "{digests:?}");
    bed.same(&[id])?;
    Ok(())
}

#[test]
fn a_url_that_expired_is_refused_by_the_store_and_another_one_is_asked_for() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, &[])?;
    bed.proxy.next(&[Fault::Late(Duration::from_secs(4))]);
    let _controller = bed.controller("&expires=2s")?;
    let id = bed.captured(10)?;
    let upload = bed.verified(&id)?;
    assert!(upload.failures >= 1, "{upload:?}");
    let late = bed.proxy.seen();
    let late = late.iter().find(|one| one.method == "PUT");
    assert_eq!(late.context("no PUT")?.status, Some(403));
    bed.same(&[id])?;
    Ok(())
}

#[test]
fn while_the_store_is_away_all_stays_the_quota_refuses_starts_and_all_is_there_once_it_is_back()
-> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(
        &node,
        &["--quota=9MiB", "--keep-bytes=4MiB", "--keep-age=1s"],
    )?;
    let mut controller = bed.controller("")?;
    bed.store.stop()?;
    let mut ids = Vec::new();
    let (mut rate, mut packets) = (20_000, PACKETS);
    // As many as there is room for: none goes, though each is too old and too large.
    let refused = loop {
        match bed.start() {
            Ok(state) => {
                bed.agent.stop(&state.id)?;
                // Without packets; the next has them.
                bed.agent.manifest(&state.id)?;
                ids.push(state.id);
            }
            Err(refused) => break refused,
        }
        match bed.captured_at(rate, packets) {
            Ok(id) => {
                if bed.agent.get(&id)?.stop_reason() == v1::StopReason::NoSpace {
                    // A batch did not fit into what is left; smaller ones fill it.
                    (rate, packets) = (1000, 100);
                }
                ids.push(id);
            }
            Err(error) => {
                let refused = error.downcast::<tonic::Status>()?;
                break refused;
            }
        }
        ensure!(
            ids.len() < 40,
            "the quota is never reached: {} bytes of {:?}",
            bed.agent.status()?.store_bytes,
            bed.agent.list(true)?
        );
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("--quota"), "{refused}");
    for id in &ids {
        assert!(bed.agent.sidecar(id).is_ok(), "{id} is gone");
    }
    assert_eq!(bed.metric("remora_upload_pending")?, ids.len() as u64);
    bed.wait_upload(&ids[0], "some failures", |upload| upload.failures >= 2)?;
    let refused = bed.remora(&["delete", &ids[0]])?;
    assert_eq!(refused.status.code(), Some(1));
    let told = text(&refused.stderr);
    assert!(told.contains("--not-uploaded"), "{told}");
    // Whoever may ask next goes on.
    controller.end_by(Signal::SIGKILL)?;
    let _next = bed.controller("")?;
    bed.store.start_again()?;
    wait::until(LIMIT, "no capture that waits", || {
        Ok(bed.metric("remora_upload_pending")? == 0)
    })
    .with_context(|| bed.agent.tail())?;
    // Now retention has what it waited for; the sink has them all, each once.
    wait::until(LIMIT, "room", || Ok(bed.agent.list(true)?.is_empty()))?;
    bed.start()?;
    let names = bed.store.names()?;
    assert_eq!(names.len(), 3 * ids.len(), "{names:?}");
    for id in &ids {
        assert!(names.contains(&format!("cases/{id}/{id}.manifest.json")));
    }
    let taken = taken(&bed.proxy.seen());
    assert!(taken.values().all(|n| *n == 1), "{taken:?}");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_in_the_middle_of_an_upload_goes_on_with_it() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node, &[])?;
    bed.proxy.always(Some(Fault::Slow(150_000)));
    let mut controller = bed.controller("")?;
    let id = bed.captured(PACKETS)?;
    bed.wait_upload(&id, "an upload under way", |upload| {
        upload.phase() == v1::UploadPhase::Running
    })?;
    wait::until(LIMIT, "a PUT", || {
        Ok(bed.proxy.seen().iter().any(|one| one.method == "PUT"))
    })?;
    bed.agent.end_by(Signal::SIGKILL)?;
    controller.end_by(Signal::SIGKILL)?;
    bed.proxy.always(None);
    bed.agent.start_again()?;
    assert_eq!(bed.upload(&id)?.phase(), v1::UploadPhase::Waiting);
    let _next = bed.controller("")?;
    bed.verified(&id)?;
    let taken = taken(&bed.proxy.seen());
    assert!(
        taken.len() == 3 && taken.values().all(|n| *n == 1),
        "{taken:?}"
    );
    bed.same(&[id])?;
    Ok(())
}

#[test]
fn something_else_under_the_name_is_never_written_over_and_is_told() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, &[])?;
    let id = bed.captured(10)?;
    let name = format!("cases/{id}/{id}.pcapng");
    bed.store.put(&name, "not a capture")?;
    let _controller = bed.controller("")?;
    let upload = bed.wait_upload(&id, "a failure", |upload| upload.failures >= 2)?;
    assert!(upload.error.contains("something else"), "{upload:?}");
    assert!(bed.proxy.seen().iter().all(|one| one.method != "PUT"));
    // Whoever gives it up says so.
    let deleted = bed.remora(&["delete", "--not-uploaded", "--reason", "test", &id])?;
    assert!(deleted.status.success(), "{deleted:?}");
    wait::until(LIMIT, "nothing that waits", || {
        Ok(bed.metric("remora_upload_pending")? == 0)
    })
}

fn put(agent: &TestAgent<'_>, url: &str) -> tonic::Status {
    let request = || v1::SignedRequest {
        url: url.to_owned(),
        ..Default::default()
    };
    let order = v1::PutRequest {
        id: "01J9ZQ3C7M8N4R5T6V7W8X9YZA".to_owned(),
        file: "x".to_owned(),
        put: Some(request()),
        check: Some(request()),
        checksum: v1::StoreChecksum::S3Sha256.into(),
    };
    let put = async {
        let path = format!("unix:{}", agent.socket().display());
        let channel = tonic::transport::Endpoint::from_shared(path)
            .expect("an address")
            .connect_lazy();
        let mut client = v1::uploads_client::UploadsClient::new(channel);
        client.put(order).await
    };
    agent.block_on(put).expect_err("refused")
}

#[test]
fn an_agent_uploads_to_no_origin_that_it_was_not_allowed() -> Result<()> {
    let node = Node::new()?;
    let agent = TestAgent::start(&node)?;
    for url in ["http://192.0.2.1/x", "ftp://127.0.0.1/x", "nonsense"] {
        let refused = put(&agent, url);
        assert_eq!(refused.code(), Code::PermissionDenied, "{url}: {refused}");
    }
    // Allowed; yet nothing waits there.
    assert_eq!(put(&agent, "https://192.0.2.1/x").code(), Code::NotFound);
    Ok(())
}
