//! `remora timestamp`: an authority's word for when a manifest existed.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use remora_capture::evidence::{Digest, MANIFEST_ENDING, Manifest, STAMP_ENDING};

use super::{Outcome, redact::manifest_beside};
use crate::{
    args::TimestampArgs,
    terminal,
    timestamp::{Query, RESPONSE_BYTES_MAX, Token, exchange},
};

/// Asks, or makes a query to be asked elsewhere, or takes its answer.
///
/// # Errors
/// There is no manifest, or no stamp of it; nothing is kept then.
pub(super) async fn run(args: &TimestampArgs) -> anyhow::Result<Outcome> {
    let manifest = manifest(&args.path)?;
    let bytes = fs::read(&manifest)
        .with_context(|| format!("the manifest {} cannot be read", manifest.display()))?;
    Manifest::unverified(&bytes).with_context(|| manifest.display().to_string())?;
    let digest = Digest::of(&bytes);
    let query = Query::new(digest, random()?);
    let response = match (&args.request, &args.response, &args.tsa) {
        (Some(path), ..) => {
            fs::write(path, query.to_der())
                .with_context(|| format!("{} cannot be written", path.display()))?;
            terminal::note(&format!(
                "{}: send it to an authority as application/timestamp-query, then --response its answer",
                path.display()
            ));
            return Ok(Outcome::Done);
        }
        (None, Some(path), _) => {
            let response = read(path)?;
            Token::read(&response)?.check(digest, None)?;
            response
        }
        (None, None, Some(url)) => {
            let response = exchange(url, query.to_der()).await?;
            Token::read(&response)?.check(digest, Some(query.nonce()))?;
            response
        }
        (None, None, None) => unreachable!("the grammar asks for one of them"),
    };
    let stamp = stamp_of(&manifest);
    keep(&stamp, &response)?;
    terminal::note(&format!(
        "{}: stamped {}; `remora verify … --tsa-ca FILE` says by whom",
        stamp.display(),
        Token::read(&response)?.time
    ));
    Ok(Outcome::Done)
}

/// The manifest itself, or that of the capture whose file it is.
fn manifest(path: &Path) -> anyhow::Result<PathBuf> {
    let name = path.to_string_lossy();
    if name.ends_with(MANIFEST_ENDING) {
        Ok(path.to_owned())
    } else {
        manifest_beside(path)
    }
}

fn stamp_of(manifest: &Path) -> PathBuf {
    let name = manifest.to_string_lossy();
    let id = name.strip_suffix(MANIFEST_ENDING).unwrap_or(&name);
    PathBuf::from(format!("{id}{STAMP_ENDING}"))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("{} cannot be read", path.display());
    let mut bytes = Vec::new();
    File::open(path)
        .with_context(cannot)?
        .take(RESPONSE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(cannot)?;
    ensure!(
        bytes.len() <= RESPONSE_BYTES_MAX,
        "{} is too large for a response",
        path.display()
    );
    Ok(bytes)
}

fn keep(path: &Path, response: &[u8]) -> anyhow::Result<()> {
    let cannot = || format!("{} cannot be written", path.display());
    ensure!(
        !path.exists(),
        "{} is there already; remove it first if it is to be another",
        path.display()
    );
    let aside = PathBuf::from(format!("{}.part", path.display()));
    let mut file = File::create(&aside).with_context(cannot)?;
    file.write_all(response).with_context(cannot)?;
    file.sync_all().with_context(cannot)?;
    fs::rename(&aside, path).with_context(cannot)
}

fn random() -> anyhow::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
