//! A layer: files as a tar archive that has the same bytes whenever and wherever it is made.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::oci::Digest;

/// `VFS_CAP_REVISION_2` with `VFS_CAP_FLAGS_EFFECTIVE` (linux/capability.h).
const CAPABILITY_MAGIC: u32 = 0x0200_0001;

/// What a file is for, which says who may do what with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Text = 0o644,
    Program = 0o755,
}

#[derive(Debug)]
enum Entry {
    Directory,
    File {
        mode: Mode,
        content: Vec<u8>,
        /// The value of `security.capability`.
        capabilities: Option<Vec<u8>>,
    },
    Link(String),
}

/// Entries by path, without the leading slash; so directories come before what is in them.
#[derive(Debug)]
pub(super) struct Layer {
    entries: BTreeMap<String, Entry>,
    epoch: u64,
}

/// A layer as it is shipped.
#[derive(Debug)]
pub(super) struct Packed {
    /// The tar archive, by gzip.
    pub(super) compressed: Vec<u8>,
    /// Of the archive before compression: what the configuration names it by.
    pub(super) diff: Digest,
}

impl Layer {
    /// Everything in it is dated `epoch`, in seconds since 1970.
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            epoch,
        }
    }

    pub(super) fn file(&mut self, path: &str, mode: Mode, content: Vec<u8>) {
        let entry = Entry::File {
            mode,
            content,
            capabilities: None,
        };
        self.put(path, entry);
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.put(path, Entry::Link(target.to_owned()));
    }

    /// Gives a file that is there permitted and effective capabilities, by their numbers.
    pub(super) fn capabilities(&mut self, path: &str, numbers: &[u32]) {
        if let Some(Entry::File { capabilities, .. }) = self.entries.get_mut(path) {
            *capabilities = Some(capability_value(numbers));
        }
    }

    fn put(&mut self, path: &str, entry: Entry) {
        let parents = Path::new(path).ancestors().skip(1);
        for parent in parents.filter(|path| !path.as_os_str().is_empty()) {
            let name = parent.to_string_lossy().into_owned();
            self.entries.entry(name).or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// # Errors
    /// A path is longer than tar can say.
    pub(super) fn packed(&self) -> anyhow::Result<Packed> {
        let archive = self.archive()?;
        // The name of a file and its time would be in gzip's head, too.
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        gzip.write_all(&archive)?;
        Ok(Packed {
            compressed: gzip.finish()?,
            diff: Digest::of(&archive),
        })
    }

    fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            self.append(&mut tar, path, entry)
                .with_context(|| format!("`{path}`"))?;
        }
        Ok(tar.into_inner()?)
    }

    fn append(&self, tar: &mut Builder<Vec<u8>>, path: &str, entry: &Entry) -> anyhow::Result<()> {
        let mut header = Header::new_ustar();
        header.set_mtime(self.epoch);
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Entry::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                tar.append_link(&mut header, path, target)?;
            }
            Entry::File {
                mode,
                content,
                capabilities,
            } => {
                if let Some(value) = capabilities {
                    tar.append_pax_extensions([(
                        "SCHILY.xattr.security.capability",
                        value.as_slice(),
                    )])?;
                }
                header.set_entry_type(EntryType::Regular);
                header.set_mode(*mode as u32);
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_slice())?;
            }
        }
        Ok(())
    }
}

/// `struct vfs_cap_data`: magic, then two pairs of permitted and inheritable, all little-endian.
fn capability_value(numbers: &[u32]) -> Vec<u8> {
    let permitted = numbers.iter().fold(0_u64, |set, number| set | 1 << number);
    let [low, high] = [permitted as u32, (permitted >> 32) as u32];
    [CAPABILITY_MAGIC, low, 0, high, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn layer() -> Layer {
        let mut layer = Layer::new(1_700_000_000);
        layer.file("usr/bin/b", Mode::Program, b"program".to_vec());
        layer.file("usr/bin/a", Mode::Program, vec![7; 70_000]);
        layer.file("etc/text", Mode::Text, b"text\n".to_vec());
        layer.link("bin", "usr/bin");
        layer.capabilities("usr/bin/b", &[12, 39]);
        layer
    }

    #[test]
    fn the_same_files_make_the_same_bytes() {
        let (one, two) = (layer().packed().unwrap(), layer().packed().unwrap());
        assert_eq!(one.compressed, two.compressed);
        assert_eq!(one.diff, two.diff);
    }

    #[test]
    fn entries_are_sorted_dated_and_nobody_s() {
        let packed = layer().packed().unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(packed.compressed.as_slice()));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), 1_700_000_000);
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.username().unwrap(), Some(""));
            names.push(entry.path().unwrap().to_string_lossy().into_owned());
            if names.last().is_some_and(|name| name == "usr/bin/b") {
                let extensions = entry.pax_extensions().unwrap().unwrap();
                let found = extensions.map(Result::unwrap).next().unwrap();
                assert_eq!(found.key(), Ok("SCHILY.xattr.security.capability"));
                // As `setcap cap_net_admin,cap_bpf=ep` writes it.
                let expected = [
                    1, 0, 0, 2, 0, 0x10, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0,
                ];
                assert_eq!(found.value_bytes(), expected);
                let mut content = String::new();
                entry.read_to_string(&mut content).unwrap();
                assert_eq!(content, "program");
            }
        }
        let expected = [
            "bin",
            "etc/",
            "etc/text",
            "usr/",
            "usr/bin/",
            "usr/bin/a",
            "usr/bin/b",
        ];
        assert_eq!(names, expected);
    }
}
