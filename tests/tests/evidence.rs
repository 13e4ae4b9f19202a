//! Evidence from the agent to the auditor: signed, exported, and verified with a public key alone.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_capture::evidence::{Head, MANIFEST_ENDING, Manifest, STAMP_ENDING, SecretKey};
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    node::{Node, Pod},
    proof, run,
    traffic::{self, Sink, Stream},
    wait, wire,
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
fn a_redacted_capture_tells_what_it_was_made_from_and_opens_in_wireshark() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let (state, _) = bed.captured(v1::Writing::default())?;
    let copy = bed.copy()?;
    let original = copy.data.join(&state.file);
    let place = copy.data.with_file_name("redacted");
    fs::create_dir(&place)?;
    let (secret, public) = (place.join("me.pem"), place.join("me.pub"));
    let key = SecretKey::from_random(&[7; 32]);
    fs::write(&secret, key.to_pem())?;
    fs::write(&public, key.public().to_pem())?;
    let out = place.join("case.pcapng");
    let redact = |arguments: &[&str]| -> Result<Output> {
        let mut command = run::command(run::remora_program("remora")?);
        command.arg("redact").arg(&original).arg("-w").arg(&out);
        command.arg("--sign-key").arg(&secret).args(arguments);
        command.env("REMORA_AGENT", "unix:/none");
        run::finish(&mut command)
    };
    for refused in [
        ["--keep", "no filter"],
        ["--keep", "tcp port 1"],
        ["--packets", "0"],
    ] {
        let output = redact(&refused)?;
        ensure!(!output.status.success(), "{refused:?}: {output:?}");
        ensure!(!out.exists(), "{refused:?} left a file");
    }
    let made = redact(&[
        "--keep",
        "udp dst port 9000 and greater 100",
        "--packets",
        "1-500,1901-",
        "--headers-only",
        "--reason",
        "case\u{1b} 42",
    ])?;
    ensure!(made.status.success(), "{made:?}");
    assert_eq!(wire::capinfos_count(&out)?, 600);
    let read = run::finish(run::command("tshark").arg("-r").arg(&out))?;
    ensure!(read.status.success(), "{read:?}");
    let said = run::finish(run::command("capinfos").arg(&out))?;
    assert!(
        text(&said.stdout).contains("REDACTED: chosen packets"),
        "{said:?}"
    );
    for packet in remora_capture::pcapng::read_packets(fs::File::open(&out)?)? {
        // Ethernet, IPv4, UDP.
        assert_eq!(packet.data.len(), 42);
        assert!(packet.original_len > 1400);
    }

    let verify = |original: Option<&Path>, redactor: &Path| -> Result<Output> {
        let mut command = run::command(run::remora_program("remora")?);
        command.arg("verify").arg(&out).arg("--key").arg(&copy.key);
        command.arg("--redactor-key").arg(redactor);
        if let Some(original) = original {
            command.arg("--original").arg(original);
        }
        run::finish(&mut command)
    };
    let whole = verify(Some(&original), &public)?;
    assert_code(&whole, 0, "each of its 600 packets is the original's");
    assert!(text(&whole.stdout).contains("case\\u{1b} 42"), "{whole:?}");
    // The node's key is not who redacts.
    assert_code(&verify(None, &copy.key)?, 1, "not among those given");
    let other = fs::read_dir(&copy.data)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "json"))
        .context("no other file")?;
    assert_code(&verify(Some(&other), &public)?, 1, "original");
    flip(&out, 5000)?;
    assert_code(&verify(None, &public)?, 1, "THIS IS NOT");
    flip(&out, 5000)?;
    fs::remove_file(&original)?;
    assert_code(&verify(None, &public)?, 3, "by the word of who redacted");
    Ok(())
}

