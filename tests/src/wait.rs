//! Waiting for a condition, with a deadline.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Makes every limit so many times longer: an emulated machine is slow.
const PATIENCE: &str = "REMORA_TEST_PATIENCE";
/// Where it is not set. Others use the machine as well, and waiting longer for what comes costs nothing.
const PATIENCE_HERE: u32 = 3;

/// The limit as this machine needs it.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        let factor = std::env::var(PATIENCE).ok();
        factor
            .and_then(|factor| factor.parse().ok())
            .unwrap_or(PATIENCE_HERE)
    });
    limit * *FACTOR
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait fail from now on, so that a program unwinds and its objects go. The waits of
/// that cleanup itself ([`settled`]) go on.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Somebody called [`interrupt`].
#[must_use]
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Waits until `condition` gives a value.
///
/// # Errors
/// `what` did not come within `limit`, the condition itself failed, or [`interrupt`] was called.
pub fn until_some<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patient(limit);
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if is_interrupted() {
            bail!("{what}: interrupted");
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {:?}", patient(limit));
        }
        thread::sleep(POLL);
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// As [`until_some`].
pub fn until(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until_some(limit, what, || Ok(condition()?.then_some(())))
}

/// Measures what takes at most `limit`, and only others on the machine make longer: again, if need be.
///
/// # Errors
/// It never took so little.
pub fn within(
    limit: Duration,
    what: &str,
    mut measure: impl FnMut() -> Result<Duration>,
) -> Result<()> {
    const TRIES: usize = 8;
    let mut shortest = Duration::MAX;
    for _ in 0..TRIES {
        shortest = shortest.min(measure()?);
        if shortest <= limit {
            println!("{what}: {shortest:?}");
            return Ok(());
        }
    }
    bail!("{what}: {shortest:?}, it may take {limit:?}")
}

/// Waits for a time to pass, for traffic that shall have a pace.
///
/// # Errors
/// [`interrupt`] was called.
pub fn pace(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    until(time + POLL, "the next packet", || Ok(Instant::now() >= end))
}

/// Waits for what is on its way and must be over before a cleanup goes on; `None` if it did not
/// come.
pub fn settled<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patient(limit);
    loop {
        let value = condition();
        if value.is_some() || Instant::now() >= deadline {
            return value;
        }
        thread::sleep(POLL);
    }
}
