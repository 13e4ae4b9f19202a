//! `remora verify`: what evidence proves, with public keys alone.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use remora_capture::evidence::{
    DOCUMENT_BYTES_MAX, Head, Inventory, PublicKey, REDACTION_ENDING, RedactionKeys, Report,
    STAMP_ENDING, Verdict, verify, verify_redaction,
};

use super::Outcome;
use crate::{
    args::VerifyArgs,
    evidence::{Identities, Place, gather},
    render, terminal,
    timestamp::{Anchors, Token},
};

/// # Errors
/// A key, the head or the evidence cannot be read.
pub(super) async fn run(args: &VerifyArgs) -> anyhow::Result<Outcome> {
    let trusted = read_keys(&args.key)?;
    let report = match redaction(&args.path) {
        Some((file, document)) => redacted(&file, &document, &trusted, args)?,
        None => {
            ensure!(
                args.redactor_key.is_empty(),
                "{} is not redacted: no {REDACTION_ENDING} lies beside it",
                args.path.display()
            );
            let head = args.head.as_deref();
            let head = head.map(|head| read_head(head, &trusted)).transpose()?;
            let place = args.path.to_str().map(Place::of).transpose()?.flatten();
            let keys = args.identity.as_deref().map(Identities::read).transpose()?;
            let keys = keys.unwrap_or_default();
            let gathered = match place {
                Some(place) => {
                    let cannot = || args.path.display().to_string();
                    place.gather(&keys).await.with_context(cannot)?
                }
                None => gather(&args.path, &keys)?,
            };
            let mut report = verify(&gathered.inventory, &trusted, head.as_ref(), gathered.scope);
            stamps(&gathered.inventory, args.tsa_ca.as_deref(), &mut report)?;
            report
        }
    };
    terminal::print(&render::report(&report)).context("standard output failed")?;
    Ok(outcome(&report))
}

/// What authorities say of the manifests' time.
fn stamps(
    inventory: &Inventory,
    authorities: Option<&Path>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let anchors = authorities
        .map(|path| {
            let pem =
                fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
            Anchors::from_pem(&pem).with_context(|| path.display().to_string())
        })
        .transpose()?;
    for (id, response, manifest) in inventory.stamps() {
        let stamped = Token::read(response).and_then(|token| {
            token.check(manifest, None)?;
            if let Some(anchors) = &anchors {
                token.believe(anchors)?;
            }
            Ok(token.time)
        });
        match (stamped, &anchors) {
            (Err(error), _) => report.broken.push(format!("{id}{STAMP_ENDING}: {error}")),
            (Ok(time), Some(_)) => report.proved.push(format!(
                "{id}: its manifest existed on {time}, by the word of an authority that is believed"
            )),
            (Ok(time), None) => report.unproved.push(format!(
                "{id}{STAMP_ENDING}: stamped {time}, by whom was not looked at; give --tsa-ca FILE"
            )),
        }
    }
    Ok(())
}

fn read_keys(files: &[PathBuf]) -> anyhow::Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for key in files {
        let pem = fs::read_to_string(key)
            .with_context(|| format!("the key {} cannot be read", key.display()))?;
        let read = PublicKey::all_from_pem(&pem);
        keys.extend(read.with_context(|| key.display().to_string())?);
    }
    Ok(keys)
}

/// The redacted file and its document, if the path is one of the two.
fn redaction(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let name = path.to_str()?;
    if let Some(file) = name.strip_suffix(REDACTION_ENDING) {
        return Some((PathBuf::from(file), path.to_owned()));
    }
    let document = PathBuf::from(format!("{name}{REDACTION_ENDING}"));
    document.is_file().then(|| (path.to_owned(), document))
}

fn redacted(
    file: &Path,
    document: &Path,
    trusted: &[PublicKey],
    args: &VerifyArgs,
) -> anyhow::Result<Report> {
    ensure!(
        !args.redactor_key.is_empty(),
        "{} is redacted: give the public key of who did it (--redactor-key)",
        file.display()
    );
    let redactor = read_keys(&args.redactor_key)?;
    let open = |path: &Path| {
        File::open(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let mut bytes = Vec::new();
    open(document)?
        .take(DOCUMENT_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    let original = args.original.as_deref().map(open).transpose()?;
    let keys = RedactionKeys {
        node: trusted,
        redactor: &redactor,
    };
    Ok(verify_redaction(&bytes, open(file)?, original, keys)?)
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
