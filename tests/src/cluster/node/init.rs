//! The first process of a node: hides what is this machine's own, starts containerd and kubelet,
//! and waits for everybody's children.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::wait::wait,
    unistd::sethostname,
};

use super::{files::Files, listened};
use crate::cluster::programs;

/// What it prints when kubelet has been started.
pub const READY: &str = "containerd serves and kubelet runs";
const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);

/// What kubelet wants of the kernel. It finds it here, so it changes nothing of the machine's.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Never returns while the node lives.
///
/// # Errors
/// It is not the first process of a pid namespace, a mount is refused, or containerd or kubelet
/// ended.
pub fn run(directory: &Path, name: &str, address: &str, built: &Path) -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is the first process of a node: `cargo xtask cluster up` starts it"
    );
    let files = Files::at(directory);
    sethostname(name)?;
    hide(&files)?;
    let mut containerd = Command::new(built.join("containerd"));
    containerd.arg("--config").arg(files.containerd_config());
    let containerd = spawn(&mut containerd, built, &files.containerd_log())?;
    listened(&files.containerd_socket(), CONTAINERD_LIMIT)?;
    let mut kubelet = Command::new(built.join("kubelet"));
    kubelet
        .arg("--config")
        .arg(files.kubelet_config())
        .arg("--kubeconfig")
        .arg(files.kubeconfig())
        .arg("--root-dir")
        .arg(files.kubelet_root())
        .arg("--cert-dir")
        .arg(directory.join("kubelet-certificates"))
        .args(["--hostname-override", name])
        // It would look for the default route's interface.
        .args(["--node-ip", address]);
    let kubelet = spawn(&mut kubelet, built, &files.kubelet_log())?;
    println!("{READY}");
    loop {
        let ended = wait()?;
        for (program, pid) in [("containerd", containerd), ("kubelet", kubelet)] {
            if ended.pid().is_some_and(|ended| ended.as_raw() == pid) {
                bail!("{program} ended: {ended:?}");
            }
        }
    }
}

fn spawn(command: &mut Command, built: &Path, log: &Path) -> Result<i32> {
    let log = File::create(log)?;
    let child = command
        .env("PATH", programs::search_path(built))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("failed to start {command:?}"))?;
    Ok(i32::try_from(child.id())?)
}

/// What the node's programs write outside of their directory stays the node's, and ends with it.
fn hide(files: &Files) -> Result<()> {
    let directory = files.directory();
    ensure!(
        !["/var", "/run", "/opt"]
            .iter()
            .any(|top| directory.starts_with(top)),
        "{} is where the node gets a file system of its own: set TMPDIR to another place",
        directory.display()
    );
    for top in ["/run", "/opt"] {
        if Path::new(top).exists() {
            attach("tmpfs", top, None)?;
        }
    }
    fs::create_dir_all("/run/netns")?;
    let (upper, work) = files.var();
    let settings = format!(
        "lowerdir=/var,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    attach("overlay", "/var", Some(&settings))?;
    if Path::new("/sys/fs/bpf").exists() {
        attach("bpf", "/sys/fs/bpf", None)?;
    }
    for (name, value) in SYSCTLS {
        let setting = Path::new("/proc/sys").join(name);
        if setting.exists() {
            let stand_in = files.sysctl().join(name.replace('/', "."));
            fs::write(&stand_in, format!("{value}\n"))?;
            mount(
                Some(&stand_in),
                &setting,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .with_context(|| format!("failed to hide {}", setting.display()))?;
        }
    }
    // As systemd has it on a real node: pods may ask to see later mounts.
    let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).context("failed to share mounts")
}

fn attach(kind: &str, point: &str, settings: Option<&str>) -> Result<()> {
    mount(Some(kind), point, Some(kind), MsFlags::empty(), settings)
        .with_context(|| format!("failed to mount a {kind} at {point}"))
}
