//! The file system of a virtual machine: programs with their libraries, kernel modules with what
//! they need, and a script, as an initramfs.
//!
//! An initramfs is a cpio archive of the format "newc" (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst): per entry a header of thirteen
//! 8-digit hexadecimal fields after "070701", the name with a NUL, the content; each padded to 4.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::process::{find, output};

/// On a merged /usr these are links.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

const FILE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const DIRECTORY: u32 = 0o040_755;
const CONSOLE: u32 = 0o020_600;

/// Entries by path, without the leading slash; so directories come before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Image {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    content: Vec<u8>,
    /// Major and minor number of a device.
    device: (u32, u32),
}

impl Image {
    /// With the directories and links that every system has.
    pub(crate) fn new() -> Self {
        let mut image = Self::default();
        for name in MERGED {
            image.link(name, &format!("usr/{name}"));
            image.directory(&format!("usr/{name}"));
        }
        for name in ["dev", "proc", "sys", "run", "tmp", "etc", "root"] {
            image.directory(name);
        }
        image.put("dev/console", CONSOLE, Vec::new(), (5, 1));
        image
    }

    fn put(&mut self, path: &str, mode: u32, content: Vec<u8>, device: (u32, u32)) {
        let path = merged(path);
        let mut parent = Path::new(&path).parent();
        while let Some(directory) = parent.filter(|path| !path.as_os_str().is_empty()) {
            let name = directory.to_string_lossy().into_owned();
            self.entries.entry(name).or_insert(Entry {
                mode: DIRECTORY,
                content: Vec::new(),
                device: (0, 0),
            });
            parent = directory.parent();
        }
        self.entries.insert(
            path,
            Entry {
                mode,
                content,
                device,
            },
        );
    }

    pub(crate) fn directory(&mut self, path: &str) {
        self.put(path, DIRECTORY, Vec::new(), (0, 0));
    }

    pub(crate) fn file(&mut self, path: &str, content: Vec<u8>) {
        self.put(path, FILE, content, (0, 0));
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        // A link at the root is not below itself.
        self.entries.insert(
            path.to_owned(),
            Entry {
                mode: LINK,
                content: target.as_bytes().to_vec(),
                device: (0, 0),
            },
        );
    }

    /// A program of ours without its debug information, and its libraries.
    pub(crate) fn built(&mut self, path: &str, program: &Path) -> anyhow::Result<()> {
        let stripped = tempfile::NamedTempFile::new()?;
        let content = match Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(stripped.path())
            .arg(program)
            .status()
        {
            Ok(status) if status.success() => fs::read(stripped.path())?,
            _ => read(program)?,
        };
        self.file(path, content);
        self.libraries(program)
    }

    /// A program of this machine and its libraries.
    pub(crate) fn tool(&mut self, name: &str) -> anyhow::Result<()> {
        let path = find(name).with_context(|| format!("no `{name}` on this machine"))?;
        self.file(&path.to_string_lossy(), read(&path)?);
        self.libraries(&path)
    }

    fn libraries(&mut self, program: &Path) -> anyhow::Result<()> {
        let listed = output(Command::new("ldd").arg(program))?;
        for path in libraries(&listed) {
            if !self.entries.contains_key(&merged(&path.to_string_lossy())) {
                self.file(&path.to_string_lossy(), read(&path)?);
            }
        }
        Ok(())
    }

    /// The archive.
    pub(crate) fn to_cpio(&self) -> Vec<u8> {
        let mut cpio = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            member(&mut cpio, number, path, entry);
        }
        let end = Entry {
            mode: 0,
            content: Vec::new(),
            device: (0, 0),
        };
        member(&mut cpio, 0, "TRAILER!!!", &end);
        cpio
    }
}

fn member(cpio: &mut Vec<u8>, number: u32, path: &str, entry: &Entry) {
    let size = u32::try_from(entry.content.len()).expect("files of a test are below 4 GiB");
    let name_size = u32::try_from(path.len() + 1).expect("paths are short");
    let (major, minor) = entry.device;
    // ino, mode, uid, gid, nlink, mtime, size, dev (2), rdev (2), name size, check sum.
    let fields = [
        number, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
    ];
    cpio.extend_from_slice(b"070701");
    for field in fields {
        cpio.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    cpio.extend_from_slice(path.as_bytes());
    cpio.push(0);
    cpio.resize(cpio.len().next_multiple_of(4), 0);
    cpio.extend_from_slice(&entry.content);
    cpio.resize(cpio.len().next_multiple_of(4), 0);
}

/// The path without a leading slash, and below `usr` what links lead there.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Paths in what ldd prints: `name => /path (address)` or `/path (address)`.
fn libraries(listed: &str) -> Vec<PathBuf> {
    listed
        .lines()
        .filter_map(|line| {
            let path = line.split(" => ").last()?.trim();
            let path = path.split(" (").next()?;
            path.starts_with('/').then(|| path.into())
        })
        .collect()
}

/// Kernel modules of an unpacked kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
    busybox: PathBuf,
}

impl Modules {
    pub(crate) fn of(kernel: &Path, busybox: &Path) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        for root in ["lib/modules", "usr/lib/modules"] {
            collect(&kernel.join(root), &mut files)?;
        }
        ensure!(!files.is_empty(), "no modules in {}", kernel.display());
        Ok(Self {
            files,
            busybox: busybox.to_owned(),
        })
    }

    /// Names and contents of those wanted and of all that they need, in the order of loading. What
    /// is no module is built in.
    pub(crate) fn wanted(&self, names: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut done = BTreeSet::new();
        let mut ordered = Vec::new();
        for name in names {
            self.add(name, &mut done, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(
        &self,
        name: &str,
        done: &mut BTreeSet<String>,
        ordered: &mut Vec<(String, Vec<u8>)>,
    ) -> anyhow::Result<()> {
        let name = name.replace('-', "_");
        let Some(file) = self.files.get(&name) else {
            return Ok(());
        };
        if !done.insert(name.clone()) {
            return Ok(());
        }
        let content = if file.extension().is_some_and(|extension| extension == "xz") {
            let unpacked = Command::new(&self.busybox)
                .arg("xzcat")
                .arg(file)
                .output()?;
            ensure!(
                unpacked.status.success(),
                "cannot unpack {}",
                file.display()
            );
            unpacked.stdout
        } else {
            read(file)?
        };
        for needed in needs(&content) {
            self.add(&needed, done, ordered)?;
        }
        ordered.push((name, content));
        Ok(())
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            collect(&path, files)?;
        } else if let Some((stem, _)) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split_once(".ko"))
        {
            files.insert(stem.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

/// What a module says in its section .modinfo: `depends=a,b`.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldds_lines_give_paths_and_the_vdso_none() {
        let listed = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 \
                      (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let paths = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries(listed), paths.map(PathBuf::from));
    }

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(needs(b"x\0license=GPL\0depends=stp,llc\0"), ["stp", "llc"]);
        assert_eq!(needs(b"x\0license=GPL\0depends=\0name=llc\0"), [""; 0]);
    }

    #[test]
    fn in_an_archive_a_directory_comes_before_what_is_in_it() {
        let mut image = Image::new();
        image.file("bin/hello", b"hello\n".to_vec());
        let cpio = image.to_cpio();
        assert!(cpio.starts_with(b"070701") && cpio.len().is_multiple_of(4));
        let text = String::from_utf8_lossy(&cpio);
        for name in ["usr/bin/hello", "TRAILER!!!", "dev/console"] {
            assert!(text.contains(name), "{name}");
        }
        assert!(text.find("usr/bin\0") < text.find("usr/bin/hello\0"));
    }
}
