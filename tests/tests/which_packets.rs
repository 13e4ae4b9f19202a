//! Which packets: for a pod behind a veth those that tcpdump sees on that veth in the same run,
//! for everything else those that a socket of the cgroup sends or receives.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{TestAgent, of_pod, of_pod_filtered, spec},
    cgroup::Cgroup,
    name,
    node::{Node, Pod},
    numbered::Numbers,
    packets::{self, Capture, Direction, Packet},
    proof,
    run::{self, Place},
    traffic::{self, Stream},
    veth::{self, Offload},
    wait,
    wire::Tcpdump,
};

const BEGIN: &[u8] = b"remora test: begin";
const END: &[u8] = b"remora test: end";
/// Where the markers go: nobody listens.
const MARKER_PORT: u16 = 7;
const LIMIT: Duration = Duration::from_secs(20);

fn contains(frame: &[u8], text: &[u8]) -> bool {
    frame.windows(text.len()).any(|window| window == text)
}

/// The packets from the first begin marker to the first end marker: both captures were running
/// all that time, whatever either saw before and after.
fn between_markers(packets: &[Packet]) -> Result<&[Packet]> {
    let at = |text: &[u8]| {
        packets
            .iter()
            .position(|packet| contains(&packet.data, text))
    };
    let begin = at(BEGIN).context("no begin marker")?;
    let end = at(END).context("no end marker")?;
    Ok(&packets[begin..=end])
}

/// In and out are as the pod sees it: what it sends has its address as the source.
fn direction_at(web: &Pod, packet: &Packet) -> Direction {
    let mac = [2, 0, 0, 0, 2, web.ipv4().octets()[3]];
    if packet.data.get(6..12) == Some(&mac) {
        Direction::Outbound
    } else {
        Direction::Inbound
    }
}

/// What [`traffic::all_kinds`] must have made, each by its frame.
fn kinds(packets: &[Packet]) -> BTreeSet<&'static str> {
    packets
        .iter()
        .filter_map(|packet| {
            let frame = packet.data.as_slice();
            let (ethertype, l3) = (frame.get(12..14)?, frame.get(14..)?);
            Some(match (ethertype, l3.get(9), l3.get(6)) {
                ([0x08, 0x06], ..) => "ARP",
                ([0x08, 0x00], ..) if l3.get(6..8)? != [0x40, 0] && l3.get(6)? & 0x3f != 0 => {
                    "IPv4 fragment"
                }
                ([0x08, 0x00], Some(1), _) => match l3.get(20)? {
                    0 => "ICMP echo reply",
                    3 => "ICMP unreachable",
                    8 => "ICMP echo request",
                    _ => return None,
                },
                ([0x08, 0x00], Some(6), _) if packet.original_len > 60_000 => "64 KiB GSO",
                ([0x08, 0x00], Some(6), _) => match l3.get(33)? & 0x07 {
                    2 => "SYN",
                    4 => "RST",
                    _ => "TCP",
                },
                ([0x08, 0x00], Some(17), _) => "UDP",
                ([0x86, 0xdd], _, Some(44)) => "IPv6 fragment",
                ([0x86, 0xdd], _, Some(58)) => match l3.get(40)? {
                    1 => "ICMPv6 unreachable",
                    135 => "neighbour solicitation",
                    136 => "neighbour advertisement",
                    _ => return None,
                },
                ([0x86, 0xdd], _, Some(6)) => "TCP over IPv6",
                _ => return None,
            })
        })
        .collect()
}

const ALL_KINDS: [&str; 15] = [
    "64 KiB GSO",
    "ARP",
    "ICMP echo reply",
    "ICMP echo request",
    "ICMP unreachable",
    "ICMPv6 unreachable",
    "IPv4 fragment",
    "IPv6 fragment",
    "RST",
    "SYN",
    "TCP",
    "TCP over IPv6",
    "UDP",
    "neighbour advertisement",
    "neighbour solicitation",
];

/// A tcpdump on `web`'s veth that sees all that any capture in its time sees.
struct Witness<'a> {
    tcpdump: Tcpdump,
    node: &'a Node,
    web: &'a Pod,
}

impl<'a> Witness<'a> {
    /// Before the captures start.
    fn start(node: &'a Node, web: &'a Pod) -> Result<Self> {
        let tcpdump = Tcpdump::start(
            |tool| node.command(tool),
            web.interface(),
            "",
            node.directory(),
        )?;
        Ok(Self { tcpdump, node, web })
    }

    /// Runs `traffic` between the markers, while all captures run.
    fn watch(&self, traffic: impl FnOnce() -> Result<()>) -> Result<()> {
        self.mark(BEGIN)?;
        traffic()?;
        self.mark(END)
    }

