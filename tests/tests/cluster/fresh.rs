//! How soon a pod that kubelet starts is recorded, and can be captured: what of it is kubelet's time, and what ours.
//! Times are those of a shared machine: they are shown, not asserted.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::tc::{SchedClassifier, TcAttachType};
use remora_agent::target::{InterfaceKind, LinkEvent, LinkWatcher};
use remora_proto::v1::{self, target::Target};

use remora_tests::{cluster::Cluster, latency::quantile, netns, wait};

use crate::{
    Test,
    capture::Bed,
    node_agent::{Calls, NodeAgent},
    shop::POD_LIMIT,
};

pub(crate) const TESTS: [Test; 1] = [(
    "fresh::a_pod_that_starts_is_recorded_and_can_be_captured_at_once",
    fresh,
)];

const PODS: usize = 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_micros(500);

/// When of a pod came what.
struct Arrival {
    cgroup: Instant,
    /// The host end of its veth.
    veth: Instant,
    /// A program is on that.
    attached: Instant,
    recorded: Instant,
    /// A capture of it is armed that was asked for when it was recorded.
    armed: Instant,
}

fn fresh(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "fresh")?;
    let agent = NodeAgent::on(cluster, "node-a")?;
    let node = cluster.node("node-a")?;
    let cgroups = node.kubepods().join("besteffort");
    // The bridge is made with the first pod, the connection with the first call.
    bed.shop.web(&[("first", "node-a")])?;
    let mut arrivals = Vec::new();
    for number in 0..PODS {
        let name = format!("fresh-{number}");
        let (ready, is_ready) = mpsc::channel();
        let arrival = thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let calls = Calls::to(&agent)?;
                let namespace = bed.shop.namespace.clone();
                let look = Look {
                    cgroups: &cgroups,
                    calls,
                    target: target(&namespace, &name),
                };
                netns::enter(node.netns().path(), || look.at_next(ready))
            });
            // It is gone if the look could not begin; then that says why.
            if is_ready.recv().is_ok() {
                bed.shop.bare_pod(&name, "node-a")?;
            }
            watch
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        arrivals.push(arrival);
        let pod = format!("pod/{name}");
        let kubectl = cluster.kubectl();
        kubectl.wait_pods(&bed.shop.namespace, &[&pod], POD_LIMIT)?;
    }
    println!("{PODS} pods, one after the other, in milliseconds: p50, longest");
    let show = |what: &str, times: Vec<Duration>| {
        let at = |share: f64| quantile(&times, share).as_secs_f64() * 1e3;
        println!("{what}: {:.1} {:.1}", at(0.5), at(1.0));
    };
    let between = |from: fn(&Arrival) -> Instant, to: fn(&Arrival) -> Instant| {
        let took = |arrival| to(arrival).saturating_duration_since(from(arrival));
        arrivals.iter().map(took).collect()
    };
    show(
        "cgroup -> veth (kubelet, CNI)",
        between(|a| a.cgroup, |a| a.veth),
    );
    show(
        "veth -> our program is on it",
        between(|a| a.veth, |a| a.attached),
    );
    show("veth -> recorded", between(|a| a.veth, |a| a.recorded));
    show("cgroup -> recorded", between(|a| a.cgroup, |a| a.recorded));
    show(
        "recorded, asked for -> armed",
        between(|a| a.recorded, |a| a.armed),
    );
    Ok(())
}

fn target(namespace: &str, name: &str) -> Target {
    Target::Pod(v1::Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    })
}

/// At the pod that comes next.
struct Look<'a> {
    /// Where its cgroup will be.
    cgroups: &'a Path,
    calls: Calls,
    target: Target,
}

impl Look<'_> {
    /// In the node's network namespace; `ready` when it looks.
    fn at_next(&self, ready: mpsc::Sender<()>) -> Result<Arrival> {
        let mut links = LinkWatcher::new()?;
        while links.next(Duration::ZERO)?.is_some() {}
        let before = self.there()?;
        ready.send(())?;
        let end = Instant::now() + wait::patient(LIMIT);
        let (mut cgroup, mut veth) = (None, None);
        let (veth, interface) = loop {
            ensure!(Instant::now() < end, "no pod came");
            if cgroup.is_none() && self.there()?.iter().any(|pod| !before.contains(pod)) {
                cgroup = Some(Instant::now());
            }
            match links.next(LOOK)? {
                Some(LinkEvent::Up(link) | LinkEvent::Changed(link))
                    if link.kind == InterfaceKind::Veth =>
                {
                    veth = veth.or(Some((Instant::now(), link.name)));
                }
                _ => {}
            }
            // Kubelet makes the cgroup first.
            if cgroup.is_some()
                && let Some(veth) = veth.take()
            {
                break veth;
            }
        };
        let attached = self.until(end, || {
            let (_, programs) = SchedClassifier::query_tcx(&interface, TcAttachType::Ingress)?;
            Ok(!programs.is_empty())
        })?;
        let recorded = self.until(end, || {
            let mut taps = self.calls.taps()?.into_iter();
            Ok(taps.any(|tap| tap.interface == interface && tap.look_back.is_some()))
        })?;
        let state = self.calls.start(self.target.clone())?;
        let armed = Instant::now();
        let is_its = state.taps.iter().any(|tap| tap.interface == interface);
        self.calls.stop(&state.id)?;
        ensure!(is_its, "its capture is not at {interface}: {state:?}");
        Ok(Arrival {
            cgroup: cgroup.context("no cgroup")?,
            veth,
            attached,
            recorded,
            armed,
        })
    }

    fn until(&self, end: Instant, is_so: impl Fn() -> Result<bool>) -> Result<Instant> {
        while !is_so()? {
            if Instant::now() > end {
                bail!("it is not recorded");
            }
            thread::sleep(LOOK);
        }
        Ok(Instant::now())
    }

    /// Pods that have a cgroup.
    fn there(&self) -> Result<BTreeSet<OsString>> {
        let entries = fs::read_dir(self.cgroups)?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    }
}
