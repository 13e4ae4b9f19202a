//! Traffic control by rtnetlink: the qdisc `clsact` and the filters on it, as far as the agent
//! needs them.
//!
//! Constants and layouts are those of linux/rtnetlink.h and linux/pkt_sched.h, linux/pkt_cls.h.
//! Needs CAP_NET_ADMIN for changes.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL,
    NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NlasIterator, parse_string,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg,
            send, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's result is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Parent of the qdiscs `ingress` and `clsact`.
const TC_H_CLSACT: u32 = 0xffff_fff1;
/// Their handle.
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// Every packet, in network byte order.
const ETH_P_ALL: u16 = 3_u16.to_be();

/// Bytes of struct tcmsg: family and padding, ifindex, handle, parent, info.
const TCMSG: usize = 20;
/// The kernel fills datagrams of a dump up to 32 KiB.
const DATAGRAM_MAX: usize = 64 * 1024;
/// The kernel answers within the call that asks; more time than this is a fault.
const ANSWER_TIMEOUT_S: i64 = 5;

/// Where on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Class of clsact that filters hang on.
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A filter on clsact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Lower runs earlier.
    pub(super) priority: u16,
    /// As in struct tcmsg: in network byte order.
    protocol: u16,
    /// 0: the entry of a priority, not of a filter.
    pub(super) handle: u32,
    /// Of a BPF filter.
    pub(super) name: Option<String>,
}

/// A socket that asks for and changes traffic control in the thread's network namespace.
#[derive(Debug)]
pub(super) struct TcSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// struct tcmsg without what is 0 in all of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tcmsg {
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

/// A message of the kernel that is neither an end nor an error.
#[derive(Debug)]
struct Answer {
    kind: u16,
    head: Tcmsg,
    tca_kind: String,
    bpf_name: Option<String>,
}

