//! A process of the demo that acts on order.

use std::{
    io::{PipeWriter, Write as _},
    net::SocketAddr,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use remora_tests::{
    run::{self, Proc},
    wait,
};

const LIMIT: Duration = Duration::from_secs(10);

/// A `web browse` or `web beacon`: one request an order.
#[derive(Debug)]
pub(crate) struct Actor {
    process: Proc,
    orders: PipeWriter,
    requests: usize,
}

impl Actor {
    pub(crate) fn start(
        place: impl FnOnce(&Path) -> Command,
        verb: &str,
        at: SocketAddr,
        directory: &Path,
        name: &str,
    ) -> Result<Self> {
        let (reader, orders) = std::io::pipe()?;
        let mut command = place(&run::tool("web")?);
        command.args([verb, &at.to_string()]).stdin(reader);
        let mut process = Proc::spawn(&mut command, directory, name)?;
        process.wait_for("ready", LIMIT)?;
        Ok(Self {
            process,
            orders,
            requests: 0,
        })
    }

    /// Makes one request and waits for its answer; from which port.
    pub(crate) fn request(&mut self) -> Result<u16> {
        self.orders
            .write_all(b"\n")
            .with_context(|| self.process.tail())?;
        self.requests += 1;
        let line = self.requests;
        wait::until_some(LIMIT, "an answer", || {
            if let Some(status) = self.process.ended()? {
                anyhow::bail!("ended ({status}): {}", self.process.tail());
            }
            let log = self.process.log();
            // A line that is still being written has no end.
            let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            Ok(whole.lines().nth(line).and_then(|port| port.parse().ok()))
        })
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests
    }
}

/// A `web serve`.
pub(crate) fn serve(
    place: impl FnOnce(&Path) -> Command,
    at: SocketAddr,
    directory: &Path,
    name: &str,
) -> Result<Proc> {
    let mut command = place(&run::tool("web")?);
    command.args(["serve", &at.to_string()]);
    let mut process = Proc::spawn(&mut command, directory, name)?;
    process.wait_for("ready", LIMIT)?;
    Ok(process)
}
