//! Packets from before the capture, and how they join its own.

mod sizes;

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, looking_back, of_pod_filtered, recorded},
    node::{Node, Pod},
    numbered::Number,
    packets::{Capture, Packet},
    proof,
    traffic::{self, Stream},
    veth, wait,
};

const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(20);
/// Joins at full rate.
const JOINS: usize = 200;

fn is_past(packet: &Packet) -> bool {
    packet
        .comments
        .iter()
        .any(|comment| comment.starts_with("look-back"))
}

fn options(arguments: &[&str]) -> Options {
    Options {
        arguments: arguments.iter().map(ToString::to_string).collect(),
        ..Options::default()
    }
}

/// Packets from before, and the capture's own: in this order, and in order of time.
fn parted(capture: &Capture) -> Result<(&[Packet], &[Packet])> {
    let past = capture.packets.partition_point(is_past);
    let (past, own) = capture.packets.split_at(past);
    ensure!(
        !own.iter().any(is_past),
        "a look-back packet among the others"
    );
    ensure!(
        past.is_sorted_by_key(|packet| packet.time),
        "not in order of time"
    );
    Ok((past, own))
}

fn sequences(packets: &[Packet]) -> Vec<u64> {
    packets
        .iter()
        .filter_map(|packet| Number::of_frame(&packet.data))
        .map(|number| number.sequence)
        .collect()
}

#[test]
fn packets_of_two_hundred_triggers_at_full_rate_join_without_gap_or_duplicate() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start_with(&node, options(&["--flow-cutoff", "0"]))?;
    recorded(&agent, &[&web])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let sender = Stream::new(api.ipv4(), 9000, 0)
        .send_until_stopped(node.directory(), |tool| web.command(tool))?;
    wait::until(LIMIT, "packets in the ring", || {
        let taps = agent.status()?.taps;
        let rings = taps.iter().filter_map(|tap| tap.look_back);
        Ok(rings.map(|ring| ring.packets).max() > Some(20_000))
    })?;
    let (mut past_sum, mut own_sum, mut lost_sum) = (0, 0, 0);
    for join in 0..JOINS {
        let spec = v1::CaptureSpec {
            limits: Some(v1::Limits {
                packets: 3000,
                ..Default::default()
            }),
            ..looking_back(of_pod_filtered(&web, FILTER), 5)
        };
        let state = agent.capture(spec)?;
        let state = agent.wait_final(&state.id, LIMIT)?;
        proof::law(&state.counts.context("no counts")?)?;
        // The whole proof asks several programs.
        let capture = if join % 20 == 0 {
            proof::prove(&agent, &state)?.capture
        } else {
            Capture::read(&agent.file(&state))?
        };
        let (past, own) = parted(&capture)?;
        let (before, after) = (sequences(past), sequences(own));
        ensure!(
            !before.is_empty() && after.len() > 1000,
            "join {join}: {} and {}",
            before.len(),
            after.len()
        );
        let mut all: Vec<u64> = before.iter().chain(&after).copied().collect();
        all.sort_unstable();
        all.dedup();
        ensure!(
            all.len() == before.len() + after.len(),
            "join {join}: a packet is there twice"
        );
        let span = all.last().context("none")? - all.first().context("none")? + 1;
        let missing = span - all.len() as u64;
        let lost = state.counts.context("no counts")?.lost;
        ensure!(
            missing <= lost,
            "join {join}: {missing} missing of {span}, {lost} told as lost; {} from before, {} after",
            before.len(),
            after.len()
        );
        past_sum += before.len();
        own_sum += after.len();
        lost_sum += lost;
    }
    sender.stop()?;
    println!(
        "{JOINS} joins: {past_sum} packets from before, {own_sum} of their own, {lost_sum} lost"
    );
    Ok(())
}

/// Sends `count` numbered packets, four a second.
fn beacon(web: &Pod, api: &Pod, run: u16, count: u64) -> Result<()> {
    let beacon = Stream {
        run,
        rate: 4,
        ..Stream::new(api.ipv4(), 9001, count)
    };
    beacon.send(|tool| web.command(tool))?;
    Ok(())
}

