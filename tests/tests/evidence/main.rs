//! Evidence from the agent to the auditor: signed, exported, and verified with a public key alone.

mod encrypted;
mod redacted;
mod stamped;

use std::{
    ffi::OsStr,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_capture::evidence::{Head, MANIFEST_ENDING, Manifest};
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    node::{Node, Pod},
    proof, run,
    traffic::{self, Sink, Stream},
    wait,
};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const ALERT: &str = "{\"rule\":\"C2 beacon\",\"priority\":\"Critical\",\"output\":\"\\u001b[31m\"}";
const LIMIT: Duration = Duration::from_secs(20);

struct Bed<'a> {
    agent: TestAgent<'a>,
    web: Pod,
    api: Pod,
    _sink: Sink,
}

impl<'a> Bed<'a> {
    fn new(node: &'a Node, options: Options) -> Result<Self> {
        let (web, api) = (node.pod("web")?, node.pod("api")?);
        Ok(Self {
            agent: TestAgent::start_with(node, options)?,
            _sink: traffic::sink(PORT, node.directory(), |tool| api.command(tool))?,
            web,
            api,
        })
    }

    fn start(&self, writing: v1::Writing) -> Result<String> {
        let spec = v1::CaptureSpec {
            writing: Some(writing),
            trigger: Some(v1::Trigger {
                source: "falco".into(),
                rule: "C2 beacon".into(),
                reason: "a beacon".into(),
                alert: ALERT.into(),
                ..Default::default()
            }),
            ..of_pod_filtered(&self.web, FILTER)
        };
        Ok(self.agent.capture(spec)?.id)
    }

    /// 2000 packets, 2.8 MB.
    fn send(&self) -> Result<()> {
        let stream = Stream {
            size: 1400,
            rate: 20_000,
            ..Stream::new(self.api.ipv4(), PORT, 2000)
        };
        stream.send(|tool| self.web.command(tool)).map(drop)
    }

    /// A finished capture; how long after its told end the manifest was there.
    fn captured(&self, writing: v1::Writing) -> Result<(v1::CaptureState, Duration)> {
        let id = self.start(writing)?;
        self.send()?;
        let state = self.agent.stop(&id)?;
        let told = Instant::now();
        self.agent.manifest(&id)?;
        Ok((state, told.elapsed()))
    }

    /// What the node's status publishes.
    fn head(&self) -> Result<String> {
        Ok(self.agent.status()?.chain_head)
    }

    /// The data directory as an auditor gets it: without what is secret, and the public key apart.
    fn copy(&self) -> Result<Copy> {
        // The head's file comes a moment after the manifest.
        let told = self.head()?;
        let path = self.agent.data_dir().join("chain.head");
        wait::until(LIMIT, "the head's file", || {
            let head = fs::read(&path).map(|bytes| -> Result<Head> {
                Ok(Head::from_signed(&bytes, &self.agent.public_keys()?)?)
            });
            Ok(head.is_ok_and(|head| head.is_ok_and(|head| head.to_string() == told)))
        })?;
        let directory = remora_tests::name::directory()?;
        let data = directory.path().join("evidence");
        fs::create_dir(&data)?;
        for entry in fs::read_dir(self.agent.data_dir())? {
            let path = entry?.path();
            if path.is_file() {
                fs::copy(&path, data.join(name(&path)?))?;
            }
        }
        let key = directory.path().join("node.pub");
        let own = self.agent.public_key_files()?;
        fs::copy(own.first().context("no key")?, &key)?;
        Ok(Copy {
            _directory: directory,
            data,
            key,
        })
    }
}

struct Copy {
    _directory: tempfile::TempDir,
    data: PathBuf,
    key: PathBuf,
}

fn name(path: &Path) -> Result<&str> {
    path.file_name().and_then(OsStr::to_str).context("no name")
}

