//! A controller called as a program calls it: by TLS and with a token, without kubectl or the API server
//! between. And its audit log, as it lies in its container.

use std::{fs, io::BufReader, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_capture::audit::{Entry, Line, Verifier};
use remora_proto::{
    client::{AgentAddress, connect_tls},
    tls::{Name, Names, TlsIdentity},
    v1::cluster_client::ClusterClient,
};
use tokio::{runtime::Runtime, time::timeout};
use tonic::{Request, Status, transport::Channel};

use remora_tests::{
    cluster::{Cluster, door::Door},
    wait,
};

use crate::installed::{authority, first_controller};

/// Port of the controllers' API.
const PORT: u16 = 2805;
/// What their certificate says they are.
const NAME: &str = "remora-controller";
/// Longest that a call may take.
const LIMIT: Duration = Duration::from_secs(30);

/// One controller, and a way to it.
pub(crate) struct Controller {
    _door: Door,
    runtime: Runtime,
    client: ClusterClient<Channel>,
    audit: PathBuf,
}

impl Controller {
    pub(crate) fn first(cluster: &Cluster) -> Result<Self> {
        let pod = first_controller(cluster)?;
        let node = cluster.node(&pod.node)?;
        let pids = node.processes_of(&pod, "controller")?;
        let pid = pids.first().context("no process")?;
        let inside = SocketAddr::from((pod.address()?, PORT));
        let door = Door::open(node.netns().path(), inside)?;
        let authority = authority(cluster)?;
        let names = Names::new([NAME.parse::<Name>()?])?;
        let identity = TlsIdentity::trusting(authority.as_bytes(), Some(names))?;
        let address: AgentAddress = format!("https://{}", door.address()).parse()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let channel = runtime.block_on(connect_tls(&address, &identity))?;
        Ok(Self {
            _door: door,
            runtime,
            client: ClusterClient::new(channel),
            audit: format!("/proc/{pid}/root/var/log/remora/audit.jsonl").into(),
        })
    }

    /// The answer to a call, or what refuses it.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) fn call<Q, A>(
        &self,
        request: Request<Q>,
        method: impl AsyncFnOnce(&mut ClusterClient<Channel>, Request<Q>) -> Result<A, Status>,
    ) -> Result<Result<A, Status>> {
        let mut client = self.client.clone();
        let call = async { timeout(LIMIT, method(&mut client, request)).await };
        self.runtime.block_on(call).context("no answer")
    }

    /// Runs what a call left open.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// All of its audit log, whose chain holds.
    pub(crate) fn account(&self) -> Result<Vec<Entry>> {
        let text = fs::read(&self.audit).with_context(|| self.audit.display().to_string())?;
        // A line that is being written has no end yet.
        let end = text.iter().rposition(|byte| *byte == b'\n');
        let whole = text.get(..end.map_or(0, |end| end + 1)).unwrap_or_default();
        let verified = Verifier::default().file(BufReader::new(whole))?;
        ensure!(verified.is_ok(), "{verified:?}");
        let lines = whole.split(|byte| *byte == b'\n').filter(|l| !l.is_empty());
        lines
            .map(|line| Ok(serde_json::from_slice::<Line>(line)?.entry))
            .collect()
    }

    /// Waits until its audit log has so many lines after the first `before`; those.
    pub(crate) fn account_since(&self, before: usize, lines: usize) -> Result<Vec<Entry>> {
        let what = format!("{lines} lines in the audit log");
        let mut last = Vec::new();
        let there = wait::until(LIMIT, &what, || {
            last = self.account()?.split_off(before);
            Ok(last.len() >= lines)
        });
        there.with_context(|| format!("{last:?}"))?;
        Ok(last)
    }
}
