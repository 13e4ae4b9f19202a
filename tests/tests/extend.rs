//! A running capture that is made to last longer: no packet is missed for it, nobody makes it shorter, and
//! its account says who did it.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::{
    reason::{Reason, reason_of},
    v1,
};
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    node::{Node, Pod},
    numbered::Numbers,
    packets::Packet,
    proof,
    traffic::{self, Sink, Stream},
    veth,
};
use tonic::{Code, Status};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const RATE: u64 = 10_000;
const LIMIT: Duration = Duration::from_secs(60);

struct Bed<'a> {
    agent: TestAgent<'a>,
    node: &'a Node,
    web: Pod,
    api: Pod,
    _sink: Sink,
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn extend(agent: &TestAgent<'_>, id: &str, to: Option<i64>) -> Result<v1::ExtendResponse, Status> {
    let request = v1::ExtendRequest {
        id: id.to_owned(),
        duration: to.map(seconds),
    };
    let mut client = agent.client().expect("a running agent");
    Ok(agent.block_on(client.extend(request))?.into_inner())
}

fn lasts(state: &v1::CaptureState) -> Option<i64> {
    Some(state.spec.as_ref()?.limits.as_ref()?.duration?.seconds)
}

impl<'a> Bed<'a> {
    fn new(node: &'a Node, options: Options) -> Result<Self> {
        let (web, api) = (node.pod("web")?, node.pod("api")?);
        Ok(Self {
            agent: TestAgent::start_with(node, options)?,
            _sink: traffic::sink(PORT, node.directory(), |tool| api.command(tool))?,
            node,
            web,
            api,
        })
    }

    fn capture(&self, duration: i64) -> Result<String> {
        let spec = v1::CaptureSpec {
            limits: Some(v1::Limits {
                duration: Some(seconds(duration)),
                ..v1::Limits::default()
            }),
            ..of_pod_filtered(&self.web, FILTER)
        };
        Ok(self.agent.capture(spec)?.id)
    }

    fn sender(&self) -> Result<traffic::Sender> {
        let stream = Stream {
            rate: RATE,
            ..Stream::new(self.api.ipv4(), PORT, 0)
        };
        stream.send_until_stopped(self.node.directory(), |tool| self.web.command(tool))
    }

    /// Of web's veth, before any hook.
    fn never_there(&self) -> Result<u64> {
        veth::receive_dropped(self.node.netns(), self.web.interface())
    }
}

/// Each packet that reached a hook is there once.
fn each_once(packets: &[Packet], sent: u64, never_there: u64) -> Result<()> {
    let numbers = Numbers::collect(1, packets.iter().map(|packet| packet.data.as_slice()));
    ensure!(
        numbers.foreign == 0 && numbers.duplicates() == 0,
        "{} foreign, {} twice",
        numbers.foreign,
        numbers.duplicates()
    );
    ensure!(
        numbers.missing_count(sent) == never_there,
        "missing {:?} of {sent}, before the hooks {never_there}",
        numbers.missing(sent)
    );
    Ok(())
}

#[test]
fn a_capture_that_is_made_longer_again_and_again_misses_no_packet() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let never_there = bed.never_there()?;
    let id = bed.capture(30)?;
    let sender = bed.sender()?;
    // Each changes the kernel's deadline under the packets.
    for longer in 1..=500 {
        let answer = extend(&bed.agent, &id, Some(30 + longer))?;
        ensure!(answer.extended, "{longer}");
        let state = answer.capture.context("no state")?;
        assert_eq!(lasts(&state), Some(30 + longer));
    }
    let sent = sender.stop()?;
    let never_there = bed.never_there()? - never_there;
    let state = bed.agent.stop(&id)?;
    assert_eq!(lasts(&state), Some(530));
    let proven = proof::prove(&bed.agent, &state)?;
    proof::complete(&proven.counts)?;
    each_once(&proven.capture.packets, sent, never_there)?;
    let manifest = bed.agent.manifest(&id)?;
    assert_eq!(manifest.amendments.kept.len(), 500);
    assert_eq!(manifest.limits.duration, Some(Duration::from_secs(530)));
    let told = &manifest.custody[1];
    ensure!(
        told.action == "made it last 31 s in all" && told.who.contains("uid="),
        "{told:?}"
    );
    Ok(())
}

#[test]
fn it_goes_on_beyond_its_first_deadline_and_ends_at_the_last() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let never_there = bed.never_there()?;
    let id = bed.capture(5)?;
    ensure!(extend(&bed.agent, &id, Some(15))?.extended);
    let sender = bed.sender()?;
    thread::sleep(Duration::from_secs(6));
    let running = bed.agent.get(&id)?.phase();
    let sent = sender.stop()?;
    assert_eq!(running, v1::Phase::Capturing);
    let never_there = bed.never_there()? - never_there;
    let state = bed.agent.wait_final(&id, LIMIT)?;
    assert_eq!(state.stop_reason(), v1::StopReason::Duration);
    let proven = proof::prove(&bed.agent, &state)?;
    let (started, finished) = (state.started, state.finished);
    let took = finished.context("no end")?.seconds - started.context("no start")?.seconds;
    ensure!(took >= 14, "it ended after {took} s");
    each_once(&proven.capture.packets, sent, never_there)
}

