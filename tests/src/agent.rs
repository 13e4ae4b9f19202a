//! `remora-agent`, started as it is meant to run, and a plain client for it.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use remora_capture::{
    evidence::{MANIFEST_ENDING, Manifest, PublicKey},
    sidecar::Sidecar,
};
use remora_proto::v1;
use tokio::runtime::Runtime;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    host::Host,
    http, manifests, name,
    node::Pod,
    run::{self, AGENT_UID, Place, Proc, Rights},
    wait,
};

/// How long the agent may take to load its programs and serve.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to drain and end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// "16MiB"; empty: as the agent has it.
    pub ring_size: String,
    pub rights: Rights,
    /// Puts the data directory on a tmpfs of this size, "64k".
    pub data_tmpfs: Option<String>,
    /// Captures outlive it, by pins in a bpffs of its own.
    pub pin: bool,
    /// More command line.
    pub arguments: Vec<String>,
    /// More of its environment.
    pub environment: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ring_size: "16MiB".into(),
            rights: Rights::Agent,
            data_tmpfs: None,
            pin: false,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }
}

/// A file system that is mounted until it is dropped.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, path: PathBuf, settings: Option<&str>) -> Result<Self> {
        mount(Some(kind), &path, Some(kind), MsFlags::empty(), settings)
            .with_context(|| format!("failed to mount a {kind}"))?;
        Ok(Self(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// An agent on a node, with a socket and a data directory of its own.
#[derive(Debug)]
pub struct TestAgent<'a> {
    // Dropped in this order.
    process: Option<Proc>,
    channel: Option<Channel>,
    runtime: Runtime,
    _tmpfs: Option<Mounted>,
    _bpffs: Option<Mounted>,
    directory: tempfile::TempDir,
    program: PathBuf,
    options: Options,
    node: &'a dyn Host,
    starts: u32,
    is_spoilt: bool,
}

impl<'a> TestAgent<'a> {
    /// Starts it with what [`Options::default`] says and waits until it serves.
    ///
    /// # Errors
    /// It does not; with its log.
    pub fn start(node: &'a dyn Host) -> Result<Self> {
        Self::start_with(node, Options::default())
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// It does not; with its log.
    pub fn start_with(node: &'a dyn Host, options: Options) -> Result<Self> {
        let directory = name::directory()?;
        for name in ["run", "data"] {
            let path = directory.path().join(name);
            fs::create_dir(&path)?;
            chown(&path, Some(AGENT_UID), Some(AGENT_UID))?;
        }
        let data = directory.path().join("data");
        let tmpfs = options.data_tmpfs.as_ref().map(|size| {
            let settings = format!("size={size},mode=0700,uid={AGENT_UID},gid={AGENT_UID}");
            Mounted::new("tmpfs", data.clone(), Some(&settings))
        });
        let tmpfs = tmpfs.transpose()?;
        let bpffs = options.pin.then(|| -> Result<Mounted> {
            let path = directory.path().join("bpf");
            fs::create_dir(&path)?;
            let bpffs = Mounted::new("bpf", path.clone(), None)?;
            chown(&path, Some(AGENT_UID), Some(AGENT_UID))?;
            Ok(bpffs)
        });
        let bpffs = bpffs.transpose()?;
        let program = program_for_agent(directory.path())?;
        let mut agent = Self {
            process: None,
            channel: None,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            _tmpfs: tmpfs,
            _bpffs: bpffs,
            directory,
            program,
            options,
            node,
            starts: 0,
            is_spoilt: false,
        };
        agent.start_again()?;
        Ok(agent)
    }

    /// Starts it again after it ended, with the same socket and data directory.
    ///
    /// # Errors
    /// It does not serve in time; with its log.
    pub fn start_again(&mut self) -> Result<()> {
        let mut process = self.spawn()?;
        let mut refusal = None;
        let channel = wait::until_some(START_LIMIT, "an agent that serves", || {
            if let Some(status) = process.ended()? {
                bail!("the agent ended ({status})");
            }
            match self.runtime.block_on(ready_channel(&self.socket())) {
                Ok(channel) => Ok(Some(channel)),
                Err(error) => {
                    refusal = Some(error);
                    Ok(None)
                }
            }
        })
        .with_context(|| format!("last answer: {refusal:?}, {}", process.tail()))?;
        self.process = Some(process);
        self.channel = Some(channel);
        Ok(())
    }

    /// Starts it again and kills it after `time`, whatever it is at then.
    ///
    /// # Errors
    /// It ended by itself.
    pub fn start_and_kill(&mut self, time: Duration) -> Result<()> {
        let mut process = self.spawn()?;
        std::thread::sleep(time);
        let status = process.end_by(Signal::SIGKILL, STOP_LIMIT)?;
        anyhow::ensure!(
            run::killed_by(status) == Some(Signal::SIGKILL),
            "it ended by itself ({status}): {}",
            process.tail()
        );
        Ok(())
    }

    /// What it says when it ends by itself instead of serving.
    ///
    /// # Errors
    /// It does not.
    pub fn refuses(&mut self) -> Result<String> {
        let mut process = self.spawn()?;
        let status = process.wait(START_LIMIT)?;
        anyhow::ensure!(!status.success(), "it ended well: {}", process.tail());
        Ok(process.log())
    }

    /// The test changes what it has signed: it is not looked at when the test is over.
    pub fn spoil(&mut self) {
        self.is_spoilt = true;
    }

    /// How it is started from now on.
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Where its pins are.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.directory.path().join("bpf/pins")
    }

    /// Its program with other arguments, run to its end with its rights.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<std::process::Output> {
        run::finish(self.command().args(arguments))
    }

    fn command(&self) -> Command {
        self.node
            .place(self.options.rights, self.program.as_os_str())
    }

    fn spawn(&mut self) -> Result<Proc> {
        let mut command = self.command();
        command
            .arg("run")
            .arg("--socket")
            .arg(self.socket())
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--metrics")
            .arg(format!("unix:{}", self.metrics_socket().display()))
            .args(["--node", self.node.name()])
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().cloned());
        self.starts += 1;
        let name = format!("agent-{}", self.starts);
        if !self.options.ring_size.is_empty() {
            command.args(["--ring-size", &self.options.ring_size]);
        }
        if self.options.pin {
            command.arg("--pin").arg(self.pins());
        }
        // A log on the node's directory outlives a full data directory.
        self.node.start(&mut command, self.directory.path(), &name)
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/agent.sock")
    }

    /// As the command line takes it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    fn metrics_socket(&self) -> PathBuf {
        self.directory.path().join("run/metrics.sock")
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    #[must_use]
    pub fn node(&self) -> &'a dyn Host {
        self.node
    }

    /// # Errors
    /// It has ended.
    pub fn process(&mut self) -> Result<&mut Proc> {
        self.process.as_mut().context("the agent is not running")
    }

    /// # Errors
    /// It has ended.
    pub fn pid(&self) -> Result<u32> {
        Ok(self
            .process
            .as_ref()
            .context("the agent is not running")?
            .pid())
    }

    /// The end of what it printed.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.as_ref().map(Proc::tail).unwrap_or_default()
    }

    /// Sends a signal and waits for its end.
    ///
    /// # Errors
    /// It does not end within ten seconds.
    pub fn end_by(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.channel = None;
        let mut process = self.process.take().context("the agent is not running")?;
        process.end_by(signal, STOP_LIMIT)
    }

    /// Runs a future to its end on the test's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A client without limits of its own: what is refused, the agent refuses.
    ///
    /// # Errors
    /// The agent is not running.
    pub fn client(&self) -> Result<v1::capture_client::CaptureClient<Channel>> {
        let channel = self.channel.clone().context("the agent is not running")?;
        Ok(v1::capture_client::CaptureClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX))
    }

    /// Waits for an answer; an error comes with the agent's log.
    fn answer<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T> {
        self.block_on(call).with_context(|| self.tail())
    }

    /// Starts a capture.
    ///
    /// # Errors
    /// The agent's refusal.
    pub fn capture(&self, spec: v1::CaptureSpec) -> Result<v1::CaptureState, Status> {
        let request = v1::StartRequest {
            spec: Some(spec),
            idempotency_key: String::new(),
            ..Default::default()
        };
        self.start_request(request)?
            .capture
            .ok_or_else(|| Status::internal("no state"))
    }

    /// Starts a capture, whatever the request is.
    ///
    /// # Errors
    /// The agent's refusal.
    pub fn start_request(&self, request: v1::StartRequest) -> Result<v1::StartResponse, Status> {
        let mut client = self
            .client()
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(self.block_on(client.start(request))?.into_inner())
    }

    /// Stops a capture; its final state.
    ///
    /// # Errors
    /// The agent's refusal.
    pub fn stop(&self, id: &str) -> Result<v1::CaptureState> {
        let request = v1::StopRequest { id: id.into() };
        let answer = self.answer(self.client()?.stop(request))?.into_inner();
        answer.capture.context("no state")
    }

    /// # Errors
    /// The agent's refusal.
    pub fn get(&self, id: &str) -> Result<v1::CaptureState> {
        let request = v1::GetRequest { id: id.into() };
        self.answer(self.client()?.get(request))?
            .into_inner()
            .capture
            .context("no state")
    }

    /// Running captures, or all.
    ///
    /// # Errors
    /// The agent's refusal.
    pub fn list(&self, all: bool) -> Result<Vec<v1::CaptureState>> {
        Ok(self
            .answer(self.client()?.list(v1::ListRequest {
                all,
                ..v1::ListRequest::default()
            }))?
            .into_inner()
            .captures)
    }

    /// # Errors
    /// The agent's refusal.
    pub fn status(&self) -> Result<v1::StatusResponse> {
        let channel = self.channel.clone().context("the agent is not running")?;
        let mut client = v1::node_client::NodeClient::new(channel);
        Ok(self
            .block_on(client.status(v1::StatusRequest {}))?
            .into_inner())
    }

    /// Waits until a capture is finished or failed.
    ///
    /// # Errors
    /// It is not, in time.
    pub fn wait_final(&self, id: &str, limit: Duration) -> Result<v1::CaptureState> {
        wait::until_some(limit, "the end of the capture", || {
            let state = self.get(id)?;
            let ended = matches!(state.phase(), v1::Phase::Finished | v1::Phase::Failed);
            Ok(ended.then_some(state))
        })
        .with_context(|| self.tail())
    }

    /// Waits until `Get` says something.
    ///
    /// # Errors
    /// It does not, in time.
    pub fn wait_state(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&v1::CaptureState) -> bool,
    ) -> Result<v1::CaptureState> {
        wait::until_some(Duration::from_secs(20), what, || {
            let state = self.get(id)?;
            Ok(wanted(&state).then_some(state))
        })
        .with_context(|| self.tail())
    }

    /// Opens a capture's stream; the bytes of all its blocks come from [`Stream::read_to_end`].
    ///
    /// # Errors
    /// The agent's refusal.
    pub fn stream(&self, id: &str) -> Result<Stream<'_>> {
        let request = v1::StreamRequest { id: id.into() };
        let messages = self.answer(self.client()?.stream(request))?.into_inner();
        Ok(Stream {
            runtime: &self.runtime,
            messages,
        })
    }

    /// Where a capture's file is.
    #[must_use]
    pub fn file(&self, state: &v1::CaptureState) -> PathBuf {
        self.data_dir().join(&state.file)
    }

    /// A capture's sidecar.
    ///
    /// # Errors
    /// There is none, or it is not one.
    pub fn sidecar(&self, id: &str) -> Result<Sidecar> {
        let path = self.data_dir().join(format!("{id}.json"));
        let json = fs::read(&path).with_context(|| format!("no sidecar {}", path.display()))?;
        Sidecar::from_json(&json).with_context(|| format!("bad sidecar {}", path.display()))
    }

    /// A capture's manifest, once it is there: a moment after the end.
    ///
    /// # Errors
    /// There is none in time, or the node's key did not sign it.
    pub fn manifest(&self, id: &str) -> Result<Manifest> {
        let path = self.data_dir().join(format!("{id}{MANIFEST_ENDING}"));
        let bytes = wait::until_some(START_LIMIT, "the manifest", || Ok(fs::read(&path).ok()))
            .with_context(|| self.tail())?;
        Manifest::open(&bytes, &self.public_keys()?)
            .with_context(|| format!("bad manifest {}", path.display()))
    }

    /// All keys that ever signed here.
    ///
    /// # Errors
    /// There is none.
    pub fn public_keys(&self) -> Result<Vec<PublicKey>> {
        let mut keys = Vec::new();
        for path in self.public_key_files()? {
            keys.push(PublicKey::from_pem(&fs::read_to_string(path)?)?);
        }
        Ok(keys)
    }

    /// Their files.
    ///
    /// # Errors
    /// There is none.
    pub fn public_key_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.data_dir().join("keys"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "pub") {
                files.push(path);
            }
        }
        anyhow::ensure!(!files.is_empty(), "no public key");
        Ok(files)
    }

    /// The metrics as Prometheus gets them.
    ///
    /// # Errors
    /// They are not served.
    pub fn metrics(&self) -> Result<String> {
        let answer = http::over_unix(&self.metrics_socket(), http::Request::get("/metrics"))?;
        anyhow::ensure!(answer.status == 200, "metrics answer {}", answer.status);
        Ok(answer.body)
    }
}

