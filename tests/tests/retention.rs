//! Captures that go: a full store makes room, what is held stays, and the chain tells of all that went.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_capture::evidence::{MANIFEST_ENDING, TOMBSTONE_ENDING};
use remora_proto::{
    reason::{Reason, reason_of},
    v1,
};
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    node::{Node, Pod},
    run,
    traffic::{self, Sink, Stream},
    wait,
};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(30);
const PACKETS: u64 = 2000;
const KEEP: u64 = 7 << 20;

struct Bed<'a> {
    agent: TestAgent<'a>,
    web: Pod,
    api: Pod,
    _sink: Sink,
}

impl<'a> Bed<'a> {
    fn new(node: &'a Node, arguments: &[&str]) -> Result<Self> {
        let (web, api) = (node.pod("web")?, node.pod("api")?);
        let options = Options {
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            ..Options::default()
        };
        Ok(Self {
            agent: TestAgent::start_with(node, options)?,
            _sink: traffic::sink(PORT, node.directory(), |tool| api.command(tool))?,
            web,
            api,
        })
    }

    fn start(&self) -> Result<String> {
        Ok(self.agent.capture(of_pod_filtered(&self.web, FILTER))?.id)
    }

    /// A finished and signed capture of 2.9 MB.
    fn captured(&self) -> Result<String> {
        let id = self.start()?;
        let stream = Stream {
            size: 1400,
            rate: 20_000,
            ..Stream::new(self.api.ipv4(), PORT, PACKETS)
        };
        stream.send(|tool| self.web.command(tool))?;
        let state = self.agent.stop(&id)?;
        let counts = state.counts.context("no counts")?;
        ensure!(counts.written == PACKETS, "{state:?}");
        self.agent.manifest(&id)?;
        Ok(id)
    }

    fn remora(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = run::command(run::remora_program("remora")?);
        run::finish(
            command
                .args(["--agent", &self.agent.address()])
                .args(arguments),
        )
    }

    fn data(&self, name: &str) -> PathBuf {
        self.agent.data_dir().join(name)
    }

    fn is_deleted(&self, id: &str) -> bool {
        self.data(&format!("{id}{TOMBSTONE_ENDING}")).exists()
            && !self.data(&format!("{id}.json")).exists()
    }

    /// Whatever lies in the directory is proved with the published head.
    fn prove(&self) -> Result<String> {
        let head = self.agent.status()?.chain_head;
        let path = self.data("chain.head");
        let keys = self.agent.public_keys()?;
        wait::until(LIMIT, "the head's file", || {
            let Ok(bytes) = fs::read(&path) else {
                return Ok(false);
            };
            let told = remora_capture::evidence::Head::from_signed(&bytes, &keys);
            Ok(told.is_ok_and(|told| told.to_string() == head))
        })?;
        let key = self.agent.public_key_files()?;
        let key = key.first().context("no key")?;
        let output = verify(&self.agent.data_dir(), key, &head)?;
        ensure!(output.status.code() == Some(0), "{output:?}");
        Ok(text(&output.stdout))
    }
}

fn verify(path: &Path, key: &Path, head: &str) -> Result<Output> {
    let mut command = run::command(run::remora_program("remora")?);
    command.arg("verify").arg(path).arg("--key").arg(key);
    run::finish(command.args(["--head", head]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_refused(output: &Output, what: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains(what), "{what}: {output:?}");
}

#[test]
fn a_full_store_makes_room_captures_go_on_and_what_is_held_stays() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node, &["--quota=12MiB", "--keep-bytes=7MiB"])?;
    let mut ids = Vec::new();
    for n in 0..7 {
        let id = bed.captured()?;
        if n == 0 {
            let held = bed.remora(&["hold", &id, "--reason", "case 42"])?;
            ensure!(held.status.success(), "{held:?}");
        }
        ids.push(id);
        if n == 3 {
            bed.agent.end_by(Signal::SIGKILL)?;
            bed.agent.start_again()?;
        }
        let room = || Ok(bed.agent.status()?.store_bytes <= KEEP);
        wait::until(LIMIT, "room", room).with_context(|| bed.agent.tail())?;
    }
    // More than twice as much was written as there is room for.
    let (held, newest) = (&ids[0], &ids[6]);
    for id in &ids[1..5] {
        wait::until(LIMIT, "the deletion", || Ok(bed.is_deleted(id)))?;
    }
    assert!(bed.data(&format!("{held}.pcapng")).exists());
    assert!(bed.data(&format!("{newest}.pcapng")).exists());
    let said = bed.prove()?;
    assert!(
        said.contains("captures took more room than they may"),
        "{said}"
    );
    assert!(said.contains("case 42"), "{said}");

    let list = text(&bed.remora(&["list", "--all"])?.stdout);
    assert!(list.contains("Finished, held"), "{list}");
    assert!(!list.contains(ids[1].as_str()), "{list}");
    let show = text(&bed.remora(&["show", held])?.stdout);
    assert!(show.contains("case 42"), "{show}");
    let gone = bed.remora(&["show", &ids[1]])?;
    assert_refused(&gone, "because captures took more room than they may");
    let copy = bed.data("../copy.pcapng");
    let copy = copy.to_str().context("path")?;
    let gone = bed.remora(&["get", &ids[1], "-w", copy])?;
    assert_refused(&gone, "deleted on");
    let story = text(&bed.remora(&["show", &ids[1], "--custody"])?.stdout);
    for told in ["2000 written", "deleted on", "of the chain"] {
        assert!(story.contains(told), "{told}: {story}");
    }
    assert_refused(&bed.remora(&["delete", held])?, "remora release");
    let metrics = bed.agent.metrics()?;
    for line in [
        "remora_captures_held 1",
        "remora_captures_deleted_total{reason=\"room\"}",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    Ok(())
}

#[test]
fn captures_are_deleted_by_hand_and_the_archive_of_one_says_so() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node, &[])?;
    let (first, second) = (bed.captured()?, bed.captured()?);
    let running = bed.start()?;
    assert_refused(&bed.remora(&["delete", &running])?, "remora stop");
    let held = bed.remora(&["hold", &running])?;
    ensure!(held.status.success(), "{held:?}");
    bed.agent.stop(&running)?;
    bed.agent.manifest(&running)?;
    // One that cannot be does not keep the others.
    let output = bed.remora(&["delete", &running, &first, "--reason", "\u{1b}[31mdone"])?;
    assert_refused(&output, "held since");
    assert!(bed.is_deleted(&first), "{output:?}");
    assert!(!text(&output.stdout).contains('\u{1b}'));
    assert_refused(&bed.remora(&["delete", &first])?, "was deleted on");
    assert_refused(&bed.remora(&["hold", &first])?, "was deleted on");
    assert_refused(&bed.remora(&["release", &second])?, "is not held");

    bed.agent.end_by(Signal::SIGTERM)?;
    bed.agent.start_again()?;
    assert_refused(&bed.remora(&["delete", &running])?, "held since");
    let said = bed.prove()?;
    assert!(said.contains("\\u{1b}[31mdone"), "{said}");

    let directory = remora_tests::name::directory()?;
    let path = directory.path().join("case.tar");
    let target = path.to_str().context("path")?;
    let output = bed.remora(&["export", &first, &second, "-o", target])?;
    ensure!(output.status.success(), "{output:?}");
    let head = bed.agent.status()?.chain_head;
    let keys = bed.agent.public_key_files()?;
    let key = keys.first().context("no key")?;
    // The archive, the file that is gone, and its manifest.
    for path in [
        path.clone(),
        bed.data(&format!("{first}.pcapng")),
        bed.data(&format!("{first}{MANIFEST_ENDING}")),
    ] {
        let output = verify(&path, key, &head)?;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(
            text(&output.stdout).contains("it was asked for"),
            "{output:?}"
        );
    }
    bed.agent.spoil();
    fs::remove_file(bed.data(&format!("{first}{TOMBSTONE_ENDING}")))?;
    let output = verify(&bed.agent.data_dir(), key, &head)?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stdout).contains("missing, "), "{output:?}");
    Ok(())
}