#[test]
fn nobody_makes_it_shorter_and_what_cannot_be_is_said() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let id = bed.capture(300)?;
    for shorter in [1, 299, 300] {
        let answer = extend(&bed.agent, &id, Some(shorter))?;
        assert!(!answer.extended, "{shorter}");
        assert_eq!(lasts(&answer.capture.context("no state")?), Some(300));
    }
    let refused = |id: &str, to| -> Result<(Code, Option<Reason>)> {
        let status = extend(&bed.agent, id, to).err().context("taken")?;
        Ok((status.code(), reason_of(&status)))
    };
    let invalid = (Code::InvalidArgument, Some(Reason::InvalidSpec));
    for bad in [None, Some(0), Some(-1), Some(7 * 24 * 3600 + 1)] {
        assert_eq!(refused(&id, bad)?, invalid, "{bad:?}");
    }
    assert_eq!(refused("../x", Some(400))?, invalid);
    let unknown = (Code::NotFound, Some(Reason::CaptureNotFound));
    assert_eq!(refused("01J9ZQ3C7M8N4R5T6V7W8X9YZA", Some(400))?, unknown);
    assert_eq!(lasts(&bed.agent.get(&id)?), Some(300));
    bed.agent.stop(&id)?;
    let ended = (Code::FailedPrecondition, Some(Reason::CaptureEnded));
    assert_eq!(refused(&id, Some(400))?, ended);
    let manifest = bed.agent.manifest(&id)?;
    assert!(manifest.amendments.is_empty(), "{:?}", manifest.amendments);

    // One without a limit lasts longer than any; one of so many files ends with them.
    let unlimited = bed.agent.capture(of_pod_filtered(&bed.web, FILTER))?.id;
    assert!(!extend(&bed.agent, &unlimited, Some(400))?.extended);
    let files = bed.agent.capture(v1::CaptureSpec {
        limits: Some(v1::Limits {
            duration: Some(seconds(100)),
            ..v1::Limits::default()
        }),
        writing: Some(v1::Writing {
            rotate_interval: Some(seconds(100)),
            files: 2,
            ..v1::Writing::default()
        }),
        ..of_pod_filtered(&bed.web, FILTER)
    })?;
    assert!(extend(&bed.agent, &files.id, Some(200))?.extended);
    let by_files = (Code::FailedPrecondition, Some(Reason::InvalidSpec));
    assert_eq!(refused(&files.id, Some(201))?, by_files);
    Ok(())
}

#[test]
fn what_made_it_longer_outlives_an_agent_that_is_killed() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node, Options::default())?;
    let id = bed.capture(300)?;
    ensure!(extend(&bed.agent, &id, Some(400))?.extended);
    bed.agent.end_by(Signal::SIGKILL)?;
    bed.agent.start_again()?;
    let state = bed.agent.get(&id)?;
    assert_eq!(state.stop_reason(), v1::StopReason::CrashRecovered);
    assert_eq!(lasts(&state), Some(400));
    let manifest = bed.agent.manifest(&id)?;
    assert_eq!(manifest.limits.duration, Some(Duration::from_secs(400)));
    assert_eq!(manifest.amendments.kept.len(), 1);
    let left = std::fs::read_dir(bed.agent.data_dir())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".amendments"))
        .collect::<Vec<_>>();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_pinned_capture_lasts_as_long_as_it_was_made_to_by_the_agent_before() -> Result<()> {
    let node = Node::new()?;
    let options = Options {
        pin: true,
        ..Options::default()
    };
    let mut bed = Bed::new(&node, options)?;
    let never_there = bed.never_there()?;
    let id = bed.capture(20)?;
    ensure!(extend(&bed.agent, &id, Some(600))?.extended);
    let sender = bed.sender()?;
    bed.agent.end_by(Signal::SIGKILL)?;
    bed.agent.start_again()?;
    assert_eq!(lasts(&bed.agent.get(&id)?), Some(600));
    assert!(!extend(&bed.agent, &id, Some(500))?.extended);
    ensure!(extend(&bed.agent, &id, Some(700))?.extended);
    bed.agent.end_by(Signal::SIGKILL)?;
    bed.agent.start_again()?;
    let running = bed.agent.get(&id)?;
    assert_eq!(running.phase(), v1::Phase::Capturing);
    assert_eq!(lasts(&running), Some(700));
    // Beyond the deadline that it was started with.
    thread::sleep(Duration::from_secs(21));
    let sent = sender.stop()?;
    let never_there = bed.never_there()? - never_there;
    let state = bed.agent.stop(&id)?;
    let proven = proof::prove(&bed.agent, &state)?;
    each_once(&proven.capture.packets, sent, never_there)?;
    let manifest = bed.agent.manifest(&id)?;
    assert_eq!(manifest.amendments.kept.len(), 2);
    assert_eq!(manifest.limits.duration, Some(Duration::from_secs(700)));
    Ok(())
}