#[test]
fn the_flow_cutoff_lets_the_same_memory_reach_further_back_and_says_what_it_left_out() -> Result<()>
{
    let mut reaches = Vec::new();
    for cutoff in ["0", "16KiB"] {
        let node = Node::new()?;
        let (web, api) = (node.pod("web")?, node.pod("api")?);
        let agent = TestAgent::start_with(&node, options(&["--flow-cutoff", cutoff]))?;
        recorded(&agent, &[&web])?;
        let _sinks = [9000, 9001]
            .map(|port| traffic::sink(port, node.directory(), |tool| api.command(tool)));
        // 1400 bytes, 2000 a second: 2.8 MB/s beside 4 beacons a second.
        let bulk = Stream {
            size: 1400,
            rate: 2000,
            ..Stream::new(api.ipv4(), 9000, 0)
        };
        let bulk = bulk.send_until_stopped(node.directory(), |tool| web.command(tool))?;
        beacon(&web, &api, 2, 12)?;
        let state = agent.capture(looking_back(of_pod_filtered(&web, "udp"), 60))?;
        bulk.stop()?;
        let state = agent.stop(&state.id)?;
        let proven = proof::prove(&agent, &state)?;
        let (past, _own) = parted(&proven.capture)?;
        let of = |port: u16| {
            let bytes = port.to_be_bytes();
            past.iter()
                .filter(move |packet| packet.data.get(36..38) == Some(&bytes))
        };
        let bulk_bytes: usize = of(9000).map(|packet| packet.data.len()).sum();
        let beacons = of(9001).count();
        let first = past.first().context("nothing from before")?.time;
        let last = past.last().context("nothing from before")?.time;
        println!(
            "cutoff {cutoff}: {:?} back, {} packets, {beacons} beacons, {bulk_bytes} bytes of the bulk flow; {}",
            last - first,
            past.len(),
            state.message
        );
        if cutoff == "0" {
            assert!(
                state.message.contains("s back, 60.0 s were asked for"),
                "{}",
                state.message
            );
        } else {
            assert_eq!(beacons, 12);
            assert!(
                (16_384..16_384 + 2 * 1400).contains(&bulk_bytes),
                "{bulk_bytes}"
            );
            let last = of(9000).next_back().context("no bulk")?;
            assert!(
                last.comments[0].contains("of this direction after it are left out"),
                "{last:?}"
            );
        }
        reaches.push(last - first);
    }
    assert!(reaches[1] > reaches[0] * 2, "{reaches:?}");
    Ok(())
}

#[test]
fn the_past_is_filtered_directed_and_bounded_as_the_session_is() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    recorded(&agent, &[&web, &api])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    for (run, port) in [(1, 9000), (2, 9001)] {
        let stream = Stream {
            run,
            ..Stream::new(api.ipv4(), port, 100)
        };
        stream.send(|tool| web.command(tool))?;
    }
    let captured = |spec: v1::CaptureSpec| -> Result<(v1::CaptureState, Capture)> {
        let state = agent.capture(looking_back(spec, 60))?;
        let state = agent.stop(&state.id)?;
        let capture = proof::prove(&agent, &state)?.capture;
        Ok((state, capture))
    };
    // Typed terms, and a program.
    for filter in [FILTER, "udp[2:2] = 9000 and len = 64"] {
        let (_, capture) = captured(of_pod_filtered(&web, filter))?;
        assert_eq!(sequences(&capture.packets), (0..100).collect::<Vec<_>>());
        assert!(capture.packets.iter().all(is_past));
    }

    // What web sends, api gets; and what came back to web is the ICMP of a closed port.
    let egress = v1::CaptureSpec {
        direction: v1::Direction::Egress.into(),
        ..of_pod_filtered(&web, "udp")
    };
    assert_eq!(captured(egress.clone())?.1.packets.len(), 200);
    let ingress = v1::CaptureSpec {
        direction: v1::Direction::Ingress.into(),
        ..egress
    };
    assert_eq!(captured(ingress)?.1.packets.len(), 0);

    // Half of a file limit is for the past: its newest.
    let limited = v1::CaptureSpec {
        limits: Some(v1::Limits {
            file_bytes: 20_000,
            ..Default::default()
        }),
        ..of_pod_filtered(&web, "udp")
    };
    let (state, capture) = captured(limited)?;
    let counts = state.counts.context("no counts")?;
    assert!(
        counts.written_bytes <= 20_000 && counts.over_budget > 0,
        "{counts:?}"
    );
    assert_eq!(counts.written + counts.over_budget, 200);
    assert_eq!(sequences(&capture.packets).last(), Some(&99));
    Ok(())
}

#[test]
fn two_sessions_that_look_back_at_once_and_later_have_all_of_it() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    recorded(&agent, &[&web])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let send = |run| {
        let stream = Stream {
            run,
            ..Stream::new(api.ipv4(), 9000, 200)
        };
        stream.send(|tool| web.command(tool))
    };
    send(1)?;
    let first = agent.capture(looking_back(of_pod_filtered(&web, FILTER), 60))?;
    let second = agent.capture(looking_back(of_pod_filtered(&web, FILTER), 60))?;
    send(2)?;
    let third = agent.capture(looking_back(of_pod_filtered(&web, FILTER), 60))?;
    for (state, past, own) in [(first, 200, 200), (second, 200, 200), (third, 400, 0)] {
        let state = agent.stop(&state.id)?;
        let capture = proof::prove(&agent, &state)?.capture;
        let (before, after) = parted(&capture)?;
        assert_eq!(
            (before.len(), after.len()),
            (past, own),
            "{}",
            state.message
        );
    }
    Ok(())
}

