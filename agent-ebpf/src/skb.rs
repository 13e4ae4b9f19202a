//! The packet, as both program types see it.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{EbpfContext, bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use remora_agent_common::{
    filter::NetworkBytes, look_back::FLOW_BYTES_IPV6, record::ETHERNET_HEADER, stage::WORK_SESSIONS,
};

use crate::scratch::Scratch;

/// Bytes of a VLAN tag, which the file's frame has beyond the packet's own.
pub(crate) const VLAN_TAG: u32 = 4;

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Skb(*mut __sk_buff);

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[inline(always)] pub(crate) fn $name(&self) -> u32 {
            // SAFETY: the context pointer is valid for the whole run of the program, and the
            // verifier turns an access of a permitted field into one of the sk_buff. Volatile: it is read
            // again rather than kept in a register, or on the stack.
            unsafe { (&raw const (*self.0).$name).read_volatile() }
        })*
    };
}

impl Skb {
    #[inline(always)]
    pub(crate) fn of(ctx: &impl EbpfContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut __sk_buff {
        self.0
    }

    fields! {
        /// In the network namespace that the packet is in.
        ifindex,
        /// From where its bytes start: Ethernet for TC, IP for cgroup programs.
        len,
        pkt_type,
        /// EtherType, network byte order.
        protocol,
        vlan_present,
        vlan_tci,
        /// Network byte order.
        vlan_proto,
        gso_size,
        gso_segs,
    }

    /// A word of the programs' own. Any number to the verifier, also right after it was set:
    /// what it knows of the number that was set differs by the way there.
    #[inline(always)]
    pub(crate) fn cb(&self, word: usize) -> u32 {
        // SAFETY: as for the fields; `word` is a constant below 5.
        unsafe { (&raw const (*self.0).cb[word]).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn set_cb(&self, word: usize, value: u32) {
        // SAFETY: as above; both program types may write these.
        unsafe { (*self.0).cb[word] = value }
    }

    /// The sessions that the packet is worked on for, see `remora_agent_common::stage`.
    #[inline(always)]
    pub(crate) fn sessions(&self) -> u64 {
        u64::from(self.cb(WORK_SESSIONS)) | u64::from(self.cb(WORK_SESSIONS + 1)) << 32
    }

    /// EtherType in host byte order.
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        u16::from_be(self.protocol() as u16)
    }

    /// Copies `len` bytes from the packet's start to `to`.
    ///
    /// # Safety
    /// `to` points to at least `len` bytes, in a way that the verifier can see.
    #[inline(always)]
    pub(crate) unsafe fn copy_to(&self, to: *mut c_void, len: u32) -> bool {
        // SAFETY: as the caller promises; the helper checks the packet's own bounds.
        unsafe { bpf_skb_load_bytes(self.0.cast(), 0, to, len) == 0 }
    }

    /// `N` bytes at `offset`, or nothing if the packet is shorter.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // Not set to zero first: that would be a loop over the stack, which the verifier refuses to
        // an agent without CAP_PERFMON.
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: `bytes` has N bytes; the helper checks the packet's bounds.
        let failed = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        // SAFETY: the helper has written all of it.
        if failed == 0 {
            Some(unsafe { bytes.assume_init() })
        } else {
            None
        }
    }
}

/// 0, for no packet has 2 GiB, but neither compiler nor verifier knows: see `Flow::decode`.
#[inline(always)]
pub(crate) fn zero(skb: &Skb) -> u32 {
    skb.len() >> 31
}

/// The packet from its network header on.
#[derive(Clone, Copy)]
pub(crate) struct Network {
    skb: Skb,
    offset: u32,
}

impl Network {
    /// `L3`: the packet's bytes start with the network header.
    #[inline(always)]
    pub(crate) fn of<const L3: bool>(skb: Skb) -> Self {
        Self {
            skb,
            offset: if L3 { 0 } else { ETHERNET_HEADER },
        }
    }
}

impl NetworkBytes for Network {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.skb.load(self.offset + offset)
    }
}

/// The same, by way of a scratch: slots of the stack are slow to write (see [`crate::table`]).
pub(crate) struct InScratch {
    network: Network,
    scratch: *mut Scratch,
}

impl InScratch {
    /// # Safety
    /// The scratch is the caller's as long as this lives.
    #[inline(always)]
    pub(crate) unsafe fn of<const L3: bool>(skb: Skb, scratch: *mut Scratch) -> Self {
        Self {
            network: Network::of::<L3>(skb),
            scratch,
        }
    }

    /// Fills the scratch's words with `N` bytes at `offset`; false if the packet is shorter.
    #[inline(always)]
    pub(crate) fn fill<const N: usize>(&self, offset: u32) -> bool {
        const { assert!(N <= FLOW_BYTES_IPV6) };
        let Network { skb, offset: start } = self.network;
        // SAFETY: the scratch is the caller's, and its words have room for N bytes.
        unsafe {
            let to = (&raw mut (*self.scratch).network).cast();
            bpf_skb_load_bytes(skb.0.cast(), start + offset, to, N as u32) == 0
        }
    }
}

impl NetworkBytes for InScratch {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        if !self.fill::<N>(offset) {
            return None;
        }
        // SAFETY: as in `fill`, which has written what is read.
        Some(unsafe {
            (&raw const (*self.scratch).network)
                .cast::<[u8; N]>()
                .read()
        })
    }
}
