//! The arrows between the workspace's crates, and that none has unsafe code but those that must.

use std::fs;

use anyhow::Context as _;
use serde_json::Value;

/// A crate, and the crates of the workspace that it may depend on.
const ARROWS: [(&str, &[&str]); 14] = [
    ("remora-agent-common", &[]),
    ("remora-agent-ebpf", &["remora-agent-common"]),
    ("remora-capture", &[]),
    ("remora-crd", &[]),
    ("remora-proto", &["remora-capture"]),
    ("remora-rules", &["remora-capture"]),
    (
        "remora-agent",
        &[
            "remora-agent-common",
            "remora-capture",
            "remora-proto",
            "remora-settings",
        ],
    ),
    (
        "remora-controller",
        &[
            "remora-capture",
            "remora-crd",
            "remora-proto",
            "remora-rules",
            "remora-settings",
        ],
    ),
    ("remora-settings", &[]),
    (
        "remora-cli",
        &["remora-capture", "remora-proto", "remora-rules"],
    ),
    (
        "remora-fuzz",
        &[
            "remora-agent",
            "remora-agent-common",
            "remora-capture",
            "remora-cli",
            "remora-controller",
            "remora-rules",
        ],
    ),
    ("xtask", &[]),
    ("xtask-codegen", &["remora-crd"]),
    (
        "remora-tests",
        &[
            "remora-agent",
            "remora-agent-common",
            "remora-capture",
            "remora-cli",
            "remora-controller",
            "remora-proto",
        ],
    ),
];

/// What its tests may use besides: the filter's verdict is held against the kernel's matcher.
const TEST_ARROWS: [(&str, &str); 2] = [
    ("remora-capture", "remora-agent-common"),
    ("remora-crd", "remora-capture"),
];

/// Crates from outside, and the only ones of ours that may depend on them.
const CONFINED: [(&[&str], &[&str]); 3] = [
    // The tests load programs of their own, to stand beside the agent's.
    (
        &["aya", "aya-log", "aya-obj", "libc"],
        &["remora-agent", "remora-tests"],
    ),
    (&["aya-ebpf", "aya-log-ebpf"], &["remora-agent-ebpf"]),
    // One compiler of filters, behind a trait.
    (&["pcap"], &["remora-capture"]),
];

/// Crates that are pure: no async runtime, no input or output.
const PURE: [&str; 4] = [
    "remora-agent-common",
    "remora-agent-ebpf",
    "remora-capture",
    "remora-rules",
];
const IMPURE: [&str; 8] = [
    "axum",
    "futures-util",
    "hyper",
    "kube",
    "nix",
    "rustix",
    "tokio",
    "tonic",
];

/// Where unsafe code may be, by crate and kind of target, and what the root says instead: the eBPF
/// programs, the agent's kernel module ([`super::modules`] sees to that, so the agent denies what
/// the others forbid), and the fuzz targets, which are a line of libFuzzer's macro each.
const UNSAFE: [(&str, &str, &str); 3] = [
    ("remora-agent-ebpf", "bin", ""),
    ("remora-agent", "lib", "#![deny(unsafe_code)]"),
    ("remora-fuzz", "bin", ""),
];
const FORBID: &str = "#![forbid(unsafe_code)]";

/// What breaks a rule, from the output of `cargo metadata --no-deps`.
///
/// # Errors
/// A source cannot be read.
pub(super) fn violations(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for package in metadata["packages"]
        .as_array()
        .context("`cargo metadata` lists no packages")?
    {
        violations.extend(arrows(package));
        for target in package["targets"].as_array().into_iter().flatten() {
            let kind = target["kind"][0].as_str().unwrap_or_default();
            if !["lib", "bin"].contains(&kind) {
                continue;
            }
            let path = target["src_path"].as_str().unwrap_or_default();
            let source = fs::read_to_string(path).with_context(|| path.to_owned())?;
            violations.extend(
                unsafe_code(&package["name"], kind, &source).map(|what| format!("{path}: {what}")),
            );
        }
    }
    Ok(violations)
}

