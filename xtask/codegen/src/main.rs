//! Generates what is committed beside its source. A build never runs this; `--check` writes nothing and
//! fails when what is committed is not what its source says.
//!
//! - [`proto`]: `proto/src/gen` from `proto/proto`, in Rust alone (protox): no `protoc` is needed, and
//!   every machine generates the same bytes.
//! - [`chart`]: the resource's schema from the types of the crate `crd`, the rules that the chart
//!   installs, and the chart's README from its values.
#![forbid(unsafe_code)]

mod chart;
mod proto;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};

/// Everything in these directories is generated.
const DIRECTORIES: [&str; 1] = [proto::DIRECTORY];

enum Mode {
    Write,
    Check,
}

/// Files by path from the root.
type Files = BTreeMap<String, Vec<u8>>;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mode = match (args.next().as_deref(), args.next()) {
        (None, None) => Mode::Write,
        (Some("--check"), None) => Mode::Check,
        _ => bail!("usage: cargo xtask codegen [--check]"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = proto::generate(&root)?;
    files.append(&mut chart::generate(&root)?);

    let drifted = drift(&root, &files)?;
    match mode {
        Mode::Check => ensure!(
            drifted.is_empty(),
            "not what their sources say: {}; run `cargo xtask codegen` and commit",
            drifted.join(", ")
        ),
        Mode::Write => {
            for path in &drifted {
                let to = root.join(path);
                match files.get(path) {
                    Some(bytes) => {
                        let parent = to.parent().context("a file is in a directory")?;
                        fs::create_dir_all(parent).and_then(|()| fs::write(&to, bytes))
                    }
                    None => fs::remove_file(&to),
                }
                .with_context(|| path.clone())?;
                println!("{path} written");
            }
        }
    }
    Ok(())
}

/// The files that are not as they were generated, and those that nothing generates any more.
fn drift(root: &Path, files: &Files) -> anyhow::Result<Vec<String>> {
    let mut drifted: Vec<String> = files
        .iter()
        .filter(|(path, bytes)| fs::read(root.join(path)).ok().as_ref() != Some(*bytes))
        .map(|(path, _)| path.clone())
        .collect();
    for directory in DIRECTORIES {
        let Ok(entries) = fs::read_dir(root.join(directory)) else {
            continue;
        };
        for entry in entries {
            let path = format!("{directory}/{}", entry?.file_name().to_string_lossy());
            if !files.contains_key(&path) {
                drifted.push(path);
            }
        }
    }
    Ok(drifted)
}
