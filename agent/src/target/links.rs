//! Interfaces of the agent's network namespace, and what happens to them.
//!
//! ```text
//!            queue empty: dump asked for              dump done, whole
//!   Wanted ─────────────────────────────▶ Dumping ─────────────────────▶ Synced
//!     ▲                                      │ done, but events were lost   │ events lost
//!     └──────────────────────────────────────┴──────────────────────────────┘
//! ```
//! Events and dump come through one socket. Events are in order and always right; a dump's part may
//! have been put together before an event that was queued ahead of it. So a dump says nothing
//! about a link that an event was seen for since the dump was asked for.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use tracing::warn;

use super::{
    known::KnownVeths,
    message::{Body, Link, LinkFilter, Message},
    rtnl::{GROUP_LINK, RouteSocket, wait_readable},
};

/// Bytes of events that may wait; one event takes about 2 KiB of it.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Dumps in a row that may be found interrupted before one is taken as it is.
const DUMP_TRIES: u32 = 16;

/// An interface of the agent's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub ifindex: u32,
    /// Not escaped.
    pub name: String,
    pub kind: InterfaceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceKind {
    /// The end of a veth whose other end is in another network namespace: what comes in here is
    /// what the pod sends.
    Veth,
    /// Each packet passes twice: out, then in.
    Loopback,
    /// Packets have no Ethernet header (tun, wireguard, …).
    NoEthernet,
    /// Any other, with Ethernet headers.
    Other,
}

/// What happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It exists (whether it is up or down).
    Up(Interface),
    /// The same device has a new name, or its other end changed its network namespace.
    Changed(Interface),
    /// It exists no more; an `Up` of the same index is another device.
    Gone { ifindex: u32 },
    /// Events were lost. Any interface known so far may be another one now; for each an `Up` or a
    /// `Gone` follows.
    Resync,
}

/// Tells all interfaces of the network namespace it was made in, then every change.
///
/// To wait for it together with other things: call [`LinkWatcher::next`] with no time until it
/// gives `None`, then poll its descriptor.
#[derive(Debug)]
pub struct LinkWatcher {
    socket: RouteSocket,
    table: LinkTable,
    sync: SyncState,
}

#[derive(Debug)]
enum SyncState {
    Wanted {
        tries: u32,
    },
    Dumping {
        sequence: u32,
        tries: u32,
        lost: bool,
        interrupted: bool,
    },
    Synced,
}

impl AsFd for LinkWatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl LinkWatcher {
    /// # Errors
    /// What the kernel says to the socket.
    pub fn new() -> io::Result<Self> {
        Self::with_receive_buffer(RECEIVE_BUFFER)
    }

    /// With room for `bytes` of events that wait; for tests of what happens when they are lost.
    ///
    /// # Errors
    /// What the kernel says to the socket.
    pub fn with_receive_buffer(bytes: usize) -> io::Result<Self> {
        let socket = RouteSocket::open(GROUP_LINK)?;
        socket.set_receive_buffer(bytes)?;
        Ok(Self {
            socket,
            table: LinkTable::default(),
            sync: SyncState::Wanted { tries: 0 },
        })
    }

    /// The veths as the events told them so far.
    #[must_use]
    pub fn known_veths(&self) -> KnownVeths {
        self.table.veths.clone()
    }

    /// The next event, or `None` when there is none within `timeout`.
    ///
    /// # Errors
    /// What the kernel says to the socket; the watcher can go on after it.
    pub fn next(&mut self, timeout: Duration) -> io::Result<Option<LinkEvent>> {
        // A time beyond the clock is no deadline.
        let deadline = Instant::now().checked_add(timeout);
        loop {
            if let Some(event) = self.table.events.pop_front() {
                return Ok(Some(event));
            }
            match self.socket.receive() {
                Ok(Some(messages)) => {
                    for message in messages {
                        self.take(message)?;
                    }
                }
                Ok(None) => match self.sync {
                    SyncState::Wanted { tries } => self.start_dump(tries)?,
                    _ if wait_readable(self.as_fd(), deadline)? => {}
                    _ => return Ok(None),
                },
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => self.overrun(),
                Err(error) => return Err(error),
            }
        }
    }

    fn start_dump(&mut self, tries: u32) -> io::Result<()> {
        let sequence = self.socket.start_link_dump(LinkFilter::All)?;
        self.table.begin_dump(if tries == 0 {
            Trust::Nothing
        } else {
            Trust::Known
        });
        self.sync = SyncState::Dumping {
            sequence,
            tries,
            lost: false,
            interrupted: false,
        };
        Ok(())
    }

