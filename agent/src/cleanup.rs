//! `remora-agent cleanup`: what an agent with `--pin` left in the kernel goes.

use std::{io::Write as _, process::ExitCode};

use crate::{
    args::CleanupArgs,
    kernel::{Pins, pins::Unpinned},
};

/// Removes all pins and says how many.
///
/// # Errors
/// An agent uses them, or they cannot be removed.
pub fn run(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let directory = args.pin.display();
    let mut out = std::io::stdout().lock();
    if !args.pin.try_exists()? {
        writeln!(out, "there is no {directory}: nothing to remove")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut pins = Pins::lock(&args.pin)?;
    let Unpinned { links, maps } = pins.remove_all()?;
    writeln!(
        out,
        "removed {links} links and {maps} maps from {directory}; captures that were running are closed \
         by the next start of the agent"
    )?;
    if let Err(error) = pins.remove_directory() {
        writeln!(out, "the directory stays: {error}")?;
    }
    Ok(ExitCode::SUCCESS)
}
