//! Rtnetlink messages: links, and the ids of network namespaces.
//!
//! Only the few attributes that matter are decoded, so a newer kernel's links decode, too.
//! Constants are those of linux/rtnetlink.h, linux/if_link.h and linux/net_namespace.h.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable as _, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART,
    NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer,
    NetlinkHeader, NlasIterator, parse_i32, parse_string,
};
use nix::{errno::Errno, sys::socket::AddressFamily};

use super::links::{Interface, InterfaceKind};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;

/// Offset of the link-layer type in `struct ifinfomsg`.
const IFI_TYPE: usize = 2;
/// linux/if_arp.h.
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// Bytes of struct ifinfomsg: family, type, index, flags, change.
const IFINFOMSG: usize = 16;
/// Where the index is in it.
const IFI_INDEX: usize = 4;
/// Bytes of struct rtgenmsg, padded.
const RTGENMSG: usize = 4;

/// The id that this network namespace has for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Nsid(i32);

impl Nsid {
    /// -1 is "not assigned".
    pub(super) fn new(id: i32) -> Option<Self> {
        (id >= 0).then_some(Self(id))
    }
}

/// A link as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) interface: Interface,
    /// Namespace of the other end, when it is another one and has an id.
    pub(super) peer_netns: Option<Nsid>,
    pub(super) device: Device,
}

/// What an interface is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// The kernel names no kind: a driver's, real or of a virtual machine, and loopback.
    Hardware,
    Veth,
    /// Of the kernel's other kinds: bridge, bond, vlan, …
    Virtual,
}

/// A question to the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request<'a> {
    /// A dump.
    Links(LinkFilter),
    LinkByName(&'a str),
    LinkByIndex(u32),
    /// The id of the network namespace that the process is in.
    Nsid {
        pid: u32,
    },
}

/// Which links a dump shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkFilter {
    All,
    /// The kernel need not heed it.
    Veth,
}

impl Request<'_> {
    /// Appends the message.
    pub(super) fn encode(self, sequence: u32, datagram: &mut Vec<u8>) {
        let no_stats = DefaultNla::new(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS.to_ne_bytes().into());
        let mut fixed = vec![0; IFINFOMSG];
        let (kind, flags, attributes) = match self {
            Self::Links(LinkFilter::All) => (RTM_GETLINK, NLM_F_DUMP, vec![no_stats]),
            Self::Links(LinkFilter::Veth) => {
                let veth = emit(&[DefaultNla::new(IFLA_INFO_KIND, b"veth\0".into())]);
                (
                    RTM_GETLINK,
                    NLM_F_DUMP,
                    vec![no_stats, DefaultNla::new(IFLA_LINKINFO, veth)],
                )
            }
            Self::LinkByName(name) => {
                let name = [name.as_bytes(), b"\0"].concat();
                (
                    RTM_GETLINK,
                    0,
                    vec![no_stats, DefaultNla::new(IFLA_IFNAME, name)],
                )
            }
            Self::LinkByIndex(ifindex) => {
                fixed[IFI_INDEX..IFI_INDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
                (RTM_GETLINK, 0, vec![no_stats])
            }
            Self::Nsid { pid } => {
                fixed.truncate(RTGENMSG);
                (
                    RTM_GETNSID,
                    0,
                    vec![DefaultNla::new(NETNSA_PID, pid.to_ne_bytes().into())],
                )
            }
        };
        let attributes = emit(&attributes);
        let mut header = NetlinkHeader::default();
        let length = header.buffer_len() + fixed.len() + attributes.len();
        header.length = u32::try_from(length).expect("a target's name is short");
        header.message_type = kind;
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let start = datagram.len();
        datagram.resize(start + header.buffer_len(), 0);
        header.emit(&mut datagram[start..]);
        datagram.extend_from_slice(&fixed);
        datagram.extend_from_slice(&attributes);
    }
}

