//! Which certificates are taken, on both sides.

use rcgen::ExtendedKeyUsagePurpose as Use;

use super::{
    super::Refused,
    certificates::{by_a_leaf, self_signed},
    *,
};

#[tokio::test]
async fn a_listed_name_gets_in_as_uri_and_as_dns_name() {
    let bed = Bed::new().await;
    for (n, own) in [
        Wanted::client(&[CONTROLLER]),
        Wanted::client(&["OTHER.svc"]),
        Wanted::client(&["a.b", CONTROLLER, "spiffe://x/y"]),
        Wanted {
            uses: vec![Use::ServerAuth, Use::ClientAuth],
            ..Wanted::client(&[CONTROLLER])
        },
    ]
    .into_iter()
    .enumerate()
    {
        let own = bed.ca.sign(bed.path(), &n.to_string(), &own);
        let channel = bed.connect(&bed.identity(Some(own))).await.unwrap();
        works(&channel).await;
        assert_eq!(bed.counts.accepted(), n as u64 + 1);
    }
}

/// Each is refused in the handshake, counted by its reason, and the client says that it was refused.
#[tokio::test]
async fn bad_certificates_of_clients_are_refused_each_for_its_reason() {
    let bed = Bed::new().await;
    let (ca, dir) = (&bed.ca, bed.path());
    let good = || Wanted::client(&[CONTROLLER]);
    let signed = |name, wanted: Wanted<'_>| Some(ca.sign(dir, name, &wanted));
    let by_another = Ca::new("ca").sign(dir, "another", &good());
    let table = [
        (
            "expired",
            Refused::Expired,
            signed(
                "expired",
                Wanted {
                    years: (2020, 2021),
                    ..good()
                },
            ),
        ),
        (
            "not yet valid",
            Refused::NotYetValid,
            signed(
                "early",
                Wanted {
                    years: (2080, 2090),
                    ..good()
                },
            ),
        ),
        (
            "by a CA of the same name",
            Refused::UnknownCa,
            Some(by_another),
        ),
        (
            "self-signed",
            Refused::UnknownCa,
            Some(self_signed(dir, "self", &good())),
        ),
        (
            "another name",
            Refused::WrongName,
            signed(
                "name",
                Wanted::client(&["spiffe://cluster.local/ns/shop/sa/cart"]),
            ),
        ),
        (
            "the listed name with more behind it",
            Refused::WrongName,
            signed("longer", Wanted::client(&["other.svc.evil.example"])),
        ),
        (
            "a pattern that the listed name fits",
            Refused::WrongName,
            signed("pattern", Wanted::client(&["*.svc"])),
        ),
        (
            "no name but the subject's",
            Refused::WrongName,
            signed("nameless", Wanted::client(&[])),
        ),
        (
            "for servers",
            Refused::WrongUse,
            signed(
                "use",
                Wanted {
                    uses: vec![Use::ServerAuth],
                    ..good()
                },
            ),
        ),
        (
            "for anything, as it says nothing",
            Refused::WrongUse,
            signed(
                "useless",
                Wanted {
                    uses: vec![],
                    ..good()
                },
            ),
        ),
        (
            "the CA's own",
            Refused::IsCa,
            Some(ca.as_own(dir, "ca-as-client")),
        ),
        (
            "by one that may not sign",
            Refused::BadCertificate,
            Some(by_a_leaf(ca, dir, "by-leaf", &good())),
        ),
        ("none", Refused::NoCertificate, None),
    ];
    for (what, reason, own) in table {
        let before = Refused::ALL.map(|why| bed.counts.refused(why));
        let error = bed.connect(&bed.identity(own)).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::NotLetIn { .. }),
            "{what}: {error:?}"
        );
        assert!(error.to_string().contains("--tls-client-san"), "{error}");
        for (why, before) in Refused::ALL.into_iter().zip(before) {
            let more = u64::from(why == reason);
            assert_eq!(
                bed.counts.refused(why),
                before + more,
                "{what}: {}",
                why.as_str()
            );
        }
    }
    assert_eq!(bed.counts.accepted(), 0);
    works(&bed.connect(&bed.good()).await.unwrap()).await;
}

