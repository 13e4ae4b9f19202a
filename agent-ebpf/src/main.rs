//! Remora's eBPF programs: they decide for each packet of a tap which sessions it belongs to, and
//! put one record into the ring. They never change, delay or drop a packet.
//!
//! ```text
//! tcx_ingress, tcx_egress       on interfaces (of a pod: the host end of its veth) -> TCX_NEXT
//! cgroup_ingress, cgroup_egress at the cgroup2 root                                -> 1 (pass)
//!
//! gate: nothing armed? leave ─▶ tap lookup ─▶ sessions of the tap? none: leave ─▶ capture
//! ```
//! - [`taps`]: which tap a packet belongs to, and which hook owns it.
//! - [`capture`]: sessions, budgets and the record.
//! - [`ring`]: reserving, filling and submitting records.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(
    internal_features,
    reason = "the only way to atomics with a result on this target"
)]

mod capture;
mod counters;
mod maps;
mod ring;
mod skb;
mod taps;

use aya_ebpf::{
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use remora_agent_common::record::{
    HOOK_CGROUP_EGRESS, HOOK_CGROUP_INGRESS, HOOK_TCX_EGRESS, HOOK_TCX_INGRESS,
};

use crate::skb::Skb;

/// `TCX_NEXT` (linux/bpf.h, v6.6): the next program of the chain decides.
const TCX_NEXT: i32 = -1;
/// Verdict of a cgroup program: let the packet pass.
const PASS: i32 = 1;

#[classifier]
pub(crate) fn tcx_ingress(ctx: TcContext) -> i32 {
    tcx::<HOOK_TCX_INGRESS>(Skb::new(ctx.skb.skb));
    TCX_NEXT
}

#[classifier]
pub(crate) fn tcx_egress(ctx: TcContext) -> i32 {
    tcx::<HOOK_TCX_EGRESS>(Skb::new(ctx.skb.skb));
    TCX_NEXT
}

#[cgroup_skb]
pub(crate) fn cgroup_ingress(ctx: SkBuffContext) -> i32 {
    cgroup::<HOOK_CGROUP_INGRESS>(Skb::new(ctx.skb.skb));
    PASS
}

#[cgroup_skb]
pub(crate) fn cgroup_egress(ctx: SkBuffContext) -> i32 {
    cgroup::<HOOK_CGROUP_EGRESS>(Skb::new(ctx.skb.skb));
    PASS
}

#[inline(always)]
fn tcx<const HOOK: u8>(skb: Skb) {
    let Some(gate) = maps::GATE.get(0) else {
        return;
    };
    if gate.armed == 0 {
        return;
    }
    let Some(owner) = taps::of_interface(skb.ifindex()) else {
        return;
    };
    capture::packet::<HOOK, false>(&skb, &owner);
}

#[inline(always)]
fn cgroup<const HOOK: u8>(skb: Skb) {
    let Some(gate) = maps::GATE.get(0) else {
        return;
    };
    if gate.armed == 0 || gate.cgroup_levels == 0 {
        return;
    }
    let mut owner = taps::Owner::none(gate);
    if taps::of_cgroup::<HOOK>(&skb, gate, &mut owner) {
        capture::packet::<HOOK, true>(&skb, &owner);
    }
}

/// The helpers that are used (`bpf_skb_cgroup_id`, `bpf_ringbuf_*`, `bpf_loop`) are not
/// `gpl_only`, but `bpf_ktime_get_ns` is.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program that can reach this.
    unsafe { core::hint::unreachable_unchecked() }
}
