//! Captures by `kubectl remora` of what the chart installed: the packets of those pods, and of no
//! other, as tcpdump sees them in the pods.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};

use remora_tests::{
    cluster::{Cluster, kubectl::Kubectl, pods::KubePod},
    packets::{self, Packet},
};

use crate::{
    Test,
    capturing::{Captured, Capturing, is_of},
    installed::{USER, remora},
    shop::{PORT, Shop},
    witness::{BEGIN, END, Witness, assert_all_data, assert_equal, contains, from_ip_on, since},
};

pub(crate) const TESTS: [Test; 6] = [
    ("capture::a_pods_packets_are_tcpdumps_and_named", pod),
    (
        "capture::a_deployment_is_captured_while_a_replica_is_replaced",
        deployment,
    ),
    ("capture::a_service_is_the_pods_behind_it", service),
    (
        "capture::a_pod_on_the_nodes_network_is_its_sockets",
        host_network,
    ),
    ("capture::one_container_of_two_is_captured_alone", container),
    ("capture::a_pods_loopback_is_tcpdumps", loopback),
];

/// Pages that are fetched of each pod.
const PAGES: usize = 5;
/// Of a pod on its node's network: nobody else's there.
const HOST_PORT: u16 = 18_080;

fn pod(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "pod")?;
    let pods = bed
        .shop
        .web(&[("cart", "node-a"), ("near", "node-a"), ("far", "node-b")])?;
    let [cart, near, far] = pods.as_slice() else {
        anyhow::bail!("{pods:?}")
    };
    let witness = bed.witness(cart, "eth0", "")?;
    let mut capturing = bed.start(&["pod/cart"])?;
    bed.shop.ask(near, cart.address()?, PORT, BEGIN)?;
    for _ in 0..PAGES {
        // The neighbours' conversation passes the same bridge.
        for (from, to) in [(near, cart), (far, cart), (cart, far), (near, far)] {
            bed.shop.fetch(from, to)?;
        }
    }
    bed.finish(&mut capturing, near, cart)?;
    let captured = capturing.stop()?;
    let ours = captured.of(&bed.owner(cart));
    assert_equal(&ours, &witness.stop()?)?;
    ensure!(
        ours.len() == captured.capture.packets.len() && ours.len() > 100,
        "{} of {} packets are the pod's",
        ours.len(),
        captured.capture.packets.len()
    );
    bed.named(&captured, cart)?;
    let names = &captured.capture.names;
    let own = names.get(&cart.address()?.into());
    let expected = format!("cart.{}", bed.shop.namespace);
    ensure!(own == Some(&expected), "{names:?}");
    ensure!(
        captured.told.contains("packets captured"),
        "{}",
        captured.told
    );
    Ok(())
}

fn deployment(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "deploy")?;
    let peer = bed.shop.web(&[("peer", "node-b")])?.remove(0);
    let before = bed.shop.deployment("cart", 3)?;
    let filter = format!("tcp port {PORT}");
    let mut witnesses = Vec::new();
    for pod in &before {
        witnesses.push(bed.witness(pod, "eth0", &filter)?);
    }
    let mut capturing = bed.start(&["deploy/cart", "-f", &filter])?;
    bed.talk(&peer, &before)?;
    for pod in &before {
        bed.finish(&mut capturing, &peer, pod)?;
    }
    let theirs = witnesses.into_iter().map(Witness::stop);
    let theirs: Vec<Vec<Packet>> = theirs.collect::<Result<_>>()?;

    let replaced = &before[0];
    bed.shop.run(&["delete", "pod", &replaced.name])?;
    let after = bed.shop.replicas("cart", 3)?;
    let mut fresh = after.iter().filter(|pod| !before.contains(pod));
    let fresh = fresh.next().context("no replacement")?;
    let owner = bed.owner(fresh);
    capturing.wait_for("the replacement to join", |capture| {
        let mut interfaces = capture.interfaces.iter();
        interfaces.any(|interface| is_of(&interface.name, &owner))
    })?;
    let witness = bed.witness(fresh, "eth0", &filter)?;
    bed.talk(&peer, std::slice::from_ref(fresh))?;
    bed.finish(&mut capturing, &peer, fresh)?;
    let captured = capturing.stop()?;

    let mut all = 0;
    for (pod, theirs) in before.iter().zip(&theirs) {
        let ours = captured.of(&bed.owner(pod));
        assert_equal(&ours, theirs).with_context(|| pod.name.clone())?;
        bed.named(&captured, pod)?;
        all += ours.len();
    }
    let ours = captured.of(&owner);
    let theirs = witness.stop()?;
    // It was captured before tcpdump began.
    assert_equal(&since(&ours, &theirs)?, &theirs).context("the replacement")?;
    for packet in &ours {
        ensure!(
            is_of_pod(packet, fresh)?,
            "{}",
            packets::shown(&packet.data)
        );
    }
    bed.named(&captured, fresh)?;
    all += ours.len();
    ensure!(
        all == captured.capture.packets.len(),
        "{all} of {} packets are the deployment's",
        captured.capture.packets.len()
    );
    Ok(())
}

