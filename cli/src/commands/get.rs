//! `remora get`: a stored capture's bytes.

use std::path::Path;

use remora_capture::session::{CaptureId, Writing};
use remora_proto::client::AgentAddress;

use super::{Outcome, connect};
use crate::{
    follow::{Ownership, Source, follow},
    output::{Output, compression_of},
    render::closing,
    signals::Interrupt,
};

/// # Errors
/// Nothing was copied.
pub(super) async fn run(
    agent: &AgentAddress,
    id: CaptureId,
    path: &Path,
) -> anyhow::Result<Outcome> {
    let client = connect(agent).await?;
    let agent = agent.clone();
    let source = Source { agent, client, id };
    let writing = Writing {
        compression: compression_of(path),
        ..Writing::default()
    };
    // Before there is a file: the id may be unknown.
    let feed = source.open().await?;
    let output = Output::open(path, writing)?;
    let mut interrupt = Interrupt::install()?;
    let (written, end) = follow(feed, Ownership::Other, output, &mut interrupt).await?;
    Ok(closing::tell(&written, &end, Ownership::Other))
}
