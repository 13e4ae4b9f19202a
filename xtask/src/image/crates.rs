//! The Rust crates that are linked into our programs.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use crate::process::output;
use crate::workspace;

/// The packages of the programs in the image, and of the eBPF object inside the agent.
const ROOTS: [&str; 4] = [
    "remora-agent",
    "remora-agent-ebpf",
    "remora-cli",
    "remora-controller",
];

/// A crate in one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) version: String,
    /// SPDX expression.
    pub(super) licence: String,
    /// Where its sources are.
    pub(super) directory: PathBuf,
    /// Of this workspace.
    pub(super) ours: bool,
}

/// By name and version.
///
/// # Errors
/// `cargo metadata` fails or says something unknown.
pub(super) fn linked() -> anyhow::Result<Vec<Crate>> {
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let text = output(workspace::cargo().args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &target,
    ]))?;
    let metadata = serde_json::from_str(&text).context("output of `cargo metadata`")?;
    let crates = reachable(&metadata, &ROOTS)?;
    Ok(crates.into_values().collect())
}

/// What the packages `roots` link, by the arrows that are neither of tests nor of build scripts.
fn reachable(metadata: &Value, roots: &[&str]) -> anyhow::Result<BTreeMap<String, Crate>> {
    let by_id: BTreeMap<&str, &Value> = each(&metadata["packages"])
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let arrows: BTreeMap<&str, &Value> = each(&metadata["resolve"]["nodes"])
        .filter_map(|node| Some((node["id"].as_str()?, &node["deps"])))
        .collect();
    let mut ahead: Vec<&str> = by_id
        .iter()
        .filter(|(_, package)| roots.iter().any(|root| package["name"] == *root))
        .map(|(id, _)| *id)
        .collect();
    let mut seen = BTreeSet::new();
    let mut found = BTreeMap::new();
    while let Some(id) = ahead.pop() {
        if !seen.insert(id) {
            continue;
        }
        let package = by_id
            .get(id)
            .with_context(|| format!("no package `{id}`"))?;
        // A procedural macro runs in the compiler, with all that it needs.
        let is_macro = each(&package["targets"]).any(|target| target["kind"][0] == "proc-macro");
        if is_macro {
            continue;
        }
        let linked = described(package)?;
        found.insert(format!("{} {}", linked.name, linked.version), linked);
        let linking = each(arrows.get(id).copied().unwrap_or(&Value::Null))
            .filter(|arrow| each(&arrow["dep_kinds"]).any(|kind| kind["kind"].is_null()))
            .filter_map(|arrow| arrow["pkg"].as_str());
        ahead.extend(linking);
    }
    Ok(found)
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn described(package: &Value) -> anyhow::Result<Crate> {
    let text = |key: &str| {
        package[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("{}: no {key}", package["name"]))
    };
    let mut directory = PathBuf::from(text("manifest_path")?);
    directory.pop();
    Ok(Crate {
        name: text("name")?,
        version: text("version")?,
        licence: text("license")?.replace('/', " OR "),
        directory,
        ours: package["source"].is_null(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_build_scripts_and_macros_are_not_linked() {
        let package = |name: &str, kind: &str| {
            serde_json::json!({
                "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
                "manifest_path": format!("/src/{name}/Cargo.toml"), "source": "registry",
                "targets": [{"kind": [kind]}],
            })
        };
        let arrow = |to: &str, kind: Option<&str>| serde_json::json!({"pkg": to, "dep_kinds": [{"kind": kind}]});
        let metadata = serde_json::json!({
            "packages": [
                package("ours", "bin"), package("linked", "lib"), package("below", "lib"),
                package("tests", "lib"), package("script", "lib"), package("derive", "proc-macro"),
                package("elsewhere", "lib"),
            ],
            "resolve": {"nodes": [
                {"id": "ours", "deps": [
                    arrow("linked", None), arrow("tests", Some("dev")),
                    arrow("script", Some("build")), arrow("derive", None),
                ]},
                {"id": "linked", "deps": [arrow("below", None)]},
            ]},
        });
        let found = reachable(&metadata, &["ours"]).unwrap();
        let names: Vec<&str> = found.values().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["below", "linked", "ours"]);
        assert_eq!(found["below 1.0.0"].licence, "MIT OR Apache-2.0");
        assert_eq!(found["below 1.0.0"].directory, PathBuf::from("/src/below"));
    }
}
