//! Talon's own action `kubernetes:tcpdump` beside Remora, on the same traffic.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use remora_tests::{
    agent::{Options, TestAgent, recorded},
    controller::{self, C2_RULES, TestController},
    latency,
    numbered::Number,
    packets::{self, Capture},
    proof,
    run::Proc,
    traffic::{self, Stream},
    wire::Tcpdump,
};

use super::{C2, C2_PORT, PARAMETERS, Scene};

/// Packets per second of each stream.
const RATE: u64 = 100;
/// The stream to the alert's endpoint, and one to another port of the same host.
const BEACON: u16 = 1;
const OTHER: u16 = 2;
const OTHER_PORT: u16 = 443;
const END: &[u8] = b"remora test: end";
/// How long Talon's command may take, which ends by itself after 5 s.
const LIMIT: Duration = Duration::from_secs(60);

/// The numbered packet in a frame, whatever stands before its IP header.
fn number(frame: &[u8]) -> Option<Number> {
    let at = frame.windows(4).position(|bytes| bytes == b"RMRT")?;
    Number::decode(&frame[at..])
}

/// What a file has of the beacons.
struct Row {
    before: usize,
    after: usize,
    others: usize,
    /// Beacons that it has.
    has: BTreeSet<u64>,
}

impl Row {
    /// `alerted`: when the alert was sent, since the epoch.
    fn of(capture: &Capture, alerted: Duration) -> Self {
        let numbers: Vec<_> = capture.frames().filter_map(number).collect();
        let beacons = || numbers.iter().filter(|number| number.run == BEACON);
        let before = |number: &&Number| Duration::from_nanos(number.sent_ns) < alerted;
        let before = beacons().filter(before).count();
        Self {
            before,
            after: beacons().count() - before,
            others: numbers.len() - beacons().count(),
            has: beacons().map(|number| number.sequence).collect(),
        }
    }

    fn print(&self, what: &str) {
        let Self {
            before,
            after,
            others,
            has: _,
        } = self;
        println!("{what:<44} {before:>12} {after:>12} {others:>12}");
    }
}

/// What Talon (19d3add6) runs in the pod, with its parameters left out, at the best moment that there could be: when
/// the alert is sent, without the container that Talon adds to the pod first.
#[test]
fn talons_tcpdump_misses_what_remora_has() -> Result<()> {
    let scene = Scene::new()?;
    // Whatever came before the alert, however slow this machine is.
    let options = Options {
        arguments: vec!["--flow-cutoff=0".to_owned()],
        ..Options::default()
    };
    let agent = TestAgent::start_with(&scene.node, options)?;
    let controller = TestController::start_for_talon(&agent, C2_RULES)?;
    recorded(&agent, &[&scene.web])?;
    let directory = scene.node.directory();
    let node = |tool: &str| scene.node.command(tool);
    let veth = Tcpdump::start(node, scene.web.interface(), "udp", directory)?;
    let sink = |port| traffic::sink(port, directory, |tool| scene.c2.command(tool));
    let _sinks = [sink(C2_PORT)?, sink(OTHER_PORT)?];
    let mut senders = Vec::new();
    for (run, port) in [(BEACON, C2_PORT), (OTHER, OTHER_PORT)] {
        let stream = Stream {
            rate: RATE,
            run,
            ..Stream::new(C2, port, 0)
        };
        senders.push(stream.send_until_stopped(directory, |tool| scene.web.command(tool))?);
    }
    veth.wait_for_frame("a second of beacons", |frame| {
        number(frame).is_some_and(|number| number.run == BEACON && number.sequence >= RATE)
    })?;

    let file = directory.join("talon.pcap");
    let script = format!(
        "timeout 5s tcpdump -n -i any -s 0 -w {} || [ $? -eq 124 ] && echo OK || exit 1",
        file.display()
    );
    let mut alert = scene.alert()?;
    alert["output_fields"]["fd.l4proto"] = "udp".into();
    let alerted = latency::now()?;
    let mut sh = scene.web.command("sh");
    let mut talon = Proc::spawn(sh.args(["-c", &script]), directory, "talon")?;
    let id = controller::capture_id(&controller.invoke("beside", &alert, PARAMETERS)?)?;
    talon.wait_success(LIMIT)?;
    let ended = latency::now()?;
    for sender in senders {
        sender.stop()?;
    }
    traffic::datagram(scene.web.netns(), (C2, C2_PORT).into(), END)?;
    veth.wait_for_frame("the end", |frame| frame.ends_with(END))?;
    let proven = proof::prove(&agent, &agent.stop(&id)?)?;
    proof::complete(&proven.counts)?;

    let mut sent = veth.stop()?;
    let whole = Row::of(&sent, alerted);
    let theirs = Capture::read(&file)?;
    let (ours, talons) = (Row::of(&proven.capture, alerted), Row::of(&theirs, alerted));
    println!(
        "{:<44} {:>12} {:>12} {:>12}",
        "packets", "before alert", "after it", "of others"
    );
    whole.print("sent");
    ours.print("Remora");
    talons.print("tcpdump as Talon runs it");
    let ends = theirs.packets.first().zip(theirs.packets.last());
    let (first, last) = ends.context("Talon's tcpdump has nothing")?;
    println!(
        "tcpdump's first packet {:?} after the alert, its last {:?} before its end",
        first.time.saturating_sub(alerted),
        ended.saturating_sub(last.time)
    );

    sent.packets
        .retain(|packet| packet.data[36..38] == C2_PORT.to_be_bytes());
    packets::assert_same(&proven.capture.packets, &sent.packets)?;
    assert_eq!((ours.has, ours.others), (whole.has.clone(), 0));
    // It cannot have begun before it was started; and it has no filter.
    assert!(
        whole.before >= 100 && talons.before == 0,
        "{}",
        talons.before
    );
    assert!(talons.has.is_subset(&whole.has) && talons.others > 0);
    Ok(())
}
