//! Tasks with names: the first that must not end and does, ends the agent.

use std::{any::Any, future::Future, io, pin::Pin, thread, time::Duration};

use tokio::{
    sync::oneshot,
    task::{JoinError, JoinSet},
    time::timeout,
};

/// The agent's tasks.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Supervisor {
    /// Runs a task that the agent cannot do without.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Runs a thread that the agent cannot do without.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn spawn_thread(
        &mut self,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (running, ended) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Dropped when the thread ends, however it does.
                let _running = running;
                work();
            })?;
        self.spawn(name, async move {
            let _ended = ended.await;
            thread.join().map_err(|panic| {
                anyhow::anyhow!("the thread panicked: {}", panic_text(panic.as_ref()))
            })
        });
        Ok(())
    }

    /// Waits for the first task to end, which none should by itself.
    pub async fn first_end(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(ended) => describe(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits for all tasks, at most `patience`; false if some were still running.
    pub async fn join(&mut self, patience: Duration) -> bool {
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok((name, Ok(()))) = &ended {
                    tracing::debug!(task = name, "ended");
                } else {
                    let error = describe(ended);
                    tracing::warn!(error = %format!("{error:#}"), "a task ended badly");
                }
            }
        };
        timeout(patience, all).await.is_ok()
    }
}

fn describe(ended: Result<(&'static str, anyhow::Result<()>), JoinError>) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow::anyhow!("task `{name}` ended"),
        Ok((name, Err(error))) => error.context(format!("task `{name}` failed")),
        Err(error) => anyhow::Error::new(error).context("a task panicked"),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a word")
}

/// Runs a task that belongs to one call and ends with it.
pub fn detach(task: Pin<Box<dyn Future<Output = ()> + Send>>) {
    tokio::spawn(task);
}
