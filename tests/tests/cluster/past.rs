//! Look-back on the cluster: a pod that was deleted before anybody asked.

use anyhow::{Result, ensure};

use remora_tests::{cluster::Cluster, packets::Capture, packets::Packet, run};

use crate::{
    Test,
    capture::Bed,
    capturing::Capturing,
    installed::remora,
    node_agent::NodeAgent,
    shop::PORT,
    witness::{BEGIN, END, assert_equal, since},
};

pub(crate) const TESTS: [Test; 1] = [(
    "past::a_deleted_pod_has_its_last_packets_by_name_and_by_container",
    deleted,
)];

fn deleted(cluster: &Cluster) -> Result<()> {
    remora(cluster)?;
    let bed = Bed::open(cluster, "deleted")?;
    let pods = bed.shop.web(&[("gone", "node-a"), ("peer", "node-b")])?;
    let [gone, peer] = pods.as_slice() else {
        anyhow::bail!("{pods:?}")
    };
    let agent = NodeAgent::on(cluster, "node-a")?;
    agent.wait_recorded(gone)?;
    let filter = format!("tcp port {PORT}");
    let witness = bed.witness(gone, "eth0", &filter)?;
    let to = gone.address()?;
    for page in [BEGIN, "between", END] {
        bed.shop.ask(peer, to, PORT, page)?;
    }
    let theirs = witness.stop()?;
    bed.shop.run(&["delete", "pod", "gone", "--wait=true"])?;

    let asked = ["--look-back", "30s", "-f", &filter];
    let namespace = ["pod/gone", "-n", &bed.shop.namespace];
    let words = [&namespace[..], &asked].concat();
    let captured = Capturing::to_end(&bed.user, cluster.directory(), &words)?;
    let by_name = captured.of(&bed.owner(gone));
    ensure!(
        by_name.len() == captured.capture.packets.len(),
        "a packet of another pod"
    );
    is_the_past(&by_name, &theirs)?;

    let file = cluster.directory().join("by-container.pcapng");
    let container = format!("container:{}", gone.container("web")?);
    let mut command = agent.remora(&["capture"])?;
    command.args(asked).arg("-w").arg(&file).arg(&container);
    run::output(&mut command)?;
    is_the_past(&Capture::read(&file)?.packets, &theirs)
}

fn is_the_past(ours: &[Packet], theirs: &[Packet]) -> Result<()> {
    for packet in ours {
        let mut comments = packet.comments.iter();
        ensure!(
            comments.any(|comment| comment.contains("look-back")),
            "a packet of a dead pod from after the trigger"
        );
    }
    // What the kubelet sent before tcpdump began is there, too.
    assert_equal(&since(ours, theirs)?, theirs)
}
