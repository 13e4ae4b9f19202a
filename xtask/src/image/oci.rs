//! An image in the layout of the OCI image specification 1.1, as one tar archive:
//!
//! ```text
//! oci-layout            the layout's version
//! index.json            one manifest, with the image's name
//! blobs/sha256/DIGEST   manifest, configuration, layers
//! ```

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::layer::Packed;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// `sha256:` and 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest(String);

impl Digest {
    pub(super) fn of(content: &[u8]) -> Self {
        let mut text = "sha256:".to_owned();
        for byte in Sha256::digest(content) {
            write!(text, "{byte:02x}").expect("a String takes all that is written to it");
        }
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.0.replace(':', "/"))
    }
}

/// All that makes an image.
#[derive(Debug)]
pub(super) struct Image {
    /// With its tag.
    pub(super) name: String,
    pub(super) version: String,
    /// The commit that it was made of.
    pub(super) revision: Option<String>,
    /// Seconds since 1970.
    pub(super) epoch: u64,
    /// Who runs it, as `uid:gid`.
    pub(super) user: String,
    pub(super) layers: Vec<Packed>,
}

impl Image {
    /// Writes the archive; the manifest's digest, which is the image's.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write(&self, to: &Path) -> anyhow::Result<Digest> {
        let configuration = bytes(&self.configuration());
        let manifest = bytes(&self.manifest(&configuration));
        let digest = Digest::of(&manifest);
        let index = bytes(&self.index(&manifest));
        let layout = bytes(&json!({"imageLayoutVersion": "1.0.0"}));

        let mut blobs = vec![configuration.as_slice(), manifest.as_slice()];
        blobs.extend(self.layers.iter().map(|layer| layer.compressed.as_slice()));
        let mut files: Vec<(String, &[u8])> = blobs
            .into_iter()
            .map(|blob| (Digest::of(blob).path(), blob))
            .collect();
        files.sort();
        files.dedup();
        files.push(("index.json".to_owned(), &index));
        files.push(("oci-layout".to_owned(), &layout));
        fs::write(to, self.archive(&files)?).with_context(|| to.display().to_string())?;
        Ok(digest)
    }

    /// Labels of the configuration, annotations of the manifest: org.opencontainers.image.*.
    fn labels(&self) -> Value {
        let mut labels = json!({
            "org.opencontainers.image.title": "remora",
            "org.opencontainers.image.description":
                "Packet captures of one pod, started by an alert: agent, controller, command line",
            "org.opencontainers.image.licenses": "Apache-2.0",
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.created": self.created(),
        });
        if let Some(revision) = &self.revision {
            labels["org.opencontainers.image.revision"] = json!(revision);
        }
        labels
    }

    fn configuration(&self) -> Value {
        let layers: Vec<&str> = self
            .layers
            .iter()
            .map(|layer| layer.diff.as_str())
            .collect();
        json!({
            "created": self.created(),
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": ["PATH=/usr/bin"],
                "Cmd": ["remora", "--help"],
                "WorkingDir": "/",
                "Labels": self.labels(),
            },
            "rootfs": {"type": "layers", "diff_ids": layers},
        })
    }

    fn manifest(&self, configuration: &[u8]) -> Value {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| descriptor(LAYER, &layer.compressed))
            .collect();
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIGURATION, configuration),
            "layers": layers,
            "annotations": self.labels(),
        })
    }

    fn index(&self, manifest: &[u8]) -> Value {
        let mut entry = descriptor(MANIFEST, manifest);
        entry["platform"] = json!({"architecture": architecture(), "os": "linux"});
        entry["annotations"] = json!({
            "org.opencontainers.image.ref.name": self.version,
            // By this `ctr images import` names it.
            "io.containerd.image.name": self.name,
        });
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        })
    }

    fn archive(&self, files: &[(String, &[u8])]) -> anyhow::Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(self.epoch);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, *content)?;
        }
        Ok(tar.into_inner()?)
    }

    fn created(&self) -> String {
        utc(self.epoch)
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": Digest::of(content).as_str(),
        "size": content.len(),
    })
}

/// The same bytes for the same value: serde_json sorts keys.
fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Go's name for what this was compiled for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// RFC 3339 of seconds since 1970, by the days' arithmetic of H. Hinnant's `civil_from_days`.
pub(super) fn utc(epoch: u64) -> String {
    let (days, seconds) = (epoch / 86_400 + 719_468, epoch % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = match month {
        0..=9 => (month + 3, year_of_era + era * 400),
        _ => (month - 9, year_of_era + era * 400 + 1),
    };
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_told_as_a_date() {
        for (epoch, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_796_000_000, "2026-11-30T00:53:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(epoch), text);
        }
    }

    #[test]
    fn a_digest_is_what_sha256sum_says() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
    }
}