/// What it has signed lies there as it was signed, whatever the test was about.
impl Drop for TestAgent<'_> {
    fn drop(&mut self) {
        // From here on nothing changes there.
        self.process = None;
        // A failure has been told already.
        if !self.is_spoilt
            && !std::thread::panicking()
            && let Err(error) = manifests::prove(&self.data_dir())
        {
            panic!("{error:?}");
        }
    }
}

/// A capture's stream.
#[derive(Debug)]
pub struct Stream<'a> {
    runtime: &'a Runtime,
    messages: tonic::Streaming<v1::StreamResponse>,
}

impl Stream<'_> {
    /// All bytes, and the final state.
    ///
    /// # Errors
    /// The stream breaks, or ends without a state.
    pub fn read_to_end(mut self) -> Result<(Vec<u8>, v1::CaptureState)> {
        let mut bytes = Vec::new();
        while let Some(message) = self.runtime.block_on(self.messages.message())? {
            match message.message {
                Some(v1::stream_response::Message::Blocks(blocks)) => {
                    bytes.extend_from_slice(&blocks);
                }
                Some(v1::stream_response::Message::Finished(state)) => return Ok((bytes, state)),
                None => bail!("an empty message"),
            }
        }
        bail!(
            "the stream ended without a final state, after {} bytes",
            bytes.len()
        )
    }
}