/// `remora verify` in an empty directory, without an agent.
fn verify(path: &Path, key: &Path, head: Option<&str>) -> Result<Output> {
    let mut command = run::command(run::remora_program("remora")?);
    let empty = remora_tests::name::directory()?;
    command.current_dir(empty.path()).arg("verify").arg(path);
    command.arg("--key").arg(key);
    if let Some(head) = head {
        command.args(["--head", head]);
    }
    command.env("REMORA_AGENT", "unix:/none");
    let output = run::finish(&mut command)?;
    println!("{}{}", text(&output.stdout), text(&output.stderr));
    Ok(output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_code(output: &Output, code: i32, what: &str) {
    assert_eq!(output.status.code(), Some(code), "{what}: {output:?}");
    assert!(text(&output.stdout).contains(what), "{what}: {output:?}");
}

fn writing() -> [v1::Writing; 3] {
    [
        v1::Writing::default(),
        v1::Writing {
            rotate_bytes: 1 << 20,
            files: 2,
            ..Default::default()
        },
        v1::Writing {
            compression: v1::Compression::Zstd.into(),
            ..Default::default()
        },
    ]
}

fn flip(path: &Path, at: usize) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let byte = bytes.get_mut(at).context("a shorter file")?;
    *byte ^= 4;
    fs::write(path, bytes)?;
    Ok(())
}

fn remora(agent: &TestAgent<'_>, arguments: &[&str]) -> Result<Output> {
    let mut command = run::command(run::remora_program("remora")?);
    run::finish(command.args(["--agent", &agent.address()]).args(arguments))
}

#[test]
fn a_directory_is_verified_with_the_public_key_and_the_published_head_alone() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let mut files = Vec::new();
    for writing in writing() {
        let (state, after) = bed.captured(writing)?;
        println!("manifest {after:?} after the told end");
        if writing.rotate_bytes > 0 {
            proof::prove_set(&bed.agent, &state)?;
        } else if writing.compression == 0 {
            proof::prove(&bed.agent, &state)?;
        }
        files.push(state.file);
    }
    let head = bed.head()?;
    let copy = bed.copy()?;
    assert_code(
        &verify(&copy.data, &copy.key, Some(&head))?,
        0,
        "All of it is as it was signed",
    );
    assert_code(
        &verify(&copy.data, &copy.key, None)?,
        3,
        "nothing came after 3",
    );
    let file = copy.data.join(&files[0]);
    assert_code(&verify(&file, &copy.key, None)?, 0, "2000 packets written");
    flip(&file, 1_000_000)?;
    assert_code(
        &verify(&copy.data, &copy.key, Some(&head))?,
        1,
        "its bytes were changed",
    );
    assert_code(
        &verify(&file, &copy.key, None)?,
        1,
        "its bytes were changed",
    );
    flip(&file, 1_000_000)?;
    // The last capture, with an older head in its place.
    let copied = bed.copy()?;
    let id = files[2].split('.').next().context("id")?;
    for entry in fs::read_dir(&copied.data)? {
        let path = entry?.path();
        if name(&path)?.starts_with(id) {
            fs::remove_file(path)?;
        }
    }
    assert_code(
        &verify(&copied.data, &copied.key, Some(&head))?,
        1,
        "cut off after 2",
    );
    // A capture that was streamed has an account, which nobody signs.
    let target = format!("cgroup:{}", bed.web.cgroup().path());
    let read = copy.data.with_file_name("read.pcapng");
    let read = read.to_str().context("path")?;
    let streamed = remora(
        &bed.agent,
        &["capture", &target, "-a", "duration:1", "-w", read],
    )?;
    ensure!(streamed.status.success(), "{streamed:?}");
    let later = bed.copy()?;
    assert_code(
        &verify(&later.data, &later.key, Some(&head))?,
        3,
        "that were streamed to their readers",
    );
    let foreign = copy.data.with_file_name("foreign.pub");
    let secret = remora_capture::evidence::SecretKey::from_random(&[4; 32]);
    fs::write(&foreign, secret.public().to_pem())?;
    assert_code(
        &verify(&copy.data, &foreign, Some(&head))?,
        1,
        "not among those given",
    );
    Ok(())
}

