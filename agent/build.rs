//! Hands the agent the eBPF object to embed: what `cargo xtask build` put into
//! `<target directory>/ebpf/remora.o`, or nothing, so that everything but loading works without it.
//!
//! `REMORA_EBPF_OBJECT` is the path of a file that is always there; no bytes means no object.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let dir = target_dir(&out).join("ebpf");
    let object = dir.join("remora.o");
    // A file that is not there would run this script in every build; its directory can be watched.
    fs::create_dir_all(&dir).expect("the target directory can be written");
    let watched = if object.exists() { &object } else { &dir };
    println!("cargo:rerun-if-changed={}", watched.display());

    let embedded = out.join("remora.o");
    let bytes = fs::read(&object).unwrap_or_default();
    if bytes.is_empty() {
        println!("cargo:warning=no eBPF object in this agent: `cargo xtask build` makes one");
    }
    fs::write(&embedded, bytes).expect("OUT_DIR can be written");
    println!("cargo:rustc-env=REMORA_EBPF_OBJECT={}", embedded.display());
}

/// `OUT_DIR` is `<target directory>[/<triple>]/<profile>/build/<package>/out`.
fn target_dir(out: &Path) -> &Path {
    let dir = out
        .ancestors()
        .nth(4)
        .expect("OUT_DIR is in the target directory");
    let triple = env::var_os("TARGET").expect("cargo sets TARGET");
    match dir.parent() {
        Some(parent) if dir.file_name() == Some(&triple) => parent,
        _ => dir,
    }
}