/// A connection to an agent that answers.
async fn ready_channel(socket: &Path) -> Result<Channel> {
    let uri = format!("unix:{}", socket.display());
    let channel = Endpoint::from_shared(uri)?.connect().await?;
    let mut client = v1::node_client::NodeClient::new(channel.clone());
    client.status(v1::StatusRequest {}).await?;
    Ok(channel)
}

/// The agent's program where uid 65532 can execute it: a checkout below a private home directory
/// is closed to it, so then a copy.
fn program_for_agent(directory: &Path) -> Result<PathBuf> {
    let program = run::remora_program("remora-agent")?;
    let place = Place {
        rights: Rights::None,
        ..Default::default()
    };
    if run::output(place.command("test").arg("-x").arg(&program)).is_ok() {
        return Ok(program);
    }
    let copy = directory.join("remora-agent");
    fs::copy(&program, &copy).context("failed to copy the agent")?;
    Ok(copy)
}

/// A spec that captures all of a target.
#[must_use]
pub fn spec(target: v1::target::Target) -> v1::CaptureSpec {
    v1::CaptureSpec {
        target: Some(v1::Target {
            target: Some(target),
        }),
        ..Default::default()
    }
}

/// The same with what came in the seconds before.
#[must_use]
pub fn looking_back(spec: v1::CaptureSpec, seconds: i64) -> v1::CaptureSpec {
    v1::CaptureSpec {
        look_back: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..spec
    }
}

/// Waits until the pods are recorded: from then on what they send is kept.
///
/// # Errors
/// They are not, in time.
pub fn recorded(agent: &TestAgent<'_>, pods: &[&Pod]) -> Result<()> {
    wait::until(START_LIMIT, "look-back of the pods", || {
        let status = agent.status()?;
        Ok(pods.iter().all(|pod| {
            status
                .taps
                .iter()
                .any(|tap| tap.interface == pod.interface() && tap.look_back.is_some())
        }))
    })
}

/// A spec that captures all of a pod.
#[must_use]
pub fn of_pod(pod: &Pod) -> v1::CaptureSpec {
    spec(v1::target::Target::CgroupPath(pod.cgroup().path()))
}

/// A spec that captures of a pod what the filter takes.
#[must_use]
pub fn of_pod_filtered(pod: &Pod, filter: &str) -> v1::CaptureSpec {
    v1::CaptureSpec {
        filter: filter.into(),
        ..of_pod(pod)
    }
}