    fn mark(&self, text: &[u8]) -> Result<()> {
        let to = SocketAddr::new(self.node.address(), MARKER_PORT);
        traffic::datagram(self.web.netns(), to, text)?;
        self.tcpdump
            .wait_for_frame("a marker", |frame| contains(frame, text))
    }

    /// After the captures have ended.
    fn stop(self) -> Result<Seen> {
        self.mark(b"remora test: after all")?;
        let file = self.tcpdump.file().to_owned();
        let capture = self.tcpdump.stop()?;
        Ok(Seen {
            file,
            all: capture.packets,
        })
    }
}

/// What the witness saw.
struct Seen {
    file: PathBuf,
    all: Vec<Packet>,
}

impl Seen {
    /// Holds a capture against it: at least what passed between the markers, at most all.
    fn confirm(&self, ours: &[Packet], taken: impl Fn(&Packet) -> bool) -> Result<()> {
        let take = |packets: &[Packet]| -> Vec<Packet> {
            packets
                .iter()
                .filter(|packet| taken(packet))
                .cloned()
                .collect()
        };
        let least = take(between_markers(&self.all)?);
        ensure!(!least.is_empty(), "nothing to take: this proves nothing");
        packets::assert_between(ours, &least, &take(&self.all))
    }

    /// The same, with libpcap to say what a filter takes.
    fn confirm_filter(&self, ours: &[Packet], filter: &str) -> Result<()> {
        let filtered = self.file.with_extension("filtered");
        run::output(
            run::command("tcpdump")
                .arg("-r")
                .arg(&self.file)
                .arg("-w")
                .arg(&filtered)
                .arg(filter),
        )?;
        let taken = Capture::read(&filtered)?;
        let taken: BTreeSet<_> = taken.packets.iter().map(|p| (p.time, &p.data)).collect();
        self.confirm(ours, |packet| taken.contains(&(packet.time, &packet.data)))
    }
}

#[test]
fn a_pods_capture_equals_tcpdumps_packet_for_packet() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&node, &web)?;
    let state = agent.capture(of_pod(&web))?;
    witness.watch(|| traffic::all_kinds(&web, &api))?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    let seen = witness.stop()?;
    proof::complete(&proven.counts)?;
    seen.confirm(&proven.capture.packets, |_| true)?;
    let ours = between_markers(&proven.capture.packets)?;
    let theirs = between_markers(&seen.all)?;
    println!("{} packets in both", ours.len());
    packets::assert_same(ours, theirs)?;
    assert_eq!(
        kinds(ours),
        BTreeSet::from(ALL_KINDS),
        "the traffic lacks a kind"
    );

    for packet in ours {
        let expected = direction_at(&web, packet);
        assert_eq!(
            packet.direction,
            Some(expected),
            "{}",
            packets::shown(&packet.data)
        );
    }
    // The clocks agree: each packet that occurs once has the same time in both, within 50 ms.
    let times: std::collections::BTreeMap<_, _> = theirs
        .iter()
        .map(|packet| (packet.data.as_slice(), packet.time))
        .collect();
    let bag = packets::bag(theirs);
    for packet in ours
        .iter()
        .filter(|p| bag.get(&(p.data.as_slice(), p.original_len)) == Some(&1))
    {
        let apart = packet.time.abs_diff(times[packet.data.as_slice()]);
        let limit = wait::patient(Duration::from_millis(50));
        assert!(apart < limit, "{apart:?} apart");
    }
    Ok(())
}

#[test]
fn a_capture_without_offload_equals_tcpdumps_too() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    for (netns, interface) in [(web.netns(), "eth0"), (node.netns(), web.interface())] {
        veth::set_offload(netns, interface, Offload::Off)?;
    }
    veth::set_offload(api.netns(), "eth0", Offload::Off)?;
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&node, &web)?;
    let state = agent.capture(of_pod(&web))?;
    witness.watch(|| {
        let at = SocketAddr::from((api.ipv4(), 8080));
        traffic::tcp_exchange(web.netns(), api.netns(), at, 200_000)
    })?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    proof::complete(&proven.counts)?;
    witness.stop()?.confirm(&proven.capture.packets, |_| true)?;
    let ours = &proven.capture.packets;
    assert!(ours.iter().all(|packet| packet.original_len <= 1514));
    Ok(())
}