fn arrows(package: &Value) -> Vec<String> {
    let from = package["name"].as_str().unwrap_or_default();
    let Some((_, to)) = ARROWS.iter().find(|(name, _)| *name == from) else {
        return vec![format!(
            "`{from}` has no arrows: add it to xtask/src/lint/crates.rs"
        )];
    };
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    dependencies
        .filter(|dependency| {
            let name = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"] == "dev";
            if dependency["path"].is_string() {
                !(to.contains(&name) || for_tests && TEST_ARROWS.contains(&(from, name)))
            } else {
                !for_tests && !may_use(from, name)
            }
        })
        .map(|dependency| format!("`{from}` may not depend on {}", dependency["name"]))
        .collect()
}

/// May the crate `from` depend on the crate `name`, which is not of this workspace?
fn may_use(from: &str, name: &str) -> bool {
    let elsewhere =
        |(confined, home): &(&[&str], &[&str])| confined.contains(&name) && !home.contains(&from);
    let impure = PURE.contains(&from) && IMPURE.contains(&name);
    !impure && !CONFINED.iter().any(elsewhere)
}

fn unsafe_code(package: &Value, kind: &str, source: &str) -> Option<String> {
    let exception = UNSAFE
        .iter()
        .find(|(name, of, _)| package == name && kind == *of);
    let wanted = exception.map_or(FORBID, |(_, _, attribute)| attribute);
    (!source.contains(wanted)).then(|| format!("has no `{wanted}`"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn depends(from: &str, to: &str, path: Option<&str>, kind: Option<&str>) -> Vec<String> {
        arrows(&json!({
            "name": from,
            "dependencies": [{"name": to, "path": path, "kind": kind}],
        }))
    }

    #[test]
    fn every_arrow_that_is_not_drawn_is_refused() {
        for (from, to) in [
            ("remora-agent-common", "remora-capture"),
            ("remora-agent-ebpf", "remora-capture"),
            ("remora-capture", "remora-proto"),
            ("remora-proto", "remora-agent"),
            ("remora-agent", "remora-controller"),
            ("remora-controller", "remora-agent"),
            ("remora-controller", "remora-agent-common"),
            ("remora-cli", "remora-agent"),
            ("remora-cli", "remora-controller"),
            ("remora-rules", "remora-proto"),
            ("remora-capture", "remora-rules"),
            ("xtask", "remora-capture"),
            ("xtask-codegen", "remora-proto"),
        ] {
            assert_eq!(
                depends(from, to, Some("/x"), None).len(),
                1,
                "{from} -> {to}"
            );
            assert_eq!(
                depends(from, to, Some("/x"), Some("dev")).len(),
                1,
                "{from} -> {to}"
            );
        }
        for (from, to) in [
            ("remora-agent", "remora-agent-common"),
            ("remora-controller", "remora-proto"),
            ("remora-cli", "remora-rules"),
            ("remora-tests", "remora-agent"),
        ] {
            assert_eq!(
                depends(from, to, Some("/x"), None),
                [""; 0],
                "{from} -> {to}"
            );
        }
        assert!(depends("novelty", "serde", None, None)[0].contains("no arrows"));
    }

    #[test]
    fn pure_crates_and_clients_stay_off_the_kernel_and_the_runtime() {
        for (from, to) in [
            ("remora-capture", "tokio"),
            ("remora-rules", "tokio"),
            ("remora-agent-common", "libc"),
            ("remora-agent-ebpf", "aya"),
            ("remora-controller", "aya"),
            ("remora-cli", "aya"),
            ("remora-agent", "aya-ebpf"),
        ] {
            assert_eq!(depends(from, to, None, None).len(), 1, "{from} -> {to}");
        }
        assert_eq!(
            depends(
                "remora-capture",
                "remora-agent-common",
                Some("/x"),
                Some("dev")
            ),
            [""; 0]
        );
        assert_eq!(
            depends("remora-capture", "tokio", None, Some("dev")),
            [""; 0]
        );
        assert_eq!(depends("remora-agent", "aya", None, None), [""; 0]);
    }

    #[test]
    fn a_crate_root_without_the_unsafe_code_lint_is_named() {
        let check = |package: &str, kind, source| unsafe_code(&json!(package), kind, source);
        assert!(check("remora-capture", "lib", "//! Doc.\n").is_some());
        assert!(check("remora-agent", "bin", "#![deny(unsafe_code)]").is_some());
        assert_eq!(
            check("remora-capture", "lib", "#![forbid(unsafe_code)]\n"),
            None
        );
        assert_eq!(check("remora-agent", "lib", "#![deny(unsafe_code)]"), None);
        assert_eq!(check("remora-agent-ebpf", "bin", ""), None);
    }
}