impl TcSocket {
    pub(super) fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::new(ANSWER_TIMEOUT_S, 0),
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; DATAGRAM_MAX],
        })
    }

    /// Interfaces that have clsact.
    pub(super) fn clsact_interfaces(&mut self) -> io::Result<Vec<u32>> {
        let answers = self.ask(RTM_GETQDISC, NLM_F_DUMP, Tcmsg::default(), &[])?;
        Ok(answers
            .into_iter()
            .filter(|answer| answer.kind == RTM_NEWQDISC && answer.tca_kind == "clsact")
            .map(|answer| answer.head.ifindex)
            .collect())
    }

    /// Kind of the qdisc at clsact's place, if there is one: `clsact` or `ingress`.
    pub(super) fn qdisc_at_clsact(&mut self, ifindex: u32) -> io::Result<Option<String>> {
        let head = Tcmsg {
            ifindex,
            parent: TC_H_CLSACT,
            ..Tcmsg::default()
        };
        match self.ask(RTM_GETQDISC, NLM_F_ACK | NLM_F_ECHO, head, &[]) {
            Ok(answers) => Ok(answers
                .into_iter()
                .find(|answer| answer.kind == RTM_NEWQDISC)
                .map(|answer| answer.tca_kind)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds clsact.
    ///
    /// # Errors
    /// EEXIST: there is one, or the qdisc `ingress`. ENOENT: the kernel has none.
    pub(super) fn add_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let kind = DefaultNla::new(TCA_KIND, b"clsact\0".into());
        self.ask(RTM_NEWQDISC, flags, clsact(ifindex), &[kind])?;
        Ok(())
    }

    /// Removes clsact with all its filters.
    pub(super) fn delete_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        self.ask(RTM_DELQDISC, NLM_F_ACK, clsact(ifindex), &[])?;
        Ok(())
    }

    /// The filters of one direction in the order in which they run; and an entry for each priority.
    pub(super) fn filters(
        &mut self,
        ifindex: u32,
        direction: Direction,
    ) -> io::Result<Vec<Filter>> {
        let head = Tcmsg {
            ifindex,
            parent: direction.parent(),
            ..Tcmsg::default()
        };
        let answers = self.ask(RTM_GETTFILTER, NLM_F_DUMP, head, &[])?;
        Ok(answers
            .into_iter()
            .filter(|answer| answer.kind == RTM_NEWTFILTER)
            .map(|answer| Filter {
                priority: (answer.head.info >> 16) as u16,
                protocol: (answer.head.info & 0xffff) as u16,
                handle: answer.head.handle,
                name: answer.bpf_name,
            })
            .collect())
    }

    /// Adds a BPF filter for all packets, before others of the same priority.
    ///
    /// # Errors
    /// EINVAL: filters of another kind or protocol have that priority.
    pub(super) fn add_filter(
        &mut self,
        ifindex: u32,
        direction: Direction,
        filter: &NewFilter<'_>,
    ) -> io::Result<()> {
        let head = Tcmsg {
            ifindex,
            handle: filter.handle,
            parent: direction.parent(),
            info: u32::from(filter.priority) << 16 | u32::from(ETH_P_ALL),
        };
        let name = [filter.name.as_bytes(), b"\0"].concat();
        let options = emit(&[
            DefaultNla::new(
                TCA_BPF_FD,
                filter.program.as_raw_fd().to_ne_bytes().to_vec(),
            ),
            DefaultNla::new(TCA_BPF_NAME, name),
            DefaultNla::new(
                TCA_BPF_FLAGS,
                TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes().to_vec(),
            ),
        ]);
        let attributes = [
            DefaultNla::new(TCA_KIND, b"bpf\0".into()),
            DefaultNla::new(TCA_OPTIONS, options),
        ];
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.ask(RTM_NEWTFILTER, flags, head, &attributes)?;
        Ok(())
    }

    /// Removes one filter.
    pub(super) fn delete_filter(
        &mut self,
        ifindex: u32,
        direction: Direction,
        filter: &Filter,
    ) -> io::Result<()> {
        let head = Tcmsg {
            ifindex,
            handle: filter.handle,
            parent: direction.parent(),
            info: u32::from(filter.priority) << 16 | u32::from(filter.protocol),
        };
        self.ask(RTM_DELTFILTER, NLM_F_ACK, head, &[])?;
        Ok(())
    }

    /// Sends one request and collects its answers up to the end of the dump or the acknowledgement.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        head: Tcmsg,
        attributes: &[DefaultNla],
    ) -> io::Result<Vec<Answer>> {
        self.sequence = self.sequence.wrapping_add(1);
        let datagram = encode(kind, NLM_F_REQUEST | flags, self.sequence, head, attributes);
        send(self.fd.as_raw_fd(), &datagram, MsgFlags::empty())?;
        let mut answers = Vec::new();
        loop {
            let length = self.receive()?;
            if decode(&self.buffer[..length], self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Length of the next datagram of the kernel, in the buffer.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            match recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut parts, None, MsgFlags::empty()) {
                Ok(got) if got.address.is_some_and(|address| address.pid() == 0) => {
                    return Ok(got.bytes);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!(
                            "rtnetlink gives no answer within {:?}",
                            Duration::from_secs(ANSWER_TIMEOUT_S.unsigned_abs())
                        ),
                    ));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// A filter to be added.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewFilter<'a> {
    pub(super) program: BorrowedFd<'a>,
    pub(super) name: &'a str,
    pub(super) priority: u16,
    pub(super) handle: u32,
}

fn clsact(ifindex: u32) -> Tcmsg {
    Tcmsg {
        ifindex,
        handle: CLSACT_HANDLE,
        parent: TC_H_CLSACT,
        info: 0,
    }
}

fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn encode(kind: u16, flags: u16, sequence: u32, head: Tcmsg, attributes: &[DefaultNla]) -> Vec<u8> {
    let attributes = emit(attributes);
    let mut header = NetlinkHeader::default();
    let length = header.buffer_len() + TCMSG + attributes.len();
    header.length = u32::try_from(length).expect("our names are short");
    header.message_type = kind;
    header.flags = flags;
    header.sequence_number = sequence;
    let mut datagram = vec![0; header.buffer_len()];
    header.emit(&mut datagram);
    datagram.extend_from_slice(&[0; 4]);
    for field in [head.ifindex, head.handle, head.parent, head.info] {
        datagram.extend_from_slice(&field.to_ne_bytes());
    }
    datagram.extend_from_slice(&attributes);
    datagram
}

/// Adds the datagram's answers to request `sequence`.
///
/// # Returns
/// Whether that was all of them.
fn decode(datagram: &[u8], sequence: u32, answers: &mut Vec<Answer>) -> io::Result<bool> {
    let broken = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(broken)?;
        let aligned = (message.length() as usize).next_multiple_of(usize::from(NLMSG_ALIGNTO));
        rest = rest.get(aligned..).unwrap_or_default();
        if message.sequence_number() != sequence {
            continue;
        }
        let payload = message.payload();
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                return match word(payload, 0) {
                    Some(0) => Ok(true),
                    code => {
                        let code = code.unwrap_or_default().cast_signed();
                        Err(io::Error::from_raw_os_error(code.wrapping_neg()))
                    }
                };
            }
            kind => answers.extend(answer(kind, payload)),
        }
    }
    Ok(false)
}

/// `None` for what is no message of traffic control.
fn answer(kind: u16, payload: &[u8]) -> Option<Answer> {
    let head = Tcmsg {
        ifindex: word(payload, 4)?,
        handle: word(payload, 8)?,
        parent: word(payload, 12)?,
        info: word(payload, 16)?,
    };
    let attributes = payload.get(TCMSG..)?;
    let tca_kind = attribute(attributes, TCA_KIND)
        .and_then(|value| parse_string(&value).ok())
        .unwrap_or_default();
    let bpf_name = attribute(attributes, TCA_OPTIONS)
        .and_then(|options| attribute(&options, TCA_BPF_NAME))
        .and_then(|value| parse_string(&value).ok())
        .filter(|_| tca_kind == "bpf");
    Some(Answer {
        kind,
        head,
        tca_kind,
        bpf_name,
    })
}

fn attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|nla| nla.kind() == kind)
        .map(|nla| nla.value().to_vec())
}

fn word(payload: &[u8], offset: usize) -> Option<u32> {
    let bytes = payload.get(offset..offset + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