fn service(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "service")?;
    let peer = bed.shop.web(&[("peer", "node-b")])?.remove(0);
    let other = bed.shop.web(&[("other", "node-a")])?.remove(0);
    let pods = bed.shop.deployment("cart", 2)?;
    bed.shop.service("front", "cart", 2)?;
    let filter = format!("tcp port {PORT}");
    let mut witnesses = Vec::new();
    for pod in &pods {
        witnesses.push(bed.witness(pod, "eth0", &filter)?);
    }
    let mut capturing = bed.start(&["svc/front", "-f", &filter])?;
    bed.talk(&peer, &pods)?;
    bed.shop.fetch(&peer, &other)?;
    for pod in &pods {
        bed.finish(&mut capturing, &peer, pod)?;
    }
    let captured = capturing.stop()?;
    let mut all = 0;
    for (pod, witness) in pods.iter().zip(witnesses) {
        let ours = captured.of(&bed.owner(pod));
        assert_equal(&ours, &witness.stop()?)?;
        bed.named(&captured, pod)?;
        all += ours.len();
    }
    ensure!(
        all == captured.capture.packets.len() && all > 0,
        "{all} of {} packets are of the service's pods",
        captured.capture.packets.len()
    );
    Ok(())
}

fn host_network(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "host")?;
    let peer = bed.shop.web(&[("peer", "node-b")])?.remove(0);
    let pod = bed.shop.host_network("onhost", "node-a", HOST_PORT)?;
    let other = bed.shop.host_network("other", "node-a", HOST_PORT + 1)?;
    let filter = format!("tcp port {HOST_PORT}");
    let network = cluster.node("node-a")?.netns().path().to_owned();
    let witness = Witness::start(&network, "eth0", &filter)?;
    // Without a filter: of the node's other processes there is nothing either.
    let mut capturing = bed.start(&["pod/onhost"])?;
    let to = pod.address()?;
    bed.shop.ask(&peer, to, HOST_PORT, BEGIN)?;
    for page in 0..PAGES {
        bed.shop
            .ask(&peer, to, HOST_PORT, &format!("page-{page}"))?;
        bed.shop.ask(&peer, to, HOST_PORT + 1, "another-pods")?;
    }
    bed.shop.ask(&peer, to, HOST_PORT, END)?;
    capturing.wait_for("the end marker", |capture| {
        capture.frames().any(|frame| contains(frame, END))
    })?;
    let captured = capturing.stop()?;
    ensure!(other.address()? == to, "both are on the node's network");
    let ours = from_ip_on(&captured.capture.packets);
    assert_all_data(&ours, &from_ip_on(&witness.stop()?))?;
    bed.named(&captured, &pod)
}

fn container(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "container")?;
    let peer = bed.shop.web(&[("peer", "node-b")])?.remove(0);
    let pod = bed.shop.two_containers("pair", "node-a")?;
    let side = PORT + 1;
    let witness = bed.witness(&pod, "eth0", &format!("tcp port {side}"))?;
    let mut capturing = bed.start(&["pod/pair", "-c", "sidecar"])?;
    let to = pod.address()?;
    bed.shop.ask(&peer, to, side, BEGIN)?;
    for page in 0..PAGES {
        bed.shop.ask(&peer, to, PORT, "another-containers")?;
        bed.shop.ask(&peer, to, side, &format!("page-{page}"))?;
    }
    bed.shop.ask(&peer, to, side, END)?;
    capturing.wait_for("the end marker", |capture| {
        capture.frames().any(|frame| contains(frame, END))
    })?;
    let captured = capturing.stop()?;
    let ours = from_ip_on(&captured.capture.packets);
    assert_all_data(&ours, &from_ip_on(&witness.stop()?))?;
    let name = format!("{}/sidecar", bed.owner(&pod));
    let interfaces = &captured.capture.interfaces;
    ensure!(
        interfaces.iter().any(|interface| interface.name == name),
        "{interfaces:?}"
    );
    Ok(())
}

