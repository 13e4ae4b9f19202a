//! The way without a fault.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::of_pod_filtered,
    controller::{self, TestController},
    name,
    node::Node,
    objects::{BUCKET, KEYS, ObjectStore},
    run, wait,
};

use super::{Bed, FILTER, LIMIT, PACKETS, text, verify};

#[test]
fn a_capture_is_in_its_sink_byte_for_byte_with_its_names_and_proves_itself_there() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node, &[])?;
    let mut controller = bed.controller("&retain=1h")?;
    let id = bed.captured(PACKETS)?;
    let upload = bed.verified(&id)?;
    assert_eq!((upload.files, upload.files_verified), (3, 3));
    assert_eq!((upload.failures, upload.bytes), (0, upload.bytes_verified));
    assert!(!upload.url.contains('?'), "{upload:?}");
    let told = bed.same(std::slice::from_ref(&id))?;
    for one in &told {
        assert_eq!(one["metadata"]["remora-capture"], id, "{one}");
        assert_eq!(one["metadata"]["remora-node"], bed.agent.status()?.node);
        assert_eq!(one["lock"], "GOVERNANCE", "{one}");
    }
    // What was fetched by others proves itself, and what is changed in it is found.
    let copies = name::directory()?;
    bed.store.fetch(copies.path())?;
    let keys = bed.agent.public_key_files()?;
    let key = keys.first().context("no key")?;
    let file = copies.path().join(format!("{id}.pcapng"));
    let proved = verify(&file, key)?;
    // 3: that no later capture was cut off is not told by one.
    assert!(matches!(proved.status.code(), Some(0 | 3)), "{proved:?}");
    assert!(text(&proved.stdout).contains("2000 packets"), "{proved:?}");
    let mut bytes = fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes)?;
    assert_eq!(verify(&file, key)?.status.code(), Some(1));
    // Straight from the store it is the same.
    let stored = verify_stored(&node, &id, key, None)?;
    assert!(matches!(stored.status.code(), Some(0 | 3)), "{stored:?}");
    assert!(text(&stored.stdout).contains("2000 packets"), "{stored:?}");
    bed.store
        .put(&format!("cases/{id}/{id}.pcapng"), "another")?;
    let changed = verify_stored(&node, &id, key, None)?;
    assert_eq!(changed.status.code(), Some(1), "{changed:?}");
    // The agent's own directory is whole as well, the record of its upload in it, and its receipt.
    let receipt = bed.agent.data_dir().join(format!("{id}.receipt.json"));
    wait::until(LIMIT, "the receipt", || Ok(receipt.exists()))?;
    let own = verify(&bed.agent.data_dir(), key)?;
    assert!(matches!(own.status.code(), Some(0 | 3)), "{own:?}");
    let sentence = "uploaded to evidence";
    assert!(text(&own.stdout).contains(sentence), "{own:?}");
    let custody = bed.remora(&["show", &id, "--custody"])?;
    assert!(text(&custody.stdout).contains(sentence), "{custody:?}");
    // One that is taken away is missed: after it comes the next capture's manifest.
    let signed = fs::read(&receipt)?;
    let shown = bed.remora(&["show", &id])?;
    let shown = text(&shown.stdout);
    assert!(
        shown.contains("verified to evidence: 3 of 3 files"),
        "{shown}"
    );
    // Each URL has its line, and no secret is in it or in a log.
    let audit = fs::read_to_string(node.directory().join("audit.log"))?;
    let lines = audit.lines().filter(|line| line.contains("\"upload\""));
    assert_eq!(lines.count(), 3, "{audit}");
    let logs = [audit, controller.log(), bed.agent.process()?.log()].concat();
    assert!(!logs.contains("X-Amz-Signature") && !logs.contains(KEYS.1));
    assert_eq!(bed.metric("remora_uploads_total{result=\"verified\"}")?, 3);
    assert_eq!(bed.metric("remora_upload_pending")?, 0);
    assert_eq!(bed.metric("remora_uploads_bytes_total")?, upload.bytes);
    // An agent that begins anew has nothing to do.
    let before = bed.proxy.seen().len();
    bed.agent.end_by(Signal::SIGTERM)?;
    bed.agent.start_again()?;
    bed.verified(&id)?;
    let second = bed.captured(10)?;
    bed.verified(&second)?;
    let seen = bed.proxy.seen().split_off(before);
    ensure!(
        seen.iter().all(|one| one.path.contains(&second)),
        "{seen:?}"
    );
    controller.end_by(Signal::SIGTERM)?;
    assert_eq!(fs::read(&receipt)?, signed, "it is signed once");
    fs::remove_file(&receipt)?;
    let without = verify(&bed.agent.data_dir(), key)?;
    assert_eq!(without.status.code(), Some(1), "{without:?}");
    Ok(())
}

