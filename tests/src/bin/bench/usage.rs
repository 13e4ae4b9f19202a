//! What a process takes of the machine.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// BPF_MAP_TYPE_RINGBUF (linux/bpf.h), as `fdinfo` has it.
const RING: u64 = 27;

/// CPU time and memory of a capturer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// VmRSS at the end of the run, in KiB.
    pub(crate) rss_kib: u64,
}

/// User and system time of processes with all their threads, also those that have ended. (The same
/// sum as utime + stime of proc_pid_stat(5), but in nanoseconds: a run is few ticks long.)
///
/// # Errors
/// One has ended.
pub(crate) fn cpu(pids: &[u32]) -> Result<Duration> {
    pids.iter()
        .map(|&pid| {
            let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.try_into()?))?;
            Ok(Duration::from(clock_gettime(clock)?))
        })
        .sum()
}

/// Their resident memory, in KiB. (A BPF ring is mapped twice and counts twice.)
///
/// # Errors
/// One has ended.
pub(crate) fn rss_kib(pids: &[u32]) -> Result<u64> {
    let of = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.parse::<u64>().ok())
            .context("a process without VmRSS")
    };
    pids.iter().map(of).sum()
}

/// A process and those that it started (tshark's dumpcap).
pub(crate) fn with_children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let mut pids = vec![pid];
    pids.extend(
        children
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|pid| pid.parse::<u32>().ok()),
    );
    pids
}

/// What a process takes of memory, its maps included, in bytes; each page once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident, without mappings of BPF maps and packet sockets: those pages count elsewhere.
    pub(crate) own: u64,
    /// BPF maps but rings, as the kernel charges them (`memlock` in fdinfo).
    pub(crate) maps: u64,
    /// BPF rings, or mapped packet sockets' buffers.
    pub(crate) rings: u64,
}

impl Memory {
    /// # Errors
    /// It has ended.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let (own, sockets) = mappings(&fs::read_to_string(format!("/proc/{pid}/smaps"))?);
        let mut by_id = BTreeMap::new();
        for entry in fs::read_dir(PathBuf::from(format!("/proc/{pid}/fdinfo")))?.flatten() {
            // It may be closed by now.
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let value = |key: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
            };
            if let Some(id) = value("map_id:") {
                let memlock = value("memlock:").unwrap_or(0);
                by_id.insert(id, (value("map_type:") == Some(RING), memlock));
            }
        }
        let sum = |rings: bool| {
            let chosen = by_id.values().filter(|(ring, _)| *ring == rings);
            chosen.map(|(_, memlock)| memlock).sum::<u64>()
        };
        Ok(Self {
            own,
            maps: sum(false),
            rings: sum(true) + sockets,
        })
    }

    pub(crate) fn whole(self) -> u64 {
        self.own + self.maps + self.rings
    }
}

/// Resident bytes of `/proc/PID/smaps`: of the process's own mappings, and of packet sockets'.
fn mappings(smaps: &str) -> (u64, u64) {
    let (mut own, mut sockets) = (0, 0);
    let mut name = "";
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            name = line.splitn(6, ' ').nth(5).unwrap_or_default().trim();
        } else if let Some(kib) = line
            .strip_prefix("Rss:")
            .and_then(|rss| rss.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        {
            if name.starts_with("socket:") {
                sockets += kib << 10;
            } else if !name.starts_with("anon_inode:bpf-map") {
                own += kib << 10;
            }
        }
    }
    (own, sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_rings_and_sockets_are_told_from_the_rest() {
        let smaps = "7f00-7f10 rw-s 00000000 00:0e 12   anon_inode:bpf-map\nRss: 64 kB\n\
                     7f20-7f30 rw-s 00000000 00:08 99                         socket:[4711]\n\
                     Size: 100 kB\nRss:      8 kB\n\
                     7f40-7f50 rw-p 00000000 00:00 0 \nRss:  4 kB\n\
                     7f60-7f70 r-xp 00000000 fe:00 5     /usr/bin/tcpdump\nRss: 2 kB\n";
        assert_eq!(mappings(smaps), (6 << 10, 8 << 10));
    }
}