#[test]
fn openssl_and_sha256sum_say_the_same() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let (state, _) = bed.captured(v1::Writing::default())?;
    let copy = bed.copy()?;
    // As README.txt in an exported archive has it.
    let script = format!(
        "set -eu; ID={}\n\
         jq -rj .payload $ID.manifest.json | base64 -d > ../statement.json\n\
         jq -rj '.signatures[0].sig' $ID.manifest.json | base64 -d > ../sig\n\
         (printf 'DSSEv1 28 application/vnd.in-toto+json %s ' $(wc -c < ../statement.json)\n\
          cat ../statement.json) > ../signed\n\
         openssl pkeyutl -verify -pubin -inkey ../node.pub -rawin -in ../signed -sigfile ../sig\n\
         jq -r '.subject[] | .digest.sha256 + \"  \" + .name' ../statement.json | sha256sum -c\n\
         jq -r .predicate.trigger.alert ../statement.json\n\
         jq -r .predicate.counts.written ../statement.json",
        state.id
    );
    let mut shell = Command::new("sh");
    let said = run::output(shell.args(["-c", &script]).current_dir(&copy.data))?;
    println!("{said}");
    assert!(said.contains("Signature Verified Successfully"), "{said}");
    assert_eq!(said.matches(": OK").count(), 2, "{said}");
    assert!(said.contains(ALERT), "{said}");
    assert!(said.trim_end().ends_with("2000"), "{said}");
    Ok(())
}

#[test]
fn an_archive_has_all_that_proves_its_captures_and_says_their_story() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let mut ids = Vec::new();
    for writing in writing() {
        ids.push(bed.captured(writing)?.0.id);
    }
    let copy = bed.copy()?;
    for ending in ["tar", "tar.zst"] {
        let path = copy.data.with_file_name(format!("case.{ending}"));
        let target = path.to_str().context("path")?;
        let output = remora(&bed.agent, &["export", &ids[0], &ids[1], "-o", target])?;
        ensure!(output.status.success(), "{output:?}");
        assert_code(
            &verify(&path, &copy.key, None)?,
            0,
            "All of it is as it was signed",
        );
        // Somewhere among the packets.
        let length = path.metadata()?.len() as usize;
        flip(&path, length / 2)?;
        let output = verify(&path, &copy.key, None)?;
        assert_eq!(output.status.code(), Some(1));
        flip(&path, length / 2)?;
        fs::write(&path, &fs::read(&path)?[..length / 2])?;
        assert_code(&verify(&path, &copy.key, None)?, 1, "cut off or broken");
    }
    // tar unpacks it, and what it unpacks is what lay there.
    let path = copy.data.with_file_name("one.tar");
    let target = path.to_str().context("path")?;
    remora(&bed.agent, &["export", &ids[2], "-o", target])?;
    let unpacked = copy.data.with_file_name("unpacked");
    fs::create_dir(&unpacked)?;
    run::output(
        Command::new("tar")
            .arg("-xf")
            .arg(&path)
            .arg("-C")
            .arg(&unpacked),
    )?;
    let mut same = 0;
    for entry in fs::read_dir(&unpacked)? {
        let path = entry?.path();
        if name(&path)?.starts_with(&ids[2]) {
            let original = fs::read(bed.agent.data_dir().join(name(&path)?))?;
            assert_eq!(fs::read(&path)?, original, "{}", path.display());
            same += 1;
        }
    }
    assert_eq!(same, 3);
    assert!(unpacked.join("README.txt").is_file());

    let story = remora(&bed.agent, &["show", &ids[0], "--custody"])?;
    let story = text(&story.stdout);
    println!("{story}");
    for told in [
        "C2 beacon",
        "a beacon",
        "2000 written, 0 missing: complete",
        "began to capture",
        FILTER,
    ] {
        assert!(story.contains(told), "{told}: {story}");
    }
    assert!(!story.contains('\u{1b}'));

    let running = bed.start(v1::Writing::default())?;
    let target = copy.data.with_file_name("none.tar");
    let output = remora(
        &bed.agent,
        &["export", &running, "-o", target.to_str().context("path")?],
    )?;
    assert!(text(&output.stderr).contains("remora stop"), "{output:?}");
    assert!(!target.exists());
    Ok(())
}

