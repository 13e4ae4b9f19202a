//! An orderly end on Ctrl-C for programs that make test beds.

use std::thread;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::wait;

/// From now on SIGINT and SIGTERM make every wait fail ([`wait::interrupt`]), so that the program
/// unwinds and its objects go.
///
/// # Errors
/// The kernel refuses a handler or a thread.
pub fn interrupt_waits() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    drop(guard);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            wait::interrupt();
        })?;
    Ok(())
}
