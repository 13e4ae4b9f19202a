//! Files that the node cannot read any more: read by `age`, which has none of our code.

use remora_proto::reason::{Reason, reason_of};

use super::*;

/// A secret key's file, and its public key.
fn key(directory: &Path, name: &str) -> Result<(PathBuf, String)> {
    let file = directory.join(name);
    run::output(run::command("age-keygen").arg("-o").arg(&file))?;
    let public = run::output(run::command("age-keygen").arg("-y").arg(&file))?;
    Ok((file, public.trim().to_owned()))
}

fn decrypted(file: &Path, key: &Path) -> Result<Output> {
    run::finish(run::command("age").arg("-d").arg("-i").arg(key).arg(file))
}

/// `remora verify --identity`.
fn verify_with(path: &Path, key: &Path, identity: &Path) -> Result<Output> {
    let mut command = run::command(run::remora_program("remora")?);
    command.arg("verify").arg(path).arg("--key").arg(key);
    let output = run::finish(command.arg("--identity").arg(identity))?;
    println!("{}{}", text(&output.stdout), text(&output.stderr));
    Ok(output)
}

#[test]
fn the_node_keeps_what_only_the_secret_keys_holder_can_read() -> Result<()> {
    let node = Node::new()?;
    let (secret, public) = key(node.directory(), "secret")?;
    let (other, second) = key(node.directory(), "other")?;
    let (stranger, _) = key(node.directory(), "stranger")?;
    let list = node.directory().join("recipients.txt");
    fs::write(&list, format!("# the second responder\n{second}\n"))?;
    let options = Options {
        arguments: vec![
            format!("--encrypt-to={public}"),
            format!("--encrypt-to={}", list.display()),
        ],
        ..Options::default()
    };
    let bed = Bed::new(&node, options)?;
    let data = bed.agent.data_dir();
    let mut ids = Vec::new();
    for writing in writing() {
        let (state, _) = bed.captured(writing)?;
        let manifest = bed.agent.manifest(&state.id)?;
        assert!(
            manifest.complete || writing.rotate_bytes > 0,
            "{manifest:?}"
        );
        for file in &manifest.files {
            let plain = file.plain.as_ref().context("not encrypted")?;
            assert_eq!(file.name, format!("{}.age", plain.name));
            assert_eq!(plain.recipients, [public.as_str(), second.as_str()]);
            let open = data.join(&plain.name);
            wait::until(LIMIT, "the end of the plain text", || Ok(!open.exists()))?;
            let stored = data.join(&file.name);
            assert!(!decrypted(&stored, &stranger)?.status.success());
            // Either key, and what age makes of it is what was hashed and counted.
            let path = node.directory().join(&plain.name);
            for key in [&secret, &other] {
                let output = decrypted(&stored, key)?;
                ensure!(output.status.success(), "{}", text(&output.stderr));
                fs::write(&path, &output.stdout)?;
                let entry = remora_capture::evidence::Entry::read(&plain.name, &*output.stdout)?;
                assert_eq!(entry.digest(), plain.digest);
            }
            assert_eq!(remora_tests::wire::capinfos_count(&path)?, file.blocks);
        }
        ids.push(state.id);
    }
    let room = bed.agent.status()?.store_bytes;
    let lies = |path: &PathBuf| path.to_string_lossy().contains(".pcapng");
    let paths = fs::read_dir(&data)?.map(|entry| Ok(entry?.path()));
    let paths = paths.collect::<Result<Vec<_>>>()?.into_iter().filter(lies);
    let there: u64 = paths
        .map(|path| fs::metadata(path).map_or(0, |file| file.len()))
        .sum();
    assert_eq!(room, there, "the quota's bytes are those that lie there");

    // Without the key the bytes are proved, with it also what they hold.
    let (copy, head) = (bed.copy()?, bed.head()?);
    let whole = "All of it is as it was signed";
    assert_code(&verify(&copy.data, &copy.key, Some(&head))?, 0, whole);
    let file = copy.data.join(format!("{}.pcapng.age", ids[0]));
    let held = "decrypted, the bytes that were signed";
    assert_code(&verify_with(&file, &copy.key, &other)?, 0, held);
    assert_code(&verify_with(&file, &copy.key, &stranger)?, 1, "other keys");
    let archive = copy.data.with_file_name("case.tar");
    let target = archive.to_str().context("path")?;
    let exported = remora(&bed.agent, &["export", &ids[0], &ids[1], "-o", target])?;
    ensure!(exported.status.success(), "{exported:?}");
    assert_code(&verify_with(&archive, &copy.key, &secret)?, 0, held);
    flip(&file, 1_000_000)?;
    assert_code(
        &verify(&file, &copy.key, None)?,
        1,
        "its bytes were changed",
    );
    assert_code(
        &verify_with(&file, &copy.key, &secret)?,
        1,
        "cannot be decrypted",
    );

    // The agent says why it has no packets to give, and who has the key gets them.
    let target = node.directory().join("got.pcapng");
    let path = target.to_str().context("path")?;
    let refused = remora(&bed.agent, &["get", &ids[0], "-w", path])?;
    assert_ne!(refused.status.code(), Some(0));
    assert!(text(&refused.stderr).contains("--identity"), "{refused:?}");
    let streamed = bed.agent.stream(&ids[0])?.read_to_end().err();
    let status = streamed.and_then(|error| error.downcast::<tonic::Status>().ok());
    assert_eq!(
        status.as_ref().and_then(reason_of),
        Some(Reason::CaptureEncrypted),
        "{status:?}"
    );
    let _empty = fs::remove_file(&target);
    for (identity, code) in [(&stranger, 1), (&secret, 0)] {
        let identity = identity.to_str().context("path")?;
        let got = remora(
            &bed.agent,
            &["get", &ids[0], "-w", path, "--identity", identity],
        )?;
        assert_eq!(got.status.code(), Some(code), "{got:?}");
        assert_eq!(target.exists(), code == 0);
    }
    let open = node.directory().join(format!("{}.pcapng", ids[0]));
    assert_eq!(fs::read(&target)?, fs::read(open)?);

    // A deletion takes the encrypted file, and the proof goes on without it.
    let deleted = remora(&bed.agent, &["delete", &ids[0], "--reason", "a test"])?;
    ensure!(deleted.status.success(), "{deleted:?}");
    assert!(!data.join(format!("{}.pcapng.age", ids[0])).exists());
    let (copy, head) = (bed.copy()?, bed.head()?);
    assert_code(&verify(&copy.data, &copy.key, Some(&head))?, 0, whole);
    Ok(())
}

#[test]
fn what_is_no_public_key_is_refused_at_the_start() -> Result<()> {
    let node = Node::new()?;
    let mut agent = TestAgent::start(&node)?;
    agent.end_by(Signal::SIGTERM)?;
    let (secret, _) = key(node.directory(), "secret")?;
    for given in ["age1notakey", "/none", secret.to_str().context("path")?] {
        agent.options().arguments = vec![format!("--encrypt-to={given}")];
        let said = agent.refuses()?;
        assert!(said.contains("--encrypt-to"), "{said}");
        assert!(!said.contains("AGE-SECRET"), "{said}");
    }
    Ok(())
}
