//! The agent on the network: mutual TLS, with a real agent.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_proto::{
    client::{self, AgentAddress, ConnectError, connect_tls},
    tls::{Names, TlsFiles, TlsIdentity},
    v1::{self, stream_response::Message},
};
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    certificates::{Ca, Files, Wanted},
    name,
    node::{Node, Pod},
    numbered::Numbers,
    packets::Capture,
    traffic::{self, Stream},
    wait,
};
use tokio::runtime::Runtime;

const LIMIT: Duration = Duration::from_secs(30);
const AGENT: &str = "remora-agent";
const CONTROLLER: &str = "spiffe://cluster.local/ns/remora/sa/remora-controller";

/// Certificates, and the flags of an agent that has them.
struct Bed {
    directory: tempfile::TempDir,
    ca: Ca,
    own: Files,
    trusted: PathBuf,
    client: Files,
}

impl Bed {
    fn new() -> Result<Self> {
        let directory = name::directory()?;
        let path = directory.path();
        let ca = Ca::new("ca");
        Ok(Self {
            own: ca.sign(path, "agent", &Wanted::server(&[AGENT])),
            trusted: ca.file(path, "ca"),
            client: ca.sign(path, "controller", &Wanted::client(&[CONTROLLER])),
            ca,
            directory,
        })
    }

    /// All flags but that of `without`.
    fn flags(&self, without: &str) -> Vec<String> {
        [
            ("--listen", "127.0.0.1:2804".to_owned()),
            ("--tls-cert", self.own.cert.display().to_string()),
            ("--tls-key", self.own.key.display().to_string()),
            ("--tls-ca", self.trusted.display().to_string()),
            ("--tls-client-san", CONTROLLER.to_owned()),
        ]
        .into_iter()
        .filter(|(flag, _)| *flag != without)
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    fn options(&self) -> Options {
        Options {
            arguments: self.flags(""),
            ..Options::default()
        }
    }

    fn identity(&self, own: Option<Files>) -> Result<TlsIdentity> {
        let files = TlsFiles {
            own: own.map(|own| (own.cert, own.key)),
            ca: Some(self.trusted.clone()),
        };
        Ok(TlsIdentity::new(
            files,
            Some(Names::new([AGENT.parse()?])?),
        )?)
    }
}

fn address() -> Result<AgentAddress> {
    Ok("https://127.0.0.1:2804".parse()?)
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}

/// The value of a metric without labels, or with these.
fn metric(agent: &TestAgent<'_>, name: &str) -> Result<u64> {
    let text = agent.metrics()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name} in {text}"))?;
    Ok(line.trim().parse()?)
}

fn send(web: &Pod, api: &Pod, run: u16, count: u64) -> Result<()> {
    let stream = Stream {
        run,
        rate: 5000,
        ..Stream::new(api.ipv4(), 9000, count)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    ensure!(sent == count, "{sent} of {count} packets were sent");
    Ok(())
}

/// The next whole blocks, into `bytes`; the state if it is the end.
fn next(
    runtime: &Runtime,
    stream: &mut tonic::Streaming<v1::StreamResponse>,
    bytes: &mut Vec<u8>,
) -> Result<Option<v1::CaptureState>> {
    let message = runtime.block_on(async { tokio::time::timeout(LIMIT, stream.message()).await });
    match message??.context("the stream ended")?.message {
        Some(Message::Blocks(blocks)) => {
            bytes.extend_from_slice(&blocks);
            Ok(None)
        }
        Some(Message::Finished(state)) => Ok(Some(state)),
        None => anyhow::bail!("an empty message"),
    }
}

#[test]
fn a_stream_by_mutual_tls_loses_nothing_while_all_certificates_are_swapped() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let mut bed = Bed::new()?;
    let agent = TestAgent::start_with(&node, bed.options())?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    node.netns().enter(|| {
        let runtime = runtime()?;
        let old = bed.identity(Some(bed.client.clone()))?;
        let channel = runtime.block_on(connect_tls(&address()?, &old))?;
        let mut client = client::capture_client(channel);
        let spec = v1::CaptureSpec {
            destination: v1::Destination::Stream.into(),
            ..of_pod_filtered(&web, "udp port 9000")
        };
        let request = v1::StartRequest {
            spec: Some(spec),
            idempotency_key: String::new(),
            ..Default::default()
        };
        let started = runtime.block_on(client.start(request))?.into_inner();
        let state = started.capture.context("no state")?;
        let caller = format!("san={CONTROLLER} address=127.0.0.1:");
        ensure!(state.caller.starts_with(&caller), "{}", state.caller);

        let request = v1::StreamRequest {
            id: state.id.clone(),
        };
        let mut stream = runtime.block_on(client.stream(request))?.into_inner();
        let mut bytes = Vec::new();
        send(&web, &api, 1, 500)?;
        ensure!(next(&runtime, &mut stream, &mut bytes)?.is_none());

        // A new CA, and by it both sides' certificates. The client's own files are others, so that
        // it cannot be the same connection anew.
        bed.ca = Ca::new("new ca");
        let path = bed.directory.path();
        fs::write(&bed.trusted, bed.ca.pem())?;
        let new = Wanted::server(&[AGENT]);
        let renewed = bed.ca.sign(path, "renewed", &new);
        fs::rename(&renewed.key, &bed.own.key)?;
        fs::rename(&renewed.cert, &bed.own.cert)?;
        let renewed = bed
            .ca
            .sign(path, "new-controller", &Wanted::client(&[CONTROLLER]));
        let identity = bed.identity(Some(renewed))?;
        wait::until(LIMIT, "the agent's new certificate", || {
            Ok(runtime
                .block_on(connect_tls(&address()?, &identity))
                .is_ok())
        })?;
        let refused = runtime.block_on(connect_tls(&address()?, &old));
        ensure!(refused.is_err(), "the old CA's client is let in");
        ensure!(metric(&agent, "remora_tls_reloads_total{result=\"loaded\"}")? >= 1);

        send(&web, &api, 2, 500)?;
        let request = v1::StopRequest { id: state.id };
        runtime.block_on(client.stop(request))?;
        let last = loop {
            if let Some(state) = next(&runtime, &mut stream, &mut bytes)? {
                break state;
            }
        };
        let counts = last.counts.context("no counts")?;
        ensure!(counts.written == 1000 && counts.lost == 0, "{counts:?}");
        let capture = Capture::read_pcapng(&bytes[..])?;
        for run in [1, 2] {
            let numbers = Numbers::collect(run, capture.frames());
            ensure!(numbers.missing(500).is_empty(), "run {run}: {numbers:?}");
        }
        Ok(())
    })
}

