//! How one controller does in a large cluster: thousands of agents and many pods, all simulated by
//! this process; alerts come at a steady rate, whether the ones before were answered or not.
//!
//! ```text
//! alerts ──HTTP──▶ remora-controller ──gRPC──▶ agents
//!                          └─── API server: lists, watches
//! ```
//! All but the controller are this process; each agent has a socket of its own. Fails unless every alert is
//! accepted and each of its pods' agents is asked once.
#![forbid(unsafe_code)]

mod agents;
mod api;
mod world;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use remora_proto::{client, v1};
use remora_tests::{
    latency, name,
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
    world::{RULES, Rule, World},
};

/// How long something may take that takes seconds.
const LIMIT: Duration = Duration::from_secs(300);

/// One controller in a large cluster, whose agents and API server are simulated
#[derive(Debug, Parser)]
struct Args {
    /// Nodes, each with an agent; of two sockets each and the controller's one, as `ulimit -n` allows
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// Pods, ten of each deployment
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
    /// Port of the controller on 127.0.0.1 [default: one that is free]
    #[arg(long)]
    port: Option<u16>,
}

impl Args {
    fn alerts(&self) -> usize {
        self.rate * self.seconds / 60
    }

    /// Of the alerts in turn, over and over.
    fn rules(&self) -> Vec<&'static Rule> {
        let of_ten = |rule: &'static Rule| std::iter::repeat_n(rule, rule.of_ten);
        RULES.iter().flat_map(of_ten).collect()
    }
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
        load: Arc::clone(&load),
    };
    tokio::spawn(api.serve(listener));

    let free = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let address = SocketAddr::from(([127, 0, 0, 1], args.port.unwrap_or(free)));
    let mut controller = controller(directory.path(), &kubeconfig, address)?;
    let began = Instant::now();
    synced(&directory.path().join("grpc.sock"), &mut controller).await?;
    let pid = controller.pid();
    let Usage { memory, .. } = Usage::of(pid)?;
    println!(
        "{} nodes, {} pods: known after {:.1} s and {} requests for {} MiB; controller: {memory}",
        world.nodes,
        world.pods,
        began.elapsed().as_secs_f64(),
        load.requests.load(Relaxed),
        load.bytes.load(Relaxed) >> 20
    );

    let before = (
        Usage::of(pid)?,
        load.requests.load(Relaxed),
        load.bytes.load(Relaxed),
    );
    let took = alerts(&args, world, address).await?;
    let after = Usage::of(pid)?;
    let seconds = args.seconds as f64;
    let at = |share| latency::quantile(&took, share).as_secs_f64() * 1e3;
    println!(
        "{} alerts in {} s: answered in p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms",
        took.len(),
        args.seconds,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    println!("of these in the controller: {}", histogram(address).await?);
    println!(
        "controller: {:.2} cores, {}",
        (after.cpu - before.0.cpu) / seconds,
        after.memory
    );
    let of_a_second = |total: u64, before: u64| (total - before) as f64 / seconds;
    println!(
        "API server meanwhile, in a second: {} pods changed, {:.2} requests, {:.0} KiB",
        args.changes,
        of_a_second(load.requests.load(Relaxed), before.1),
        of_a_second(load.bytes.load(Relaxed), before.2) / 1024.0
    );
    every_agent_once(&asked, &args).await
}

/// Each alert starts a capture at the agent of each of its pods, and no more.
async fn every_agent_once(asked: &Asked, args: &Args) -> Result<()> {
    let rules = args.rules();
    let expected: u64 = (0..args.alerts())
        .map(|n| rules[n % rules.len()].pods)
        .sum();
    let limit = Instant::now() + LIMIT;
    while asked.starts.load(Relaxed) < expected && Instant::now() < limit {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (starts, lists) = (asked.starts.load(Relaxed), asked.lists.load(Relaxed));
    println!("agents: {starts} starts of {expected}, {lists} lists");
    ensure!(starts == expected, "not every pod's agent was asked once");
    Ok(())
}

fn kubeconfig_of(server: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: \"http://{server}\"}}}}]\n\
         users: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a, namespace: remora}}}}]\n"
    )
}

fn controller(directory: &Path, kubeconfig: &Path, address: SocketAddr) -> Result<Proc> {
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
async fn synced(socket: &Path, controller: &mut Proc) -> Result<()> {
    let address = client::AgentAddress::Unix(socket.to_owned());
    let limit = Instant::now() + LIMIT;
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
    let pause = Duration::from_secs(60) / u32::try_from(args.rate)?;
    let rules = args.rules();
    let began = Instant::now();
    let mut posts = JoinSet::new();
    for n in 0..args.alerts() {
        let due = began + pause * u32::try_from(n)?;
        tokio::time::sleep_until(due.into()).await;
        let pod = n.wrapping_mul(7919) % world.pods;
        let other = (pod + world.pods / 2) % world.pods;
        let alert = world.alert(n, rules[n % rules.len()].name, pod, other);
        posts.spawn(async move {
            let answer = post(address, &alert.to_string()).await?;
            ensure!(answer.contains(" 202 "), "{answer}");
            anyhow::Ok(due.elapsed())
        });
    }
    let mut took = Vec::with_capacity(posts.len());
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

/// Of a process.
struct Usage {
    /// Seconds.
    cpu: f64,
    /// For a person.
    memory: String,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |name: &str| -> Result<u64> {
            let line = status.lines().find(|line| line.starts_with(name));
            let kib = line.and_then(|line| line.split_whitespace().nth(1));
            Ok(kib.context("no such line")?.parse::<u64>()? >> 10)
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        // utime and stime, proc_pid_stat(5), in ticks of 10 ms.
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = times.map(str::parse::<u64>).sum::<Result<_, _>>()?;
        Ok(Self {
            cpu: ticks as f64 / 100.0,
            memory: format!(
                "{} MiB resident, {} MiB at most",
                mib("VmRSS:")?,
                mib("VmHWM:")?
            ),
        })
    }
}
