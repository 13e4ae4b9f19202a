//! Images of our own, as OCI archives: nothing is pulled from anywhere.
//!
//! An archive is a tar of `oci-layout`, `index.json` and `blobs/sha256/<digest>`: the manifest, the
//! configuration, and the layers (OCI image layout 1.1).

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::run;

/// The image of sandboxes.
pub const PAUSE: &str = "remora.test/pause:1";
/// The image of test pods: a static busybox with all its commands.
pub const BUSYBOX: &str = "remora.test/busybox:1";

const DIRECTORIES: [(&str, u32); 10] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("www", 0o777),
];
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";

/// Writes the archives of [`PAUSE`] and [`BUSYBOX`] into a directory.
///
/// # Errors
/// There is no static busybox.
pub fn make(directory: &Path) -> Result<Vec<PathBuf>> {
    let layer = busybox_layer()?;
    let images = [
        // Its only process ends when the sandbox is killed, and has no children.
        (PAUSE, "pause", vec!["/bin/sleep", "2147483647"]),
        (BUSYBOX, "busybox", vec!["/bin/sh"]),
    ];
    let mut archives = Vec::new();
    for (name, file, command) in images {
        let path = directory.join(format!("{file}.oci.tar"));
        let config = json!({"Env": ["PATH=/bin"], "Cmd": command, "WorkingDir": "/"});
        archive(&path, name, &layer, &config)?;
        archives.push(path);
    }
    Ok(archives)
}

/// A file system of busybox alone, as a tar.
fn busybox_layer() -> Result<Vec<u8>> {
    let busybox = run::output(run::command("which").arg("busybox"))
        .context("no busybox; Debian's busybox-static has one")?;
    let busybox = fs::canonicalize(busybox.trim())?;
    let program = fs::read(&busybox)?;
    ensure!(
        is_static(&program),
        "{} needs libraries, which the image has not: install busybox-static",
        busybox.display()
    );
    let mut layer = Layer::default();
    for (name, mode) in DIRECTORIES {
        layer.entry(name, EntryType::Directory, mode, &[])?;
    }
    layer.entry("bin/busybox", EntryType::Regular, 0o755, &program)?;
    for command in run::output(run::command(&busybox).arg("--list"))?.lines() {
        if command != "busybox" {
            layer.link(&format!("bin/{command}"), "busybox")?;
        }
    }
    layer.entry("etc/passwd", EntryType::Regular, 0o644, USERS.as_bytes())?;
    layer.tar.into_inner().context("the layer's tar")
}

/// An ELF program that names no interpreter.
fn is_static(program: &[u8]) -> bool {
    use object::read::elf::{ElfFile64, ProgramHeader as _};
    let Ok(elf) = ElfFile64::<object::Endianness>::parse(program) else {
        return false;
    };
    let mut headers = elf.elf_program_headers().iter();
    !headers.any(|header| header.p_type(elf.endian()) == object::elf::PT_INTERP)
}

struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
        }
    }
}

impl Layer {
    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        Ok(self.tar.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, path: &str, to: &str) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        Ok(self.tar.append_link(&mut header, path, to)?)
    }
}

/// Writes an archive of one image with one layer.
fn archive(path: &Path, name: &str, layer: &[u8], config: &Value) -> Result<()> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let layer_digest = digest(layer);
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }))?;
    let mut of_manifest = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    of_manifest["annotations"] = json!({"io.containerd.image.name": name});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [of_manifest]}))?;

    let mut tar = Builder::new(
        File::create(path).with_context(|| format!("failed to make {}", path.display()))?,
    );
    let mut add = |name: &str, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content)
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &index)?;
    for blob in [manifest.as_slice(), &config, layer] {
        let digest = digest(blob);
        add(&format!("blobs/{}", digest.replace(':', "/")), blob)?;
    }
    tar.finish()?;
    Ok(())
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

/// "sha256:0123…".
fn digest(blob: &[u8]) -> String {
    let digest = Sha256::digest(blob);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
