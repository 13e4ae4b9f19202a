//! What a shell and a reader of manuals get: made of the command lines' own grammar.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate};

use crate::{args::Args, commands::Outcome, extcap::ExtcapArgs, terminal};

/// Prints a program's completions.
///
/// # Errors
/// Standard output fails.
pub(crate) fn completions(command: Command, shell: Shell) -> anyhow::Result<Outcome> {
    let text = completion(command, shell)?;
    terminal::print(&text).context("standard output failed")?;
    Ok(Outcome::Done)
}

fn completion(mut command: Command, shell: Shell) -> anyhow::Result<String> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    generate(shell, &mut command, name, &mut text);
    String::from_utf8(text).context("a completion is not UTF-8")
}

/// Writes `man/*.1` and `completions/SHELL/PROGRAM` into `directory`.
///
/// # Errors
/// They cannot be written.
pub(crate) fn manual(directory: &Path) -> anyhow::Result<Outcome> {
    let pages = directory.join("man");
    fs::create_dir_all(&pages).with_context(|| pages.display().to_string())?;
    for command in programs() {
        clap_mangen::generate_to(command, &pages).with_context(|| pages.display().to_string())?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
        let folder = directory.join("completions").join(shell.to_string());
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for command in programs() {
            let file = folder.join(command.get_name());
            fs::write(&file, completion(command, shell)?)
                .with_context(|| file.display().to_string())?;
        }
    }
    Ok(Outcome::Done)
}

/// All that this binary can be.
fn programs() -> Vec<Command> {
    vec![
        Args::command(),
        #[cfg(feature = "kubernetes")]
        crate::kube::KubeArgs::command(),
        ExtcapArgs::command(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_a_page_and_completions_for_every_shell() {
        let dir = tempfile::tempdir().unwrap();
        manual(dir.path()).unwrap();
        for command in programs() {
            let name = command.get_name();
            let page = fs::read_to_string(dir.path().join(format!("man/{name}.1"))).unwrap();
            assert!(
                page.contains(".SH NAME") && page.contains(".SH OPTIONS"),
                "{name}"
            );
            for shell in ["bash", "zsh", "fish", "powershell"] {
                let path = dir.path().join("completions").join(shell).join(name);
                let text = fs::read_to_string(path).unwrap();
                assert!(text.contains(name), "{shell} {name}");
            }
        }
        let pages = |name: &str| dir.path().join("man").join(name).exists();
        assert!(pages("remora-capture.1"));
        assert!(!pages("remora-manual.1"), "hidden");
    }
}
