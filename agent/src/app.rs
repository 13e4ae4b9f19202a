//! The running agent. The only place that knows every module.
//!
//! Start: data directory (lock) → pins → eBPF object → cgroup root → captures that go on, repair of
//! the others → driver → ring consumer → link watch → sockets. Stop: captures drained → sockets closed
//! → programs and maps gone with the process; with pins captures of files stay as they are.

use std::{
    collections::BTreeSet,
    future::Future,
    path::Path,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
#[cfg(feature = "kubernetes")]
use remora_capture::session::LookBackMode;
use remora_capture::session::TapInfo;
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::timeout,
};

/// Bytes of stack of the program's threads.
pub use crate::kernel::look_back::STACK;
#[cfg(feature = "kubernetes")]
use crate::target::kubernetes::{Access, Before, Watch};
use crate::{
    api::{
        Network, NetworkParts, PeerPolicy, ServerParts, Services, StatusSource, serve,
        server::Socket,
    },
    args::{NetworkArgs, RunArgs},
    clock,
    kernel::{
        self, KernelSide, LoadOptions, LookBackOptions, Pins, look_back::Budget, pins::Unpinned,
        progress::Progress,
    },
    node::{AskNumbers, NodeFacts, NodeNumbers},
    session::{Driver, DriverHandle, DriverParts, Standing, driver},
    sink::{
        SessionOutputs, Store,
        evidence::{Recipients, Retention, Sealer},
        upload::Uploads,
    },
    supervisor::{self, Supervisor},
    target::{CgroupRoot, LinkWatcher, Modes, Resolver, pods::KnownPods},
    telemetry::{AdminParts, AdminSocket},
    watch::LinkWatch,
    writer::{Consumer, memory::Memory},
};

/// How long captures may take to be closed at the end.
const DRAIN: Duration = Duration::from_secs(20);
/// How long calls under way may take to end after that.
const CLOSE: Duration = Duration::from_secs(3);
/// How long a pod that is gone is known by its name, at the least.
#[cfg(feature = "kubernetes")]
const PODS_KEPT: Duration = Duration::from_secs(30);