/// One netlink message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) sequence: u32,
    /// Part of a dump, not an event.
    pub(super) of_dump: bool,
    /// The dump that it is of may have missed something.
    pub(super) interrupted: bool,
    pub(super) body: Body,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    NewLink(Link),
    DelLink {
        ifindex: u32,
    },
    Nsid(Option<Nsid>),
    Done,
    Error(Errno),
    /// Messages were lost.
    Overrun,
    Other,
}

fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// The messages of a datagram.
pub(super) fn decode(datagram: &[u8]) -> Result<Vec<Message>, DecodeError> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)?;
        messages.push(decode_message(&message)?);
        let aligned = (message.length() as usize).next_multiple_of(usize::from(NLMSG_ALIGNTO));
        rest = rest.get(aligned..).unwrap_or_default();
    }
    Ok(messages)
}

fn decode_message(message: &NetlinkBuffer<&[u8]>) -> Result<Message, DecodeError> {
    let payload = message.payload();
    let body = match message.message_type() {
        RTM_NEWLINK | RTM_DELLINK => decode_link(message.message_type(), payload)?,
        RTM_NEWNSID => Body::Nsid(decode_nsid(payload)?),
        NLMSG_DONE => Body::Done,
        NLMSG_ERROR => match fixed::<4>(payload, 0).map(i32::from_ne_bytes)? {
            0 => Body::Other,
            code => Body::Error(Errno::from_raw(code.wrapping_neg())),
        },
        NLMSG_OVERRUN => Body::Overrun,
        _ => Body::Other,
    };
    let flags = message.flags();
    Ok(Message {
        sequence: message.sequence_number(),
        of_dump: flags & NLM_F_MULTIPART != 0,
        interrupted: flags & NLM_F_DUMP_INTR != 0,
        body,
    })
}

