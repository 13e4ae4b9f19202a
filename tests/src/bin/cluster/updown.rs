//! `up` and `down`.

use std::{
    env,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};

use remora_tests::{cluster::programs, name, run, screen::say, wait};

use crate::{keep, place};

/// How long a cluster may take to come, or to go.
const LIMIT: Duration = Duration::from_secs(180);

pub(crate) fn up() -> Result<()> {
    run::require_root()?;
    if place::keeper()?.is_some() {
        say("A cluster is up already.");
        return tell();
    }
    start()?;
    tell()
}

/// Starts the cluster that stays, and waits until it can be used.
pub(crate) fn start() -> Result<()> {
    run::require_root()?;
    place::clear();
    name::sweep();
    fs::create_dir_all(place::log().parent().context("no directory")?)?;
    let log = File::create(place::log())?;
    say("A cluster starts: about 20 s.");
    let mut keeper = Command::new(env::current_exe()?);
    keeper
        .arg("keep")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C at this terminal later is not for it.
        .process_group(0);
    let mut keeper = keeper.spawn()?;
    let said = || fs::read_to_string(place::log()).unwrap_or_default();
    let ready = wait::until(LIMIT, "a cluster", || {
        if let Some(status) = keeper.try_wait()? {
            bail!("it ended ({status})");
        }
        Ok(said().contains(keep::READY))
    });
    if let Err(error) = ready {
        let _ = keeper.kill();
        let _ = keeper.wait();
        let said = said();
        name::sweep();
        place::clear();
        return Err(error.context(said));
    }
    say(said().trim_end());
    Ok(())
}

/// How to use it.
fn tell() -> Result<()> {
    let programs = programs::directory()?;
    say(format_args!(
        "\n  export KUBECONFIG={}\n  export PATH={}:$PATH     # kubectl, helm, ctr\n  \
         kubectl get nodes,pods -A -o wide\n  cargo xtask cluster down\n\n\
         Images are never pulled: {} is there; `imagePullPolicy: Never`.",
        place::kubeconfig().display(),
        programs.display(),
        remora_tests::cluster::image::BUSYBOX,
    ));
    Ok(())
}

pub(crate) fn down() -> Result<()> {
    run::require_root()?;
    let Some(pid) = place::keeper()? else {
        name::sweep();
        place::clear();
        say("No cluster is up; what killed ones had left is removed.");
        return Ok(());
    };
    let last = File::open(place::log()).context("no log of the cluster")?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("failed to end the cluster")?;
    // Waited for after Ctrl-C, too: who is killed leaves what he made to the sweep.
    let ended = || matches!(place::keeper(), Ok(None)).then_some(());
    let gone = wait::settled(LIMIT, ended);
    if gone.is_none() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        // A child of ours has to be reaped before its objects are nobody's.
        let _ = waitpid(Pid::from_raw(pid), None);
        wait::settled(LIMIT, ended);
    }
    let said = std::io::read_to_string(last)?;
    name::sweep();
    place::clear();
    gone.with_context(|| format!("it did not end and was killed; its log:\n{said}"))?;
    let left = said.lines().last().unwrap_or_default();
    say(format_args!("The cluster is down: {left}."));
    Ok(())
}