/// Runs the agent until it is told to end.
///
/// # Errors
/// It cannot start, or a part of it ended by itself.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let sizes = args.sizes()?;
    let node = NodeFacts::of_this_machine(args.node)?;
    let peers = PeerPolicy::new(args.group.as_deref())?;
    let network = match network(args.network) {
        Some(parts) => Some(Network::bind(parts).await?),
        None => None,
    };
    let root = match args.cgroup_root {
        Some(path) => CgroupRoot::at(path)?,
        None => CgroupRoot::find()?,
    };
    let retention = args.retention.checked(args.quota)?;
    let store = Store::open(&args.data_dir, args.quota, node.clone())?;
    let store = Arc::new(store.retaining(Retention {
        age: retention.keep_age,
        bytes: retention.keep_bytes,
        namespace: retention.namespace_quota,
    }));
    let keys = store.keys(args.key.as_deref())?;
    let recipients = Recipients::read(&args.encrypt_to)?;
    let (pins, standing) = left(args.pin.as_deref(), &store)?;

    let ring_bytes = u32::try_from(sizes.ring_bytes).context("--ring-size is too large")?;
    let loaded = kernel::load(LoadOptions {
        ring_bytes,
        log: log::LevelFilter::Debug,
        pins: pins.as_ref(),
    })?;
    tracing::debug!(verified = ?loaded.verified, "loaded the programs");
    let mut programs = loaded.programs;
    if let Some(hook) = args.attach.hook() {
        programs.use_hook(hook);
    }
    for interface in kernel::remove_leftovers()? {
        tracing::warn!(
            interface,
            "removed the filters that an agent left when it died"
        );
    }
    let is_pinned = pins.is_some();
    let interfaces = match pins {
        Some(pins) => programs.pin(pins)?,
        None => BTreeSet::new(),
    };
    let cgroups = programs.cgroup_hooks(root.mount())?;
    let look_back = LookBackOptions {
        budget: Budget::new(sizes.look_back_bytes, sizes.look_back_pod_bytes)
            .context("--look-back-memory, --look-back-pod")?,
        flow_cutoff: args.flow_cutoff,
        keep: Duration::from_secs(args.look_back_keep),
    };
    let kernel = KernelSide::new(
        loaded.tables,
        programs,
        cgroups,
        loaded.filters,
        loaded.look_back,
        look_back,
    )?;
    let standing = if is_pinned {
        kernel.restore(standing, interfaces)?
    } else {
        standing
    };
    for recovered in store.recover(&standing)? {
        tracing::warn!(
            capture = %recovered.state.id,
            packets = recovered.state.counts.written,
            truncated_bytes = recovered.truncated_bytes,
            "closed a capture that an agent left open when it died"
        );
    }
    let mut supervisor = Supervisor::default();
    let origin = node.origin(kernel::object_digest());
    let sealer =
        Sealer::new(Arc::clone(&store), keys, origin).context("manifests are made twice")?;
    let sealer = sealer.encrypting_to(recipients);
    supervisor
        .spawn_thread("sealer", || {
            // A trigger goes before the evidence of what has ended.
            kernel::priority::yield_to_others();
            sealer.run();
        })
        .context("failed to start what signs manifests")?;
    let (consumer, mut reader) = Consumer::new(loaded.ring);
    let pinned = loaded.progress.map(|Progress { keep, last }| {
        reader.keep_progress(keep, last.clone());
        last
    });
    let watcher = LinkWatcher::new().context("failed to watch the interfaces")?;
    let (pods, kubernetes) = kubernetes(
        &args.data_dir,
        args.look_back_keep,
        &node.name,
        #[cfg(feature = "kubernetes")]
        (args.kubeconfig.as_ref(), args.privacy_unlisted),
    )
    .await?;
    let resolver = Arc::new(Resolver::with_known(
        root,
        watcher.known_veths(),
        pods.clone(),
    ));
    let totals = Arc::clone(&consumer.totals);

    let (signal_sender, signals) = driver::signals();
    let outputs = SessionOutputs {
        store: Arc::clone(&store),
        consumer,
        memory: Memory::new(sizes.common_batches),
        signals: signal_sender,
        node: node.clone(),
        runtime: Handle::current(),
        rings: Arc::new(kernel.clone()),
        pinned,
    };
    let (driver, handle) = Driver::new(DriverParts {
        taps: Arc::new(kernel.clone()),
        targets: Arc::clone(&resolver) as _,
        outputs: Arc::new(outputs),
        node: node.name.clone(),
        now_ns: clock::monotonic_ns,
        known: store.finished()?,
        standing,
        signals,
        sessions: sizes.sessions,
        rates: args.rates.rates(),
    });
    // Only now, for what goes on is read from where it was left.
    supervisor
        .spawn_thread("ring-consumer", || reader.run())
        .context("failed to start the ring's reader")?;

    let (stop, stopped) = watch::channel(false);
    if let Some(follow) = kubernetes {
        let stopped = until_stopped(stopped.clone());
        supervisor.spawn("kubernetes", async move {
            tokio::select! {
                () = follow => anyhow::bail!("the API server is followed no more"),
                () = stopped => Ok(()),
            }
        });
    }
    supervisor.spawn("driver", async move {
        driver.run().await;
        Ok(())
    });
    let links = LinkWatch::new(
        kernel.clone(),
        Arc::clone(&resolver),
        Modes::new(args.look_back_mode, args.look_back_rules),
    );
    let watch = links.clone();
    supervisor
        .spawn_thread("link-watch", move || watch.run(watcher))
        .context("failed to start the link watch")?;
    let (ended, named) = (kernel.clone(), Arc::clone(&resolver));
    let (kept, asked, custodian) = (Arc::clone(&store), Arc::clone(&store), Arc::clone(&store));
    let tls = network.as_ref().map(Network::numbers);
    let uploads = Uploads::new(
        Arc::clone(&store),
        args.sink.sink_host,
        args.sink.sink_ca.as_deref(),
        supervisor::detach,
    )?;
    let uploader = Arc::new(uploads.clone());

    let numbers: AskNumbers = Arc::new(move || NodeNumbers {
        sessions_limit: sizes.sessions,
        ring_bytes: ring_bytes.into(),
        store_bytes: store.used_bytes(),
        store_quota_bytes: store.quota_bytes(),
        records_stale: totals.stale.load(Ordering::Relaxed),
        records_malformed: totals.malformed.load(Ordering::Relaxed),
        filters_loaded: kernel.upgrade().loaded(),
        filters_refused: kernel.upgrade().refused(),
        taps: attached(&kernel, &named),
        pods: pods.numbers(),
        chain_head: store.seals().head(),
        tls: tls.as_ref().map(|numbers| numbers()),
        retention: store.retention_numbers(),
        uploads: uploads.numbers(),
    });
    let socket = Socket::bind(&args.socket, &peers).await?;
    if let Some(address) = &args.metrics {
        let socket = AdminSocket::bind(address)
            .await
            .with_context(|| format!("failed to listen on {address:?} for metrics"))?;
        tracing::info!(address = socket.address(), "serving metrics");
        let parts = AdminParts {
            driver: handle.clone(),
            numbers: Arc::clone(&numbers),
        };
        supervisor.spawn(
            "metrics",
            socket.serve(parts, until_stopped(stopped.clone())),
        );
    }
    let status = StatusSource {
        node: node.clone(),
        started: Timestamp::now(),
        numbers,
    };
    let services = Services::new(ServerParts {
        driver: handle.clone(),
        peers,
        status,
        evidence: Arc::new(move |id| asked.evidence(id)),
        custodian,
        uploader,
    })
    .await?;
    if let Some(network) = network {
        let stopped = until_stopped(stopped.clone());
        supervisor.spawn("api-tls", network.serve(services.clone(), stopped));
    }
    supervisor.spawn("api", serve(socket, services, until_stopped(stopped)));
    tracing::info!(
        node = %node.name, socket = %args.socket.display(), data = %args.data_dir.display(),
        "ready"
    );

    let mut ending = Ending::new()?;
    let failed = tokio::select! {
        () = ending.asked() => None,
        error = supervisor.first_end() => Some(error),
    };
    let drained = tokio::select! {
        drained = drain(&handle, is_pinned) => drained,
        () = ending.asked() => {
            tracing::warn!("told twice to end: captures are left to the next start's repair");
            false
        }
    };
    links.stop();
    kept.seals().end();
    stop.send_replace(true);
    drop(handle);
    if !supervisor.join(CLOSE).await {
        tracing::debug!("some calls were still under way");
    }
    ended.close();
    match failed {
        Some(error) => Err(error),
        None if !drained => anyhow::bail!("captures were not closed in order"),
        None => Ok(()),
    }
}

