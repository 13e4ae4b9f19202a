//! `remora up`: agent and controller side by side in the foreground, for a try on one host.
//!
//! ```text
//! DIR/agent.sock    where the agent serves          DIR/rules.yaml  which alert starts which capture
//! DIR/captures/     its data directory
//!
//! rights, programs, address ─▶ agent serves ─▶ controller takes alerts ─▶ ready ─▶ a signal, or one ends
//!                                                     controller ends, then the agent ◀─┘
//! ```
//! Both get a process group of their own, so that Ctrl-C reaches `remora up` alone, and SIGTERM from the
//! kernel should it be killed ([`child`]).

mod child;
mod place;
mod rights;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use remora_proto::{
    client::{self, AgentAddress},
    v1,
};
use tokio::{
    net::TcpStream,
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep, timeout},
};

use super::Outcome;
use crate::{args::UpArgs, terminal};
use child::Child;
use place::Place;

pub(crate) use child::run_with_parent;

/// How long each may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long the controller and the agent may take to end in order; the agent takes at most 23 s itself.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// Between two looks at what starts.
const LOOK: Duration = Duration::from_millis(50);

/// Runs both until a signal comes.
///
/// # Errors
/// They cannot be started, or one of them ended by itself.
pub(crate) async fn run(args: &UpArgs) -> anyhow::Result<Outcome> {
    rights::check()?;
    let agent_program = program("remora-agent")?;
    let controller_program = program("remora-controller")?;
    free(args.listen)?;
    let mut place = Place::make(args.data_dir.as_deref())?;
    let address = place.address()?;
    let rules = place.rules(&args.rules)?;
    let mut ending = Ending::install()?;

    let mut agent = Child::start("agent", &agent_program, &agent_words(args, &place))?;
    let started = ending
        .unless_asked(agent_serves(&mut agent, &address))
        .await;
    let mut running = Running {
        agent,
        controller: None,
    };
    let outcome = match started {
        Some(Ok(node)) => {
            let words = controller_words(args, &address, &rules);
            serve(
                &mut running,
                &mut ending,
                args,
                &place,
                &node,
                &controller_program,
                &words,
            )
            .await
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    let stopped = running.stop(&mut ending).await;
    terminal::note(&place.farewell());
    outcome.and(stopped)?;
    Ok(Outcome::Done)
}

/// From an agent that serves to the first reason to end.
async fn serve(
    running: &mut Running,
    ending: &mut Ending,
    args: &UpArgs,
    place: &Place,
    node: &str,
    program: &Path,
    words: &[String],
) -> anyhow::Result<()> {
    let controller = Child::start("controller", program, words)?;
    let controller = running.controller.insert(controller);
    match ending
        .unless_asked(takes_alerts(controller, args.listen))
        .await
    {
        Some(taken) => taken?,
        None => return Ok(()),
    }
    terminal::print(&welcome(args.listen, place, node)).context("standard output failed")?;
    tokio::select! {
        () = ending.asked() => Ok(()),
        error = running.first_end() => Err(error),
    }
}

fn agent_words(args: &UpArgs, place: &Place) -> Vec<String> {
    let mut words = vec!["run".to_owned()];
    words.push(config(args.agent_config.as_deref()));
    words.push(format!("--socket={}", place.socket().display()));
    words.push(format!("--data-dir={}", place.captures().display()));
    words
}

fn controller_words(args: &UpArgs, agent: &AgentAddress, rules: &[PathBuf]) -> Vec<String> {
    let mut words = vec!["run".to_owned()];
    words.push(config(args.controller_config.as_deref()));
    words.push(format!("--agent={agent}"));
    words.push(format!("--listen={}", args.listen));
    words.extend(
        rules
            .iter()
            .map(|file| format!("--rules={}", file.display())),
    );
    words
}

/// The host's own settings are for the host's own agent.
fn config(file: Option<&Path>) -> String {
    format!(
        "--config={}",
        file.unwrap_or(Path::new("/dev/null")).display()
    )
}

/// One of our programs: beside this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    let path = own.with_file_name(name);
    if !path.is_file() {
        bail!(
            "there is no {}: `cargo xtask build` makes all programs side by side",
            path.display()
        );
    }
    Ok(path)
}

/// Somebody else's answer there would look like the controller's.
fn free(address: SocketAddr) -> anyhow::Result<()> {
    let bound = TcpListener::bind(address);
    bound.map(drop).with_context(|| {
        format!(
            "alerts cannot be taken at {address}; does another controller run? --listen is where"
        )
    })
}

/// The agent's node, when it serves.
async fn agent_serves(agent: &mut Child, address: &AgentAddress) -> anyhow::Result<String> {
    let asked = async {
        loop {
            agent.still_runs()?;
            if let Ok(channel) = client::connect(address).await {
                let mut node = client::node_client(channel);
                if let Ok(status) = node.status(v1::StatusRequest {}).await {
                    return Ok(status.into_inner().node);
                }
            }
            sleep(LOOK).await;
        }
    };
    let served = timeout(START_LIMIT, asked).await;
    served.with_context(|| format!("the agent does not serve within {START_LIMIT:?}"))?
}

async fn takes_alerts(controller: &mut Child, address: SocketAddr) -> anyhow::Result<()> {
    let asked = async {
        loop {
            controller.still_runs()?;
            if TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    };
    let taken = timeout(START_LIMIT, asked).await;
    taken.with_context(|| format!("the controller takes no alerts within {START_LIMIT:?}"))?
}

fn welcome(listen: SocketAddr, place: &Place, node: &str) -> String {
    let (captures, socket) = (place.captures(), place.socket());
    format!(
        "\nRemora is up on {}.\n\
         alerts    http://{listen}/ (Falco's http_output.url, Falcosidekick's webhook.address)\n\
         rules     {}\n\
         captures  {}\n\
         commands  export REMORA_AGENT=unix:{}; remora list --all\n\
         Ctrl-C ends it.\n\n",
        remora_capture::text::shown(node),
        place.rules_shown(),
        captures.display(),
        socket.display(),
    )
}

/// What was started.
struct Running {
    agent: Child,
    controller: Option<Child>,
}

impl Running {
    /// Until one ends by itself.
    async fn first_end(&mut self) -> anyhow::Error {
        let Self { agent, controller } = self;
        match controller {
            Some(controller) => tokio::select! {
                error = agent.ended() => error,
                error = controller.ended() => error,
            },
            None => agent.ended().await,
        }
    }

    /// Ends both in order: no alert is taken whose capture nobody would make.
    async fn stop(&mut self, ending: &mut Ending) -> anyhow::Result<()> {
        let Self { agent, controller } = self;
        let in_order = async {
            if let Some(controller) = controller {
                controller.stop(STOP_LIMIT).await?;
            }
            agent.stop(STOP_LIMIT).await
        };
        let ended = ending.unless_asked(in_order).await;
        match ended {
            Some(ended) => ended,
            None => {
                agent.kill().await;
                if let Some(controller) = &mut self.controller {
                    controller.kill().await;
                }
                bail!("told twice to end: captures are left to the next start's repair")
            }
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP; from its making on they end nothing by themselves.
struct Ending([Signal; 3]);

impl Ending {
    fn install() -> anyhow::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let [a, b, c] = kinds.map(|kind| signal(kind).context("no signal handler"));
        Ok(Self([a?, b?, c?]))
    }

    async fn asked(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }

    /// `None`: a signal came first.
    async fn unless_asked<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.asked() => None,
        }
    }
}
