//! What `/proc` tells anyone about a process: its cgroup and its network namespace.
//!
//! `readlink /proc/PID/ns/net` needs ptrace rights over the process. But `/proc/PID/net` is a view
//! into the process's network namespace without such a check, and each namespace has entries of
//! its own in there with inode numbers of their own (fs/proc/proc_net.c `get_proc_task_net`,
//! fs/proc/generic.c `proc_alloc_inum`): equal inode, same namespace. `hidepid=` on `/proc` takes
//! this away from all but root and one group.

use std::{fs, io, io::Read as _, os::unix::fs::MetadataExt as _};

use nix::errno::Errno;

/// Identifies a network namespace for as long as a process lives in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NetnsInode(u64);

#[cfg(test)]
impl NetnsInode {
    pub(super) fn of_test(inode: u64) -> Self {
        Self(inode)
    }
}

/// The calling thread's own: where its sockets are made.
pub(super) fn own_netns() -> io::Result<NetnsInode> {
    netns_at("/proc/thread-self/net/dev")
}

/// The namespace of `pid`'s main thread; [`is_gone`] when there is none.
pub(super) fn netns_of(pid: u32) -> io::Result<NetnsInode> {
    netns_at(&format!("/proc/{pid}/net/dev"))
}

/// `/proc` does not show every process of the pid namespace: not even the first.
pub(super) fn hides_processes() -> bool {
    netns_of(1).is_err()
}

fn netns_at(path: &str) -> io::Result<NetnsInode> {
    fs::metadata(path).map(|meta| NetnsInode(meta.ino()))
}

/// The process is dead, a zombie or hidden; or there is no such file.
pub(super) fn is_gone(error: &io::Error) -> bool {
    // What a process that ends in the middle of the call gives.
    const ENDED: [Errno; 3] = [Errno::ESRCH, Errno::EINVAL, Errno::ENODEV];
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || ENDED
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Packets that an interface has received and sent since it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) name: String,
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// Interfaces in the network namespace of `pid` that may lead somewhere: without `lo` and the idle
/// devices that tunnel modules put into every namespace.
pub(super) fn outward_interfaces(pid: u32) -> io::Result<Vec<Traffic>> {
    const IDLE: [&str; 10] = [
        "lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0",
        "ip6gre0",
    ];
    let mut interfaces = interfaces(&format!("/proc/{pid}/net/dev"))?;
    interfaces.retain(|interface| !IDLE.contains(&interface.name.as_str()));
    Ok(interfaces)
}

/// Interfaces in the network namespace of the calling thread.
pub(super) fn own_interfaces() -> io::Result<Vec<Traffic>> {
    interfaces("/proc/thread-self/net/dev")
}

fn interfaces(path: &str) -> io::Result<Vec<Traffic>> {
    /// Lines of about 130 bytes.
    const DEV_FILE_MAX: u64 = 1024 * 1024;
    let mut text = String::new();
    fs::File::open(path)?
        .take(DEV_FILE_MAX)
        .read_to_string(&mut text)?;
    Ok(text.lines().skip(2).filter_map(parse_traffic).collect())
}

/// A line of `/proc/PID/net/dev` (proc_pid_net(5)), after two of titles: `  eth0: 1 2 3 …`, eight numbers of what
/// was received, then of what was sent; the second of each is packets.
fn parse_traffic(line: &str) -> Option<Traffic> {
    let (name, numbers) = line.split_once(':')?;
    let mut numbers = numbers.split_ascii_whitespace().map(str::parse);
    Some(Traffic {
        name: name.trim_start().to_owned(),
        received: numbers.nth(1)?.ok()?,
        sent: numbers.nth(7)?.ok()?,
    })
}

/// Processes that are to be seen, up to `max`.
pub(super) fn pids(max: usize) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if pids.len() == max {
            break;
        }
        if let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// The cgroup2 path of `pid`, as seen from the agent's cgroup namespace.
pub(super) fn cgroup_path_of(pid: u32) -> io::Result<Option<String>> {
    /// Lines for every v1 hierarchy, each with a path of up to PATH_MAX.
    const CGROUP_FILE_MAX: u64 = 256 * 1024;
    let mut text = String::new();
    fs::File::open(format!("/proc/{pid}/cgroup"))?
        .take(CGROUP_FILE_MAX)
        .read_to_string(&mut text)?;
    Ok(parse_cgroup(&text).map(str::to_owned))
}

/// The path in the `0::` line of `/proc/PID/cgroup` (cgroups(7)).
fn parse_cgroup(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.starts_with('/').then_some(path)
}

/// A mount of a cgroup2 file system.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cgroup2Mount {
    /// What of the tree is mounted, as seen from the reader's cgroup namespace.
    pub(super) root: String,
    pub(super) mountpoint: String,
}

