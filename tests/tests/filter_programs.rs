//! Filter programs in the kernel: the corpus on random frames, and the room that they take.

#[path = "../../capture/tests/support/frames.rs"]
#[allow(dead_code, reason = "what is between link types is not used here")]
mod frames;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use remora_capture::filter::{
    Filter, Names, compiler,
    program::{Frame, Program},
};
use remora_proto::{reason, v1};
use remora_tests::{
    agent::{TestAgent, of_pod_filtered},
    beside::{self, BEGIN, Beside, END},
    node::{Node, Pod},
    random::{self, Random},
    traffic,
};
use tonic::Code;

/// Sessions beside the one of all.
const AT_ONCE: usize = 63;
const FRAMES: usize = 1500;
const ETHERNET_HEADER: usize = 14;

/// The corpus' expressions that are programs for Ethernet.
fn corpus() -> Result<Vec<(String, Program)>> {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../capture/tests/fixtures/filters.txt"
    );
    let compiled = |text: &str| {
        let filter = Filter::compile(text, compiler(Names::LookedUp)).ok()?;
        let program = filter.meaning().programs()?.ethernet.clone();
        Some((text.to_owned(), program))
    };
    Ok(fs::read_to_string(file)?
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
        .filter_map(compiled)
        .collect())
}

/// A filter as the command line sends it: text, and programs of it unless terms can say it.
fn spec(pod: &Pod, text: &str) -> Result<v1::CaptureSpec> {
    let filter = Filter::compile(text, compiler(Names::LookedUp))?;
    Ok(v1::CaptureSpec {
        programs: filter.meaning().programs().map(Into::into),
        ..of_pod_filtered(pod, text)
    })
}

#[test]
fn the_kernels_verdict_is_the_references_for_the_corpus_on_random_frames() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let mut random = Random(45);
    let (mut pairs, mut taken) = (0, 0);
    for some in corpus()?.chunks(AT_ONCE) {
        let beside = Beside::start(&agent, &web)?;
        let captures = some
            .iter()
            .map(|(text, _)| Ok((text.as_str(), agent.capture(spec(&web, text)?)?.id)))
            .collect::<Result<Vec<_>>>()?;
        let mut frames: Vec<Vec<u8>> = Vec::new();
        while frames.len() < FRAMES {
            let frame = frames::ethernet(&mut random);
            let frame = frames::damaged(frame, &mut random);
            // The kernel takes nothing shorter.
            if frame.len() >= ETHERNET_HEADER {
                frames.push(frame);
            }
        }
        beside::mark(&node, &web, BEGIN)?;
        traffic::frames(web.netns(), "eth0", &frames)?;
        beside::mark(&node, &web, END)?;
        beside.wait_for_end()?;
        let stopped = beside::stopped(&agent, captures)?;
        let all = beside.stop()?;
        ensure!(all.count() > FRAMES / 2, "only {} frames came", all.count());
        for ((text, program), (_, packets)) in some.iter().zip(&stopped) {
            let theirs = all.by(|frame| program.run(Frame::whole(frame)));
            taken += all
                .confirm(packets, &theirs, usize::MAX)
                .with_context(|| format!("filter `{text}`"))?;
            pairs += all.count();
        }
    }
    println!("{pairs} pairs of expression and frame, {taken} taken, 0 differences");
    assert!(pairs > 300_000 && taken > pairs / 20);
    Ok(())
}

/// `len` instructions that take every packet.
fn of_length(len: usize) -> Vec<u8> {
    let load = [0x80, 0, 0, 0, 0, 0, 0, 0];
    let take = [6, 0, 0, 0, 0xff, 0, 0, 0];
    let mut program = load.repeat(len - 1);
    program.extend(take);
    program
}

#[test]
fn programs_share_a_pool_and_what_is_too_much_is_refused_until_a_capture_ends() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let large = || v1::CaptureSpec {
        programs: Some(v1::FilterPrograms {
            ethernet: of_length(4096).into(),
            raw: of_length(4096).into(),
        }),
        ..of_pod_filtered(&web, "len >= 0")
    };
    // 65 536 instructions are 8 times two programs of 4096.
    let mut captures = (0..8)
        .map(|_| Ok(agent.capture(large())?))
        .collect::<Result<Vec<_>>>()?;
    for small in [large(), of_pod_filtered(&web, "len > 1")] {
        let refused = agent.capture(small).err().context("there was room")?;
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("room for 0"), "{refused}");
        assert_eq!(
            reason::reason_of(&refused),
            Some(reason::Reason::QuotaExceeded)
        );
    }
    // Terms need no room.
    let typed = agent.capture(of_pod_filtered(&web, "udp"))?;
    agent.stop(&typed.id)?;
    for _ in 0..3 {
        agent.stop(&captures.swap_remove(3).id)?;
        captures.push(agent.capture(large())?);
    }
    beside::mark(&node, &web, BEGIN)?;
    for state in captures {
        agent.wait_state(&state.id, "the marker", |state| {
            state.counts.is_some_and(|counts| counts.written >= 1)
        })?;
        agent.stop(&state.id)?;
    }
    Ok(())
}

#[test]
fn a_slot_and_its_room_are_used_again_and_no_packet_is_judged_by_the_filter_before() -> Result<()> {
    const ROUNDS: u16 = 100;
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sinks = (9000..9004)
        .map(|port| traffic::sink(port, node.directory(), |tool| api.command(tool)))
        .collect::<Result<Vec<_>>>()?;
    let senders = (9000..9004)
        .map(|port| {
            let stream = traffic::Stream {
                rate: 5000,
                ..traffic::Stream::new(api.ipv4(), port, 0)
            };
            stream.send_until_stopped(node.directory(), |tool| web.command(tool))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut written = 0;
    for round in 0..ROUNDS {
        // The same length each time, so that it lies where the one before lay.
        let port = 9000 + round % 4;
        let state = agent.capture(of_pod_filtered(&web, &format!("udp[2:2] = {port}")))?;
        let wanted = u64::from(round % 3);
        agent.wait_state(&state.id, "packets", |state| {
            state.counts.is_some_and(|counts| counts.written >= wanted)
        })?;
        for (_, packets) in beside::stopped(&agent, vec![("", state.id)])? {
            for packet in &packets {
                assert_eq!(packet.data.get(36..38), Some(&port.to_be_bytes()[..]));
            }
            written += packets.len();
        }
    }
    println!("{written} packets in {ROUNDS} captures, none of another port");
    for sender in senders {
        sender.stop()?;
    }
    Ok(())
}
