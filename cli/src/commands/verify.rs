//! `remora verify`: what evidence proves, with public keys alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use remora_capture::evidence::{Head, PublicKey, Report, Verdict, verify};

use super::Outcome;
use crate::{
    evidence::{Place, gather},
    render, terminal,
};

/// # Errors
/// A key, the head or the evidence cannot be read.
pub(super) async fn run(
    path: &Path,
    keys: &[PathBuf],
    head: Option<&str>,
) -> anyhow::Result<Outcome> {
    let mut trusted = Vec::new();
    for key in keys {
        let pem = fs::read_to_string(key)
            .with_context(|| format!("the key {} cannot be read", key.display()))?;
        let read = PublicKey::all_from_pem(&pem);
        trusted.extend(read.with_context(|| key.display().to_string())?);
    }
    let head = head.map(|head| read_head(head, &trusted)).transpose()?;
    let place = path.to_str().map(Place::of).transpose()?.flatten();
    let gathered = match place {
        Some(place) => {
            let cannot = || path.display().to_string();
            place.gather().await.with_context(cannot)?
        }
        None => gather(path)?,
    };
    let report = verify(&gathered.inventory, &trusted, head.as_ref(), gathered.scope);
    terminal::print(&render::report(&report)).context("standard output failed")?;
    Ok(outcome(&report))
}

fn outcome(report: &Report) -> Outcome {
    match report.verdict() {
        Verdict::Proved => Outcome::Done,
        Verdict::Partly => Outcome::Partly,
        Verdict::Broken => Outcome::Faulty,
    }
}

/// The head itself, or a file with it, as text or signed.
fn read_head(text: &str, keys: &[PublicKey]) -> anyhow::Result<Head> {
    if let Ok(head) = text.parse() {
        return Ok(head);
    }
    let bytes = fs::read(text).with_context(|| {
        format!("--head {text}: neither CHAIN:NUMBER:SHA256 nor a file that can be read")
    })?;
    if let Some(head) = str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return Ok(head);
    }
    Head::from_signed(&bytes, keys).with_context(|| format!("--head {text}"))
}
