//! The units for a host without Kubernetes, by systemd's own judgement.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use remora_tests::run;

use super::root;

/// A unit, and the worst exposure that `systemd-analyze security` may see (0 is none, 10 the worst).
const UNITS: [(&str, f64); 2] = [
    ("remora-agent.service", 1.9),
    ("remora-controller.service", 1.0),
];
/// Units that ours name, which the machine need not have.
const OTHERS: [&str; 5] = ["sysinit", "basic", "shutdown", "network-pre", "multi-user"];

fn has_systemd() -> bool {
    let found = Path::new("/usr/bin/systemd-analyze").exists();
    if !found {
        println!("skipped: no systemd-analyze here");
    }
    found
}

#[test]
fn units_are_what_systemd_understands() -> Result<()> {
    if !has_systemd() {
        return Ok(());
    }
    let system = tempfile::tempdir()?;
    let directory = |path: &str| -> Result<std::path::PathBuf> {
        let path = system.path().join(path);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let units = directory("etc/systemd/system")?;
    let targets = directory("usr/lib/systemd/system")?;
    let programs = directory("usr/bin")?;
    symlink("usr/bin", system.path().join("bin"))?;
    for program in ["remora-agent", "remora-controller", "kill"] {
        let path = programs.join(program);
        fs::write(&path, "#!/bin/sh\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    for target in OTHERS {
        let text = "[Unit]\nDescription=of the test\n";
        fs::write(targets.join(format!("{target}.target")), text)?;
    }
    for (unit, _) in UNITS {
        fs::copy(root().join("deploy/systemd").join(unit), units.join(unit))?;
        let output = run::finish(
            run::command("systemd-analyze")
                .args(["verify", "--man=no", unit])
                .arg(format!("--root={}", system.path().display())),
        )?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && said.trim().is_empty(),
            "{unit}: {said}"
        );
    }
    Ok(())
}

#[test]
fn units_are_as_closed_as_they_were() -> Result<()> {
    if !has_systemd() {
        return Ok(());
    }
    for (unit, worst) in UNITS {
        let path = root().join("deploy/systemd").join(unit).canonicalize()?;
        let mut command = run::command("systemd-analyze");
        command
            .args(["security", "--offline=true", "--no-pager"])
            .arg(path);
        let said = run::output(&mut command)?;
        // → Overall exposure level for remora-agent.service: 1.9 OK 🙂
        let level: f64 = said
            .lines()
            .find(|line| line.contains("Overall exposure level"))
            .and_then(|line| line.rsplit_once(": "))
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| said.clone())?;
        ensure!(
            level <= worst,
            "{unit}: {level} is worse than {worst}: {said}"
        );
    }
    Ok(())
}

/// What is shipped is right, and what the programs show of it.
#[test]
fn the_settings_that_are_shipped_are_right() -> Result<()> {
    for (program, file, holds) in [
        ("remora-agent", "agent.toml", "quota = \"4GiB\""),
        (
            "remora-controller",
            "controller.toml",
            "rules = [\"/etc/remora/rules.yaml\"]",
        ),
    ] {
        let mut command = run::command(run::remora_program(program)?);
        let path = root().join("deploy/systemd").join(file);
        let said = run::output(command.args(["config", "check"]).arg(path))?;
        ensure!(said.lines().any(|line| line == holds), "{said}");
    }
    Ok(())
}

/// A fault is one line with its place, and exit code 1; what is right is read again.
#[test]
fn a_settings_file_that_is_wrong_is_told_in_a_line() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for program in ["remora-agent", "remora-controller"] {
        let path = run::remora_program(program)?;
        let file = directory.path().join("s.toml");
        fs::write(&file, "metricz = 1")?;
        let checked = run::finish(run::command(&path).args(["config", "check"]).arg(&file))?;
        let said = String::from_utf8_lossy(&checked.stderr);
        ensure!(checked.status.code() == Some(1), "{said}");
        ensure!(
            said.lines().count() == 1 && said.contains("s.toml:1:1: unknown key"),
            "{said}"
        );
        let begun = run::finish(run::command(&path).args(["run", "--config"]).arg(&file))?;
        ensure!(begun.status.code() == Some(2), "{begun:?}");

        let shown = run::output(run::command(&path).args(["config", "show"]))?;
        let needed = match program {
            "remora-controller" => "rules = ['r.yaml']",
            _ => "",
        };
        fs::write(&file, shown + needed)?;
        run::output(run::command(&path).args(["config", "check"]).arg(&file))?;
    }
    Ok(())
}

/// Flags in units and settings are ones that the programs have.
#[test]
fn the_programs_know_the_flags_of_their_units() -> Result<()> {
    for (unit, program) in [
        ("remora-agent", "remora-agent"),
        ("remora-controller", "remora-controller"),
    ] {
        let help =
            run::output(run::command(run::remora_program(program)?).args(["run", "--help"]))?;
        let text = fs::read_to_string(root().join(format!("deploy/systemd/{unit}.service")))?;
        let line = text
            .lines()
            .find(|line| line.starts_with("ExecStart="))
            .context("no ExecStart")?;
        for flag in line
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
        {
            ensure!(help.contains(flag), "{program} does not know {flag}");
        }
    }
    Ok(())
}