#[test]
fn a_full_disk_still_has_room_for_the_manifest() -> Result<()> {
    let node = Node::new()?;
    let options = Options {
        data_tmpfs: Some("128k".into()),
        ..Default::default()
    };
    let bed = Bed::new(&node, options)?;
    let id = bed.start(v1::Writing::default())?;
    let state = thread::scope(|scope| -> Result<v1::CaptureState> {
        let sender = scope.spawn(|| bed.send());
        let state = bed.agent.wait_final(&id, LIMIT)?;
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(state)
    })?;
    assert_eq!(
        state.stop_reason(),
        v1::StopReason::NoSpace,
        "{}",
        state.message
    );
    let proven = proof::prove(&bed.agent, &state)?;
    let manifest = bed.agent.manifest(&id)?;
    assert!(!manifest.complete);
    assert_eq!(manifest.counts.missing(), proven.missing());
    let head = wait::until_some(LIMIT, "the head", || {
        let head = bed.head()?;
        Ok((!head.is_empty()).then_some(head))
    })?;
    let copy = bed.copy()?;
    assert_code(
        &verify(&copy.data, &copy.key, Some(&head))?,
        0,
        "as it says itself",
    );
    Ok(())
}

#[test]
fn a_full_disk_is_emptied_by_a_deletion() -> Result<()> {
    let node = Node::new()?;
    let options = Options {
        data_tmpfs: Some("8m".into()),
        ..Default::default()
    };
    let bed = Bed::new(&node, options)?;
    let (state, _) = bed.captured(v1::Writing::default())?;
    bed.copy()?;
    let filler = bed.agent.data_dir().join("filler");
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[0; 512]).is_ok() {}
    ensure!(file.write_all(&[0]).is_err(), "the disk is not full");
    let output = remora(&bed.agent, &["delete", &state.id, "--reason", "no room"])?;
    ensure!(output.status.success(), "{output:?}");
    fs::remove_file(filler)?;
    let head = bed.head()?;
    let copy = bed.copy()?;
    let told = "because it was asked for: no room";
    assert_code(&verify(&copy.data, &copy.key, Some(&head))?, 0, told);
    // Room for the next one is there again.
    ensure!(copy.data.join("tombstone.reserve").exists());
    Ok(())
}

#[test]
fn captures_that_were_killed_over_are_signed_by_the_next_agent() -> Result<()> {
    for pin in [false, true] {
        let node = Node::new()?;
        let options = Options {
            pin,
            ..Default::default()
        };
        let mut bed = Bed::new(&node, options)?;
        let mut ids = Vec::new();
        for n in 0..8 {
            ids.push(bed.start(v1::Writing::default())?);
            bed.send()?;
            let ended = ids.last().context("id")?.clone();
            if n % 2 == 1 {
                bed.agent.stop(&ended)?;
            }
            // Some while a manifest is made.
            thread::sleep(Duration::from_micros(700 * n));
            bed.agent.end_by(Signal::SIGKILL)?;
            bed.agent.start_again()?;
        }
        for id in &ids {
            let state = bed.agent.stop(id)?;
            let manifest = bed.agent.manifest(id)?;
            let counts: v1::Counts = manifest.counts.into();
            assert_eq!(Some(counts), state.counts);
            assert_eq!(
                manifest.recovered.is_some(),
                !pin && state.stop_reason() == v1::StopReason::CrashRecovered
            );
        }
        let copy = bed.copy()?;
        assert_code(
            &verify(&copy.data, &copy.key, Some(&bed.head()?))?,
            0,
            "8 manifests from the first to",
        );
        let mut sequences = Vec::new();
        for entry in fs::read_dir(&copy.data)? {
            let path = entry?.path();
            if name(&path)?.ends_with(MANIFEST_ENDING) {
                sequences.push(Manifest::unverified(&fs::read(path)?)?.chain.sequence);
            }
        }
        sequences.sort_unstable();
        assert_eq!(sequences, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
    Ok(())
}
