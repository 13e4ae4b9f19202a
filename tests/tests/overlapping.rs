//! As many captures as a node takes, at the same time and of the same packets: each file is complete
//! by itself, as if the others were not.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use remora_capture::pcapng::STATISTICS_BYTES_MAX;
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{Options, TestAgent, spec},
    beside::{self, All, BEGIN, Beside, END},
    node::{Node, Pod},
    packets::{Capture, Packet},
    proof::{self, Proven},
    traffic::{self, Stream},
};

/// Beside the two of all packets, of `web` and of `api`.
const FILTERED: usize = 62;

/// The last matches all that comes.
const FILTERS: [&str; 22] = [
    "udp",
    "tcp",
    "udp port 9000",
    "tcp port 8080",
    "ip6",
    "arp or icmp6",
    "not udp",
    "udp[8:4] = 0x524d5254 and udp[21] & 1 = 1",
    "udp and greater 500",
    "less 100",
    "tcp[tcpflags] & (tcp-syn|tcp-fin|tcp-rst) != 0",
    "src host 10.77.0.10",
    "dst host 10.77.0.10 and not port 9000",
    "portrange 8000-9001",
    "len > 5000",
    "icmp or (ip6 and not tcp)",
    "udp[21] & 3 = 2",
    "port 8080 or udp[21] & 7 = 5",
    "ether host 02:00:00:00:02:0b",
    "not tcp and not icmp6",
    "ip[6:2] & 0x3fff != 0 or ip6 proto 44",
    "",
];
const SNAPLENS: [u32; 7] = [0, 1, 14, 60, 96, 1000, 65_535];
/// Beyond what pods say by themselves (neighbours, multicast groups) before the test's traffic.
const PACKET_LIMITS: [u64; 5] = [0, 0, 40, 90, 700];
const BYTE_LIMITS: [u64; 4] = [0, 0, 0, 60_000];

struct Overlapping<'a> {
    pod: &'a Pod,
    spec: v1::CaptureSpec,
}

impl<'a> Overlapping<'a> {
    /// Each number another one: 22 filters and 7 snaplens do not come together twice in 62.
    fn number(at: usize, web: &'a Pod, api: &'a Pod) -> Self {
        let pod = if at % 4 == 3 { api } else { web };
        // The same veth by each of its names, and so one tap; of a cgroup or of an interface.
        let target = match at % 5 {
            0 => Target::ContainerId(pod.container_id().into()),
            1 => Target::Pid(pod.pid()),
            2 => Target::Interface(pod.interface().into()),
            _ => Target::CgroupPath(pod.cgroup().path()),
        };
        let limits = v1::Limits {
            packets: PACKET_LIMITS[at / 2 % PACKET_LIMITS.len()],
            file_bytes: BYTE_LIMITS[at / 3 % BYTE_LIMITS.len()],
            duration: None,
        };
        let spec = v1::CaptureSpec {
            filter: FILTERS[at % FILTERS.len()].into(),
            snaplen: SNAPLENS[at % SNAPLENS.len()],
            limits: Some(limits),
            ..spec(target)
        };
        Self { pod, spec }
    }

    /// The capture is what tcpdump finds in that of all, cut to its snaplen and at its limits.
    fn confirm(&self, node: &Node, all: &All, proven: &Proven) -> Result<usize> {
        let theirs = all.by_tcpdump(&self.spec.filter, node.directory())?;
        let ours = &proven.capture.packets;
        let v1::Counts {
            matched,
            written,
            over_budget,
            ..
        } = proven.counts;
        ensure!(matched == written + over_budget, "something was lost");
        let limits = self.spec.limits.unwrap_or_default();
        if over_budget == 0 && written != limits.packets {
            return all.confirm(ours, &theirs, self.snaplen());
        }
        ensure!(limits.packets == 0 || written <= limits.packets);
        let (begin, equal) = all.place(ours, &theirs, self.snaplen())?;
        if equal < ours.len() || written != limits.packets {
            self.confirm_bytes(proven, &theirs[begin..], equal)?;
        }
        Ok(ours.len())
    }

