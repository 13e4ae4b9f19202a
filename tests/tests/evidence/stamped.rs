//! When a manifest existed, by the word of an authority: OpenSSL's.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
};

use remora_capture::evidence::STAMP_ENDING;

use super::*;

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
            line.make_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
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
