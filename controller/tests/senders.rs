//! Who may send alerts: by a secret, by a certificate.

#[path = "../../tests/src/certificates.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other crates' tests use the rest"
)]
mod certificates;
mod support;

use std::{fs, io, path::Path, sync::Arc};

use certificates::{Ca, Files, Wanted};
use remora_controller::args::{AlertsArgs, RunArgs};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};
use support::{ANY, Answer, PATIENCE, TestController, alert, request};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

const SECRET: &str = "a0b1c2d3e4f5a6b7c8d9";

fn with_secret(dir: &Path, args: &mut RunArgs) {
    let path = dir.join("secret");
    fs::write(&path, SECRET).unwrap();
    args.alerts.alerts_secret = Some(path);
}

#[tokio::test]
async fn an_alert_without_the_secret_is_refused_before_its_body_is_read_and_counted() {
    let controller = TestController::start_with(ANY, with_secret).await;
    let body = serde_json::to_vec(&alert("203.0.113.7")).unwrap();
    let json = "Content-Type: application/json";
    let right = format!("Authorization: Bearer {SECRET}");
    for (headers, status) in [
        (vec![json], 401),
        (
            vec![json, "Authorization: Bearer a0b1c2d3e4f5a6b7c8d8"],
            401,
        ),
        (vec![json, "Authorization: Basic a0b1c2d3e4f5a6b7c8d9"], 401),
        (vec![json, "X-Remora-Secret: a0b1c2d3e4f5a6b7c8d9"], 401),
        (vec![json, &right, &right], 401),
        // Known, and nobody there who captures.
        (vec![json, &right], 503),
    ] {
        let answer = controller
            .send(&request("POST", "/", &headers, &body))
            .await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
        if status == 401 {
            assert_eq!(answer.text("code"), "unauthenticated");
            assert!(answer.text("reason").contains("Authorization: Bearer"));
        }
    }
    // Nothing but whether it is well is told to strangers.
    assert_eq!(controller.get("/healthz").await.status, 200);
    assert_eq!(controller.get("/metrics").await.status, 401);
    let answer = controller
        .send(&request("GET", "/metrics", &[&right], b""))
        .await;
    let counted = "remora_controller_refusals_total{code=\"unauthenticated\"} 5\n";
    assert!(answer.body.contains(counted), "{}", answer.body);
    // A stranger's body is not waited for.
    let unsent = request("POST", "/", &[json, "Content-Length: 60000"], b"");
    assert_eq!(controller.send(&unsent).await.status, 401);
}

/// By TLS: no connection is an error, too.
async fn exchange(
    controller: &TestController,
    ca: &Ca,
    own: Option<&Files>,
    request: &[u8],
) -> io::Result<Answer> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        Some(own) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&own.cert).unwrap()],
                PrivateKeyDer::from_pem_file(&own.key).unwrap(),
            )
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    let exchange = async {
        let tcp = TcpStream::connect(controller.address).await?;
        let name = "remora-controller".try_into().unwrap();
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await?;
        stream.write_all(request).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok(Answer::parse(&bytes))
    };
    timeout(PATIENCE, exchange).await.expect("ends in time")
}

#[tokio::test]
async fn by_tls_only_senders_with_a_listed_certificate_are_heard() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let own = ca.sign(dir.path(), "own", &Wanted::server(&["remora-controller"]));
    let trusted = ca.file(dir.path(), "ca");
    let controller = TestController::start_with(ANY, |_, args| {
        args.alerts = AlertsArgs {
            alerts_tls_cert: Some(own.cert),
            alerts_tls_key: Some(own.key),
            alerts_tls_ca: Some(trusted),
            alerts_tls_client_san: vec!["falcosidekick.falco.svc".to_owned()],
            ..AlertsArgs::default()
        };
    })
    .await;
    let get = request("GET", "/healthz", &[], b"");
    let falco = Wanted::client(&["falcosidekick.falco.svc"]);
    let good = ca.sign(dir.path(), "falco", &falco);
    let answer = exchange(&controller, &ca, Some(&good), &get).await.unwrap();
    assert_eq!(answer.status, 200);
    let other = ca.sign(dir.path(), "cart", &Wanted::client(&["cart.shop.svc"]));
    let stranger = Ca::new("ca").sign(dir.path(), "stranger", &falco);
    for own in [None, Some(&other), Some(&stranger)] {
        exchange(&controller, &ca, own, &get).await.unwrap_err();
    }
    let mut plain = TcpStream::connect(controller.address).await.unwrap();
    plain.write_all(&get).await.unwrap();
    let mut bytes = Vec::new();
    let _reset = timeout(PATIENCE, plain.read_to_end(&mut bytes))
        .await
        .unwrap();
    assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");
    let metrics = request("GET", "/metrics", &[], b"");
    let answer = exchange(&controller, &ca, Some(&good), &metrics)
        .await
        .unwrap();
    for (reason, count) in [
        ("no_certificate", 1),
        ("wrong_name", 1),
        ("unknown_ca", 1),
        ("not_tls", 1),
    ] {
        let line = format!(
            "remora_controller_tls_refusals_total{{listener=\"alerts\",reason=\"{reason}\"}} {count}\n"
        );
        assert!(answer.body.contains(&line), "{line}{}", answer.body);
    }
}