/// As a controller asks whose connection broke under the first call.
#[test]
fn who_asks_again_since_the_answer_was_lost_gets_it() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, &[])?;
    let id = bed.captured()?;
    let client = bed.agent.client()?;
    let hold = v1::HoldRequest {
        id: id.clone(),
        why: "case 42".into(),
        ..Default::default()
    };
    let held = bed.agent.block_on(client.clone().hold(hold.clone()))?;
    let same = bed.agent.block_on(client.clone().hold(hold))?;
    assert_eq!(same.into_inner(), held.into_inner());
    let release = |again| {
        let request = v1::ReleaseRequest {
            id: id.clone(),
            again,
            ..Default::default()
        };
        bed.agent.block_on(client.clone().release(request))
    };
    let released = release(true)?.into_inner();
    assert_eq!(release(true)?.into_inner(), released);
    let refused = release(false).err().context("taken")?;
    assert_eq!(reason_of(&refused), Some(Reason::CaptureNotHeld));
    let delete = |why: &str, again| {
        let request = v1::DeleteRequest {
            id: id.clone(),
            why: why.to_owned(),
            again,
            ..Default::default()
        };
        bed.agent.block_on(client.clone().delete(request))
    };
    let deleted = delete("closed", true)?.into_inner();
    assert_eq!(delete("closed", true)?.into_inner(), deleted);
    // Not to who says something else, nor to who does not know of it.
    for (why, again) in [("another", true), ("closed", false)] {
        let refused = delete(why, again).err().context("taken")?;
        assert_eq!(reason_of(&refused), Some(Reason::CaptureDeleted), "{why}");
    }
    assert!(bed.is_deleted(&id));
    bed.prove()?;
    Ok(())
}

#[test]
fn ids_that_are_none_and_reasons_that_are_too_long_change_nothing() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, &[])?;
    let id = bed.captured()?;
    let mut client = bed.agent.client()?;
    for id in [
        "",
        "../../etc/passwd",
        "x\0",
        "\u{1b}[31m",
        &"9".repeat(60_000),
        "*",
    ] {
        let request = v1::DeleteRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let status = bed
            .agent
            .block_on(client.delete(request))
            .err()
            .context("taken")?;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        let request = v1::HoldRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let status = bed
            .agent
            .block_on(client.hold(request))
            .err()
            .context("taken")?;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    }
    let long = v1::DeleteRequest {
        id: id.clone(),
        why: "x".repeat(1025),
        ..Default::default()
    };
    let status = bed
        .agent
        .block_on(client.delete(long))
        .err()
        .context("taken")?;
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    let unknown = v1::DeleteRequest {
        id: "01J9ZQ3C7M8N4R5T6V7W8X9YZA".to_owned(),
        ..Default::default()
    };
    let status = bed
        .agent
        .block_on(client.delete(unknown))
        .err()
        .context("taken")?;
    assert_eq!(status.code(), tonic::Code::NotFound, "{status:?}");
    assert!(bed.data(&format!("{id}.pcapng")).exists());
    bed.prove()?;
    Ok(())
}
