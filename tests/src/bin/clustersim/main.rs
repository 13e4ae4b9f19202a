//! How one controller does in a large cluster: thousands of agents and many pods, all simulated by
//! this process; alerts come at a steady rate, whether the ones before were answered or not.
//!
//! ```text
//! clustersim ──alerts──▶ remora-controller ──gRPC──▶ clustersim's agents
//!      └──── API server: lists, watches ───┘
//! ```
#![forbid(unsafe_code)]

mod agents;
mod api;
mod world;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use remora_tests::{
    name,
    run::{self, Proc},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    agents::Asked,
    api::{Api, Load},
    world::{RULES, World},
};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    #[arg(long, default_value_t = 150_000)]
    pods: usize,
    /// Alerts of a minute
    #[arg(long, default_value_t = 10_000)]
    rate: usize,
    /// Seconds of alerts
    #[arg(long, default_value_t = 60)]
    seconds: usize,
    /// Pods that change each second
    #[arg(long, default_value_t = 100)]
    changes: u64,
    /// Port of the controller on 127.0.0.1
    #[arg(long, default_value_t = 28_803)]
    port: u16,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let world = World {
        nodes: args.nodes,
        pods: args.pods,
    };
    let directory = name::directory()?;
    let (asked, load) = (Arc::new(Asked::default()), Arc::new(Load::default()));
    let list = agents::listen(directory.path(), world.nodes, &asked)?;
    fs::write(directory.path().join("agents"), list)?;
    fs::write(directory.path().join("rules.yaml"), world::rules())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, kubeconfig_of(listener.local_addr()?))?;
    let api = Api {
        world,
        changes: args.changes,
        load: load.clone(),
    };
    tokio::spawn(api.serve(listener));

    let address = SocketAddr::from(([127, 0, 0, 1], args.port));
    let mut controller = controller(directory.path(), &kubeconfig, address)?;
    let began = Instant::now();
    let grpc = directory.path().join("grpc.sock");
    synced(&grpc, &mut controller).await?;
    let pid = controller.pid();
    println!(
        "{} nodes, {} pods: known after {:.1} s; {}",
        world.nodes,
        world.pods,
        began.elapsed().as_secs_f64(),
        memory(pid)?
    );
    println!(
        "API server: {} requests, {} MiB",
        load.requests.load(Ordering::Relaxed),
        load.bytes.load(Ordering::Relaxed) >> 20
    );

    let before = (
        cpu(pid)?,
        load.bytes.load(Ordering::Relaxed),
        load.requests.load(Ordering::Relaxed),
    );
    let mut took = alerts(&args, world, address).await?;
    let seconds = args.seconds as f64;
    let cores = (cpu(pid)? - before.0) / seconds;
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{} alerts in {} s: answered in p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, at most {:.2} ms",
        took.len(),
        args.seconds,
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    println!(
        "agents: {} starts, {} lists",
        asked.starts.load(Ordering::Relaxed),
        asked.lists.load(Ordering::Relaxed)
    );
    println!("controller: {cores:.2} cores, {}", memory(pid)?);
    let bytes = (load.bytes.load(Ordering::Relaxed) - before.1) as f64 / seconds / 1024.0;
    let requests = (load.requests.load(Ordering::Relaxed) - before.2) as f64 / seconds;
    println!(
        "API server meanwhile: {requests:.2} requests and {bytes:.0} KiB a second, {} pods changed a second",
        args.changes
    );
    println!("in the controller, of all: {}", histogram(address).await?);
    Ok(())
}

fn kubeconfig_of(server: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: \"http://{server}\"}}}}]\n\
         users: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a, namespace: remora}}}}]\n"
    )
}

