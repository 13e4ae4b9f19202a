//! How soon a pod is known that is made when the API server is back: to Remora's own watches, not to Kubernetes'
//! other parts, which have pauses of their own.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use remora_capture::session::Selector;
use remora_proto::v1;
use tonic::Request;

use remora_tests::{
    cluster::{Cluster, access::ADMIN},
    run, wait,
};

use crate::{caller::Controller, capture::Bed, node_agent::NodeAgent};

/// Each has ten seconds for it, which is told; a machine that does other things has more.
const LIMIT: Duration = Duration::from_secs(60);

/// From the answer to a plain list on.
pub(crate) struct Known {
    by_controller: Duration,
    by_agent: Duration,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            by_controller,
            by_agent,
        } = self;
        write!(
            f,
            "to a controller after {by_controller:?}, to the agent after {by_agent:?}"
        )
    }
}

/// Until a controller and the agent tell of a pod that is made now. No kubelet has started it yet.
pub(crate) fn converges(bed: &Bed<'_>, agent: &NodeAgent) -> Result<Known> {
    let cluster = bed.shop.cluster;
    wait::until(LIMIT, "a plain list", || {
        let list = ["get", "pods", "-n", &bed.shop.namespace];
        Ok(cluster.kubectl().run(&list).is_ok())
    })?;
    let answered = Instant::now();
    bed.shop.bare_pod("seen", "node-a")?;
    let controller = Controller::first(cluster)?;
    let (mut by_controller, mut by_agent) = (None, None);
    let mut last = [String::new(), String::new()];
    let known = wait::until_some(LIMIT, "agent and controller to tell of a new pod", || {
        if by_controller.is_none() {
            last[0] = asked(cluster, &controller, &bed.shop.namespace)?;
            let unseen = ["in namespace", "nobody could be asked", "is not known"];
            by_controller = is_none_of(&unseen, &last[0]).then(|| answered.elapsed());
        }
        if by_agent.is_none() {
            last[1] = at_agent(agent, &bed.shop.namespace)?;
            let unseen = ["there is no pod", "there is no known pod"];
            by_agent = is_none_of(&unseen, &last[1]).then(|| answered.elapsed());
        }
        Ok(by_controller
            .zip(by_agent)
            .map(|(by_controller, by_agent)| Known {
                by_controller,
                by_agent,
            }))
    });
    known.with_context(|| format!("{last:?}"))
}

fn is_none_of(unseen: &[&str], said: &str) -> bool {
    !unseen.iter().any(|text| said.contains(text))
}

/// What a controller says when the pod shall be captured; nothing if it is. What it does not know, it says.
fn asked(cluster: &Cluster, controller: &Controller, namespace: &str) -> Result<String> {
    let selector = Selector::parse("pod/seen", namespace)?;
    let mut request = Request::new(v1::ClusterStartRequest {
        selector: Some((&selector).into()),
        spec: Some(v1::CaptureSpec {
            destination: v1::Destination::Store.into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    let bearer = format!("Bearer {}", cluster.access().token(ADMIN)?).parse()?;
    request.metadata_mut().insert("authorization", bearer);
    let started = controller.call(request, async |client, request| {
        Ok(client.start(request).await?.into_inner())
    })?;
    Ok(match started {
        Ok(_) => String::new(),
        Err(status) => status.message().to_owned(),
    })
}

/// What the agent says when a container of the pod shall be captured: for a pod that starts it would wait.
fn at_agent(agent: &NodeAgent, namespace: &str) -> Result<String> {
    let target = format!("pod:{namespace}/seen/web");
    let ended = run::finish(&mut agent.remora(&["capture", "--store", &target])?)?;
    if ended.status.success() {
        let id = String::from_utf8_lossy(&ended.stdout);
        agent.run(&["stop", id.trim()])?;
        return Ok(String::new());
    }
    Ok(String::from_utf8_lossy(&ended.stderr).into_owned())
}
