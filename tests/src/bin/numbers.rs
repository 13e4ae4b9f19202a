//! Says which numbered packets a capture file holds: how many, which are missing, which are double.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use remora_tests::{numbered::Numbers, packets::Capture};

/// Missing ranges that are printed.
const RANGES_SHOWN: usize = 20;

#[derive(Parser)]
struct Args {
    /// A pcap or pcapng file
    file: PathBuf,
    /// How many were sent
    #[arg(long)]
    sent: u64,
    /// Number of the generator's run
    #[arg(long, default_value_t = 1)]
    run: u16,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let capture = Capture::read(&args.file)?;
    let numbers = Numbers::collect(args.run, capture.frames());
    println!("packets    {:>12}", capture.packets.len());
    println!("numbers    {:>12}", numbers.distinct());
    println!("duplicates {:>12}", numbers.duplicates());
    println!("foreign    {:>12}", numbers.foreign);
    println!("missing    {:>12}", numbers.missing_count(args.sent));
    for range in numbers.missing(args.sent).iter().take(RANGES_SHOWN) {
        println!("  {} to {}", range.start(), range.end());
    }
    Ok(())
}
