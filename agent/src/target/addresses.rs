//! The addresses of a process's network namespace, which `/proc` tells anyone: a second way from a pod that the
//! API server tells of to its network, held against the first.
//!
//! ```text
//! API server ─▶ pod's uid ─▶ cgroup ─▶ a process ─▶ /proc/PID/net ─▶ addresses ─┐ equal
//!      └──────▶ pod's addresses ────────────────────────────────────────────────┘
//! ```

use std::{
    fs,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{cgroup::Monitors, resolve::Resolver};
use crate::session::Place;

/// Bytes of each file that are read: a route takes about 40.
const FILE_MAX: u64 = 256 * 1024;

impl Resolver {
    /// Whether a pod's address is where its processes are. Nothing is compared for pods that have none
    /// of their own.
    pub(super) fn cross_check(&self, place: &Place) {
        let Some(cgroup) = &place.cgroup else { return };
        let Some(pod) = self.pods.of_path(&cgroup.path) else {
            return;
        };
        if pod.host_network || pod.ips.is_empty() {
            return;
        }
        let Ok(cgroup) = self.root.by_path(&cgroup.path) else {
            return;
        };
        let Some(&pid) = cgroup.members(Monitors::Skipped).pids.first() else {
            return;
        };
        let Ok(local) = addresses_of(pid) else {
            return;
        };
        let agreed = pod.ips.iter().any(|address| local.contains(address));
        self.pods.checked(agreed);
        if !agreed {
            tracing::warn!(
                pod = pod.full_name(), uid = pod.uid, cgroup = cgroup.path, told = ?pod.ips, found = ?local,
                "the API server's address of a pod is not one of its network's"
            );
        }
    }
}

/// Addresses of the network namespace of `pid`.
fn addresses_of(pid: u32) -> io::Result<Vec<IpAddr>> {
    let read = |name: &str| {
        let mut text = String::new();
        let file = fs::File::open(format!("/proc/{pid}/net/{name}"))?;
        file.take(FILE_MAX).read_to_string(&mut text)?;
        io::Result::Ok(text)
    };
    let mut addresses: Vec<IpAddr> = local_v4(&read("fib_trie")?).map(IpAddr::V4).collect();
    // Not there without IPv6.
    let v6 = read("if_inet6").unwrap_or_default();
    addresses.extend(local_v6(&v6).map(IpAddr::V6));
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// In `/proc/PID/net/fib_trie` (net/ipv4/fib_trie.c `fib_trie_seq_show`, v6.18) the line after an address's tells
/// what is there: `|-- 10.0.0.7`, then `/32 host LOCAL`.
fn local_v4(text: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut address = None;
    text.lines().filter_map(move |line| {
        let line = line.trim_start();
        if let Some(leaf) = line.strip_prefix("|-- ") {
            address = leaf.trim_end().parse().ok();
        }
        (line.trim_end() == "/32 host LOCAL").then_some(address)?
    })
}

/// In `/proc/PID/net/if_inet6`: 32 hex digits begin each line.
fn local_v6(text: &str) -> impl Iterator<Item = Ipv6Addr> {
    text.lines().filter_map(|line| {
        let digits = line.get(..32)?;
        u128::from_str_radix(digits, 16).ok().map(Ipv6Addr::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_shows_is_read() {
        let trie = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.0.7
        /32 host LOCAL
     |-- 10.0.0.255
        /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
";
        let expected: [Ipv4Addr; 2] = [[10, 0, 0, 7].into(), [127, 0, 0, 1].into()];
        assert_eq!(local_v4(trie).collect::<Vec<_>>(), expected);
        let v6 = "fd000000000000000000000000000007 02 40 00 80     eth0\nshort\n";
        let expected: Ipv6Addr = "fd00::7".parse().unwrap();
        assert_eq!(local_v6(v6).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn a_process_of_this_machine_has_loopback() {
        let addresses = addresses_of(std::process::id()).unwrap();
        assert!(
            addresses.contains(&IpAddr::from([127, 0, 0, 1])),
            "{addresses:?}"
        );
    }
}