/// More at a time than there are spare rings: some find none to freeze, and the ring that they are to read is
/// frozen for the next while they wait.
#[test]
fn what_forty_triggers_at_a_time_have_of_the_past_has_no_gap() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start_with(&node, options(&["--flow-cutoff", "0"]))?;
    recorded(&agent, &[&web])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let stream = Stream {
        rate: 2000,
        ..Stream::new(api.ipv4(), 9000, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    wait::until(LIMIT, "packets in the ring", || {
        let taps = agent.status()?.taps;
        let ring = taps.iter().filter_map(|tap| tap.look_back).next();
        Ok(ring.is_some_and(|ring| ring.packets > 500))
    })?;
    let start = |number| {
        thread::sleep(Duration::from_millis(3) * number);
        agent.capture(looking_back(of_pod_filtered(&web, FILTER), 60))
    };
    let states: Result<Vec<_>, _> = thread::scope(|scope| {
        let starts = (0..40).map(|number| scope.spawn(move || start(number)));
        let starts: Vec<_> = starts.collect();
        let joined = starts.into_iter().map(|start| start.join());
        joined
            .map(|start| start.expect("a start panicked"))
            .collect()
    });
    for (number, state) in (0..).zip(states?) {
        let state = agent.stop(&state.id)?;
        let capture = proof::prove(&agent, &state)?.capture;
        let (past, own) = parted(&capture)?;
        let all = sequences(&capture.packets);
        // On a busy machine forty writers that wait for the past may have to drop packets, and count them.
        let missing: u64 = all.windows(2).map(|two| two[1] - two[0] - 1).sum();
        let counts = state.counts.context("no counts")?;
        let dropped = counts.matched - counts.written;
        ensure!(
            missing == dropped && past.len() >= 400,
            "{number}: {} from before, {} after, {missing} missing, {dropped} dropped; {}",
            past.len(),
            own.len(),
            state.message
        );
    }
    sender.stop()?;
    Ok(())
}

#[test]
fn the_past_goes_into_files_that_rotate_and_are_compressed_as_all_else() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start_with(&node, options(&["--flow-cutoff", "0"]))?;
    recorded(&agent, &[&web])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let stream = Stream {
        size: 700,
        rate: 4000,
        ..Stream::new(api.ipv4(), 9000, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    for compression in [v1::Compression::Unspecified, v1::Compression::Zstd] {
        wait::until(LIMIT, "packets in the ring", || {
            let taps = agent.status()?.taps;
            let ring = taps.iter().filter_map(|tap| tap.look_back).next();
            Ok(ring.is_some_and(|ring| ring.packets > 1000))
        })?;
        let spec = v1::CaptureSpec {
            writing: Some(v1::Writing {
                rotate_bytes: 128 << 10,
                compression: compression.into(),
                ..v1::Writing::default()
            }),
            ..looking_back(of_pod_filtered(&web, FILTER), 5)
        };
        let state = agent.capture(spec)?;
        agent.wait_state(&state.id, "packets of its own", |state| {
            state.counts.is_some_and(|counts| counts.written > 4000)
        })?;
        let set = proof::prove_set(&agent, &agent.stop(&state.id)?)?;
        proof::complete(&set.counts)?;
        ensure!(set.files.count > 2, "{:?}", set.files);
        let past = set.packets.iter().take_while(|packet| is_past(packet));
        let (past, all) = (past.count(), sequences(&set.packets));
        ensure!(past > 500, "{past} from before");
        ensure!(!set.packets[past..].iter().any(is_past), "in between");
        ensure!(all.windows(2).all(|two| two[0] < two[1]), "out of order");
        let span = all.last().context("none")? - all.first().context("none")? + 1;
        let never_there = veth::receive_dropped(node.netns(), web.interface())?;
        let missing = span - all.len() as u64;
        ensure!(
            missing <= never_there,
            "{missing} of {span} missing, {compression:?}"
        );
    }
    sender.stop()?;
    Ok(())
}

#[test]
fn what_was_never_recorded_is_said() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start_with(&node, options(&["--look-back-memory", "0"]))?;
    let state = agent.capture(looking_back(of_pod_filtered(&web, FILTER), 5))?;
    let state = agent.stop(&state.id)?;
    assert!(
        state.message.contains("nothing was recorded"),
        "{}",
        state.message
    );
    assert_eq!(state.phase(), v1::Phase::Finished);
    Ok(())
}
