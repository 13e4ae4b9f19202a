//! `--memory`: what the agent keeps, under a storm of captures, is within its budget.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use remora_agent::budget::Sizes;
use remora_proto::reason::{Reason, reason_of};
use remora_tests::{
    agent::{Options, TestAgent, looking_back, of_pod_filtered, recorded},
    node::{Node, Pod},
    traffic::Stream,
    wait,
};

const BUDGET: u64 = 32 << 20;
const PODS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const ROUNDS: usize = 15;
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(5);
/// How long a round's captures take packets at the least.
const ROUND: Duration = Duration::from_millis(100);

/// In bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// The process's own, which is in no file.
    own: u64,
    /// The program's text and other files' pages.
    files: u64,
    maps: u64,
    programs: u64,
}

impl Taken {
    /// What the kernel cannot take back.
    fn kept(self) -> u64 {
        self.own + self.maps + self.programs
    }

    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let text = line.with_context(|| format!("no {name}"))?;
            let text = text.trim_start_matches(':').trim().trim_end_matches(" kB");
            Ok(text.parse::<u64>()? << 10)
        };
        let (mut maps, mut programs) = (BTreeMap::new(), BTreeMap::new());
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let value = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|text| text.trim().parse::<u64>().ok())
            };
            let Some(memlock) = value("memlock:") else {
                continue;
            };
            if let Some(id) = value("map_id:") {
                maps.insert(id, memlock);
            } else if let Some(id) = value("prog_id:") {
                programs.insert(id, memlock);
            }
        }
        Ok(Self {
            own: field("RssAnon")? + field("RssShmem")?,
            files: field("RssFile")?,
            maps: maps.values().sum(),
            programs: programs.values().sum(),
        })
    }
}

/// Starts captures until the agent has no room for another; all of them, and that it says so.
fn all_that_fit(agent: &TestAgent<'_>, pods: &[Pod], sessions: u32) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for n in 0..sessions as usize {
        let pod = &pods[n % pods.len()];
        let filter = format!("udp and port {}", 7000 + n / pods.len());
        let spec = looking_back(of_pod_filtered(pod, &filter), 10);
        let state = agent
            .capture(spec)
            .with_context(|| format!("capture {n}: {}", agent.tail()))?;
        ids.push(state.id);
    }
    let refused = agent.capture(of_pod_filtered(&pods[0], "tcp")).err();
    let status = refused.context("one more was taken")?;
    ensure!(
        reason_of(&status) == Some(Reason::SessionLimit),
        "{status:?}"
    );
    ensure!(
        status
            .message()
            .contains(&format!("all {sessions} sessions")),
        "{status:?}"
    );
    Ok(ids)
}

#[test]
fn a_small_device_is_kept_to_its_budget_in_a_storm_of_captures() -> Result<()> {
    let node = Node::new()?;
    let pods: Vec<Pod> = PODS
        .iter()
        .map(|name| node.pod(name))
        .collect::<Result<_>>()?;
    let sizes = Sizes::of(BUDGET)?;
    let options = Options {
        ring_size: String::new(),
        arguments: vec!["--memory=32MiB".to_owned(), "--quota=64MiB".to_owned()],
        ..Options::default()
    };
    let agent = TestAgent::start_with(&node, options)?;
    let status = agent.status()?;
    assert_eq!(status.ring_bytes, sizes.ring_bytes);
    assert_eq!(status.sessions_limit, sizes.sessions);
    recorded(&agent, &pods.iter().collect::<Vec<_>>())?;
    let pid = agent.pid()?;
    let idle = Taken::of(pid)?;
    ensure!(
        idle.maps > sizes.ring_bytes + sizes.look_back_pod_bytes,
        "{idle:?}"
    );

    let mut senders = Vec::new();
    for (run, pod) in (1..).zip(&pods) {
        let stream = Stream {
            run,
            rate: 3000,
            ..Stream::new(pod.ipv4(), 7000, 0)
        };
        senders.push(stream.send_until_stopped(node.directory(), |tool| node.command(tool))?);
    }
    let done = AtomicBool::new(false);
    let most = thread::scope(|scope| -> Result<Taken> {
        let looking = scope.spawn(|| -> Result<Taken> {
            let mut most = Taken::default();
            while !done.load(Ordering::Relaxed) {
                let now = Taken::of(pid)?;
                if now.kept() > most.kept() {
                    most = now;
                }
                thread::sleep(LOOK);
            }
            Ok(most)
        });
        let storm = || -> Result<()> {
            let mut taken = 0;
            for _ in 0..ROUNDS {
                let ids = all_that_fit(&agent, &pods, sizes.sessions)?;
                wait::pace(ROUND)?;
                for id in ids {
                    let state = agent.stop(&id)?;
                    let counts = state.counts.context("no counts")?;
                    remora_tests::proof::law(&counts)?;
                    taken += counts.written;
                }
            }
            ensure!(taken > 1000, "{taken} packets");
            println!(
                "{} captures, {taken} packets",
                ROUNDS * sizes.sessions as usize
            );
            Ok(())
        };
        let stormed = storm();
        done.store(true, Ordering::Relaxed);
        let most = looking
            .join()
            .map_err(|_panicked| anyhow::anyhow!("the look panicked"))?;
        stormed?;
        most
    })?;
    for sender in senders {
        sender.stop()?;
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for (when, taken) in [("idle", idle), ("at most", most)] {
        println!(
            "{when}: {:.1} MiB kept (own {:.1}, maps {:.1}, programs {:.1}), and {:.1} of files",
            mib(taken.kept()),
            mib(taken.own),
            mib(taken.maps),
            mib(taken.programs),
            mib(taken.files)
        );
    }
    ensure!(most.kept() <= BUDGET, "{most:?} is more than {BUDGET}");
    Ok(())
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_the_least_that_works() -> Result<()> {
    let node = Node::new()?;
    let options = Options {
        ring_size: String::new(),
        ..Options::default()
    };
    let mut agent = TestAgent::start_with(&node, options)?;
    agent.end_by(nix::sys::signal::Signal::SIGTERM)?;
    agent.options().arguments = vec!["--memory=8MiB".to_owned()];
    let said = agent.refuses()?;
    ensure!(said.contains("use 20 MiB or more"), "{said}");
    Ok(())
}
