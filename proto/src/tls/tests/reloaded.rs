//! Certificates that change while connections are there.

use std::{fs, os::unix::fs::symlink};

use super::{super::TlsError, *};

/// Files as the kubelet keeps a Secret's: `..data` is a symbolic link to a directory, swapped whole.
struct Secret {
    directory: TempDir,
    version: u32,
}

impl Secret {
    fn new(cert: &[u8], key: &[u8], ca: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut secret = Self {
            directory,
            version: 0,
        };
        secret.swap(cert, key, ca);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(format!("..data/{name}"), secret.path(name)).unwrap();
        }
        secret
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn swap(&mut self, cert: &[u8], key: &[u8], ca: &[u8]) {
        self.version += 1;
        let version = format!("..{}", self.version);
        fs::create_dir(self.path(&version)).unwrap();
        for (name, bytes) in [("tls.crt", cert), ("tls.key", key), ("ca.crt", ca)] {
            fs::write(self.path(&version).join(name), bytes).unwrap();
        }
        symlink(&version, self.path("..data_tmp")).unwrap();
        fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
    }

    fn files(&self) -> TlsFiles {
        TlsFiles {
            own: Some((self.path("tls.crt"), self.path("tls.key"))),
            ca: Some(self.path("ca.crt")),
        }
    }
}

fn bytes(files: &Files) -> (Vec<u8>, Vec<u8>) {
    (
        fs::read(&files.cert).unwrap(),
        fs::read(&files.key).unwrap(),
    )
}

#[tokio::test]
async fn a_connection_goes_on_while_certificates_and_ca_are_swapped() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let server = |ca: &Ca, name| bytes(&ca.sign(dir.path(), name, &Wanted::server(&[AGENT])));
    let (cert, key) = server(&old, "server-old");
    let mut secret = Secret::new(&cert, &key, old.pem().as_bytes());

    let clients = Clients::Named(names(&[CONTROLLER]));
    let tls = ServerTls::new(secret.files(), clients, Protocol::Grpc).unwrap();
    let counts = Arc::clone(tls.counts());
    let listener = TlsListener::bind((Ipv4Addr::LOCALHOST, 0).into(), tls)
        .await
        .unwrap();
    let address: AgentAddress = format!("https://{}", listener.address().unwrap())
        .parse()
        .unwrap();
    let serving = tokio::spawn(
        Server::builder()
            .add_routes(Routes::default())
            .serve_with_incoming(listener.connections()),
    );
    let client = |ca: &Ca, name| {
        let own = ca.sign(dir.path(), name, &Wanted::client(&[CONTROLLER]));
        let ca = ca.file(dir.path(), &format!("{name}-ca"));
        TlsIdentity::new(files(Some(own), &ca), Some(names(&[AGENT]))).unwrap()
    };
    let (of_old, of_new) = (client(&old, "old"), client(&new, "new"));
    let kept = connect_tls(&address, &of_old).await.unwrap();
    works(&kept).await;
    connect_tls(&address, &of_new).await.unwrap_err();

    let (cert, key) = server(&new, "server-new");
    secret.swap(&cert, &key, new.pem().as_bytes());
    until("the new certificates", async || {
        connect_tls(&address, &of_new).await.is_ok()
    })
    .await;
    connect_tls(&address, &of_old).await.unwrap_err();
    works(&kept).await;
    assert_eq!(counts.reloads(), (1, 0));

    // Halves of a renewal, and what is no certificate: those before stay.
    let (other, _) = server(&new, "server-other");
    for (n, (cert, key, ca)) in [
        (&other[..], &key[..], new.pem().as_bytes()),
        (&cert[..cert.len() / 2], &key[..], new.pem().as_bytes()),
        (&cert[..], b"", new.pem().as_bytes()),
        (&cert[..], &key[..], b"no certificate"),
    ]
    .into_iter()
    .enumerate()
    {
        secret.swap(cert, key, ca);
        until("the refusal of broken files", async || {
            connect_tls(&address, &of_new).await.unwrap();
            counts.reloads() == (1, n as u64 + 1)
        })
        .await;
        assert!(counts.is_stale());
        works(&kept).await;
    }
    secret.swap(&cert, &key, new.pem().as_bytes());
    until("the mended files", async || {
        connect_tls(&address, &of_new).await.unwrap();
        !counts.is_stale()
    })
    .await;
    works(&kept).await;
    assert_eq!(counts.reloads(), (2, 4));
    serving.abort();
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let good = ca.sign(dir.path(), "good", &Wanted::server(&[AGENT]));
    let other = ca.sign(dir.path(), "other", &Wanted::server(&[AGENT]));
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let ca = ca.file(dir.path(), "ca");
    let missing = dir.path().join("missing");
    let empty = file("empty", b"");
    let torn = file("torn", &fs::read(&good.cert).unwrap()[..200]);
    let nonsense = file(
        "nonsense",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let huge = file("huge", &vec![b'a'; (1 << 20) + 1]);
    for (cert, key, ca, expected) in [
        (&missing, &good.key, &ca, "failed to read"),
        (
            &good.cert,
            &other.key,
            &ca,
            "is not that of the certificate",
        ),
        (&empty, &good.key, &ca, "holds no certificate"),
        (&good.cert, &empty, &ca, "holds no private key"),
        (&good.cert, &good.cert, &ca, "holds no private key"),
        (&torn, &good.key, &ca, "is not PEM"),
        (&nonsense, &good.key, &ca, "is not one"),
        (&good.cert, &good.key, &nonsense, "is not one"),
        (&huge, &good.key, &ca, "more than"),
        (&good.cert, &good.key, &empty, "holds no certificate"),
    ] {
        let files = TlsFiles {
            own: Some((cert.clone(), key.clone())),
            ca: Some(ca.clone()),
        };
        let clients = Clients::Named(names(&[CONTROLLER]));
        let error: TlsError = ServerTls::new(files, clients, Protocol::Grpc).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}
