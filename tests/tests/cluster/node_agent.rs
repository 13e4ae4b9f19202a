//! An agent asked on its node, as somebody with a shell there does: no API server is between.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use remora_proto::{
    client::{AgentAddress, connect},
    v1::{self, capture_client::CaptureClient, node_client::NodeClient, target::Target},
};
use tokio::runtime::Runtime;
use tonic::{Response, Status, transport::Channel};

use remora_tests::{
    cluster::{Cluster, pods::KubePod},
    run, wait,
};

use crate::{installed::agent_on, shop::POD_LIMIT};

pub(crate) struct NodeAgent {
    /// Its pod.
    pub(crate) pod: KubePod,
    pub(crate) pid: u32,
}

impl NodeAgent {
    pub(crate) fn on(cluster: &Cluster, node: &str) -> Result<Self> {
        let pod = agent_on(cluster, node)?;
        let node = cluster.node(node)?;
        let pids = node.processes_of(&pod, "agent")?;
        let pid = pids.first().copied().context("the agent has no process")?;
        Ok(Self { pod, pid })
    }

    fn socket(&self) -> PathBuf {
        format!("/proc/{}/root/run/remora/agent.sock", self.pid).into()
    }

    /// `remora` at its socket.
    pub(crate) fn remora(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = run::command(run::remora_program("remora")?);
        command
            .arg("--agent")
            .arg(format!("unix:{}", self.socket().display()));
        command.args(arguments);
        Ok(command)
    }

    /// What `remora` prints there.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        run::output(&mut self.remora(arguments)?)
    }

    /// Waits until it knows the pod's name and records its packets whole. A veth's packets are cut as of the
    /// strictest namespace of all until somebody has stayed behind it for a second.
    pub(crate) fn wait_recorded(&self, pod: &KubePod) -> Result<()> {
        let calls = Calls::to(self)?;
        let name = format!("pod {}/{}, ", pod.namespace, pod.name);
        let mut last = Vec::new();
        let recorded = wait::until(POD_LIMIT, "look-back of the pod", || {
            last = calls.taps()?;
            Ok(last.iter().any(|tap| {
                let ring = tap.look_back.as_ref();
                let is_whole = ring.is_some_and(|r| r.mode() == v1::LookBackMode::Payload);
                is_whole && tap.description.starts_with(&name)
            }))
        });
        recorded.with_context(|| format!("{last:?}"))
    }
}

/// Calls to an agent by its socket, for what is measured: no program starts for each.
pub(crate) struct Calls {
    runtime: Runtime,
    channel: Channel,
}

impl Calls {
    pub(crate) fn to(agent: &NodeAgent) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = runtime.block_on(connect(&AgentAddress::Unix(agent.socket())))?;
        Ok(Self { runtime, channel })
    }

    fn captures(&self) -> CaptureClient<Channel> {
        CaptureClient::new(self.channel.clone())
    }

    /// The answer, which on a machine with much to do may take long.
    fn wait<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
        let limit = wait::patient(POD_LIMIT);
        let answer = async { tokio::time::timeout(limit, call).await };
        let answer = self.runtime.block_on(answer).context("no answer")?;
        Ok(answer?.into_inner())
    }

    /// The part that it has of a capture over several nodes.
    pub(crate) fn part_of(&self, capture: &str) -> Result<v1::CaptureState> {
        let request = v1::ListRequest {
            part_of: capture.to_owned(),
            all: true,
        };
        let listed = self.wait(self.captures().list(request))?;
        let mut captures = listed.captures.into_iter();
        captures.next().context("no part of it is here")
    }

    pub(crate) fn stop(&self, id: &str) -> Result<()> {
        let request = v1::StopRequest { id: id.to_owned() };
        self.wait(self.captures().stop(request)).map(drop)
    }

    /// Starts a capture that it keeps.
    pub(crate) fn start(&self, target: Target) -> Result<v1::CaptureState> {
        let target = Some(v1::Target {
            target: Some(target),
        });
        let request = v1::StartRequest {
            spec: Some(v1::CaptureSpec {
                target,
                destination: v1::Destination::Store.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let started = self.wait(self.captures().start(request))?;
        started.capture.context("no capture")
    }

    /// What it is on, with what is recorded there.
    pub(crate) fn taps(&self) -> Result<Vec<v1::Tap>> {
        let mut node = NodeClient::new(self.channel.clone());
        let status = self.wait(node.status(v1::StatusRequest {}))?;
        Ok(status.taps)
    }
}
