//! `remora redact`: a part of a capture, with the proof of what it was made from.

mod chosen;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use remora_capture::{
    evidence::{Cut, MANIFEST_ENDING, Order, REDACTION_ENDING, SecretKey, redact},
    session::CaptureId,
    sidecar::Tool,
};

use self::chosen::Chosen;
pub(crate) use self::chosen::Numbers;
use super::Outcome;
use crate::{args::RedactArgs, terminal};

/// Packets are secret.
const FILE_MODE: u32 = 0o600;

/// Writes the file and its document; both or none.
///
/// # Errors
/// What is given cannot be redacted, or nothing can be written.
pub(super) fn run(args: RedactArgs) -> anyhow::Result<Outcome> {
    let chosen = Chosen::new(&args.keep, args.packets, args.from, args.to)?;
    let key = fs::read_to_string(&args.sign_key)
        .with_context(|| format!("the key {} cannot be read", args.sign_key.display()))?;
    let key = SecretKey::from_pem(&key).with_context(|| args.sign_key.display().to_string())?;
    let manifest = match args.manifest {
        Some(path) => path,
        None => manifest_beside(&args.file)?,
    };
    let manifest = fs::read(&manifest)
        .with_context(|| format!("the manifest {} cannot be read", manifest.display()))?;
    let original = File::open(&args.file)
        .with_context(|| format!("{} cannot be read", args.file.display()))?;
    let name = args.write.file_name().and_then(|name| name.to_str());
    let name = name.context("-w needs a file's name, in UTF-8")?;
    ensure!(
        name.ends_with(".pcapng"),
        "name the redacted file FILE.pcapng; it is not compressed"
    );
    let document = with(&args.write, REDACTION_ENDING);
    for path in [&args.write, &document] {
        if path.exists() {
            bail!("{} is there already; name another file", path.display());
        }
    }
    let order = Order {
        manifest,
        name: name.to_owned(),
        cut: match (args.headers_only, args.snaplen) {
            (true, _) => Cut::Payload,
            (false, Some(bytes)) => Cut::Beyond(bytes),
            (false, None) => Cut::Nothing,
        },
        chosen: chosen.to_string(),
        why: args.reason,
        tool: Tool {
            name: "remora".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: String::new(),
        },
    };
    let aside = Aside::new(&args.write)?;
    let mut out = BufWriter::new(&aside.file);
    let made = redact(original, &mut out, order, &key, |packet| {
        chosen.keeps(packet)
    })
    .with_context(|| args.file.display().to_string())?;
    out.flush()?;
    drop(out);
    let beside = Aside::new(&document)?;
    (&beside.file).write_all(&made.document)?;
    // The document first: a file without one would pass for a capture.
    beside.finish()?;
    aside.finish().inspect_err(|_| {
        let _secondary = fs::remove_file(&document);
    })?;
    let redaction = made.redaction;
    terminal::note(&format!(
        "{} of {} packets in {}, {}; `remora verify {} --key NODE.pub --redactor-key YOUR.pub` says what it proves",
        redaction.redacted.packets,
        redaction.original.packets,
        args.write.display(),
        redaction.cut,
        args.write.display(),
    ));
    Ok(Outcome::Done)
}

/// The manifest of the capture that a file's name tells.
pub(super) fn manifest_beside(file: &Path) -> anyhow::Result<PathBuf> {
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let end = name.find(['.', '_']).unwrap_or(name.len());
    let id: CaptureId = name[..end].parse().ok().with_context(|| {
        format!(
            "{}: which capture's it is, is not told by its name; give --manifest",
            file.display()
        )
    })?;
    Ok(file.with_file_name(format!("{id}{MANIFEST_ENDING}")))
}

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// A file that has its name once it is whole and on the disk.
struct Aside {
    file: File,
    aside: PathBuf,
    path: PathBuf,
}

impl Aside {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let aside = with(path, ".part");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(&aside)
            .with_context(|| format!("{} cannot be written", aside.display()))?;
        Ok(Self {
            file,
            aside,
            path: path.to_owned(),
        })
    }

    fn finish(self) -> anyhow::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.aside, &self.path)
            .with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Whole under its name, or not there.
        let _renamed = fs::remove_file(&self.aside);
    }
}