impl Cgroup2Mount {
    /// How many levels above the namespace's root the mount begins; `None`: in some branch.
    pub(super) fn height(&self) -> Option<usize> {
        if self.root == "/" {
            return Some(0);
        }
        let parts = self.root.strip_prefix('/')?.split('/');
        parts
            .map(|part| (part == "..").then_some(()))
            .collect::<Option<Vec<_>>>()
            .map(|v| v.len())
    }
}

/// All cgroup2 mounts of the agent's mount namespace.
pub(super) fn cgroup2_mounts() -> io::Result<Vec<Cgroup2Mount>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(text.lines().filter_map(parse_mountinfo).collect())
}

/// A line of mountinfo (proc_pid_mountinfo(5)), if it is a cgroup2 mount:
/// `41 31 0:38 ROOT MOUNTPOINT rw,relatime [optional …] - cgroup2 cgroup2 rw`.
fn parse_mountinfo(line: &str) -> Option<Cgroup2Mount> {
    let (place, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = place.split(' ').skip(3);
    let root = unescape_octal(fields.next()?);
    let mountpoint = unescape_octal(fields.next()?);
    mountpoint
        .starts_with('/')
        .then_some(Cgroup2Mount { root, mountpoint })
}

/// Undoes the kernel's `mangle`: blank, tab, newline and backslash come as `\` and three octal
/// digits.
fn unescape_octal(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                text.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_unified_line_is_taken_in_hybrid_and_in_pure_mode() {
        let hybrid = "9:name=systemd:/init\n8:pids:/a\n1:cpu:/0::/no\n0::/remora/web\n";
        assert_eq!(parse_cgroup(hybrid), Some("/remora/web"));
        assert_eq!(parse_cgroup("0::/\n"), Some("/"));
        assert_eq!(parse_cgroup("0::/a b:c::d\n"), Some("/a b:c::d"));
        assert_eq!(parse_cgroup("4:memory:/x\n"), None);
        assert_eq!(parse_cgroup(""), None);
    }

    #[test]
    fn only_cgroup2_mounts_are_taken_and_their_blanks_restored() {
        let line = "41 31 0:38 / /sys/fs/my\\040cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw";
        let mount = parse_mountinfo(line).unwrap();
        assert_eq!(mount.mountpoint, "/sys/fs/my cgroup");
        assert_eq!(mount.height(), Some(0));
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu";
        assert_eq!(parse_mountinfo(v1), None);
        assert_eq!(parse_mountinfo("41 31 0:38 / - cgroup2 cgroup2 rw"), None);
    }

    #[test]
    fn a_mount_s_height_tells_the_host_s_from_the_container_s() {
        let mount = |root: &str| Cgroup2Mount {
            root: root.into(),
            mountpoint: "/m".into(),
        };
        assert_eq!(mount("/../../..").height(), Some(3));
        assert_eq!(mount("/kubepods").height(), None);
        assert_eq!(mount("/../kubepods").height(), None);
    }

    #[test]
    fn an_interface_has_its_name_before_the_colon_and_packets_second_of_each_eight() {
        let parsed = |line: &str| parse_traffic(line).map(|t| (t.name, t.received, t.sent));
        let of = |name: &str| Some((name.to_owned(), 2, 10));
        assert_eq!(
            parsed("  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"),
            of("eth0")
        );
        assert_eq!(parsed("v@é.1:1 2 3 4 5 6 7 8 9 10 11"), of("v@é.1"));
        assert_eq!(parsed("  eth0: 1 2"), None);
        assert_eq!(parsed(" face |bytes    packets"), None);
    }

    #[test]
    fn a_process_shares_its_netns_with_itself() {
        let own = own_netns().unwrap();
        assert_eq!(netns_of(std::process::id()).unwrap(), own);
        let dead = netns_of(u32::MAX >> 1).unwrap_err();
        assert!(is_gone(&dead), "{dead}");
    }

    proptest! {
        #[test]
        fn any_path_comes_back_from_its_cgroup_line(
            path in "/[^\n\r]{0,60}",
            before in proptest::collection::vec("[1-9]:[a-z,=]{1,9}:/[^\n\r]{0,9}", 0..5),
        ) {
            let text = format!("{}\n0::{path}\n", before.join("\n"));
            prop_assert_eq!(parse_cgroup(&text), Some(path.as_str()));
        }

        #[test]
        fn any_mountpoint_comes_back_from_its_mountinfo_line(path in "/[a-zA-Z0-9 \t\n\\\\é_-]{0,40}") {
            let mangled: String = path
                .chars()
                .map(|c| match c {
                    ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", c as u32),
                    c => c.to_string(),
                })
                .collect();
            let line = format!("1 2 0:3 / {mangled} rw - cgroup2 none rw");
            prop_assert_eq!(parse_mountinfo(&line).unwrap().mountpoint, path);
        }

        #[test]
        fn no_line_makes_the_parsers_panic(line in ".{0,200}") {
            let _ = parse_mountinfo(&line);
            let _ = parse_traffic(&line);
            let _ = parse_cgroup(&line);
            let _ = unescape_octal(&line);
        }
    }
}
