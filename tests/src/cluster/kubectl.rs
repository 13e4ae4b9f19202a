//! kubectl, as a user runs it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::programs;
use crate::run;

/// Which file an applied text is in.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// kubectl with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    kubeconfig: PathBuf,
    programs: PathBuf,
}

impl Kubectl {
    /// As who a kubeconfig says. Its directory gets files beside it.
    ///
    /// # Errors
    /// The cluster's programs are not built.
    pub fn new(kubeconfig: PathBuf) -> Result<Self> {
        Ok(Self {
            kubeconfig,
            programs: programs::directory()?,
        })
    }

    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A program (`kubectl`, `helm`) that finds the cluster by this user's kubeconfig.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = run::command(self.programs.join(program));
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PATH", programs::search_path(&self.programs))
            // What it caches is of this cluster alone.
            .env("HOME", self.kubeconfig.with_extension("home"));
        command
    }

    /// `kubectl remora`, the program under test as kubectl's plug-in.
    ///
    /// # Errors
    /// It is not built.
    pub fn remora(&self) -> Result<Command> {
        let plugins = self.kubeconfig.with_extension("plugins");
        let link = plugins.join("kubectl-remora");
        if !link.exists() {
            fs::create_dir_all(&plugins)?;
            symlink(run::remora_program("remora")?, &link)?;
        }
        let path = programs::search_path(&self.programs);
        let mut command = self.command("kubectl");
        command.env("PATH", format!("{}:{path}", plugins.display()));
        command.arg("remora");
        Ok(command)
    }

    /// What a command prints.
    ///
    /// # Errors
    /// It fails; with what it says.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run::output(self.command("kubectl").args(arguments))
    }

    /// Runs a command that may fail.
    ///
    /// # Errors
    /// It cannot be started, or does not end within a minute.
    pub fn finish(&self, arguments: &[&str]) -> Result<Output> {
        run::finish(self.command("kubectl").args(arguments))
    }

    /// An object, or a list of them, as JSON.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = run::output(
            self.command("kubectl")
                .arg("get")
                .args(arguments)
                .args(["-o", "json"]),
        )?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// The API server refuses one; with why.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.apply_with(&[], manifests)
    }

    /// Applies manifests that name no namespace in one.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_in(&self, namespace: &str, manifests: &str) -> Result<String> {
        self.apply_with(&["--namespace", namespace], manifests)
    }

    fn apply_with(&self, arguments: &[&str], manifests: &str) -> Result<String> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = self.kubeconfig.with_extension(format!("{number}.yaml"));
        fs::write(&file, manifests)?;
        let mut command = self.command("kubectl");
        command.args(["apply", "--server-side"]).args(arguments);
        let answer = run::output(command.arg("-f").arg(&file));
        fs::remove_file(&file)?;
        answer
    }

    /// Waits until pods (`pod/web`, `pod -l app=web`) are ready.
    ///
    /// # Errors
    /// They are not, in time; with what became of them.
    pub fn wait_pods(&self, namespace: &str, which: &[&str], limit: Duration) -> Result<()> {
        self.wait_condition(namespace, which, "condition=Ready", limit)
    }

    /// Waits for a condition as `kubectl wait --for` does.
    ///
    /// # Errors
    /// It does not come in time; with what the namespace's events say.
    pub fn wait_condition(
        &self,
        namespace: &str,
        which: &[&str],
        condition: &str,
        limit: Duration,
    ) -> Result<()> {
        let limit = crate::wait::patient(limit).as_secs();
        let mut command = self.command("kubectl");
        command.args(["wait", "-n", namespace, &format!("--for={condition}")]);
        command.arg(format!("--timeout={limit}s")).args(which);
        run::output(&mut command).map(drop).with_context(|| {
            let events = self.run(&["get", "events,pods", "-n", namespace, "-o", "wide"]);
            events.unwrap_or_else(|error| error.to_string())
        })
    }

    /// Is the node there, and ready?
    pub(super) fn node_is_ready(&self, name: &str) -> Result<bool> {
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        let node = self.finish(&["get", "node", name, "-o", path])?;
        Ok(node.stdout == b"True")
    }
}