fn controller(
    directory: &std::path::Path,
    kubeconfig: &PathBuf,
    address: SocketAddr,
) -> Result<Proc> {
    let mut command = run::command(run::remora_program("remora-controller")?);
    command
        .env("KUBECONFIG", kubeconfig)
        .env("RUST_LOG", "error")
        .args(["run", "--kubernetes", "--listen", &address.to_string()])
        .arg("--agents")
        .arg(directory.join("agents"))
        .arg("--rules")
        .arg(directory.join("rules.yaml"))
        .arg("--grpc-listen")
        .arg(format!("unix:{}", directory.join("grpc.sock").display()));
    Proc::spawn(&mut command, directory, "controller")
}

/// Waits until the controller knows the cluster: a pod of the last deployment is found.
async fn synced(socket: &std::path::Path, controller: &mut Proc) -> Result<()> {
    use remora_proto::{client, v1};
    let address = client::AgentAddress::Unix(socket.to_owned());
    let limit = Instant::now() + Duration::from_secs(300);
    loop {
        if let Some(status) = controller.ended()? {
            anyhow::bail!("the controller ended ({status}): {}", controller.tail());
        }
        ensure!(
            Instant::now() < limit,
            "the cluster is not known: {}",
            controller.tail()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
        let Ok(channel) = client::connect(&address).await else {
            continue;
        };
        // A selector of nobody: answered from memory, and refused as not known before.
        let request = v1::ClusterStartRequest {
            selector: Some(v1::Selector {
                namespace: "nowhere".into(),
                kind: Some(v1::selector::Kind::Service("none".into())),
            }),
            ..Default::default()
        };
        let mut cluster = v1::cluster_client::ClusterClient::new(channel);
        match cluster.start(request).await {
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
            _ => {}
        }
    }
}

/// Sends alerts at their times, and how long each answer took from its time on.
async fn alerts(args: &Args, world: World, address: SocketAddr) -> Result<Vec<Duration>> {
    let count = args.rate * args.seconds / 60;
    let pause = Duration::from_secs(60) / u32::try_from(args.rate)?;
    let mix: Vec<_> = RULES
        .iter()
        .flat_map(|(name, _, share)| std::iter::repeat_n(*name, *share))
        .collect();
    let began = Instant::now();
    let mut posts = JoinSet::new();
    for n in 0..count {
        let due = began + pause * u32::try_from(n)?;
        tokio::time::sleep_until(due.into()).await;
        let pod = n.wrapping_mul(7919) % world.pods;
        let other = (pod + world.pods / 2) % world.pods;
        let alert = world.alert(n, mix[n % mix.len()], pod, other);
        posts.spawn(async move {
            let answer = post(address, &alert.to_string()).await?;
            ensure!(answer.contains(" 202 "), "{answer}");
            anyhow::Ok(due.elapsed())
        });
    }
    let mut took = Vec::with_capacity(count);
    while let Some(answer) = posts.join_next().await {
        took.push(answer?.context("an alert was not accepted")?);
    }
    Ok(took)
}

async fn post(address: SocketAddr, body: &str) -> Result<String> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(address, &(head + body)).await
}

async fn exchange(address: SocketAddr, request: &str) -> Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Of the controller's own histogram: how many were decided within what time.
async fn histogram(address: SocketAddr) -> Result<String> {
    let text = exchange(
        address,
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await?;
    let buckets = text.lines().filter_map(|line| {
        let (bound, count) = line
            .strip_prefix("remora_controller_answer_seconds_bucket{le=\"")?
            .split_once("\"} ")?;
        Some(format!("{count} within {bound} s"))
    });
    Ok(buckets.collect::<Vec<_>>().join(", "))
}

fn memory(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| -> Result<u64> {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .context("no such line")?;
        Ok(line
            .split_whitespace()
            .nth(1)
            .context("no number")?
            .parse()?)
    };
    Ok(format!(
        "{} MiB resident, {} MiB at most",
        kib("VmRSS:")? >> 10,
        kib("VmHWM:")? >> 10
    ))
}

/// CPU seconds that a process has used.
fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .context("no name")?
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}
