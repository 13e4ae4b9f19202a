//! Generates `proto/src/gen` from `proto/proto`: Rust types, clients and servers, and the
//! descriptor set that gRPC reflection serves.
//!
//! Pure Rust (protox), so no `protoc` is needed and every machine generates the same bytes. The
//! result is committed: a build never runs this. `--check` writes nothing and fails when what is
//! committed is not what the `.proto` files say.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use prost::Message as _;

const PROTO_FILES: [&str; 2] = ["remora/v1/remora.proto", "remora/v1/cluster.proto"];
const DESCRIPTOR_SET: &str = "remora.v1.bin";

enum Mode {
    Write,
    Check,
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mode = match (args.next().as_deref(), args.next()) {
        (None, None) => Mode::Write,
        (Some("--check"), None) => Mode::Check,
        _ => bail!("usage: cargo xtask codegen [--check]"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fresh = tempfile::tempdir()?;
    generate(&root.join("proto/proto"), fresh.path())?;

    let committed = root.join("proto/src/gen");
    let drifted = drift(fresh.path(), &committed)?;
    match mode {
        Mode::Check => ensure!(
            drifted.is_empty(),
            "proto/src/gen is not what proto/proto says ({}): run `cargo xtask codegen` and commit",
            drifted.join(", ")
        ),
        Mode::Write => {
            fs::create_dir_all(&committed)?;
            for name in &drifted {
                match fs::read(fresh.path().join(name)) {
                    Ok(bytes) => fs::write(committed.join(name), bytes),
                    Err(_) => fs::remove_file(committed.join(name)),
                }
                .with_context(|| format!("proto/src/gen/{name}"))?;
                println!("proto/src/gen/{name} written");
            }
        }
    }
    Ok(())
}

fn generate(include: &Path, out: &Path) -> anyhow::Result<()> {
    let descriptors = protox::compile(PROTO_FILES, [include])?;
    fs::write(out.join(DESCRIPTOR_SET), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Packets are handed on as reference-counted bytes, labels in one order everywhere.
        .bytes(".")
        .btree_map(".")
        .out_dir(out)
        .compile_fds(descriptors)
        .context("cannot generate from the descriptors")
}

/// Names of the files that are not the same in both directories.
fn drift(fresh: &Path, committed: &Path) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for directory in [fresh, committed] {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    names.dedup();
    names.retain(|name| fs::read(fresh.join(name)).ok() != fs::read(committed.join(name)).ok());
    Ok(names)
}
