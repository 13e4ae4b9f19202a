//! The node's keys.
//!
//! ```text
//! keys/node.key       the key that signs, PKCS#8 in PEM; made at the first start unless one is given
//! keys/<key id>.pub   each that ever signed here, so that old manifests stay verifiable
//! ```

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use remora_capture::evidence::{KeyError, PublicKey, SecretKey};

use super::{io_error, sync_directory};
use crate::sink::{shelf::create, store::StoreError, store::write_anew};

const DIRECTORY: &str = "keys";
const SECRET: &str = "node.key";
const PUBLIC_ENDING: &str = "pub";
/// Longest key file that is read.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// What signs, and what has signed.
#[derive(Debug)]
pub struct Keys {
    pub(super) secret: SecretKey,
    /// All that ever signed here, the present one included.
    pub(super) public: Vec<PublicKey>,
}

impl Keys {
    /// Reads the key that is `given`, or the node's own, which is made if there is none.
    ///
    /// # Errors
    /// It cannot be read or made, or is no ed25519 key.
    pub(in crate::sink) fn open(data: &Path, given: Option<&Path>) -> Result<Self, StoreError> {
        let directory = data.join(DIRECTORY);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(io_error("make the directory", &directory))?;
        let own = directory.join(SECRET);
        let path = given.unwrap_or(&own);
        let secret = match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && given.is_none() => {
                make(&directory, &own).map_err(io_error("make the node's key", &own))?
            }
            Err(error) => return Err(io_error("read the key", path)(error)),
            Ok(pem) => SecretKey::from_pem(&pem)
                .map_err(io::Error::other)
                .map_err(io_error("understand the key", path))?,
        };
        let public = secret.public();
        let shown = public_path(&directory, &public);
        let known = read(&shown).is_ok_and(|pem| PublicKey::from_pem(&pem) == Ok(public));
        if !known {
            write_anew(&shown, public.to_pem().as_bytes())
                .and_then(|file| file.sync_all())
                .and_then(|()| sync_directory(&directory))
                .map_err(io_error("write the public key", &shown))?;
            tracing::info!(key = %public.id(), path = %shown.display(), "manifests are signed by a new key");
        }
        let public = all_public(data).map_err(io_error("read the keys in", &directory))?;
        Ok(Self { secret, public })
    }

    /// The key that signs now.
    #[must_use]
    pub fn signing(&self) -> PublicKey {
        self.secret.public()
    }
}

/// Files of the public keys.
pub(in crate::sink) fn public_files(data: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(data.join(DIRECTORY))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == PUBLIC_ENDING) {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn all_public(data: &Path) -> io::Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for path in public_files(data)? {
        match PublicKey::from_pem(&read(&path)?) {
            Ok(key) => keys.push(key),
            Err(KeyError::Public | KeyError::Secret) => {
                tracing::warn!(path = %path.display(), "not a public key; left out");
            }
        }
    }
    Ok(keys)
}

fn public_path(directory: &Path, key: &PublicKey) -> PathBuf {
    directory.join(format!("{}.{PUBLIC_ENDING}", key.id()))
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(KEY_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Makes a key; there is a whole one or none, whenever the agent is killed.
fn make(directory: &Path, path: &Path) -> io::Result<SecretKey> {
    let mut random = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let secret = SecretKey::from_random(&random);
    let aside = path.with_extension("part");
    super::super::store::remove_if_there(&aside)?;
    let mut file = create(&aside)?;
    file.write_all(secret.to_pem().as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    sync_directory(directory)?;
    Ok(secret)
}