/// `identity`: a file with a secret key of age.
fn verify_stored(node: &Node, id: &str, key: &Path, identity: Option<&Path>) -> Result<Output> {
    let endpoint = format!("http://{}", ObjectStore::address());
    let mut command = node.netns().command(run::remora_program("remora")?);
    command
        .env("AWS_ACCESS_KEY_ID", KEYS.0)
        .env("AWS_SECRET_ACCESS_KEY", KEYS.1)
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .args(["verify", &format!("s3://{BUCKET}/cases/{id}"), "--key"])
        .arg(key);
    if let Some(identity) = identity {
        command.arg("--identity").arg(identity);
    }
    run::finish(&mut command)
}

#[test]
fn an_encrypted_capture_is_read_in_the_store_by_who_has_the_secret_key() -> Result<()> {
    let node = Node::new()?;
    let generated = |name: &str| -> Result<PathBuf> {
        let file = node.directory().join(name);
        run::output(run::command("age-keygen").arg("-o").arg(&file))?;
        Ok(file)
    };
    let (secret, stranger) = (generated("secret")?, generated("stranger")?);
    let public = run::output(run::command("age-keygen").arg("-y").arg(&secret))?;
    let bed = Bed::new(&node, &[&format!("--encrypt-to={}", public.trim())])?;
    let _controller = bed.controller("")?;
    let id = bed.captured(PACKETS)?;
    bed.verified(&id)?;
    let keys = bed.agent.public_key_files()?;
    let key = keys.first().context("no key")?;
    let held = "decrypted, the bytes that were signed";
    for (identity, code, is_held) in [
        (None, 0, false),
        (Some(secret.as_path()), 0, true),
        (Some(stranger.as_path()), 1, false),
    ] {
        let output = verify_stored(&node, &id, key, identity)?;
        assert_eq!(output.status.code(), Some(code), "{identity:?}: {output:?}");
        assert_eq!(text(&output.stdout).contains(held), is_held, "{output:?}");
    }
    // Its bytes changed, it is neither what was signed nor decrypted.
    bed.store
        .put(&format!("cases/{id}/{id}.pcapng.age"), "another")?;
    let output = verify_stored(&node, &id, key, Some(&secret))?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        text(&output.stdout).contains("cannot be decrypted"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn a_rule_names_the_sink_of_its_captures_and_a_stream_has_none() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, &[])?;
    let rules = super::RULES.replace(
        "    duration: 10s\n",
        "    duration: 2s\n    destination: evidence\n",
    );
    ensure!(rules != super::RULES);
    let controller = TestController::start_with_sinks(&bed.agent, &rules, &[bed.sink("")])?;
    let remote = SocketAddr::from((bed.api.ipv4(), 4444));
    let alert = controller::c2_alert(&bed.web, remote, 50_000);
    let answer = controller.post(&serde_json::to_vec(&alert)?)?;
    let id = controller::capture_id(&answer)?;
    let upload = bed.verified(&id)?;
    assert_eq!(upload.sink, "evidence");
    let told = bed.same(std::slice::from_ref(&id))?;
    for one in &told {
        assert_eq!(one["metadata"]["remora-namespace"], "shop", "{one}");
        assert_eq!(one["metadata"]["remora-pod"], "cart-7d9f8c6b5-x2x4q");
        assert_eq!(
            one["metadata"]["remora-rule"],
            "Outbound Connection to C2 Servers"
        );
    }
    let streamed = v1::CaptureSpec {
        sink: "evidence".to_owned(),
        destination: v1::Destination::Stream.into(),
        ..of_pod_filtered(&bed.web, FILTER)
    };
    let refused = bed.agent.capture(streamed).expect_err("nothing to upload");
    assert!(refused.message().contains("nothing to upload"), "{refused}");
    Ok(())
}
