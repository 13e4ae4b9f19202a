//! The bill of materials: a CycloneDX 1.5 document that lies beside the image.

use serde_json::{Value, json};

use super::crates::Crate;
use super::libraries::Package;
use super::oci::{Image, utc};

/// The document's text. The same image has the same.
///
/// # Errors
/// None but those of writing JSON.
pub(super) fn of(
    image: &Image,
    digest: &str,
    crates: &[Crate],
    packages: &[Package],
) -> anyhow::Result<String> {
    let components: Vec<Value> = crates
        .iter()
        .map(of_crate)
        .chain(packages.iter().map(of_package))
        .collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": serial(digest),
        "version": 1,
        "metadata": {
            "timestamp": utc(image.epoch),
            "component": {
                "type": "container",
                "bom-ref": format!("pkg:oci/remora@{}", digest.replace(':', "%3A")),
                "name": image.name,
                "version": image.version,
                "purl": format!("pkg:oci/remora@{}", digest.replace(':', "%3A")),
                "hashes": [{"alg": "SHA-256", "content": digest.trim_start_matches("sha256:")}],
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": components,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn of_crate(linked: &Crate) -> Value {
    let Crate {
        name,
        version,
        licence,
        ours,
        ..
    } = linked;
    let purl = format!("pkg:cargo/{name}@{}", escaped(version));
    let mut component = json!({
        "type": if *ours { "application" } else { "library" },
        "bom-ref": purl,
        "name": name,
        "version": version,
        "licenses": [{"expression": licence}],
    });
    // Our own are on no registry.
    if !ours {
        component["purl"] = json!(purl);
    }
    component
}

fn of_package(package: &Package) -> Value {
    let Package {
        name,
        version,
        architecture,
        ..
    } = package;
    let purl = format!(
        "pkg:deb/debian/{}@{}?arch={architecture}",
        escaped(name),
        escaped(version)
    );
    json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "licenses": [{"license": {
            "name": "as stated in Debian's copyright file",
            "url": format!("file:///usr/share/doc/{name}/copyright"),
        }}],
    })
}

/// A UUID (RFC 9562, version 8) of the image's digest.
fn serial(digest: &str) -> String {
    let hex: String = digest
        .trim_start_matches("sha256:")
        .chars()
        .take(32)
        .collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "urn:uuid:{}-{}-8{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}

/// As a package URL writes it.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' | '~' => c.to_string(),
            other => format!("%{:02X}", other as u32),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls_are_escaped_and_the_serial_is_a_uuid() {
        assert_eq!(escaped("1.10.3-1+b1:2"), "1.10.3-1%2Bb1%3A2");
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(
            serial(&digest),
            "urn:uuid:01234567-89ab-8def-8123-456789abcdef"
        );
    }
}
