//! Captures that are uploaded to a store of objects which checks signatures, and what goes wrong on the way.
//! Invariants of each: nothing that is not verified is lost, nothing is there twice.

mod sink_faults;
mod sink_size;
mod sink_way;

use std::{collections::BTreeMap, fs, path::Path, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    controller::TestController,
    fault_proxy::FaultProxy,
    name,
    node::{Node, Pod},
    objects::{BUCKET, ObjectStore},
    run,
    traffic::{self, Sink, Stream},
    wait,
};
use serde_json::Value;

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(60);
/// Packets of a usual capture, of 1400 bytes each: 2.9 MB.
const PACKETS: u64 = 2000;
const RULES: &str = remora_tests::controller::C2_RULES;

struct Bed<'a> {
    agent: TestAgent<'a>,
    store: ObjectStore<'a>,
    proxy: FaultProxy,
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
            store: ObjectStore::start(node)?,
            proxy: FaultProxy::start(node, 7071, ObjectStore::address())?,
            agent: TestAgent::start_with(node, options)?,
            _sink: traffic::sink(PORT, node.directory(), |tool| api.command(tool))?,
            web,
            api,
        })
    }

    /// The sink `evidence`, by way of the proxy.
    fn sink(&self, more: &str) -> String {
        let endpoint = self.proxy.endpoint();
        format!("evidence=s3://{BUCKET}/cases?endpoint={endpoint}{more}")
    }

    fn controller(&self, more: &str) -> Result<TestController<'a>> {
        TestController::start_with_sinks(&self.agent, RULES, &[self.sink(more)])
    }

    fn start(&self) -> Result<v1::CaptureState, tonic::Status> {
        self.agent.capture(v1::CaptureSpec {
            sink: "evidence".to_owned(),
            ..of_pod_filtered(&self.web, FILTER)
        })
    }

    /// A finished and signed capture that waits to be uploaded.
    fn captured(&self, packets: u64) -> Result<String> {
        self.captured_at(20_000, packets)
    }

    /// Likewise, at so many packets a second.
    fn captured_at(&self, rate: u64, packets: u64) -> Result<String> {
        let id = self.start()?.id;
        let stream = Stream {
            size: 1400,
            rate,
            ..Stream::new(self.api.ipv4(), PORT, packets)
        };
        stream.send(|tool| self.web.command(tool))?;
        self.agent.stop(&id)?;
        self.agent.manifest(&id)?;
        Ok(id)
    }

    fn upload(&self, id: &str) -> Result<v1::Upload> {
        self.agent.get(id)?.upload.context("it has no upload")
    }

    fn wait_upload(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&v1::Upload) -> bool,
    ) -> Result<v1::Upload> {
        let mut last = None;
        wait::until_some(LIMIT, what, || {
            // None before its manifest.
            let upload = self.agent.get(id)?.upload;
            last.clone_from(&upload);
            Ok(upload.filter(|upload| wanted(upload)))
        })
        .with_context(|| format!("last {last:?}, {}", self.agent.tail()))
    }

    fn verified(&self, id: &str) -> Result<v1::Upload> {
        self.wait_upload(id, "a verified upload", |upload| {
            upload.phase() == v1::UploadPhase::Verified
        })
    }

    /// The store has of these captures each file as it lies with the agent, once, and nothing else.
    fn same(&self, ids: &[String]) -> Result<Vec<Value>> {
        let copies = name::directory()?;
        let told = self.store.fetch(copies.path())?;
        let mut wanted = BTreeMap::new();
        for entry in fs::read_dir(self.agent.data_dir())? {
            let path = entry?.path();
            let name = path
                .file_name()
                .context("a name")?
                .to_string_lossy()
                .into_owned();
            let is_of = ids.iter().any(|id| name.starts_with(id.as_str()));
            // These two stay on the node.
            let stays = [".upload.json", ".receipt.json", ".receipt.part"];
            if is_of && !stays.iter().any(|ending| name.ends_with(ending)) {
                wanted.insert(name, fs::read(path)?);
            }
        }
        ensure!(wanted.len() == 3 * ids.len(), "{:?}", wanted.keys());
        for (name, bytes) in &wanted {
            let copy = fs::read(copies.path().join(name)).with_context(|| name.clone())?;
            ensure!(copy == *bytes, "{name} is another in the store");
        }
        let mut names: Vec<_> = told.iter().map(|one| one["name"].clone()).collect();
        names.sort_by_key(ToString::to_string);
        let expected: Vec<_> = wanted
            .keys()
            .map(|name| {
                format!(
                    "cases/{}/{name}",
                    name.split('.').next().unwrap_or_default()
                )
            })
            .collect();
        ensure!(names == expected, "{names:?} {expected:?}");
        for one in &told {
            ensure!(one["versions"] == 1, "twice: {one}");
        }
        Ok(told)
    }

    fn remora(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = run::command(run::remora_program("remora")?);
        run::finish(
            command
                .args(["--agent", &self.agent.address()])
                .args(arguments),
        )
    }

    /// What a metric of the agent says.
    fn metric(&self, line: &str) -> Result<u64> {
        let text = self.agent.metrics()?;
        let value = text.lines().find_map(|said| said.strip_prefix(line));
        let value = value.with_context(|| format!("no {line} in {text}"))?;
        Ok(value.trim().parse()?)
    }
}

fn verify(path: &Path, key: &Path) -> Result<Output> {
    let mut command = run::command(run::remora_program("remora")?);
    run::finish(command.arg("verify").arg(path).arg("--key").arg(key))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
