//! etcd, API server, controller-manager and scheduler.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::{
    access::{self, Access},
    door::Door,
    kubectl::Kubectl,
    lan::{self, Lan},
    programs,
};
use crate::{
    run::{self, Proc},
    wait,
};

/// The API server's port: that of its Service, whose address is its own too.
const PORT: u16 = 443;
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";
/// How long a program may take to serve, or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// The running programs.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order.
    _door: Door,
    address: SocketAddr,
    _scheduler: Proc,
    _manager: Proc,
    api: Mutex<Option<Proc>>,
    _etcd: Proc,
    command: ApiCommand,
}

/// How the API server is started, again too.
#[derive(Debug)]
struct ApiCommand {
    netns: PathBuf,
    arguments: Vec<String>,
    directory: PathBuf,
    probe: Kubectl,
}

impl ControlPlane {
    pub(super) fn start(lan: &Lan, access: &Access, directory: &Path) -> Result<Self> {
        let netns = lan.netns();
        let inside = SocketAddr::from((lan::API, PORT));
        let door = Door::open(netns.path(), inside)?;
        let address = door.address();
        let spawn = |name: &str, arguments: &[String]| {
            let mut command = netns.command(programs::program(name)?);
            Proc::spawn(command.args(arguments), directory, name)
        };
        let etcd = spawn("etcd", &etcd_arguments(directory))?;
        let command = ApiCommand {
            netns: netns.path().to_owned(),
            arguments: api_arguments(access),
            directory: directory.to_owned(),
            probe: Kubectl::new(access.kubeconfig(access::ADMIN, &url(address), directory)?)?,
        };
        let api = command.start()?;
        let inside = format!("https://{}:{PORT}", lan::API);
        let manager = access.kubeconfig(access::CONTROLLER_MANAGER, &inside, directory)?;
        let scheduler = access.kubeconfig(access::SCHEDULER, &inside, directory)?;
        Ok(Self {
            _door: door,
            address,
            _scheduler: spawn("kube-scheduler", &common_arguments(&scheduler))?,
            _manager: spawn(
                "kube-controller-manager",
                &manager_arguments(&manager, access),
            )?,
            api: Mutex::new(Some(api)),
            _etcd: etcd,
            command,
        })
    }

    /// Where the API server is reached from the root network namespace.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.address)
    }

    /// Ends the API server: from then on connections to it are closed.
    ///
    /// # Errors
    /// It had ended, or does not end in time.
    pub fn stop_api(&self) -> Result<()> {
        let mut api = self.api.lock().expect("no test panicked with it");
        let mut process = api.take().context("the API server is stopped already")?;
        process.end_by(Signal::SIGKILL, LIMIT).map(drop)
    }

    /// Starts it again and waits until it serves.
    ///
    /// # Errors
    /// It does not; with its log.
    pub fn start_api(&self) -> Result<()> {
        let mut api = self.api.lock().expect("no test panicked with it");
        *api = Some(self.command.start()?);
        Ok(())
    }

    /// Stops it in its tracks (`SIGSTOP`) or lets it go on (`SIGCONT`): connections stay, and
    /// nobody answers.
    ///
    /// # Errors
    /// It is not running.
    pub fn signal_api(&self, signal: Signal) -> Result<()> {
        let api = self.api.lock().expect("no test panicked with it");
        api.as_ref()
            .context("the API server is stopped")?
            .signal(signal)
    }
}

impl ApiCommand {
    fn start(&self) -> Result<Proc> {
        let mut nsenter = run::command("nsenter");
        nsenter
            .arg(format!("--net={}", self.netns.display()))
            .arg("--")
            .arg(programs::program("kube-apiserver")?)
            .args(&self.arguments);
        let mut process = Proc::spawn(&mut nsenter, &self.directory, "kube-apiserver")?;
        wait::until(LIMIT, "an API server that serves", || {
            let ended = process.ended()?;
            anyhow::ensure!(ended.is_none(), "it ended: {ended:?}");
            Ok(self.probe.run(&["get", "--raw", "/readyz"]).is_ok())
        })
        .with_context(|| process.tail())?;
        Ok(process)
    }
}

fn url(address: SocketAddr) -> String {
    format!("https://{address}")
}

fn etcd_arguments(directory: &Path) -> Vec<String> {
    let data = directory.join("etcd");
    [
        ("data-dir", data.display().to_string()),
        ("listen-client-urls", ETCD.into()),
        ("advertise-client-urls", ETCD.into()),
        ("listen-peer-urls", ETCD_PEERS.into()),
        ("initial-advertise-peer-urls", ETCD_PEERS.into()),
        ("initial-cluster", format!("default={ETCD_PEERS}")),
        ("log-level", "warn".into()),
        // What a crash loses here is the cluster's, which ends with it.
        ("unsafe-no-fsync", "true".into()),
    ]
    .map(flag)
    .into()
}

fn api_arguments(access: &Access) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let (server, to_kubelets) = (&access.server, &access.to_kubelets);
    let accounts = path(&access.accounts_key());
    [
        ("etcd-servers", ETCD.into()),
        ("secure-port", PORT.to_string()),
        ("bind-address", "0.0.0.0".into()),
        ("advertise-address", lan::API.to_string()),
        ("service-cluster-ip-range", lan::SERVICES.into()),
        ("tls-cert-file", path(&server.certificate)),
        ("tls-private-key-file", path(&server.key)),
        ("client-ca-file", path(&access.authority().certificate())),
        ("token-auth-file", path(&access.token_table())),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction".into()),
        ("allow-privileged", "true".into()),
        (
            "service-account-issuer",
            "https://kubernetes.default.svc".into(),
        ),
        (
            "service-account-key-file",
            path(&access.accounts_public_key()),
        ),
        ("service-account-signing-key-file", accounts),
        ("kubelet-client-certificate", path(&to_kubelets.certificate)),
        ("kubelet-client-key", path(&to_kubelets.key)),
        // Names of nodes resolve nowhere.
        ("kubelet-preferred-address-types", "InternalIP".into()),
    ]
    .map(flag)
    .into()
}

fn manager_arguments(kubeconfig: &Path, access: &Access) -> Vec<String> {
    let mut arguments = common_arguments(kubeconfig);
    let (root, key) = (access.authority().certificate(), access.accounts_key());
    arguments.extend(
        [
            ("use-service-account-credentials", "true".into()),
            (
                "service-account-private-key-file",
                key.display().to_string(),
            ),
            ("root-ca-file", root.display().to_string()),
        ]
        .map(flag),
    );
    arguments
}

/// Of controller-manager and scheduler.
fn common_arguments(kubeconfig: &Path) -> Vec<String> {
    let kubeconfig = kubeconfig.display().to_string();
    [
        ("kubeconfig", kubeconfig.clone()),
        ("authentication-kubeconfig", kubeconfig.clone()),
        ("authorization-kubeconfig", kubeconfig),
        ("bind-address", "127.0.0.1".into()),
        ("leader-elect", "false".into()),
    ]
    .map(flag)
    .into()
}

fn flag((name, value): (&str, String)) -> String {
    format!("--{name}={value}")
}
