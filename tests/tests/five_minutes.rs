//! README's section "From alert to evidence in five minutes", line by line as it stands there.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_tests::{
    cgroup::Cgroup,
    manifests, name,
    netns::Netns,
    packets::Capture,
    run::{self, Place, Proc, Rights},
};

const SECTION: &str = "## From alert to evidence in five minutes";
const LIMIT: Duration = Duration::from_secs(120);

/// The section's only fenced block.
fn block(readme: &str) -> Result<&str> {
    let (_, section) = readme.split_once(SECTION).context("no such section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut parts = section.split("```");
    let block = parts.nth(1).context("no block")?;
    ensure!(parts.count() == 1, "more than one block");
    block
        .split_once('\n')
        .map(|(_, lines)| lines)
        .context("an empty block")
}

#[test]
fn the_readmes_five_minutes_lead_to_verified_evidence() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("a workspace")?;
    let readme = fs::read_to_string(root.join("README.md"))?;
    let block = block(&readme)?;
    // Whoever runs this has built.
    ensure!(block.matches("cargo xtask build\n").count() == 1, "{block}");
    let programs = run::remora_program("remora")?;
    let programs = programs.parent().context("a directory")?;
    let lines = block.replace("cargo xtask build\n", "");
    ensure!(lines.matches("$PWD/target/release").count() == 1, "{block}");
    let lines = lines.replace("$PWD/target/release", &programs.display().to_string());
    // A directory of the machine's, for somebody else may try it at the same time.
    let directory = name::directory()?;
    let place = directory.path().join("try");
    ensure!(lines.contains("/tmp/remora-try"), "{block}");
    let lines = lines.replace("/tmp/remora-try", &place.display().to_string());
    let script = directory.path().join("five-minutes.sh");
    fs::write(&script, format!("set -eo pipefail\n{lines}"))?;

    let netns = Netns::new("five")?;
    let cgroup = Cgroup::new(&name::unique())?;
    let at = Place {
        netns: Some(&netns),
        cgroup: Some(&cgroup),
        rights: Rights::Root,
    };
    let mut command = at.command("bash");
    command.arg(&script).current_dir(directory.path());
    let mut run = Proc::spawn(&mut command, directory.path(), "five-minutes")?;
    let log = run.wait_success(LIMIT)?;
    ensure!(log.contains("ended; 1 capture in"), "{log}");
    manifests::prove(&place.join("captures"))?;
    let capture = Capture::read(&directory.path().join("evidence.pcapng"))?;
    let web: SocketAddr = ([127, 0, 0, 1], 8080).into();
    let of_web = capture.frames().filter(|frame| {
        frame.len() >= 38
            && [&frame[34..36], &frame[36..38]].contains(&&web.port().to_be_bytes()[..])
    });
    ensure!(of_web.count() >= 10, "{log}");
    ensure!(
        capture
            .frames()
            .any(|frame| frame.windows(9).any(|bytes| bytes == b"/evidence")),
        "the request is not in the file: {log}"
    );
    Ok(())
}
