//! What there is to verify: a directory, one capture of it, or an archive.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
};

use anyhow::{Context as _, bail};
use remora_capture::{
    evidence::{Inventory, MANIFEST_ENDING, Scope, TOMBSTONE_ENDING},
    session::CaptureId,
};

use super::{Identities, LIST};

/// A directory of the agent that holds keys and no evidence.
const KEYS: &str = "keys";
/// Longest list of captures that is read, in bytes.
const LIST_BYTES_MAX: u64 = 1 << 20;

/// All files that were read.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) inventory: Inventory,
    pub(crate) scope: Scope,
}

/// Reads all that belongs to `path`.
///
/// # Errors
/// It cannot be read, or is nothing that is evidence.
pub(crate) fn gather(path: &Path, keys: &Identities) -> anyhow::Result<Gathered> {
    let cannot = || format!("{} cannot be read", path.display());
    let found = fs::metadata(path);
    if found.as_ref().is_ok_and(fs::Metadata::is_dir) {
        let inventory = directory(path, |_| true, keys).with_context(cannot)?;
        if inventory.manifests().next().is_none() {
            bail!("{} has no manifest: it is no evidence", path.display());
        }
        return Ok(Gathered {
            inventory,
            scope: Scope::Directory,
        });
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} is no file name", path.display()))?;
    if let Err(error) = found {
        // Of a deleted file its tombstone tells.
        let deleted = one(path, name, keys)
            .ok()
            .filter(|_| has_tombstone(path, name));
        return match deleted {
            Some(inventory) => Ok(Gathered {
                inventory,
                scope: Scope::Selection,
            }),
            None => Err(error).with_context(cannot),
        };
    }
    let inventory = if name.ends_with(".tar") {
        archive(File::open(path).with_context(cannot)?, keys)
    } else if name.ends_with(".tar.zst") {
        let file = File::open(path).with_context(cannot)?;
        archive(zstd::Decoder::new(file).with_context(cannot)?, keys)
    } else {
        one(path, name, keys)?
    };
    Ok(Gathered {
        inventory,
        scope: Scope::Selection,
    })
}

/// The capture that a file belongs to, with all that lies beside it.
fn one(path: &Path, name: &str, keys: &Identities) -> anyhow::Result<Inventory> {
    let end = name.find(['.', '_']).unwrap_or(name.len());
    let (id, _) = name.split_at(end);
    let id: CaptureId = id.parse().ok().with_context(|| {
        format!(
            "{}: which capture's it is, is told by its name as the agent gave it, ID.pcapng",
            path.display()
        )
    })?;
    let id = id.to_string();
    let beside = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let is_of = |name: &str| {
        name.strip_prefix(&id)
            .is_some_and(|rest| rest.starts_with(['.', '_']))
    };
    let inventory = directory(beside, is_of, keys)?;
    if inventory.manifests().next().is_none() {
        bail!("no manifest {id}{MANIFEST_ENDING} lies beside it: nothing is proved");
    }
    Ok(inventory)
}

fn has_tombstone(path: &Path, name: &str) -> bool {
    let end = name.find(['.', '_']).unwrap_or(name.len());
    path.with_file_name(format!("{}{TOMBSTONE_ENDING}", &name[..end]))
        .is_file()
}

fn directory(
    path: &Path,
    wanted: impl Fn(&str) -> bool,
    keys: &Identities,
) -> io::Result<Inventory> {
    let mut inventory = Inventory::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if !wanted(&name) || (kind.is_dir() && name == KEYS) {
            continue;
        }
        if !kind.is_file() {
            inventory.fault(&name, "it is no plain file");
            continue;
        }
        File::open(entry.path())
            .and_then(|file| keys.gather(&name, file, &mut inventory))
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
    }
    Ok(inventory)
}

/// Reads an archive that is not compressed. What is wrong with it is a fault of the evidence in it.
#[must_use]
pub fn read_archive(reader: impl Read) -> Inventory {
    archive(reader, &Identities::default())
}

