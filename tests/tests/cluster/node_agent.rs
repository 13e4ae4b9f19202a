//! An agent asked on its node, as somebody with a shell there does: no API server is between.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

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

    /// `remora` at its socket.
    pub(crate) fn remora(&self, arguments: &[&str]) -> Result<Command> {
        let socket = PathBuf::from(format!("/proc/{}/root/run/remora/agent.sock", self.pid));
        let mut command = run::command(run::remora_program("remora")?);
        command
            .arg("--agent")
            .arg(format!("unix:{}", socket.display()));
        command.args(arguments);
        Ok(command)
    }

    /// What `remora` prints there.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        run::output(&mut self.remora(arguments)?)
    }

    /// Waits until it records the pod and knows its name.
    pub(crate) fn wait_recorded(&self, pod: &KubePod) -> Result<()> {
        let name = format!("pod {}/{}, ", pod.namespace, pod.name);
        let mut last = String::new();
        let recorded = wait::until(POD_LIMIT, "look-back of the pod", || {
            last = self.run(&["status", "-o", "json"])?;
            let status: Value = serde_json::from_str(&last)?;
            let mut taps = status["taps"].as_array().into_iter().flatten();
            Ok(taps.any(|tap| {
                let description = tap["description"].as_str().unwrap_or_default();
                description.starts_with(&name) && !tap["look_back"].is_null()
            }))
        });
        recorded.with_context(|| last)
    }
}
