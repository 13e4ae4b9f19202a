//! `cargo xtask cluster demo`: Remora on a real Kubernetes, as a user installs and uses it.
//!
//! All that it makes is gone when it ends, also by Ctrl-C; a cluster that was up before stays up.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use remora_tests::{
    cluster::{
        image::BUSYBOX,
        kubectl::Kubectl,
        node,
        pods::KubePod,
        release::{self, Release},
    },
    name, run,
    screen::Screen,
    signals, wait, wire,
};

use crate::{place, updown};

const NAMESPACE: &str = "shop";
const PORT: u16 = 8080;
const REPLICAS: usize = 3;
const LIMIT: Duration = Duration::from_secs(60);
/// Lines of tshark's that are shown.
const LINES_SHOWN: usize = 12;

pub(crate) fn demo() -> ExitCode {
    if let Err(error) = signals::interrupt_waits() {
        eprintln!("demo: {error:#}");
        return ExitCode::FAILURE;
    }
    let screen = Screen::begin();
    // What `run` made is gone when it returns, also by an error.
    match run(&screen) {
        Ok(kept) => {
            screen.heading("Done");
            screen.step("cleaned up", "the shop, Remora, and what the demo started");
            screen.note(format!("the file stays: {}", kept.display()));
            ExitCode::SUCCESS
        }
        Err(_) if wait::is_interrupted() => {
            eprintln!("demo: interrupted; all that it made is removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(screen: &Screen) -> Result<PathBuf> {
    screen.title("Remora demo: a deployment's packets, from a real Kubernetes");
    screen.heading("The cluster");
    let _cluster = Up::ensure(screen)?;
    let kubectl = Kubectl::new(place::kubeconfig())?;

    screen.heading("helm install remora deploy/helm/remora -n remora --create-namespace");
    let directory = name::directory()?;
    let archive = release::image(directory.path())?;
    screen.step(
        "image",
        "of the built programs, as `cargo xtask image` makes it",
    );
    for socket in fs::read_to_string(place::sockets())?.lines() {
        node::import(socket.as_ref(), &archive)?;
    }
    screen.step("imported", "by each node's containerd: nothing is pulled");
    Release::ensure_absent(&kubectl)?;
    // Dropped last: what an uninstall leaves on purpose.
    let _rest = Rest(&kubectl);
    let _release = Release::install(&kubectl, &[])?;
    screen.step("ready", "an agent on each node, two controllers");

    screen.heading("The shop");
    let shop = Shop::open(screen, &kubectl)?;

    let kept = capture(screen, &shop)?;
    Ok(kept)
}

/// Captures from the deployment, and shows it.
fn capture(screen: &Screen, shop: &Shop<'_>) -> Result<PathBuf> {
    let filter = format!("tcp port {PORT}");
    let directory = tempfile::Builder::new()
        .prefix("remora-demo-")
        .tempdir()?
        .keep();
    let file = directory.join("cart.pcapng");
    let mut words = vec!["capture", "deploy/cart", "-n", NAMESPACE, "-f", &filter];
    words.extend(["--look-back", "2s", "-a", "duration:5", "-w"]);
    screen.heading("The capture");
    screen.quote(&format!("$ kubectl remora {} cart.pcapng", quoted(&words)));
    let mut command = shop.kubectl.remora()?;
    command.args(&words).arg(&file);
    let said = shown(&mut command)?;
    for line in said.lines() {
        screen.quote(line);
    }

    screen.heading("The packets, as tshark prints them");
    let lines = wire::tshark(&file, &["-N", "n"])?;
    for line in lines.lines().take(LINES_SHOWN) {
        screen.quote(line.trim_end());
    }
    let all = lines.lines().count();
    screen.note(format!("and {} more", all.saturating_sub(LINES_SHOWN)));

    screen.heading("The account");
    let counted = wire::capinfos_count(&file)?;
    let told = format!("{counted} packets captured");
    ensure!(
        said.contains(&told),
        "capinfos counts {counted} packets, and `kubectl remora` said: {said}"
    );
    screen.fact("packets", format!("{counted}, as many as capinfos counts"));
    let interfaces = wire::tshark_fields(&file, &["frame.interface_name"])?;
    for pod in &shop.carts {
        let owner = format!("{NAMESPACE}/{}/", pod.name);
        let of_pod = |row: &&Vec<String>| row.iter().any(|name| name.starts_with(&owner));
        let packets = interfaces.iter().filter(of_pod).count();
        ensure!(packets > 0, "no packet of {owner}");
        screen.fact(
            "pod",
            format!("{} on {}: {packets} packets", pod.name, pod.node),
        );
    }
    let strange = interfaces.iter().flatten().filter(|name| {
        let is_of = |pod: &KubePod| name.starts_with(&format!("{NAMESPACE}/{}/", pod.name));
        !shop.carts.iter().any(is_of)
    });
    let strange = strange.count();
    ensure!(strange == 0, "{strange} packets are of other pods");
    screen.fact("others", "no packet of any other pod");
    screen.note(format!("{:.1} s in all", screen.seconds()));
    Ok(file)
}

/// Words as one types them into a shell.
fn quoted(words: &[&str]) -> String {
    let quoted = |word: &&str| match word.contains(' ') {
        true => format!("'{word}'"),
        false => (*word).to_owned(),
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// What a command tells its user, whatever it is.
fn shown(command: &mut Command) -> Result<String> {
    let output = run::finish(command)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(said)
}

/// A cluster, and whether it was up before.
struct Up {
    is_ours: bool,
}

impl Up {
    fn ensure(screen: &Screen) -> Result<Self> {
        let is_ours = place::keeper()?.is_none();
        if is_ours {
            // Before it starts: Ctrl-C meanwhile ends it as well.
            let up = Self { is_ours };
            updown::start()?;
            screen.step(
                "up",
                "two nodes: kubelet and containerd; it ends with the demo",
            );
            return Ok(up);
        }
        screen.step(
            "up",
            "already, and stays: `cargo xtask cluster down` ends it",
        );
        Ok(Self { is_ours })
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = updown::down()
        {
            eprintln!("demo: {error:#}");
        }
    }
}

/// Resource definition and namespace of Remora; removed when dropped.
struct Rest<'a>(&'a Kubectl);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if let Err(error) = Release::remove_rest(self.0) {
            eprintln!("demo: {error:#}");
        }
    }
}

/// Pods that talk to each other; gone when dropped.
struct Shop<'a> {
    kubectl: &'a Kubectl,
    carts: Vec<KubePod>,
}

impl<'a> Shop<'a> {
    fn open(screen: &Screen, kubectl: &'a Kubectl) -> Result<Self> {
        kubectl.run(&["create", "namespace", NAMESPACE])?;
        let mut shop = Self {
            kubectl,
            carts: Vec::new(),
        };
        let account = ["get", "serviceaccount", "default", "-n", NAMESPACE];
        wait::until(LIMIT, "the namespace's service account", || {
            Ok(kubectl.run(&account).is_ok())
        })?;
        kubectl.apply_in(NAMESPACE, &deployment())?;
        kubectl.wait_condition(
            NAMESPACE,
            &["deployment/cart"],
            "condition=Available",
            LIMIT,
        )?;
        shop.carts = kubectl.pods(NAMESPACE, "app=cart")?;
        ensure!(shop.carts.len() == REPLICAS, "{:?}", shop.carts);
        for pod in &shop.carts {
            let address = pod.address()?;
            screen.step("cart", format!("{} on {}, {address}", pod.name, pod.node));
        }
        for name in ["visitor", "neighbour"] {
            kubectl.apply_in(NAMESPACE, &visitor(name, &shop.carts)?)?;
            let which = format!("pod/{name}");
            kubectl.wait_pods(NAMESPACE, &[&which], LIMIT)?;
            let pod = kubectl.pod(NAMESPACE, name)?;
            screen.step(name, format!("on {}, fetches pages of each cart", pod.node));
        }
        Ok(shop)
    }
}

impl Drop for Shop<'_> {
    fn drop(&mut self) {
        let deleted = self.kubectl.run(&["delete", "namespace", NAMESPACE]);
        if let Err(error) = deleted.context("the namespace stays") {
            eprintln!("demo: {error:#}");
        }
    }
}

fn deployment() -> String {
    format!(
        r#"apiVersion: apps/v1
kind: Deployment
metadata: {{name: cart}}
spec:
  replicas: {REPLICAS}
  selector: {{matchLabels: {{app: cart}}}}
  template:
    metadata: {{labels: {{app: cart}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: {BUSYBOX}
          imagePullPolicy: Never
          command: [/bin/sh, -c, "echo a cart > /www/index.html; exec httpd -f -p {PORT} -h /www"]
          startupProbe: {{tcpSocket: {{port: {PORT}}}, periodSeconds: 1}}
"#
    )
}

fn visitor(name: &str, carts: &[KubePod]) -> Result<String> {
    let mut wgets = String::new();
    for cart in carts {
        wgets += &format!("wget -q -O /dev/null http://{}:{PORT}/; ", cart.address()?);
    }
    Ok(format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: shell
      image: {BUSYBOX}
      imagePullPolicy: Never
      command: [/bin/sh, -c, "trap exit TERM; while true; do {wgets} sleep 1; done"]
"#
    ))
}