    /// The file's limit let in what fits: of `theirs` the first `equal`, not the one after these,
    /// and then maybe smaller ones.
    fn confirm_bytes(&self, proven: &Proven, theirs: &[Packet], equal: usize) -> Result<()> {
        let file_bytes = self.spec.limits.unwrap_or_default().file_bytes;
        let len = fs::metadata(&proven.path)?.len();
        ensure!(len <= file_bytes, "{len} bytes");
        let ours = &proven.capture.packets;
        let refused = theirs.get(equal).context("none was refused")?;
        let kept = refused.data.len().min(self.snaplen());
        let (rest, later) = (&ours[equal..], &theirs[equal..]);
        // The room that the kernel leaves for what each block may have at the most, and for the
        // closing one.
        let spare = STATISTICS_BYTES_MAX + 68 + BLOCK_SPARE * (ours.len() + 1);
        ensure!(
            len + (kept + spare) as u64 > file_bytes,
            "{kept} bytes were refused at {len} of {file_bytes}"
        );
        let mut later = later.iter();
        for packet in rest {
            let found = later.any(|whole| beside::is_cut(packet, whole, self.snaplen()));
            ensure!(found, "{packet:?} is not one of its packets");
        }
        Ok(())
    }

    fn snaplen(&self) -> usize {
        match self.spec.snaplen {
            0 => usize::MAX,
            snaplen => snaplen as usize,
        }
    }
}

/// What a block may have and mostly has not: a drop count, and the comment of a GSO packet.
const BLOCK_SPARE: usize = 12 + 60;

/// Stops a capture. Every one is read and keeps the law; each eighth is looked at from every side,
/// which takes longer.
fn stop(agent: &TestAgent<'_>, at: usize, id: &str) -> Result<Proven> {
    let state = agent.stop(id)?;
    if at.is_multiple_of(8) {
        return proof::prove(agent, &state);
    }
    let counts = state.counts.unwrap_or_default();
    proof::law(&counts)?;
    let path = agent.file(&state);
    let capture = Capture::read(&path)?;
    ensure!(capture.packets.len() as u64 == counts.written, "{counts:?}");
    Ok(Proven {
        counts,
        capture,
        path,
    })
}

#[test]
fn sixty_four_overlapping_captures_are_each_what_tcpdump_finds_in_the_one_of_all() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    // Room for all of the test's traffic, so that nothing is lost however slow the machine is.
    let options = Options {
        ring_size: "64MiB".into(),
        ..Options::default()
    };
    let agent = TestAgent::start_with(&node, options)?;
    let _sinks =
        [&web, &api].map(|pod| traffic::sink(9000, node.directory(), |tool| pod.command(tool)));
    let of_web = Beside::start(&agent, &web)?;
    let of_api = Beside::start(&agent, &api)?;
    let captures = (0..FILTERED)
        .map(|at| {
            let capture = Overlapping::number(at, &web, &api);
            let id = agent.capture(capture.spec.clone())?.id;
            Ok((capture, id))
        })
        .collect::<Result<Vec<_>>>()?;
    let refused = agent.capture(spec(Target::CgroupPath(web.cgroup().path())));
    let refused = refused.err().context("a 65th was taken")?;
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert_eq!(agent.status()?.sessions_running, 64);

    for pod in [&web, &api] {
        beside::mark(&node, pod, BEGIN)?;
    }
    let senders = [(&web, &api, 64), (&api, &web, 900)].map(|(from, to, size)| {
        let stream = Stream {
            size,
            rate: 3000,
            ..Stream::new(to.ipv4(), 9000, 0)
        };
        let directory = node.directory();
        stream.send_until_stopped(directory, |tool| from.command(tool))
    });
    traffic::all_kinds(&web, &api)?;
    let sent = senders
        .into_iter()
        .map(|sender| sender?.stop())
        .sum::<Result<u64>>()?;
    for pod in [&web, &api] {
        beside::mark(&node, pod, END)?;
    }
    of_web.wait_for_end()?;
    of_api.wait_for_end()?;

    let stopped = (0..)
        .zip(captures)
        .map(|(at, (capture, id))| {
            let proven = stop(&agent, at, &id).with_context(|| format!("{:?}", capture.spec))?;
            Ok((proven, capture))
        })
        .collect::<Result<Vec<_>>>()?;
    let (of_web, of_api) = (of_web.stop()?, of_api.stop()?);
    let (mut packets, mut limited, mut empty) = (0, 0, 0);
    for (proven, capture) in &stopped {
        let all = if std::ptr::eq(capture.pod, &web) {
            &of_web
        } else {
            &of_api
        };
        let found = capture
            .confirm(&node, all, proven)
            .with_context(|| format!("{:?}: {:?}", capture.spec, proven.counts))?;
        packets += found;
        empty += usize::from(found == 0);
        limited += usize::from(proven.counts.over_budget > 0);
    }
    println!(
        "{} and {} packets of all, {sent} of them numbered; {FILTERED} captures beside, {limited} of \
         them ended by a limit: {packets} packets, each tcpdump's to the byte and nanosecond",
        of_web.count(),
        of_api.count(),
    );
    // Every filter matches something.
    assert_eq!(empty, 0);
    assert!(limited > FILTERED / 4, "{limited}");
    Ok(())
}
