//! Who counted what: the file against the witness, and what stayed out.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use remora_tests::{
    packets::{self, Packet},
    proof,
};

use remora_tests::screen::Screen;

use crate::{BEACONS, C2, C2_PORT, Incident, Stage};

/// The packet's ends, for IPv4 with TCP: addresses and ports.
fn tcp_ends(frame: &[u8]) -> Option<[(Ipv4Addr, u16); 2]> {
    if frame.get(12..15)? != [8, 0, 0x45] || *frame.get(23)? != 6 {
        return None;
    }
    let end = |address: usize, port: usize| {
        let address: [u8; 4] = *frame.get(address..)?.first_chunk()?;
        Some((
            address.into(),
            u16::from_be_bytes(*frame.get(port..)?.first_chunk()?),
        ))
    };
    Some([end(26, 34)?, end(30, 36)?])
}

pub(crate) fn account(screen: &Screen, stage: &Stage, incident: &Incident) -> Result<()> {
    let Incident {
        proven, witness, ..
    } = incident;
    let counts = &proven.counts;
    proof::complete(counts)?;
    screen.fact(
        "packets",
        format!(
            "{} captured / {} matched / {} lost in kernel / {} dropped by writer",
            counts.written,
            counts.matched,
            counts.lost + counts.copy_error,
            counts.dropped_queue + counts.dropped_io
        ),
    );
    screen.fact(
        "agreement",
        "file, its statistics block, sidecar, API and capinfos say the same",
    );

    let c2 =
        |packet: &&Packet| tcp_ends(&packet.data).is_some_and(|ends| ends.contains(&(C2, C2_PORT)));
    let alerted = (stage.cart.ipv4(), incident.alerted_port);
    let expected: Vec<Packet> = witness
        .iter()
        .filter(c2)
        .filter(|packet| !tcp_ends(&packet.data).is_some_and(|ends| ends.contains(&alerted)))
        .cloned()
        .collect();
    packets::assert_same(&proven.capture.packets, &expected)
        .context("the file differs from what the witness saw of the endpoint")?;
    let calls = expected
        .iter()
        .filter(|packet| packet.data.get(47) == Some(&2))
        .count();
    ensure!(
        calls == BEACONS,
        "{calls} calls home in the file, made were {BEACONS}"
    );
    screen.fact(
        "witness",
        format!(
            "tcpdump on the same veth saw the same {} packets: {calls} whole calls home",
            expected.len()
        ),
    );

    let others = witness.iter().filter(|packet| !c2(packet)).count();
    let foreign = proven
        .capture
        .packets
        .iter()
        .filter(|packet| !c2(packet))
        .count();
    let of_shop = proven
        .capture
        .packets
        .iter()
        .filter(|packet| {
            tcp_ends(&packet.data)
                .is_some_and(|ends| ends.iter().any(|end| end.0 == stage.shop.ipv4()))
        })
        .count();
    ensure!(
        foreign == 0 && of_shop == 0,
        "{foreign} foreign packets, {of_shop} of the neighbour"
    );
    screen.fact(
        "stayed out",
        format!(
            "{others} other packets on that veth ({} pages): {foreign} in the file",
            incident.pages
        ),
    );
    screen.fact(
        "",
        format!("{BEACONS} calls of pod shop to the same endpoint: {of_shop} packets in the file"),
    );
    screen.fact(
        "times",
        format!(
            "alert to armed {:.2} ms, alert to the first packet {:.2} ms",
            incident.answered.as_secs_f64() * 1e3,
            incident.first_packet.as_secs_f64() * 1e3
        ),
    );
    Ok(())
}