#[test]
fn strangers_are_refused_logged_and_counted_and_the_socket_serves_on() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new()?;
    let agent = TestAgent::start_with(&node, bed.options())?;
    let path = bed.directory.path();
    let years = (2020, 2021);
    let good = || Wanted::client(&[CONTROLLER]);
    let table = [
        ("no_certificate", None),
        (
            "wrong_name",
            Some(
                bed.ca
                    .sign(path, "cart", &Wanted::client(&["cart.shop.svc"])),
            ),
        ),
        (
            "expired",
            Some(bed.ca.sign(path, "old", &Wanted { years, ..good() })),
        ),
        ("unknown_ca", Some(Ca::new("ca").sign(path, "x", &good()))),
        (
            "wrong_use",
            Some(bed.ca.sign(path, "server", &Wanted::server(&[CONTROLLER]))),
        ),
    ];
    node.netns().enter(|| {
        let runtime = runtime()?;
        for (reason, own) in table {
            let identity = bed.identity(own)?;
            let connected = runtime.block_on(connect_tls(&address()?, &identity));
            let error = connected
                .err()
                .with_context(|| format!("{reason}: let in"))?;
            ensure!(matches!(error, ConnectError::NotLetIn { .. }), "{error:?}");
            let counted = format!("remora_tls_refusals_total{{reason=\"{reason}\"}}");
            ensure!(metric(&agent, &counted)? == 1, "{reason} is not counted");
            ensure!(agent.tail().contains(reason), "{}", agent.tail());
        }
        // Plain HTTP, and a gRPC client without TLS.
        let answer = remora_tests::http::over_tcp(
            node.netns(),
            "127.0.0.1:2804".parse()?,
            remora_tests::http::Request::get("/"),
        );
        ensure!(answer.is_err(), "{answer:?}");
        wait::until(LIMIT, "the count of what is no TLS", || {
            Ok(metric(&agent, "remora_tls_refusals_total{reason=\"not_tls\"}")? == 1)
        })?;
        let identity = bed.identity(Some(bed.client.clone()))?;
        let channel = runtime.block_on(connect_tls(&address()?, &identity))?;
        let mut client = client::node_client(channel);
        let status = runtime.block_on(client.status(v1::StatusRequest {}))?;
        ensure!(status.into_inner().node == "node-a");
        Ok(())
    })?;
    agent.status()?;
    Ok(())
}

#[test]
fn nothing_listens_on_the_network_without_all_that_tls_needs() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new()?;
    let mut agent = TestAgent::start(&node)?;
    agent.end_by(nix::sys::signal::Signal::SIGTERM)?;
    for flag in ["--tls-cert", "--tls-key", "--tls-ca", "--tls-client-san"] {
        agent.options().arguments = bed.flags(flag);
        let told = agent.refuses()?;
        ensure!(told.contains(flag), "{flag}: {told}");
    }
    agent.options().arguments = bed.flags("");
    fs::write(&bed.own.key, "no key")?;
    let told = agent.refuses()?;
    ensure!(told.contains("holds no private key"), "{told}");
    Ok(())
}