/// Follows the API server for ever.
type Follow = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What will be known of the node's pods, and what follows the API server, if somebody shall.
#[cfg(feature = "kubernetes")]
async fn kubernetes(
    data_dir: &Path,
    keep: u64,
    node: &str,
    (access, unlisted): (Option<&Access>, LookBackMode),
) -> anyhow::Result<(KnownPods, Option<Follow>)> {
    let Some(access) = access else {
        return Ok((KnownPods::default(), None));
    };
    let before = Before::at(data_dir);
    // A pod's name is good for as long as its look-back, and for a moment after it is gone in any case.
    let keep = Duration::from_secs(keep).max(PODS_KEPT);
    let pods = KnownPods::of_kubernetes(keep, before.read().unwrap_or(unlisted));
    let watch = Watch::new(access, node, pods.clone()).await?;
    Ok((pods, Some(Box::pin(watch.run(before)))))
}

#[cfg(not(feature = "kubernetes"))]
async fn kubernetes(
    _data_dir: &Path,
    _keep: u64,
    _node: &str,
) -> anyhow::Result<(KnownPods, Option<Follow>)> {
    Ok((KnownPods::default(), None))
}

/// What the flags say of the network; clap has seen to it that all are there.
fn network(args: NetworkArgs) -> Option<NetworkParts> {
    Some(NetworkParts {
        address: args.listen?,
        cert: args.tls_cert?,
        key: args.tls_key?,
        ca: args.tls_ca?,
        clients: args.tls_client_san,
    })
}

/// The pins, and the sessions that go on; without any, what is pinned is begun anew.
fn left(directory: Option<&Path>, store: &Store) -> anyhow::Result<(Option<Pins>, Vec<Standing>)> {
    let standing = store.standing()?;
    let Some(directory) = directory else {
        if !standing.is_empty() {
            tracing::warn!(
                captures = standing.len(),
                "captures of an agent with --pin are closed; `remora-agent cleanup` removes what it \
                 left in the kernel"
            );
        }
        return Ok((None, Vec::new()));
    };
    let mut pins = Pins::open(directory)?;
    if standing.is_empty() || !pins.are_left() {
        let Unpinned { links, maps } = pins.remove_all()?;
        if maps > 0 {
            tracing::info!(
                links,
                maps,
                "no capture goes on: what was pinned is made anew"
            );
        }
        return Ok((Some(pins), Vec::new()));
    }
    Ok((Some(pins), standing))
}

async fn drain(handle: &DriverHandle, is_pinned: bool) -> bool {
    tracing::info!("ending");
    let ended = async {
        if is_pinned {
            handle.leave().await;
        } else {
            handle.drain().await;
        }
    };
    let drained = timeout(DRAIN, ended).await.is_ok();
    if !drained {
        tracing::error!("captures were not closed within {DRAIN:?}");
    }
    drained
}

async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    // The sender's end is the agent's.
    let _ended = stopped.wait_for(|stopped| *stopped).await;
}

/// SIGTERM and SIGINT.
struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("failed to listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn attached(kernel: &KernelSide, resolver: &Resolver) -> Vec<TapInfo> {
    let rings = kernel.look_back_rings();
    let hook = kernel.hook().name();
    kernel
        .interfaces()
        .into_iter()
        .map(|(ifindex, _)| {
            let ring = rings.get(&ifindex);
            TapInfo {
                hook: hook.to_owned(),
                interface: interface_name(ifindex),
                ifindex,
                description: ring
                    .and_then(|(tap, _)| resolver.who(*tap))
                    .unwrap_or_default(),
                look_back: ring.map(|(_, ring)| *ring),
                ..TapInfo::default()
            }
        })
        .collect()
}

fn interface_name(ifindex: u32) -> String {
    nix::net::if_::if_indextoname(ifindex)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