/// An authority of OpenSSL's, in a directory of its own.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Result<Self> {
        let authority = Self(remora_tests::name::directory()?);
        authority.openssl(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
            "-subj", "/CN=ca", "-days", "2",
        ])?;
        authority.openssl(&[
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "tsa.key", "-out", "tsa.csr",
            "-subj", "/CN=tsa",
        ])?;
        let extensions = "basicConstraints=CA:FALSE\nextendedKeyUsage=critical,timeStamping\n";
        fs::write(authority.path("extensions"), extensions)?;
        authority.openssl(&[
            "x509",
            "-req",
            "-in",
            "tsa.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "extensions",
            "-out",
            "tsa.pem",
        ])?;
        fs::write(authority.path("serial"), "01\n")?;
        let settings = "[tsa]\nserial = ./serial\nsigner_digest = sha256\ndefault_policy = 1.2.3.4.1\n\
                        digests = sha256\ness_cert_id_alg = sha256\n";
        fs::write(authority.path("settings"), settings)?;
        Ok(authority)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = run::command("openssl");
        run::output(command.args(arguments).current_dir(self.0.path()))
    }

    fn reply(&self, query: &[u8]) -> Result<Vec<u8>> {
        fs::write(self.path("query"), query)?;
        self.openssl(&[
            "ts",
            "-reply",
            "-config",
            "settings",
            "-section",
            "tsa",
            "-queryfile",
            "query",
            "-signer",
            "tsa.pem",
            "-inkey",
            "tsa.key",
            "-out",
            "reply",
        ])?;
        Ok(fs::read(self.path("reply"))?)
    }

    /// Answers one query over HTTP.
    fn serve(&self, listener: &TcpListener) -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut len = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                len = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut query = vec![0; len];
        reader.read_exact(&mut query)?;
        let reply = self.reply(&query)?;
        let head = "HTTP/1.0 200 OK\r\nContent-Type: application/timestamp-reply\r\n\r\n";
        stream.write_all(head.as_bytes())?;
        stream.write_all(&reply)?;
        Ok(())
    }
}

#[test]
fn an_authority_stamps_a_manifest_and_is_believed_by_its_certificate() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let (state, _) = bed.captured(v1::Writing::default())?;
    let copy = bed.copy()?;
    let head = bed.head()?;
    let manifest = copy.data.join(format!("{}{MANIFEST_ENDING}", state.id));
    let stamp = copy.data.join(format!("{}{STAMP_ENDING}", state.id));
    let (authority, another) = (Authority::new()?, Authority::new()?);
    let timestamp = |arguments: &[&OsStr]| -> Result<Output> {
        let mut command = run::command(run::remora_program("remora")?);
        command.arg("timestamp").arg(&manifest).args(arguments);
        run::finish(&mut command)
    };
    let verify_by = |authority: Option<&Authority>| -> Result<Output> {
        let mut command = run::command(run::remora_program("remora")?);
        command
            .arg("verify")
            .arg(&copy.data)
            .arg("--key")
            .arg(&copy.key);
        command.args(["--head", &head]);
        if let Some(authority) = authority {
            command.arg("--tsa-ca").arg(authority.path("ca.pem"));
        }
        run::finish(&mut command)
    };

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/tsr", listener.local_addr()?);
    let output = thread::scope(|scope| -> Result<Output> {
        let server = scope.spawn(|| authority.serve(&listener));
        let output = timestamp(&["--tsa".as_ref(), url.as_ref()])?;
        ensure!(output.status.success(), "{output:?}");
        server
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(output)
    })?;
    assert!(text(&output.stderr).contains("stamped 20"), "{output:?}");
    assert_code(
        &verify_by(Some(&authority))?,
        0,
        "its manifest existed on 20",
    );
    assert_code(&verify_by(None)?, 3, "give --tsa-ca");
    assert_code(&verify_by(Some(&another))?, 1, "not one of the authority");
    // OpenSSL believes the same file.
    let (data, reply) = (
        manifest.to_str().context("path")?,
        stamp.to_str().context("path")?,
    );
    let arguments = [
        "ts", "-verify", "-data", data, "-in", reply, "-CAfile", "ca.pem",
    ];
    authority.openssl(&arguments)?;
    // Not written over.
    ensure!(
        !timestamp(&["--tsa".as_ref(), url.as_ref()])?
            .status
            .success()
    );

    // By files, through somebody who reaches an authority.
    fs::remove_file(&stamp)?;
    let (query, reply) = (authority.path("q.tsq"), authority.path("q.tsr"));
    let made = timestamp(&["--request".as_ref(), query.as_ref()])?;
    ensure!(made.status.success(), "{made:?}");
    fs::write(&reply, authority.reply(&fs::read(&query)?)?)?;
    let taken = timestamp(&["--response".as_ref(), reply.as_ref()])?;
    ensure!(taken.status.success(), "{taken:?}");
    assert_code(
        &verify_by(Some(&authority))?,
        0,
        "its manifest existed on 20",
    );
    // Of another file, and changed.
    let other = authority.path("other.tsr");
    authority.openssl(&[
        "ts", "-query", "-data", "ca.pem", "-sha256", "-cert", "-out", "o.tsq",
    ])?;
    fs::write(
        &other,
        authority.reply(&fs::read(authority.path("o.tsq"))?)?,
    )?;
    fs::copy(&other, &stamp)?;
    assert_code(&verify_by(Some(&authority))?, 1, "stamp of something else");
    fs::copy(&reply, &stamp)?;
    let middle = usize::try_from(fs::metadata(&stamp)?.len())? - 20;
    flip(&stamp, middle)?;
    assert_code(&verify_by(Some(&authority))?, 1, "THIS IS NOT");
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
