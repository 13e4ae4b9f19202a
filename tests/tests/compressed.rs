//! What our compressed files are to Wireshark's tools and to zstd's own.

use std::{fs, path::Path};

use anyhow::Result;
use remora_capture::pcapng::{
    self, Compressor, FRAME_BYTES, Interface, PacketDirection, PacketMeta, Section,
};
use remora_tests::{name, run, wire};

/// Bytes of each packet; with as many packets the file has several frames.
const LEN: usize = 1400;
const PACKETS: u64 = (3 * FRAME_BYTES / LEN) as u64;

/// A file of `packets`, flushed after each ten, its last frame ended if `ended`.
fn compressed(packets: u64, ended: bool) -> Result<Vec<u8>> {
    let mut compressor = Compressor::new()?;
    let mut blocks = pcapng::section_header(&Section::default());
    blocks.extend(pcapng::interface_description(&Interface {
        name: "eth0",
        description: "",
        filter: &"".parse()?,
        snaplen: Default::default(),
    }));
    let mut file = Vec::new();
    for id in 0..packets {
        let meta = PacketMeta {
            interface_id: 0,
            time_ns: 1_795_000_000_000_000_000 + id,
            direction: PacketDirection::Ingress,
            packet_id: Some(id),
            drop_count: 0,
            original_len: LEN as u32,
            comment: None,
        };
        pcapng::encode_packet(&mut blocks, &meta, &[], &[id as u8; LEN]);
        if id % 10 == 9 || id + 1 == packets {
            file.extend_from_slice(compressor.compress(&blocks)?);
            compressor.kept();
            blocks.clear();
        }
    }
    if ended {
        file.extend_from_slice(compressor.end());
    }
    Ok(file)
}

fn count_of_zstd(path: &Path) -> Result<u64> {
    let plain = path.with_extension("");
    run::output(
        run::command("zstd")
            .args(["-q", "-d", "-f"])
            .arg(path)
            .arg("-o")
            .arg(&plain),
    )?;
    wire::assert_readable(&plain)?;
    wire::capinfos_count(&plain)
}

#[test]
fn wireshark_and_zstd_read_every_packet_of_a_file_of_several_frames() -> Result<()> {
    let directory = name::directory()?;
    let path = directory.path().join("web.pcapng.zst");
    fs::write(&path, compressed(PACKETS, true)?)?;
    assert_eq!(wire::capinfos_count(&path)?, PACKETS);
    assert_eq!(
        wire::tshark_fields(&path, &["frame.number"])?.len() as u64,
        PACKETS
    );
    assert_eq!(count_of_zstd(&path)?, PACKETS);
    Ok(())
}

#[test]
fn a_file_whose_writer_died_reads_with_every_flushed_packet_after_its_repair() -> Result<()> {
    let directory = name::directory()?;
    let path = directory.path().join("web.pcapng.zst");
    let mut torn = compressed(PACKETS, false)?;
    // Of a batch that was being written.
    torn.extend_from_slice(&[0x55; 7]);
    fs::write(&path, torn)?;
    let mut file = fs::File::options().read(true).write(true).open(&path)?;
    let scan = pcapng::repair_compressed(&mut file)?;
    assert_eq!(scan.packets, PACKETS);
    assert_eq!(scan.whole_bytes, fs::metadata(&path)?.len());
    assert_eq!(wire::capinfos_count(&path)?, PACKETS);
    assert_eq!(count_of_zstd(&path)?, PACKETS);
    Ok(())
}
