//! The one process of a small pod: enters the pod's cgroup and network namespace, waits for `eth0`,
//! and sends numbered frames out of it until it is killed, or `eth0` is gone.
//!
//! As soon as the interface is there, and without addresses: so whoever records the pod has its
//! first packets to miss. See `remora_tests::fleet`.
#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    process, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_pdeathsig,
        signal::Signal,
        socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
    },
};
use remora_tests::numbered::{HEADERS, Number, PAYLOAD_MIN};

/// How often it looks for `eth0`.
const LOOK: Duration = Duration::from_millis(2);

#[derive(Parser)]
struct Args {
    /// Network namespace's file
    #[arg(long)]
    netns: PathBuf,
    /// cgroup's directory
    #[arg(long)]
    cgroup: PathBuf,
    /// The pod's address
    #[arg(long)]
    from: Ipv4Addr,
    /// Between two frames, in milliseconds
    #[arg(long)]
    pause: u64,
    /// Number of this pod, in each payload
    #[arg(long)]
    run: u16,
}

fn main() -> Result<()> {
    let args = Args::parse();
    set_pdeathsig(Signal::SIGKILL)?;
    fs::write(args.cgroup.join("cgroup.procs"), process::id().to_string())
        .context("failed to enter the cgroup")?;
    setns(File::open(&args.netns)?, CloneFlags::CLONE_NEWNET)
        .context("failed to enter the network namespace")?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let pause = Duration::from_millis(args.pause);
    let mut eth0 = None;
    let mut sequence = 0;
    loop {
        let Some(address) = &eth0 else {
            eth0 = find()?;
            if eth0.is_none() {
                thread::sleep(LOOK);
                continue;
            }
            // A veth cannot be made with both its ends up.
            let up = ["link", "set", "eth0", "up"];
            let status = process::Command::new("ip").args(up).status()?;
            ensure!(status.success(), "eth0 cannot be brought up");
            continue;
        };
        // It may not be up yet.
        if send(&socket, address, &frame(&args, sequence)?) {
            sequence += 1;
            thread::sleep(pause);
        } else {
            thread::sleep(LOOK);
        }
    }
}

fn find() -> Result<Option<LinkAddr>> {
    Ok(getifaddrs()?
        .filter(|found| found.interface_name == "eth0")
        .find_map(|found| found.address?.as_link_addr().copied()))
}

fn send(socket: &OwnedFd, address: &LinkAddr, frame: &[u8]) -> bool {
    sendto(socket.as_raw_fd(), frame, address, MsgFlags::empty()).is_ok()
}

/// To port 9000 of an address that nobody has; its checksums are 0.
fn frame(args: &Args, sequence: u64) -> Result<[u8; HEADERS + PAYLOAD_MIN]> {
    let mut frame = [0; HEADERS + PAYLOAD_MIN];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame[26..30].copy_from_slice(&args.from.octets());
    frame[30..34].copy_from_slice(&[198, 51, 100, 1]);
    frame[34..42].copy_from_slice(&[0x10, 0, 0x23, 0x28, 0, 30, 0, 0]);
    let sent = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let number = Number {
        run: args.run,
        sequence,
        sent_ns: u64::try_from(sent.as_nanos())?,
    };
    number.encode(&mut frame[HEADERS..]);
    Ok(frame)
}
