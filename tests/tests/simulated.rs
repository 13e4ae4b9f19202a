//! A controller in a cluster that is simulated, a small one here: `cargo xtask simulate` is the large one.

use std::time::Duration;

use anyhow::{Result, ensure};
use remora_tests::{name, run};

#[test]
fn every_alert_is_accepted_and_every_agent_of_its_pods_is_asked_once() -> Result<()> {
    let directory = name::directory()?;
    let mut simulate = run::command(run::tool("simulate")?);
    simulate.args(["--nodes", "40", "--pods", "1000", "--rate", "1200"]);
    simulate.args(["--seconds", "5"]);
    let mut process = run::Proc::spawn(&mut simulate, directory.path(), "simulate")?;
    let said = process.wait_success(Duration::from_secs(300))?;
    println!("{said}");
    ensure!(said.contains("100 alerts in 5 s"), "{said}");
    Ok(())
}