#[tokio::test]
async fn bad_certificates_of_servers_are_refused_each_for_its_reason() {
    type Make = fn(&Ca, &Path) -> Files;
    let table: [(&str, Make); 8] = [
        ("expired", |ca, dir| {
            let years = (2020, 2021);
            ca.sign(
                dir,
                "s",
                &Wanted {
                    years,
                    ..Wanted::server(&[AGENT])
                },
            )
        }),
        ("not_yet_valid", |ca, dir| {
            let years = (2080, 2090);
            ca.sign(
                dir,
                "s",
                &Wanted {
                    years,
                    ..Wanted::server(&[AGENT])
                },
            )
        }),
        ("unknown_ca", |_, dir| {
            Ca::new("ca").sign(dir, "s", &Wanted::server(&[AGENT]))
        }),
        ("unknown_ca", |_, dir| {
            self_signed(dir, "s", &Wanted::server(&[AGENT]))
        }),
        ("wrong_name", |ca, dir| {
            ca.sign(dir, "s", &Wanted::server(&["api.shop.svc"]))
        }),
        ("wrong_use", |ca, dir| {
            ca.sign(dir, "s", &Wanted::client(&[AGENT]))
        }),
        ("is_ca", |ca, dir| ca.as_own(dir, "s")),
        ("bad_certificate", |ca, dir| {
            by_a_leaf(ca, dir, "s", &Wanted::server(&[AGENT]))
        }),
    ];
    let directory = tempfile::tempdir().unwrap();
    for (word, make) in table {
        let clients = Clients::Named(names(&[CONTROLLER]));
        let bed = Bed::with(|ca, _| make(ca, directory.path()), clients).await;
        let identity = bed.good();
        let error = bed.connect(&identity).await.unwrap_err();
        let ConnectError::Untrusted { reason, .. } = &error else {
            panic!("{word}: {error:?}");
        };
        assert_eq!(*reason, word, "{error}");
        assert_eq!(bed.counts.accepted(), 0, "{word}");
        assert_eq!(identity.counts().accepted(), 0);
    }
}

#[tokio::test]
async fn a_server_without_listed_names_is_taken_by_the_address_it_is_dialled_by() {
    for (server, is_taken) in [("127.0.0.1", true), ("127.0.0.2", false), (AGENT, false)] {
        let bed = Bed::with(
            |ca, good| {
                let dir = good.cert.parent().unwrap();
                ca.sign(dir, "by-address", &Wanted::server(&[server]))
            },
            Clients::Anonymous,
        )
        .await;
        let identity = TlsIdentity::trusting(bed.ca.pem().as_bytes(), None).unwrap();
        let connected = bed.connect(&identity).await;
        assert_eq!(connected.is_ok(), is_taken, "{server}: {connected:?}");
    }
}

#[tokio::test]
async fn who_shows_no_certificate_is_let_in_where_that_is_said_but_not_with_a_bad_one() {
    let clients = Clients::NamedOrAnonymous(names(&[CONTROLLER]));
    let bed = Bed::with(|_, good| good, clients).await;
    works(&bed.connect(&bed.identity(None)).await.unwrap()).await;
    works(&bed.connect(&bed.good()).await.unwrap()).await;
    let stranger = bed.ca.sign(bed.path(), "x", &Wanted::client(&["x.svc"]));
    let error = bed
        .connect(&bed.identity(Some(stranger)))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::NotLetIn { .. }), "{error:?}");
    assert_eq!(bed.counts.refused(Refused::WrongName), 1);
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let bed = Bed::new().await;
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject as _;
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(bed.ca.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(bed.address).await.unwrap();
    let name = AGENT.try_into().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.unwrap_err();
    until("the refusal", async || {
        bed.counts.refused(Refused::Version) == 1
    })
    .await;
}
