//! dumpcap for the same packets, out of a pipe.

use std::{io::Write as _, os::fd::AsFd as _, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::resource::UsageWho,
};
use remora_tests::run::{self, Proc};

use super::{Written, ensure_whole, timed};

const PIPE: i32 = 1 << 20;
/// Bytes that are written to the pipe at a time, roughly.
const PIECE: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Writes a capture of so many packets.
pub(super) fn write(directory: &Path, packets: u64, frame: usize) -> Result<Written> {
    let file = directory.join("dumpcap.pcapng");
    let record = record(frame);
    let at_a_time = (PIECE / record.len()).max(1);
    let piece = record.repeat(at_a_time);
    let (reader, mut writer) = std::io::pipe()?;
    fcntl(writer.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE))?;
    let mut command = run::command("dumpcap");
    command
        .args(["-q", "-i", "-", "-w"])
        .arg(&file)
        .stdin(Stdio::from(reader));
    let mut process = Proc::spawn(&mut command, directory, "dumpcap-pipe")?;
    // It has its own end now, and this one would keep the pipe open if it failed.
    drop(command);
    writer.write_all(&file_header())?;
    process.wait_for("File: ", LIMIT)?;
    let written = timed(UsageWho::RUSAGE_CHILDREN, || {
        let mut left = packets;
        while left > 0 {
            let now = left.min(at_a_time as u64);
            writer.write_all(&piece[..usize::try_from(now)? * record.len()])?;
            left -= now;
        }
        drop(writer);
        let status = process.wait(LIMIT)?;
        ensure!(status.success(), "dumpcap: {status}, {}", process.tail());
        Ok(std::fs::metadata(&file).context("no file")?.len())
    })?;
    ensure_whole(&file, packets)?;
    std::fs::remove_file(&file)?;
    Ok(written)
}

/// pcap-savefile(5): magic of microseconds, version 2.4, zone, accuracy, snaplen, Ethernet.
fn file_header() -> Vec<u8> {
    let mut bytes = 0xa1b2_c3d4_u32.to_ne_bytes().to_vec();
    for half in [2u16, 4] {
        bytes.extend(half.to_ne_bytes());
    }
    for word in [0u32, 0, 262_144, 1] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// Seconds, microseconds, length that is there, length that was; the frame.
fn record(frame: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [1u32, 0, frame as u32, frame as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.resize(bytes.len() + frame, 0x5a);
    bytes
}