fn loopback(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "loopback")?;
    let pods = bed.shop.web(&[("alone", "node-a"), ("peer", "node-b")])?;
    let alone = &pods[0];
    let filter = format!("tcp port {PORT}");
    let witness = bed.witness(alone, "lo", &filter)?;
    let mut capturing = bed.start(&["pod/alone", "-f", &filter])?;
    let ask = |page: &str| bed.shop.ask(alone, Ipv4Addr::LOCALHOST, PORT, page);
    ask(BEGIN)?;
    for page in 0..PAGES {
        ask(&format!("page-{page}"))?;
        // Another pod's loopback.
        bed.shop.ask(&pods[1], Ipv4Addr::LOCALHOST, PORT, "other")?;
    }
    ask(END)?;
    capturing.wait_for("the end marker", |capture| {
        capture.frames().any(|frame| contains(frame, END))
    })?;
    let captured = capturing.stop()?;
    let ours = from_ip_on(&captured.capture.packets);
    assert_equal(&ours, &from_ip_on(&witness.stop()?))?;
    let name = format!("{}/lo", bed.owner(alone));
    let interfaces = &captured.capture.interfaces;
    ensure!(
        interfaces.iter().any(|interface| interface.name == name),
        "{interfaces:?}"
    );
    Ok(())
}

/// Remora, a namespace, and a user who may capture there.
pub(crate) struct Bed<'a> {
    pub(crate) shop: Shop<'a>,
    pub(crate) user: Kubectl,
}

impl<'a> Bed<'a> {
    pub(crate) fn open(cluster: &'a Cluster, name: &str) -> Result<Self> {
        remora(cluster)?;
        let shop = Shop::open(cluster, name)?;
        let user = shop.capturer(USER)?;
        Ok(Self { shop, user })
    }

    /// Starts a capture in the namespace.
    pub(crate) fn start(&self, words: &[&str]) -> Result<Capturing> {
        let words = [words, &["-n", &self.shop.namespace]].concat();
        Capturing::start(&self.user, self.shop.cluster.directory(), &words)
    }

    pub(crate) fn witness(&self, pod: &KubePod, interface: &str, filter: &str) -> Result<Witness> {
        let node = self.shop.cluster.node(&pod.node)?;
        Witness::start(&node.network_of(pod)?, interface, filter)
    }

    /// Marks the begin at each pod, and fetches pages from it.
    fn talk(&self, peer: &KubePod, pods: &[KubePod]) -> Result<()> {
        for pod in pods {
            self.shop.ask(peer, pod.address()?, PORT, BEGIN)?;
            for _ in 0..PAGES {
                self.shop.fetch(peer, pod)?;
            }
        }
        Ok(())
    }

    /// Marks the end at a pod, and waits until the capture has that.
    pub(crate) fn finish(
        &self,
        capturing: &mut Capturing,
        peer: &KubePod,
        pod: &KubePod,
    ) -> Result<()> {
        let to = pod.address()?;
        self.shop.ask(peer, to, PORT, END)?;
        capturing.wait_for("the end marker", |capture| {
            let mut packets = capture.packets.iter();
            packets.any(|packet| {
                contains(&packet.data, END) && is_of_pod(packet, pod).unwrap_or_default()
            })
        })
    }

    /// How interfaces of a pod's are called.
    pub(crate) fn owner(&self, pod: &KubePod) -> String {
        format!("{}/{}", self.shop.namespace, pod.name)
    }

    /// The file says on which node, and of which image, the pod is.
    fn named(&self, captured: &Captured, pod: &KubePod) -> Result<()> {
        let owner = self.owner(pod);
        let interfaces = &captured.capture.interfaces;
        let mut of_pod = interfaces.iter().filter(|there| is_of(&there.name, &owner));
        let node = format!("node {}", pod.node);
        let told = of_pod.next().with_context(|| format!("{interfaces:?}"))?;
        ensure!(
            told.description.contains(&node) && told.description.contains("busybox"),
            "{told:?}"
        );
        Ok(())
    }
}

/// An IPv4 packet from or to the pod.
fn is_of_pod(packet: &Packet, pod: &KubePod) -> Result<bool> {
    let own = pod.address()?.octets();
    let at = |at: usize| packet.data.get(at..at + 4) == Some(&own[..]);
    Ok(at(26) || at(30))
}
