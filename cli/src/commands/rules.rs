//! `remora rules`: what rule files say, without an agent.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use remora_capture::alert::{ALERT_BYTES_MAX, Alert};
use remora_rules::{Rules, explain};

use super::{Outcome, print};
use crate::args::RulesCommand;

pub(super) fn run(command: &RulesCommand) -> anyhow::Result<Outcome> {
    match command {
        RulesCommand::Check { files } => print(&Rules::load(files)?.to_string()),
        RulesCommand::Test { files, alert } => test(files, alert),
    }
}

fn test(files: &[PathBuf], alert: &Path) -> anyhow::Result<Outcome> {
    let rules = Rules::load(files)?;
    let alert = read(alert).with_context(|| format!("the alert {}", alert.display()))?;
    let explanation = explain(&rules, &alert);
    print(&explanation.to_string())?;
    Ok(match explanation.captures().count() {
        0 => Outcome::Faulty,
        _ => Outcome::Done,
    })
}

/// Never more than a little over what an alert may have.
fn read(path: &Path) -> anyhow::Result<Alert> {
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path)?)
    };
    let mut bytes = Vec::new();
    source
        .take(ALERT_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(Alert::from_json(&bytes)?)
}
