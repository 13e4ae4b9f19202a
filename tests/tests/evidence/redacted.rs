//! A part of a capture that is handed on.

use remora_capture::evidence::SecretKey;
use remora_tests::wire;

use super::*;

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
        assert!(packet.original_len > 1300);
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
    assert!(text(&whole.stdout).contains("case\u{fffd} 42"), "{whole:?}");
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