fn decode_link(kind: u16, payload: &[u8]) -> Result<Body, DecodeError> {
    let [family] = fixed::<1>(payload, 0)?;
    // A port that leaves a bridge is told as a deleted link of family AF_BRIDGE.
    if i32::from(family) != AddressFamily::Unspec as i32 {
        return Ok(Body::Other);
    }
    let ifindex = u32::from_ne_bytes(fixed(payload, IFI_INDEX)?);
    if kind == RTM_DELLINK {
        return Ok(Body::DelLink { ifindex });
    }
    let mut name = String::new();
    let mut device = Device::Hardware;
    let mut peer_netns = None;
    for attribute in NlasIterator::new(payload.get(IFINFOMSG..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() {
            IFLA_IFNAME => name = until_nul(attribute.value()),
            IFLA_LINKINFO => {
                for nested in NlasIterator::new(attribute.value()) {
                    let nested = nested?;
                    if nested.kind() == IFLA_INFO_KIND {
                        device = match parse_string(nested.value())?.as_str() {
                            "veth" => Device::Veth,
                            _ => Device::Virtual,
                        };
                    }
                }
            }
            IFLA_LINK_NETNSID => peer_netns = Some(parse_i32(attribute.value())?),
            _ => {}
        }
    }
    let kind = match peer_netns {
        Some(_) if device == Device::Veth => InterfaceKind::Veth,
        _ => match u16::from_ne_bytes(fixed(payload, IFI_TYPE)?) {
            ARPHRD_ETHER => InterfaceKind::Other,
            ARPHRD_LOOPBACK => InterfaceKind::Loopback,
            _ => InterfaceKind::NoEthernet,
        },
    };
    Ok(Body::NewLink(Link {
        interface: Interface {
            ifindex,
            name,
            kind,
        },
        peer_netns: peer_netns.and_then(Nsid::new),
        device,
    }))
}

fn decode_nsid(payload: &[u8]) -> Result<Option<Nsid>, DecodeError> {
    for attribute in NlasIterator::new(payload.get(RTGENMSG..).unwrap_or_default()) {
        let attribute = attribute?;
        if attribute.kind() == NETNSA_NSID {
            return Ok(Nsid::new(parse_i32(attribute.value())?));
        }
    }
    Ok(None)
}

/// An interface's name may have any bytes but `/`, `:`, blanks and NUL (dev_valid_name).
fn until_nul(value: &[u8]) -> String {
    let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

fn fixed<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], DecodeError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or_else(|| DecodeError::invalid_number(at + N, bytes.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(16 + payload.len()).unwrap();
        header.message_type = kind;
        header.flags = flags;
        header.sequence_number = 7;
        let mut bytes = vec![0; 16];
        header.emit(&mut bytes);
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(family: u8, ifindex: u32, attributes: &[DefaultNla]) -> Vec<u8> {
        let mut payload = vec![family, 0];
        payload.extend_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        payload.extend_from_slice(&ifindex.to_ne_bytes());
        payload.resize(IFINFOMSG, 0);
        payload.extend_from_slice(&emit(attributes));
        payload
    }

    fn veth_attributes(name: &str, nsid: Option<i32>) -> Vec<DefaultNla> {
        let info = emit(&[DefaultNla::new(IFLA_INFO_KIND, b"veth\0".to_vec())]);
        let mut attributes = vec![
            DefaultNla::new(IFLA_IFNAME, format!("{name}\0").into_bytes()),
            DefaultNla::new(1234, vec![1, 2, 3]),
            DefaultNla::new(IFLA_LINKINFO, info),
        ];
        attributes
            .extend(nsid.map(|id| DefaultNla::new(IFLA_LINK_NETNSID, id.to_ne_bytes().to_vec())));
        attributes
    }

    #[test]
    fn a_veth_is_a_host_end_only_when_its_peer_is_in_another_netns() {
        let mut datagram = Vec::new();
        for nsid in [Some(3), None, Some(-1)] {
            let payload = link(0, 9, &veth_attributes("veth0", nsid));
            datagram.extend(message(RTM_NEWLINK, NLM_F_MULTIPART, &payload));
        }
        let links: Vec<_> = decode(&datagram)
            .unwrap()
            .into_iter()
            .map(|message| match message {
                Message {
                    sequence: 7,
                    of_dump: true,
                    body: Body::NewLink(link),
                    ..
                } => {
                    assert_eq!(
                        (link.interface.ifindex, &*link.interface.name),
                        (9, "veth0")
                    );
                    (link.interface.kind, link.peer_netns)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = [
            (InterfaceKind::Veth, Some(Nsid(3))),
            (InterfaceKind::Other, None),
            (InterfaceKind::Veth, None),
        ];
        assert_eq!(links, expected);
    }

    #[test]
    fn a_port_that_leaves_a_bridge_is_no_link_that_goes() {
        let bridge = u8::try_from(AddressFamily::Bridge as i32).unwrap();
        let left = message(RTM_DELLINK, 0, &link(bridge, 9, &[]));
        assert_eq!(decode(&left).unwrap()[0].body, Body::Other);
        let gone = message(RTM_DELLINK, 0, &link(0, 9, &[]));
        assert_eq!(decode(&gone).unwrap()[0].body, Body::DelLink { ifindex: 9 });
    }

    #[test]
    fn a_refusal_is_an_error_and_an_acknowledgement_is_none() {
        let refusal = message(NLMSG_ERROR, 0, &(-3i32).to_ne_bytes());
        assert_eq!(decode(&refusal).unwrap()[0].body, Body::Error(Errno::ESRCH));
        let ack = message(NLMSG_ERROR, 0, &0i32.to_ne_bytes());
        assert_eq!(decode(&ack).unwrap()[0].body, Body::Other);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in prop_oneof![Just(RTM_NEWLINK), Just(RTM_DELLINK), Just(RTM_NEWNSID), Just(NLMSG_ERROR)],
        ) {
            let _ = decode(&bytes);
            let _ = decode(&message(kind, 0, &bytes));
        }

        #[test]
        fn a_cut_datagram_is_an_error_or_fewer_messages(name in "[a-z]{1,15}", cut in 1usize..80) {
            let whole = message(RTM_NEWLINK, 0, &link(0, 9, &veth_attributes(&name, Some(1))));
            let cut = whole.len().saturating_sub(cut);
            let messages = decode(&whole[..cut]);
            prop_assert!(messages.is_err() || messages.unwrap().is_empty());
        }
    }
}
