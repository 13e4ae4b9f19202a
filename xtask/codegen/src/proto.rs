//! Rust types, clients and servers of `remora.v1`, and the descriptor set that gRPC reflection serves.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use prost::Message as _;

use crate::Files;

pub(crate) const DIRECTORY: &str = "proto/src/gen";
const PROTO_FILES: [&str; 2] = ["remora/v1/remora.proto", "remora/v1/cluster.proto"];
const DESCRIPTOR_SET: &str = "remora.v1.bin";

pub(crate) fn generate(root: &Path) -> anyhow::Result<Files> {
    let out = tempfile::tempdir()?;
    let descriptors = protox::compile(PROTO_FILES, [root.join("proto/proto")])?;
    fs::write(out.path().join(DESCRIPTOR_SET), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Packets are handed on as reference-counted bytes, labels in one order everywhere.
        .bytes(".")
        .btree_map(".")
        .out_dir(out.path())
        .compile_fds(descriptors)
        .context("cannot generate from the descriptors")?;
    let mut files = Files::new();
    for entry in fs::read_dir(out.path())? {
        let entry = entry?;
        let path = format!("{DIRECTORY}/{}", entry.file_name().to_string_lossy());
        files.insert(path, fs::read(entry.path())?);
    }
    Ok(files)
}