fn archive(reader: impl Read, keys: &Identities) -> Inventory {
    let mut inventory = Inventory::default();
    let mut archive = tar::Archive::new(BufReader::new(reader));
    let listed = match archive.entries() {
        // Raw: long names and the like are no part of our archives, and cost no memory.
        Ok(entries) => entries_of(entries.raw(true), &mut inventory, keys),
        Err(error) => Err(error),
    };
    match listed {
        Ok(list) => {
            for id in list.lines() {
                let manifest = format!("{id}{MANIFEST_ENDING}");
                if !inventory.contains(&manifest) {
                    inventory.fault(&manifest, "missing, the archive lists its capture");
                }
            }
            if list.is_empty() {
                inventory.fault(LIST, "missing: which captures it should hold is not told");
            }
        }
        Err(error) => inventory.fault("the archive", &format!("it is cut off or broken: {error}")),
    }
    inventory
}

fn entries_of<R: Read>(
    entries: tar::Entries<'_, R>,
    inventory: &mut Inventory,
    keys: &Identities,
) -> io::Result<String> {
    let mut list = String::new();
    for entry in entries {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() {
            inventory.fault(&name, "it is no plain file");
        } else if name == LIST && list.is_empty() {
            (&mut entry)
                .take(LIST_BYTES_MAX)
                .read_to_string(&mut list)?;
        } else {
            let length = entry.header().size()?;
            if keys.gather(&name, &mut entry, inventory)?.bytes != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use remora_capture::evidence::{SecretKey, Verdict, verify};

    use super::*;

    fn tar(entries: &[(&str, &[u8], u8)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content, kind) in entries {
            let mut header = tar::Header::new_ustar();
            // As another program may write it: the crate itself refuses some names.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(tar::EntryType::new(*kind));
            header.set_size(content.len() as u64);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    #[track_caller]
    fn assert_fault(bytes: &[u8], what: &str) {
        let key = SecretKey::from_random(&[1; 32]).public();
        let report = verify(&read_archive(bytes), &[key], None, Scope::Selection);
        assert_eq!(report.verdict(), Verdict::Broken, "{report:?}");
        assert!(
            report.broken.iter().any(|text| text.contains(what)),
            "{what}: {report:?}"
        );
    }

    #[test]
    fn names_that_leave_the_directory_links_and_cut_archives_are_refused() {
        for name in ["../x.pcapng", "/etc/passwd", "a/../b", "./x", "a\u{1b}[31m"] {
            assert_fault(&tar(&[(name, b"x", b'0')]), "is no name that evidence has");
        }
        let mut text = tar(&[("x.pcapng", b"x", b'0')])[..1024].to_vec();
        text.extend_from_slice(&[b'\n'; 1024]);
        let broken = read_archive(text.as_slice());
        let report = verify(
            &broken,
            &[SecretKey::from_random(&[1; 32]).public()],
            None,
            Scope::Selection,
        );
        let control = |text: &String| text.chars().any(char::is_control);
        assert!(!report.broken.iter().any(control), "{report:?}");
        assert_fault(&tar(&[("x.pcapng", b"", b'2')]), "no plain file");
        assert_fault(&tar(&[("././@LongLink", b"long", b'L')]), "no plain file");
        let whole = tar(&[
            ("captures.txt", b"x\n", b'0'),
            ("x.pcapng", &[7; 2000], b'0'),
        ]);
        assert_fault(&whole[..2000], "cut off or broken");
        assert_fault(&whole, "missing, the archive lists its capture");
        assert_fault(&tar(&[]), "which captures it should hold is not told");
        let twice = tar(&[("a.pub", b"x", b'0'), ("a.pub", b"y", b'0')]);
        assert_fault(&twice, "is there twice");
        let mut flipped = whole;
        flipped[3] ^= 1;
        assert_fault(&flipped, "cut off or broken");
    }
}
