//! Encrypted files (age-encryption.org/v1), read by who has a secret key.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use age::{DecryptError, Decryptor, x25519};
use anyhow::{Context as _, bail, ensure};
use remora_capture::{
    evidence::{Digester, ENCRYPTED_ENDING, Entry, FileDigest, Inventory},
    text::one_line,
};

/// Longest file of secret keys that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Bytes read at a time.
const PIECE: usize = 1 << 18;

/// Secret keys; none: what is encrypted stays so.
#[derive(Clone, Default)]
pub(crate) struct Identities(Vec<x25519::Identity>);

impl Identities {
    /// From a file as `age-keygen` makes it.
    ///
    /// # Errors
    /// It cannot be read, or has something else.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
            .with_context(|| format!("--identity {} cannot be read", path.display()))?;
        // A key that was cut off would be files that cannot be decrypted, for no reason that is told.
        ensure!(
            text.len() as u64 <= FILE_BYTES_MAX,
            "--identity {}: more than {} KiB; give a file with the secret keys alone",
            path.display(),
            FILE_BYTES_MAX >> 10
        );
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Result<Vec<_>, _> = keys.map(str::parse).collect();
        // The line itself is secret.
        match keys {
            Ok(keys) if !keys.is_empty() => Ok(Self(keys)),
            _ => bail!(
                "--identity {}: not a file of secret keys as `age-keygen` makes it (AGE-SECRET-KEY-1…)",
                path.display()
            ),
        }
    }

    /// Reads a file into the inventory, and what it holds if it is encrypted; its digest as it lies there.
    ///
    /// # Errors
    /// The reader's.
    pub(crate) fn gather(
        &self,
        name: &str,
        reader: impl Read,
        inventory: &mut Inventory,
    ) -> io::Result<FileDigest> {
        let Some(plain) = name
            .strip_suffix(ENCRYPTED_ENDING)
            .filter(|_| !self.0.is_empty())
        else {
            let entry = Entry::read(name, reader)?;
            let digest = entry.digest();
            inventory.put(name, entry);
            return Ok(digest);
        };
        let mut reader = Digested {
            reader,
            digester: Digester::default(),
            failure: None,
        };
        match self.decrypt(&mut reader, io::sink()) {
            Ok(digest) => inventory.put(plain, Entry::of(digest)),
            Err(error) => inventory.fault(name, &format!("cannot be decrypted: {error}")),
        }
        // After a failure the rest is still to be read.
        io::copy(&mut reader, &mut io::sink())?;
        if let Some(failure) = reader.failure {
            return Err(failure.into());
        }
        let digest = reader.digester.finish();
        inventory.put(name, Entry::of(digest));
        Ok(digest)
    }

    /// Writes what an encrypted file holds; its digest.
    ///
    /// # Errors
    /// None of the keys is one that it was encrypted to, it was changed, or the disk's.
    pub(crate) fn decrypt(&self, from: impl Read, mut to: impl Write) -> io::Result<FileDigest> {
        let keys = self.0.iter().map(|key| key as &dyn age::Identity);
        let decrypted = Decryptor::new(from).and_then(|decryptor| decryptor.decrypt(keys));
        let mut plain = decrypted.map_err(told)?;
        let mut digester = Digester::default();
        let mut piece = vec![0; PIECE];
        loop {
            let read = plain.read(&mut piece)?;
            if read == 0 {
                return Ok(digester.finish());
            }
            digester.update(&piece[..read]);
            to.write_all(&piece[..read])?;
        }
    }
}

fn told(error: DecryptError) -> io::Error {
    match error {
        DecryptError::Io(error) => error,
        DecryptError::NoMatchingKeys => {
            io::Error::other("it is encrypted to other keys than those of --identity")
        }
        other => io::Error::other(one_line(&other.to_string(), 200)),
    }
}

/// A reader whose bytes are digested on their way.
struct Digested<R> {
    reader: R,
    digester: Digester,
    /// Of the reader itself, not of what is made of its bytes.
    failure: Option<io::ErrorKind>,
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(bytes);
        match read {
            Ok(read) => self.digester.update(&bytes[..read]),
            Err(ref error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failure = Some(error.kind());
            }
            Err(_) => {}
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encrypted(to: &x25519::Identity, bytes: &[u8]) -> Vec<u8> {
        age::encrypt(&to.to_public(), bytes).expect("encrypted")
    }

    #[test]
    fn an_encrypted_file_is_read_as_it_lies_there_and_as_what_it_holds() {
        let (key, other) = (x25519::Identity::generate(), x25519::Identity::generate());
        let packets = vec![7; 200_000];
        let file = encrypted(&key, &packets);
        let of = |bytes: &[u8]| {
            let mut digester = Digester::default();
            digester.update(bytes);
            digester.finish()
        };
        let read = |keys: &[x25519::Identity], file: &[u8]| {
            let mut inventory = Inventory::default();
            let identities = Identities(keys.to_vec());
            let digest = identities.gather("x.pcapng.age", file, &mut inventory);
            assert_eq!(digest.expect("read"), of(file));
            inventory
        };
        assert!(!read(&[], &file).contains("x.pcapng"));
        let inventory = read(&[other.clone(), key.clone()], &file);
        assert!(inventory.contains("x.pcapng") && inventory.contains("x.pcapng.age"));
        for (keys, file) in [
            (vec![other], file.as_slice()),
            (vec![key.clone()], &file[..9000]),
        ] {
            let inventory = read(&keys, file);
            assert!(inventory.contains("x.pcapng.age") && !inventory.contains("x.pcapng"));
        }
        let mut plain = Vec::new();
        let digest = Identities(vec![key]).decrypt(file.as_slice(), &mut plain);
        assert_eq!(
            (digest.expect("decrypted"), &plain),
            (of(&packets), &packets)
        );
    }

    #[test]
    fn keys_at_the_end_of_a_long_file_are_not_left_out_without_a_word() {
        use age::secrecy::ExposeSecret as _;

        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("keys.txt");
        let key = x25519::Identity::generate().to_string();
        let read = |padding: u64| {
            let padding = "#".repeat(usize::try_from(padding).expect("small"));
            let text = format!("{padding}\n{}\n", key.expose_secret());
            std::fs::write(&path, text).expect("file");
            Identities::read(&path)
        };
        let fits = FILE_BYTES_MAX - key.expose_secret().len() as u64 - 2;
        assert_eq!(read(fits).expect("keys").0.len(), 1);
        for longer in [1, 10, FILE_BYTES_MAX] {
            let error = read(fits + longer).err().expect("refused").to_string();
            assert!(error.contains("more than 64 KiB"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_identity_is_refused_and_not_shown() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("key.txt");
        for text in ["", "# nothing\n", "AGE-SECRET-KEY-1NOTONE\n"] {
            std::fs::write(&path, text).expect("file");
            let error = Identities::read(&path).err().expect("refused").to_string();
            assert!(
                error.contains("age-keygen") && !error.contains("NOTONE"),
                "{error}"
            );
        }
    }
}