    fn overrun(&mut self) {
        warn!("link events were lost; reading all links again");
        match &mut self.sync {
            SyncState::Dumping { lost, .. } => *lost = true,
            _ => self.sync = SyncState::Wanted { tries: 0 },
        }
    }

    fn take(&mut self, message: Message) -> io::Result<()> {
        if !message.of_dump {
            return match (message.body, &self.sync) {
                (Body::NewLink(link), _) => {
                    self.table.new_link(link, Source::Event);
                    Ok(())
                }
                (Body::DelLink { ifindex }, _) => {
                    self.table.del_link(ifindex);
                    Ok(())
                }
                (Body::Overrun, _) => {
                    self.overrun();
                    Ok(())
                }
                (Body::Error(errno), SyncState::Dumping { sequence, .. })
                    if message.sequence == *sequence =>
                {
                    self.sync = SyncState::Wanted { tries: 0 };
                    Err(errno.into())
                }
                _ => Ok(()),
            };
        }
        let SyncState::Dumping {
            sequence,
            tries,
            lost,
            interrupted,
        } = &mut self.sync
        else {
            return Ok(());
        };
        if message.sequence != *sequence {
            return Ok(());
        }
        *interrupted |= message.interrupted;
        match message.body {
            Body::NewLink(link) if !*lost => self.table.new_link(link, Source::Dump),
            Body::Done if *lost => self.sync = SyncState::Wanted { tries: 0 },
            Body::Done if *interrupted && *tries < DUMP_TRIES => {
                self.sync = SyncState::Wanted { tries: *tries + 1 };
            }
            Body::Done => {
                self.table.end_dump();
                self.sync = SyncState::Synced;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Event,
    Dump,
}

/// What a new dump leaves of what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Events were lost.
    Nothing,
    /// No event was lost since the last dump was asked for.
    Known,
}

/// The links as they are known, and the events not yet handed out.
#[derive(Debug, Default)]
struct LinkTable {
    known: BTreeMap<u32, Link>,
    /// Known before events were lost, not confirmed since.
    unsure: BTreeMap<u32, Link>,
    /// An event came for these since the dump was asked for.
    touched: BTreeSet<u32>,
    dumped_before: bool,
    events: VecDeque<LinkEvent>,
    /// `known`, for other threads.
    veths: KnownVeths,
}

impl LinkTable {
    fn begin_dump(&mut self, trust: Trust) {
        self.touched.clear();
        if trust == Trust::Nothing {
            if self.dumped_before {
                self.events.push_back(LinkEvent::Resync);
            }
            self.unsure.append(&mut self.known);
            self.veths.clear();
        }
        self.dumped_before = true;
    }

    fn end_dump(&mut self) {
        self.touched.clear();
        for ifindex in std::mem::take(&mut self.unsure).into_keys() {
            self.events.push_back(LinkEvent::Gone { ifindex });
        }
    }

    fn new_link(&mut self, link: Link, source: Source) {
        let ifindex = link.interface.ifindex;
        match source {
            Source::Event => {
                self.touched.insert(ifindex);
            }
            Source::Dump if self.touched.contains(&ifindex) => return,
            Source::Dump => {}
        }
        self.veths.insert(&link);
        let before = self.known.insert(ifindex, link.clone());
        let event = match (before, self.unsure.remove(&ifindex)) {
            (Some(before), _) if before == link => return,
            (Some(_), _) => LinkEvent::Changed(link.interface),
            (None, Some(unsure)) if unsure != link => {
                self.events.push_back(LinkEvent::Gone { ifindex });
                LinkEvent::Up(link.interface)
            }
            (None, _) => LinkEvent::Up(link.interface),
        };
        self.events.push_back(event);
    }

    fn del_link(&mut self, ifindex: u32) {
        self.touched.insert(ifindex);
        self.veths.remove(ifindex);
        let known = self.known.remove(&ifindex);
        if self.unsure.remove(&ifindex).or(known).is_some() {
            self.events.push_back(LinkEvent::Gone { ifindex });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::message::Device, *};

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            interface: Interface {
                ifindex,
                name: name.to_owned(),
                kind: InterfaceKind::Other,
            },
            peer_netns: None,
            device: Device::Hardware,
        }
    }

    fn synced(links: &[(u32, &str)]) -> LinkTable {
        let mut table = LinkTable::default();
        table.begin_dump(Trust::Nothing);
        for (ifindex, name) in links {
            table.new_link(link(*ifindex, name), Source::Dump);
        }
        table.end_dump();
        table.events.clear();
        table
    }

    fn up(ifindex: u32, name: &str) -> LinkEvent {
        LinkEvent::Up(link(ifindex, name).interface)
    }

    #[test]
    fn a_dump_that_is_late_brings_no_deleted_link_back() {
        let mut table = LinkTable::default();
        table.begin_dump(Trust::Nothing);
        table.del_link(5);
        table.new_link(link(6, "new"), Source::Event);
        table.new_link(link(5, "dead"), Source::Dump);
        table.new_link(link(6, "old"), Source::Dump);
        table.end_dump();
        assert_eq!(Vec::from(table.events), [up(6, "new")]);
    }

    #[test]
    fn a_renamed_link_is_changed_and_the_same_told_twice_is_no_event() {
        let mut table = synced(&[(5, "a")]);
        table.new_link(link(5, "a"), Source::Event);
        table.new_link(link(5, "b"), Source::Event);
        assert_eq!(
            Vec::from(table.events),
            [LinkEvent::Changed(link(5, "b").interface)]
        );
    }

    #[test]
    fn after_lost_events_each_link_is_told_again_or_gone() {
        let mut table = synced(&[(5, "a"), (6, "b"), (7, "c")]);
        table.begin_dump(Trust::Nothing);
        table.new_link(link(5, "a"), Source::Dump);
        table.new_link(link(6, "other"), Source::Dump);
        table.new_link(link(8, "d"), Source::Dump);
        table.end_dump();
        let gone = |ifindex| LinkEvent::Gone { ifindex };
        let expected = [
            LinkEvent::Resync,
            up(5, "a"),
            gone(6),
            up(6, "other"),
            up(8, "d"),
            gone(7),
        ];
        assert_eq!(Vec::from(table.events), expected);
    }

    #[test]
    fn a_dump_tried_again_tells_nothing_twice() {
        let mut table = synced(&[(5, "a")]);
        table.begin_dump(Trust::Known);
        table.new_link(link(5, "a"), Source::Dump);
        table.new_link(link(6, "missed"), Source::Dump);
        table.end_dump();
        assert_eq!(Vec::from(table.events), [up(6, "missed")]);
    }

    proptest! {
        /// What the kernel does while events may get lost, and a dump at the end: whoever follows
        /// the events ends with the kernel's links, and never sees an index twice without `Gone`.
        #[test]
        fn a_follower_ends_with_the_kernel_s_links(
            changes in proptest::collection::vec((0u32..6, "[ab]", any::<bool>(), 0u8..4), 0..60),
        ) {
            let mut kernel: BTreeMap<u32, String> = BTreeMap::new();
            let mut table = synced(&[]);
            let mut lost = false;
            let dump = |table: &mut LinkTable, kernel: &BTreeMap<u32, String>| {
                table.begin_dump(Trust::Nothing);
                for (ifindex, name) in kernel {
                    table.new_link(link(*ifindex, name), Source::Dump);
                }
                table.end_dump();
            };
            for (ifindex, name, exists, fate) in changes {
                if exists {
                    kernel.insert(ifindex, name.clone());
                } else {
                    kernel.remove(&ifindex);
                }
                match fate {
                    0 => lost = true,
                    1 => { dump(&mut table, &kernel); lost = false; }
                    _ if exists => table.new_link(link(ifindex, &name), Source::Event),
                    _ => table.del_link(ifindex),
                }
            }
            if lost {
                dump(&mut table, &kernel);
            }
            let mut followed: BTreeMap<u32, String> = BTreeMap::new();
            let mut doubted = BTreeSet::new();
            for event in table.events {
                match event {
                    LinkEvent::Resync => doubted = followed.keys().copied().collect(),
                    LinkEvent::Up(interface) => {
                        let fresh = !followed.contains_key(&interface.ifindex);
                        prop_assert!(fresh || doubted.remove(&interface.ifindex));
                        followed.insert(interface.ifindex, interface.name);
                    }
                    LinkEvent::Changed(interface) => {
                        prop_assert!(followed.insert(interface.ifindex, interface.name).is_some());
                    }
                    LinkEvent::Gone { ifindex } => {
                        doubted.remove(&ifindex);
                        prop_assert!(followed.remove(&ifindex).is_some());
                    }
                }
            }
            prop_assert_eq!(followed, kernel);
        }
    }
}
