//! The first signal asks a capture to end in order, the second ends the program.

use std::process;

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::terminal;

/// From its making on, SIGINT, SIGTERM and SIGHUP no longer end the process at once.
#[derive(Debug)]
pub(crate) struct Interrupt {
    seen: watch::Receiver<bool>,
}

impl Interrupt {
    /// # Errors
    /// The handlers cannot be installed.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let [interrupt, terminate, hangup] = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ]
        .map(|kind| signal(kind).context("no signal handler"));
        let mut signals = [interrupt?, terminate?, hangup?];
        let (sender, seen) = watch::channel(false);
        tokio::spawn(async move {
            any(&mut signals).await;
            let _nobody_waits = sender.send(true);
            any(&mut signals).await;
            terminal::note("remora: ended at once; the output may lack its last packets");
            process::exit(1);
        });
        Ok(Self { seen })
    }

    /// Until a signal came; at once if one did.
    pub(crate) async fn requested(&mut self) {
        let seen = self.seen.wait_for(|seen| *seen).await;
        debug_assert!(
            seen.is_ok(),
            "the task keeps the sender until the process ends"
        );
    }
}

async fn any([a, b, c]: &mut [Signal; 3]) {
    tokio::select! {
        _ = a.recv() => {}
        _ = b.recv() => {}
        _ = c.recv() => {}
    }
}