#[test]
fn of_the_neighbour_pod_there_is_no_packet() -> Result<()> {
    let node = Node::new()?;
    let (web, api, db) = (node.pod("web")?, node.pod("api")?, node.pod("db")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| db.command(tool))?;
    // The bridge has learnt where everybody is: it floods nothing.
    for (from, to) in [(&api, &db), (&db, &api), (&web, &db), (&web, &api)] {
        traffic::ping(from.netns(), to.ipv4().into(), 1)?;
    }
    let of_web = agent.capture(of_pod(&web))?;
    let of_api = agent.capture(of_pod(&api))?;
    let neighbours = Stream {
        run: 5,
        rate: 20_000,
        ..Stream::new(db.ipv4(), 9000, 5000)
    };
    let sent = neighbours.send(|tool| api.command(tool))?;
    let own = Stream {
        run: 6,
        rate: 20_000,
        ..Stream::new(db.ipv4(), 9000, 1000)
    };
    let own_sent = own.send(|tool| web.command(tool))?;
    let of_web = proof::prove(&agent, &agent.stop(&of_web.id)?)?;
    let of_api = proof::prove(&agent, &agent.stop(&of_api.id)?)?;
    assert_eq!(
        Numbers::collect(5, of_api.capture.frames()).missing(sent),
        []
    );
    assert_eq!(
        Numbers::collect(6, of_web.capture.frames()).missing(own_sent),
        []
    );
    for (proven, neighbours_run) in [(&of_web, 5), (&of_api, 6)] {
        assert_eq!(
            Numbers::collect(neighbours_run, proven.capture.frames()).distinct(),
            0
        );
    }
    Ok(())
}

/// Filters whose verdict tcpdump gives on its own file of the same traffic.
const FILTERS: [&str; 14] = [
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "ip",
    "ip6",
    "tcp port 8080",
    "udp dst port 9999",
    "src port 8080",
    "host 10.77.0.11",
    "src host 10.77.0.11 and tcp",
    "net 10.77.0.0/28",
    "dst net fd77::/64 and udp",
    "tcp and host fd77::b and port 81",
];

#[test]
fn each_filter_takes_what_libpcap_takes() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&node, &web)?;
    let captures = FILTERS
        .iter()
        .map(|filter| Ok((*filter, agent.capture(of_pod_filtered(&web, filter))?.id)))
        .collect::<Result<Vec<_>>>()?;
    witness.watch(|| traffic::all_kinds(&web, &api))?;
    let captures = captures
        .into_iter()
        .map(|(filter, id)| Ok((filter, proof::prove(&agent, &agent.stop(&id)?)?)))
        .collect::<Result<Vec<_>>>()?;
    let seen = witness.stop()?;
    for (filter, proven) in captures {
        seen.confirm_filter(&proven.capture.packets, filter)
            .with_context(|| format!("filter `{filter}`"))?;
    }
    Ok(())
}

#[test]
fn a_direction_takes_its_half_and_typed_terms_narrow_it() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&node, &web)?;
    let capture = |direction: v1::Direction, terms| {
        agent.capture(v1::CaptureSpec {
            direction: direction.into(),
            terms,
            ..of_pod(&web)
        })
    };
    let terms = v1::FilterTerms {
        family: "ip".into(),
        protocol: "tcp".into(),
        host: api.ipv4().to_string(),
        port: 8080,
    };
    let ingress = capture(v1::Direction::Ingress, None)?;
    let egress = capture(v1::Direction::Egress, None)?;
    let typed = capture(v1::Direction::Unspecified, Some(terms))?;
    witness.watch(|| traffic::all_kinds(&web, &api))?;
    let stop = |id: &str| proof::prove(&agent, &agent.stop(id)?);
    let (ingress, egress, typed) = (stop(&ingress.id)?, stop(&egress.id)?, stop(&typed.id)?);
    let seen = witness.stop()?;
    for (half, direction) in [
        (&ingress.capture, Direction::Inbound),
        (&egress.capture, Direction::Outbound),
    ] {
        assert!(
            half.packets
                .iter()
                .all(|packet| packet.direction == Some(direction))
        );
        seen.confirm(&half.packets, |packet| {
            direction_at(&web, packet) == direction
        })?;
    }
    let filter = format!("ip and tcp and host {} and port 8080", api.ipv4());
    seen.confirm_filter(&typed.capture.packets, &filter)
}

