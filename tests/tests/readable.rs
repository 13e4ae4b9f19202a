//! How soon after a packet it can be read in the file: printed, not asserted but for being there.

use std::{
    io::Read as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use remora_tests::{
    agent::{TestAgent, of_pod_filtered},
    node::Node,
    numbered::Number,
    run,
    traffic::{self, Stream},
    wait,
    wire::Tcpdump,
};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const PACKETS: u64 = 300;
/// Packets a second: each is alone.
const RATE: u64 = 100;
const LIMIT: Duration = Duration::from_secs(20);
/// How often the file is looked at.
const LOOK: Duration = Duration::from_micros(200);

/// Watches a file grow until `PACKETS` packets are in it; the time from the sending of each to the
/// moment when it was there.
fn delays(path: &Path) -> Result<Vec<Duration>> {
    let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let (mut bytes, mut at) = (Vec::new(), 0);
    let mut delays = Vec::new();
    let until = SystemTime::now() + LIMIT;
    while (delays.len() as u64) < PACKETS && SystemTime::now() < until {
        if file.read_to_end(&mut bytes)? == 0 {
            std::thread::sleep(LOOK);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        // The last number of a block whose end is not there yet is found the next time.
        while at + 22 <= bytes.len() {
            if let Some(number) = Number::decode(&bytes[at..]) {
                delays.push(now.saturating_sub(Duration::from_nanos(number.sent_ns)));
                at += 22;
            } else {
                at += 1;
            }
        }
    }
    Ok(delays)
}

fn row(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{what:<44} {:>4} {:>8.2} {:>8.2} {:>8.2}",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

#[test]
fn how_soon_a_packet_can_be_read() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let stream = Stream {
        rate: RATE,
        ..Stream::new(api.ipv4(), PORT, PACKETS)
    };
    let watched = |path: &Path| -> Result<Vec<Duration>> {
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| delays(path));
            stream.send(|tool| web.command(tool))?;
            watcher
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    };
    println!(
        "{:<44} {:>4} {:>8} {:>8} {:>8}",
        "milliseconds", "n", "p50", "p99", "max"
    );

    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let part = agent.data_dir().join(format!("{}.part", state.file));
    wait::until(LIMIT, "the file", || Ok(part.exists()))?;
    let stored = watched(&part)?;
    agent.stop(&state.id)?;
    assert_eq!(stored.len() as u64, PACKETS);
    row("packet sent -> in the agent's file", stored);

    let file = node.directory().join("web.pcapng");
    let mut command = run::command(run::remora_program("remora")?);
    command
        .args(["--agent", &agent.address(), "capture", "-U"])
        .arg(format!("cgroup:{}", web.cgroup().path()))
        .args(["-f", FILTER, "-w"])
        .arg(&file);
    let mut process = node.spawn(&mut command, "remora")?;
    process.wait_for("capturing on", LIMIT)?;
    let written = watched(&file)?;
    process.end_by(Signal::SIGINT, LIMIT)?;
    assert_eq!(written.len() as u64, PACKETS);
    row("packet sent -> in the file of remora -U -w", written);

    let tcpdump = Tcpdump::start(
        |program| node.command(program),
        web.interface(),
        FILTER,
        node.directory(),
    )?;
    let peers = watched(tcpdump.file())?;
    tcpdump.stop()?;
    row("packet sent -> in the file of tcpdump -U", peers);
    Ok(())
}
