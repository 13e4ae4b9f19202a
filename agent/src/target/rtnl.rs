//! A socket that asks the kernel for links and for the ids of network namespaces, or listens to
//! what happens to links.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg,
        send, setsockopt, socket, sockopt,
    },
};

use super::message::{Body, Link, LinkFilter, Message, Nsid, Request, decode};

/// Multicast group of link changes, as a bit of `nl_groups` (RTMGRP_LINK).
pub(super) const GROUP_LINK: u32 = 1;

/// The kernel fills datagrams of a dump up to 32 KiB.
const DATAGRAM_MAX: usize = 64 * 1024;
/// The kernel answers within the call that asks; more time than this is a fault.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions sent in one datagram: their answers fit into the default receive buffer.
const BATCH: usize = 64;
/// Times that a dump is tried again because the links changed meanwhile.
const DUMP_TRIES: usize = 8;

/// A blocking-by-deadline NETLINK_ROUTE socket of the calling thread's network namespace.
#[derive(Debug)]
pub(super) struct RouteSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl AsFd for RouteSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl RouteSocket {
    /// `groups`: multicast groups to listen to, or 0.
    pub(super) fn open(groups: u32) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; DATAGRAM_MAX],
        })
    }

    /// Sets the size of the receive buffer in bytes; CAP_NET_ADMIN goes beyond the system's limit.
    pub(super) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        setsockopt(&self.fd, sockopt::RcvBufForce, &bytes)
            .or_else(|_not_allowed| setsockopt(&self.fd, sockopt::RcvBuf, &bytes))?;
        Ok(())
    }

    /// Starts a dump of links, without waiting for it.
    ///
    /// # Returns
    /// The sequence number of its messages.
    pub(super) fn start_link_dump(&mut self, kind: LinkFilter) -> io::Result<u32> {
        self.send(&[Request::Links(kind)])
    }

    /// All links of `kind`.
    pub(super) fn links(&mut self, kind: LinkFilter) -> io::Result<Vec<Link>> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.start_link_dump(kind)?;
            let mut links = Vec::new();
            let mut interrupted = false;
            let mut done = false;
            while !done {
                for message in self.answers()? {
                    if message.sequence != sequence {
                        continue;
                    }
                    interrupted |= message.interrupted;
                    match message.body {
                        Body::NewLink(link) => links.push(link),
                        Body::Done => done = true,
                        Body::Error(errno) => return Err(errno.into()),
                        _ => {}
                    }
                }
            }
            if !interrupted {
                return Ok(links);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the links change all the time",
        ))
    }

    /// The link of that name; `None` when there is none.
    pub(super) fn link_by_name(&mut self, name: &str) -> io::Result<Option<Link>> {
        self.link(Request::LinkByName(name))
    }

    /// The link of that index; `None` when there is none.
    pub(super) fn link_by_index(&mut self, ifindex: u32) -> io::Result<Option<Link>> {
        self.link(Request::LinkByIndex(ifindex))
    }

    fn link(&mut self, request: Request<'_>) -> io::Result<Option<Link>> {
        let sequence = self.send(&[request])?;
        loop {
            for message in self.answers()? {
                match message.body {
                    _ if message.sequence != sequence => {}
                    Body::NewLink(link) => return Ok(Some(link)),
                    Body::Error(Errno::ENODEV) => return Ok(None),
                    Body::Error(errno) => return Err(errno.into()),
                    _ => {}
                }
            }
        }
    }

    /// The ids of the network namespaces of `pids`, in their order; `None` where the namespace
    /// has no id here (as this one itself has none) or the process is dead.
    ///
    /// Needs no right over the processes (net/core/net_namespace.c `rtnl_net_getid`, v6.12).
    pub(super) fn nsids(&mut self, pids: &[u32]) -> io::Result<Vec<Option<Nsid>>> {
        let mut nsids = Vec::with_capacity(pids.len());
        for batch in pids.chunks(BATCH) {
            let questions: Vec<_> = batch.iter().map(|&pid| Request::Nsid { pid }).collect();
            let first = self.send(&questions)?;
            let mut answers: Vec<Option<Option<Nsid>>> = vec![None; batch.len()];
            while answers.iter().any(Option::is_none) {
                for message in self.answers()? {
                    let index = message.sequence.wrapping_sub(first) as usize;
                    let Some(answer) = answers.get_mut(index) else {
                        continue;
                    };
                    match message.body {
                        Body::Nsid(nsid) => *answer = Some(nsid),
                        Body::Error(Errno::ESRCH) => *answer = Some(None),
                        Body::Error(errno) => return Err(errno.into()),
                        _ => {}
                    }
                }
            }
            nsids.extend(answers.into_iter().flatten());
        }
        Ok(nsids)
    }

    /// [`RouteSocket::nsids`] of one process.
    pub(super) fn nsid(&mut self, pid: u32) -> io::Result<Option<Nsid>> {
        Ok(self.nsids(&[pid])?.pop().flatten())
    }

    /// Sends requests in one datagram.
    ///
    /// # Returns
    /// The sequence number of the first; the others have the next ones.
    fn send(&mut self, requests: &[Request<'_>]) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            request.encode(self.sequence, &mut datagram);
        }
        send(self.fd.as_raw_fd(), &datagram, MsgFlags::empty())?;
        Ok(first)
    }

    /// The messages of the next datagram, waited for.
    fn answers(&mut self) -> io::Result<Vec<Message>> {
        let deadline = Some(Instant::now() + ANSWER_TIMEOUT);
        loop {
            if let Some(messages) = self.receive()? {
                return Ok(messages);
            }
            if !wait_readable(self.fd.as_fd(), deadline)? {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "rtnetlink gives no answer",
                ));
            }
        }
    }

    /// The messages of the next datagram, or `None` when there is none yet.
    ///
    /// # Errors
    /// ENOBUFS when messages were lost.
    pub(super) fn receive(&mut self) -> io::Result<Option<Vec<Message>>> {
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let (length, from_kernel, truncated) =
            match recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut parts, None, flags) {
                Ok(got) => (
                    got.bytes,
                    got.address.is_some_and(|address| address.pid() == 0),
                    got.flags.contains(MsgFlags::MSG_TRUNC),
                ),
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
        if truncated {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an rtnetlink datagram has more than {DATAGRAM_MAX} bytes"),
            ));
        }
        if !from_kernel {
            return Ok(Some(Vec::new()));
        }
        decode(&self.buffer[..length])
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Waits until `fd` is readable or the deadline, if there is one, is over.
pub(super) fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        // Rounded up, so that the last millisecond is no busy loop.
        let left_ms = deadline.map(|deadline| {
            deadline
                .saturating_duration_since(Instant::now())
                .as_nanos()
                .div_ceil(1_000_000)
        });
        let timeout = left_ms.map_or(PollTimeout::NONE, |ms| {
            PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left_ms == Some(0) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}