#[test]
fn snaplen_cuts_each_packet_to_exactly_that() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let snaplens = [1, 14, 96, 1513, 65_535];
    let captures = snaplens
        .iter()
        .map(|&snaplen| {
            let spec = v1::CaptureSpec {
                snaplen,
                ..of_pod_filtered(&web, "tcp")
            };
            Ok((snaplen, agent.capture(spec)?.id))
        })
        .collect::<Result<Vec<_>>>()?;
    let whole = agent.capture(of_pod_filtered(&web, "tcp"))?;
    let at = SocketAddr::from((api.ipv4(), 8080));
    traffic::tcp_exchange(web.netns(), api.netns(), at, 1_000_000)?;
    let stop = |id: &str| proof::prove(&agent, &agent.stop(id)?);
    let cut = captures
        .iter()
        .map(|(snaplen, id)| Ok((*snaplen, stop(id)?)))
        .collect::<Result<Vec<_>>>()?;
    let whole = stop(&whole.id)?;
    let mut lengths: Vec<_> = whole
        .capture
        .packets
        .iter()
        .map(|p| p.original_len)
        .collect();
    lengths.sort_unstable();
    assert!(lengths.last().is_some_and(|&len| len > 1514));
    for (snaplen, proven) in cut {
        assert_eq!(proven.capture.interfaces[0].snaplen, snaplen);
        for packet in &proven.capture.packets {
            assert_eq!(packet.data.len() as u32, packet.original_len.min(snaplen));
        }
        let mut found: Vec<_> = proven
            .capture
            .packets
            .iter()
            .map(|p| p.original_len)
            .collect();
        found.sort_unstable();
        assert_eq!(found, lengths, "snaplen {snaplen}");
    }
    Ok(())
}

/// The IP packets with a UDP or TCP payload, without their link layer, and without the end of
/// the largest: each of the two captures keeps another length of those.
fn with_payload(packets: &[Packet]) -> Vec<Packet> {
    const COMPARED: usize = 60_000;
    packets
        .iter()
        .filter_map(|packet| {
            let ip = packet.data.get(14..)?;
            let header = usize::from(ip.first()? & 0x0f) * 4;
            let transport = match ip.get(9)? {
                17 => 8,
                6 => usize::from(ip.get(header + 12)? >> 4) * 4,
                _ => return None,
            };
            let data = ip[..ip.len().min(COMPARED)].to_vec();
            let with_payload = packet.original_len as usize > 14 + header + transport;
            with_payload.then(|| Packet {
                data,
                ..packet.clone()
            })
        })
        .collect()
}

#[test]
fn a_pods_loopback_equals_tcpdumps_in_all_that_carries_data() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let bulk = run::tool("tcpbulk")?;
    let mut receiver = node.spawn(
        web.command(&bulk)
            .args(["receive", "127.0.0.1:5001", "--bytes", "500000"]),
        "receive",
    )?;
    receiver.wait_for("ready", LIMIT)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| web.command(tool))?;
    let tcpdump = Tcpdump::start(|tool| web.command(tool), "lo", "", node.directory())?;
    let state = agent.capture(of_pod(&web))?;
    run::output(
        web.command(&bulk)
            .args(["send", "127.0.0.1:5001", "--bytes", "500000"]),
    )?;
    let stream = Stream {
        size: 200,
        rate: 5000,
        ..Stream::new([127, 0, 0, 1].into(), 9000, 1000)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    tcpdump.wait_for_frame("the last number", |frame| {
        remora_tests::numbered::Number::of_frame(frame).is_some_and(|n| n.sequence == sent - 1)
    })?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    proof::complete(&proven.counts)?;
    let tcpdump = tcpdump.stop()?;
    let numbers = Numbers::collect(1, proven.capture.frames());
    assert_eq!(numbers.missing(sent), []);
    assert_eq!(
        numbers.duplicates(),
        0,
        "a loopback packet is in the file twice"
    );

    let on_loopback: Vec<Packet> = proven
        .capture
        .packets
        .iter()
        .filter(|packet| packet.data.get(26..30) == Some(&[127, 0, 0, 1]))
        .cloned()
        .collect();
    packets::assert_same(&with_payload(&on_loopback), &with_payload(&tcpdump.packets))
}

