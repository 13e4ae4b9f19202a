//! Encryption of finished files to public keys (age-encryption.org/v1), so that the node can read them no more.
//!
//! ```text
//! <id>.pcapng ─read once: hashed, encrypted─▶ <id>.age.part ─synced, renamed─▶ <id>.pcapng.age
//!   ─▶ the manifest is signed, with both digests, and is on the disk ─▶ <id>.pcapng is removed
//! ```
//! Killed before the manifest has its name, the file is encrypted anew; killed after it, the next start removes
//! what is still there in the open. It costs one pass over the file, in pieces of 256 KiB.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use age::{Encryptor, x25519};
use remora_capture::{
    evidence::{Digester, ENCRYPTED_ENDING, FileDigest, FileRecord, Manifest, PlainRecord},
    session::CaptureId,
    sidecar::CaptureFile,
    text::one_line,
};

use super::{Sealer, ahead::Ahead, sealer::read_up_to};
use crate::sink::{
    fail_point::reach,
    shelf::create,
    store::{remove, remove_if_there},
};

/// The encrypted file while it is written.
const PART: &str = "age.part";
/// Starts a public key as text.
const PUBLIC_KEY: &str = "age1";
/// Bytes read at a time.
const PIECE: usize = 1 << 18;
/// Longest file of public keys that is read, in bytes.
const FILE_BYTES_MAX: usize = 64 << 10;
/// Keys that one file can be encrypted to.
const RECIPIENTS_MAX: usize = 64;

/// Public keys that finished files are encrypted to; none: they stay as they are.
#[derive(Clone, Default)]
pub struct Recipients(Vec<x25519::Recipient>);

/// Files cannot be encrypted to what was given.
#[derive(Debug, thiserror::Error)]
pub enum RecipientsError {
    #[error("--encrypt-to {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "--encrypt-to: `{0}` is no public key of age; one begins with age1, and `age-keygen -o FILE` makes it \
         with its secret key, which stays elsewhere"
    )]
    Key(String),
    #[error("--encrypt-to {}: no public key is in it", .0.display())]
    Empty(PathBuf),
    #[error("--encrypt-to: more than {RECIPIENTS_MAX} public keys")]
    TooMany,
}

