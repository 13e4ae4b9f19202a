//! An archive while it is written.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use remora_capture::session::CaptureId;

use super::{LIST, README};

/// Packets are secret.
const FILE_MODE: u32 = 0o600;
/// tar's unit.
const RECORD: u64 = 512;
const COMPRESSION_LEVEL: i32 = 3;

const README_TEXT: &str = "\
Evidence exported by Remora (https://remora.dev)

captures.txt           the captures in this archive, one id a line
ID.manifest.json       what is said of a capture, signed: who asked and why (the whole alert), what was
                       captured where, when and with which filter, what became of each packet, and the
                       SHA-256 of each file. A DSSE envelope; `payload` is an in-toto statement in
                       canonical JSON (RFC 8785), base64.
ID.json                the agent's account
ID.tombstone.json      signed: that the packets and the account were deleted, when, why and by whom
ID.hold.json           signed: that nobody may delete the capture
ID.N.release.json      signed: that it was held and is not any more, by whom; with the hold in it
ID.receipt.json        signed: that a store of objects has all of it, where, by which checksums
ID*.pcapng[.zst]       the packets; Wireshark opens them. With .age after it: encrypted, `age -d -i KEY`
chain.head             the last manifest of the node's chain at the time of the export, signed
*.pub                  the node's public keys as the agent gave them. A key that comes with the evidence
                       proves nothing: take it from where you got it before, and compare.

To verify, without a network and without the agent:

    remora verify THIS.tar --key node.pub [--head CHAIN:NUMBER:SHA256]

What that proves: each capture listed is here, whole, as the node's key signed it. What it does not:
that no other capture was left out (the node's whole directory and a published head prove that), and
that the node was honest when it signed.

By hand, with openssl, jq and coreutils:

    jq -rj .payload ID.manifest.json | base64 -d > statement.json
    jq -rj '.signatures[0].sig' ID.manifest.json | base64 -d > sig
    (printf 'DSSEv1 28 application/vnd.in-toto+json %s ' $(wc -c < statement.json)
     cat statement.json) > signed
    openssl pkeyutl -verify -pubin -inkey node.pub -rawin -in signed -sigfile sig
    jq -r '.subject[] | .digest.sha256 + \"  \" + .name' statement.json | sha256sum -c
";

enum Sink {
    Plain(BufWriter<File>),
    Packed(Box<zstd::Encoder<'static, BufWriter<File>>>),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Packed(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Packed(encoder) => encoder.flush(),
        }
    }
}

/// Written aside; only [`Archive::finish`] gives it its name.
pub(crate) struct Archive {
    sink: Option<Sink>,
    path: PathBuf,
    aside: PathBuf,
    names: BTreeSet<String>,
    /// Bytes of the present file that are still to come; `None` of one that is passed over.
    rest: Option<u64>,
    padding: u64,
}

impl Archive {
    /// # Errors
    /// It cannot be made, or its name ends in neither `.tar` nor `.tar.zst`.
    pub(crate) fn create(path: &Path, ids: &[CaptureId]) -> anyhow::Result<Self> {
        let name = path.to_string_lossy();
        let packed = name.ends_with(".tar.zst");
        ensure!(
            packed || name.ends_with(".tar"),
            "name the archive FILE.tar or FILE.tar.zst"
        );
        let aside = PathBuf::from(format!("{name}.part"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(&aside)
            .with_context(|| format!("{} cannot be written", aside.display()))?;
        let file = BufWriter::new(file);
        let sink = if packed {
            Sink::Packed(Box::new(zstd::Encoder::new(file, COMPRESSION_LEVEL)?))
        } else {
            Sink::Plain(file)
        };
        let mut archive = Self {
            sink: Some(sink),
            path: path.to_owned(),
            aside,
            names: BTreeSet::new(),
            rest: None,
            padding: 0,
        };
        let list: String = ids.iter().map(|id| format!("{id}\n")).collect();
        for (name, text) in [(README, README_TEXT), (LIST, &list)] {
            archive.begin(name, text.len() as u64)?;
            archive.append(text.as_bytes())?;
        }
        Ok(archive)
    }

    /// The next file; one of a name that is there already is passed over.
    ///
    /// # Errors
    /// The one before it is not whole, or the disk's.
    pub(crate) fn begin(&mut self, name: &str, bytes: u64) -> anyhow::Result<()> {
        self.end()?;
        if !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header
            .set_path(name)
            .context("the agent sent a name that no archive has")?;
        header.set_size(bytes);
        header.set_mode(FILE_MODE);
        header.set_cksum();
        self.put(header.as_bytes())?;
        self.rest = Some(bytes);
        self.padding = bytes.next_multiple_of(RECORD) - bytes;
        Ok(())
    }

    /// More of the file.
    ///
    /// # Errors
    /// More than it has, or the disk's.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if let Some(rest) = &mut self.rest {
            *rest = rest
                .checked_sub(bytes.len() as u64)
                .context("the agent sent more of a file than it said")?;
            self.put(bytes)?;
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if let Some(rest) = self.rest.take() {
            ensure!(rest == 0, "the agent sent less of a file than it said");
            self.put(&vec![0; self.padding as usize])?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let sink = self.sink.as_mut().context("the archive is closed")?;
        sink.write_all(bytes)
            .with_context(|| format!("{} cannot be written", self.aside.display()))
    }

    /// Closes it, on the disk and under its name.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.end()?;
        self.put(&[0; 2 * RECORD as usize])?;
        let file = match self.sink.take().context("the archive is closed")? {
            Sink::Plain(file) => file,
            Sink::Packed(encoder) => encoder.finish()?,
        };
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&self.aside, &self.path)
            .with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // Whole under its name, or not there.
        let _renamed = fs::remove_file(&self.aside);
    }
}