#[test]
fn a_host_services_packets_are_those_of_its_sockets() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let service = Cgroup::new(&format!("{}.service", name::unique()))?;
    let place = Place {
        netns: Some(node.netns()),
        cgroup: Some(&service),
        ..Default::default()
    };
    let udpsink = run::tool("udpsink")?;
    let (reader, _stop) = std::io::pipe()?;
    let mut sink = node.spawn(place.command(&udpsink).arg("9000").stdin(reader), "service")?;
    sink.wait_for("ready", LIMIT)?;
    // Somebody else on the same host and the same kind of port.
    let _other = traffic::sink(9001, node.directory(), |tool| node.command(tool))?;

    let unit = service
        .path()
        .rsplit('/')
        .next()
        .context("no name")?
        .to_owned();
    let state = agent.capture(spec(Target::Unit(unit)))?;
    let std::net::IpAddr::V4(host) = node.address() else {
        anyhow::bail!("not IPv4")
    };
    let to_service = Stream {
        run: 1,
        rate: 20_000,
        ..Stream::new(host, 9000, 2000)
    };
    let sent = to_service.send(|tool| web.command(tool))?;
    let to_other = Stream {
        run: 2,
        rate: 20_000,
        ..Stream::new(host, 9001, 2000)
    };
    to_other.send(|tool| web.command(tool))?;
    let from_service = Stream {
        run: 3,
        rate: 20_000,
        ..Stream::new(web.ipv4(), 9000, 500)
    };
    let answered = from_service.send(|tool| place.command(tool))?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    proof::complete(&proven.counts)?;
    let of_run = |run| Numbers::collect(run, proven.capture.frames());
    assert_eq!(of_run(1).missing(sent), []);
    assert_eq!(of_run(2).distinct(), 0, "packets of another service");
    assert_eq!(of_run(3).missing(answered), []);
    let directions: BTreeSet<_> = proven
        .capture
        .packets
        .iter()
        .filter_map(|packet| packet.direction)
        .collect();
    assert_eq!(
        directions,
        BTreeSet::from([Direction::Inbound, Direction::Outbound])
    );
    Ok(())
}

#[test]
fn every_way_to_name_a_pod_captures_the_same_packets() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let targets = [
        Target::CgroupPath(web.cgroup().path()),
        Target::CgroupId(web.cgroup().id()?),
        Target::Pid(web.pid()),
        Target::ContainerId(web.container_id().to_owned()),
        Target::ContainerId(web.container_id()[..12].to_owned()),
        Target::Interface(web.interface().to_owned()),
    ];
    let mut captures = Vec::new();
    for target in targets {
        let spec = v1::CaptureSpec {
            filter: "udp port 9000".into(),
            ..spec(target.clone())
        };
        captures.push((target, agent.capture(spec)?.id));
    }
    let stream = Stream {
        rate: 20_000,
        ..Stream::new(api.ipv4(), 9000, 2000)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    for (target, id) in captures {
        let proven = proof::prove(&agent, &agent.stop(&id)?)?;
        let numbers = Numbers::collect(1, proven.capture.frames());
        assert_eq!(numbers.missing(sent), [], "{target:?}");
        assert_eq!(numbers.duplicates() + numbers.foreign, 0, "{target:?}");
    }
    Ok(())
}

#[test]
fn nothing_from_before_the_filter_was_set_leaks_in() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let stream = Stream {
        rate: 50_000,
        ..Stream::new(api.ipv4(), 9000, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    for _ in 0..50 {
        let state = agent.capture(of_pod_filtered(&web, "udp port 9001"))?;
        let counts = agent.stop(&state.id)?.counts.context("no counts")?;
        assert_eq!(
            counts.matched, 0,
            "{counts:?}: a packet that the filter refuses"
        );
    }
    // The same moment with a filter that takes them: they are there at once.
    let state = agent.capture(of_pod_filtered(&web, "udp port 9000"))?;
    wait::until(LIMIT, "packets", || {
        Ok(agent
            .get(&state.id)?
            .counts
            .is_some_and(|counts| counts.matched > 0))
    })?;
    sender.stop()?;
    Ok(())
}

#[test]
fn the_nodes_loopback_interface_gives_each_packet_once_and_a_tun_is_refused() -> Result<()> {
    let node = Node::new()?;
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| node.command(tool))?;
    let state = agent.capture(v1::CaptureSpec {
        filter: "udp port 9000".into(),
        ..spec(Target::Interface("lo".into()))
    })?;
    let stream = Stream {
        rate: 5000,
        ..Stream::new([127, 0, 0, 1].into(), 9000, 500)
    };
    let sent = stream.send(|tool| node.command(tool))?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    proof::complete(&proven.counts)?;
    let numbers = Numbers::collect(1, proven.capture.frames());
    assert_eq!(numbers.missing(sent), []);
    assert_eq!(numbers.duplicates(), 0);

    run::output(node.command("ip").args([
        "link",
        "add",
        "tunnel0",
        "type",
        "sit",
        "remote",
        "192.0.2.1",
    ]))
    .or_else(|_no_module| {
        run::output(
            node.command("ip")
                .args(["tuntap", "add", "tunnel0", "mode", "tun"]),
        )
    })?;
    let refused = agent
        .capture(spec(Target::Interface("tunnel0".into())))
        .expect_err("packets without Ethernet headers");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(
        refused.message().contains("no Ethernet headers"),
        "{refused}"
    );
    Ok(())
}