impl Recipients {
    /// Each is a public key (`age1…`), or a file with one a line as `age -R` takes it.
    ///
    /// # Errors
    /// One is neither.
    pub fn read(given: &[String]) -> Result<Self, RecipientsError> {
        let mut keys = Vec::new();
        for word in given {
            if word.starts_with(PUBLIC_KEY) {
                keys.push(key(word)?);
                continue;
            }
            let path = PathBuf::from(word);
            let before = keys.len();
            for line in text(&path)?.lines().map(str::trim) {
                if !line.is_empty() && !line.starts_with('#') {
                    keys.push(key(line)?);
                }
            }
            if keys.len() == before {
                return Err(RecipientsError::Empty(path));
            }
        }
        if keys.len() > RECIPIENTS_MAX {
            return Err(RecipientsError::TooMany);
        }
        Ok(Self(keys))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As age writes them.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Digests of what `from` holds and of what is written to `to`, which is on the disk after this.
    fn encrypt(&self, from: &Path, to: &Path) -> io::Result<(FileDigest, FileDigest)> {
        let mut from = File::open(from)?;
        remove_if_there(to)?;
        let keys = self.0.iter().map(|key| key as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(keys).map_err(io::Error::other)?;
        let mut writer = encryptor.wrap_output(Digested {
            file: create(to)?,
            digester: Digester::default(),
        })?;
        let mut plain = Digester::default();
        let mut piece = vec![0; PIECE];
        loop {
            let read = from.read(&mut piece)?;
            if read == 0 {
                break;
            }
            plain.update(&piece[..read]);
            writer.write_all(&piece[..read])?;
        }
        let Digested { file, digester } = writer.finish()?;
        file.sync_all()?;
        Ok((plain.finish(), digester.finish()))
    }
}

fn text(path: &Path) -> Result<String, RecipientsError> {
    let failed = |source| RecipientsError::File {
        path: path.to_owned(),
        source,
    };
    let bytes = read_up_to(path, FILE_BYTES_MAX).map_err(failed)?;
    // Keys that were cut off would be readers who are left out without a word.
    if bytes.len() > FILE_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    String::from_utf8(bytes).map_err(|_text| failed(io::ErrorKind::InvalidData.into()))
}

fn key(text: &str) -> Result<x25519::Recipient, RecipientsError> {
    text.parse().map_err(|_syntax| {
        // Whatever else it is may be a secret key.
        let shown = if text.starts_with(PUBLIC_KEY) {
            text
        } else {
            "…"
        };
        RecipientsError::Key(one_line(shown, 100))
    })
}

/// A file that is digested while it is written.
struct Digested {
    file: File,
    digester: Digester,
}

impl Write for Digested {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digester.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Sealer {
    /// What the manifest says of a file that is closed; encrypted, if that is asked for.
    pub(super) fn record(
        &self,
        id: CaptureId,
        ahead: &mut Ahead,
        file: &CaptureFile,
    ) -> io::Result<FileRecord> {
        let record = if self.recipients.is_empty() {
            let digest = ahead.finish(&self.store.directory, &file.name);
            digest.and_then(|digest| {
                // Of an agent that was to encrypt it, and was killed over it.
                self.remove_counted(&format!("{}{ENCRYPTED_ENDING}", file.name))?;
                Ok(FileRecord::new(file, Some(digest)))
            })
        } else {
            self.encrypt(id, file)
        };
        match record {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::error!(capture = %id, file = file.name, "gone before it was hashed");
                Ok(FileRecord::new(file, None))
            }
            record => record,
        }
    }

    fn encrypt(&self, id: CaptureId, file: &CaptureFile) -> io::Result<FileRecord> {
        let directory = &self.store.directory;
        let part = self.store.file(id, PART);
        let encrypted = self.recipients.encrypt(&directory.join(&file.name), &part);
        let (plain, stored) = encrypted.inspect_err(|_| remove(&part))?;
        reach("encrypted");
        let name = format!("{}{ENCRYPTED_ENDING}", file.name);
        self.remove_counted(&name)?;
        fs::rename(&part, directory.join(&name))?;
        reach("encrypted file renamed");
        self.store.usage().add(stored.bytes);
        let plain = PlainRecord {
            name: file.name.clone(),
            digest: plain,
            recipients: self.recipients.texts(),
        };
        Ok(FileRecord::encrypted(file, stored, plain))
    }

    /// Removes what a signed capture's encrypted files were made of.
    pub(super) fn remove_plain(&self, names: impl Iterator<Item = String>) {
        for name in names {
            if let Err(error) = self.remove_counted(&name) {
                tracing::error!(file = name, %error, "what was encrypted is still here, too; the next start removes it");
            }
            reach("plain file removed");
        }
    }

    /// Removes a file of packets, if it is there.
    fn remove_counted(&self, name: &str) -> io::Result<()> {
        let path = self.store.directory.join(name);
        let bytes = fs::metadata(&path).map_or(0, |file| file.len());
        remove_if_there(&path)?;
        self.store.usage().give_back(bytes);
        Ok(())
    }
}

/// Files in the open that a manifest's encrypted ones were made of.
pub(super) fn plain_files(manifest: &Manifest) -> impl Iterator<Item = String> + use<> {
    let plain = manifest.files.iter().filter_map(|file| file.plain.as_ref());
    let names: Vec<_> = plain.map(|plain| plain.name.clone()).collect();
    // The agent's own words, signed; yet a name decides here what is removed.
    let id = manifest.capture_id.to_string();
    names.into_iter().filter(move |name| {
        name.strip_prefix(&id)
            .is_some_and(|rest| rest.starts_with(['.', '_']) && !rest.contains('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_given_by_name_and_by_file_and_a_secret_one_is_not_shown() {
        let secret = x25519::Identity::generate();
        let key = secret.to_public().to_string();
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("keys.txt");
        let given = |text: &str| {
            fs::write(&file, text).expect("file");
            Recipients::read(&[key.clone(), file.display().to_string()])
        };
        let both = given(&format!("# one\n\n{key}\n")).expect("keys");
        assert_eq!(both.texts(), [key.as_str(), key.as_str()]);
        assert!(Recipients::read(&[]).expect("none").is_empty());
        assert!(matches!(given("# none\n"), Err(RecipientsError::Empty(_))));
        let many = format!("{key}\n").repeat(RECIPIENTS_MAX);
        assert!(matches!(given(&many), Err(RecipientsError::TooMany)));
        let padded = format!("{key}\n#{}\n{key}\n", "x".repeat(FILE_BYTES_MAX));
        assert!(matches!(given(&padded), Err(RecipientsError::File { .. })));
        let error = given("AGE-SECRET-KEY-1X\n").err().expect("refused");
        assert!(!error.to_string().contains("SECRET"), "{error}");
        let error = given("age1x\n").err().expect("refused");
        assert!(error.to_string().contains("`age1x`"), "{error}");
    }
}
