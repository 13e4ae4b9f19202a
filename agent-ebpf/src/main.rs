//! Remora's eBPF programs: they decide for each packet of a tap which sessions it belongs to, and
//! put one record into the ring. They never change, delay or drop a packet.
//!
//! ```text
//! tcx_ingress, tcx_egress       on interfaces (of a pod: the host end of its veth) -> TCX_NEXT
//! cgroup_ingress, cgroup_egress on cgroups that are captured                       -> 1 (pass)
//!
//! gate: nothing armed? leave ─▶ tap look-up ─▶ sessions of the tap? none: leave
//!   ─▶ tc_decide, cgroup_decide, or the tap's own program ─▶ tc_capture, cgroup_capture
//!   ─▶ of a tap whose packets are cut: tc_capture_headers, cgroup_capture_headers
//! a recorded tap: ─▶ tc_look_back, tc_look_back_headers ─▶ the same, if it has sessions
//! ```
//! - [`taps`]: which tap a packet belongs to, and which hook owns it.
//! - [`stage`]: from one program to the next.
//! - [`decide`], [`interpret`]: which sessions' filters take it, typed terms and programs.
//! - [`capture`], [`ring`]: budgets and the record. [`share`]: whose, when the ring is nearly full.
//! - [`look_back`]: the last packets of a tap, for captures that begin later.
//! - [`scratch`], [`table`]: memory beside the stack, map look-ups without it, and why.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(
    internal_features,
    reason = "the only way to atomics with a result on this target, and to name a map without using it"
)]

mod attach_point;
mod capture;
mod counters;
mod decide;
mod interpret;
mod look_back;
mod maps;
mod ring;
mod scratch;
mod share;
mod skb;
mod stage;
mod table;
mod taps;

use aya_ebpf::{
    EbpfContext,
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use remora_agent_common::record::{
    HOOK_CGROUP_EGRESS, HOOK_CGROUP_INGRESS, HOOK_TCX_EGRESS, HOOK_TCX_INGRESS,
};

use crate::{capture::Payload, skb::Skb, stage::Work};

/// `TCX_NEXT` (linux/bpf.h, v6.6): the next program of the chain decides.
const TCX_NEXT: i32 = -1;
/// Verdict of a cgroup program: let the packet pass.
const PASS: i32 = 1;

#[classifier]
pub(crate) fn tcx_ingress(ctx: TcContext) -> i32 {
    tcx::<HOOK_TCX_INGRESS>(&ctx);
    TCX_NEXT
}

#[classifier]
pub(crate) fn tcx_egress(ctx: TcContext) -> i32 {
    tcx::<HOOK_TCX_EGRESS>(&ctx);
    TCX_NEXT
}

#[cgroup_skb]
pub(crate) fn cgroup_ingress(ctx: SkBuffContext) -> i32 {
    cgroup::<HOOK_CGROUP_INGRESS>(&ctx);
    PASS
}

#[cgroup_skb]
pub(crate) fn cgroup_egress(ctx: SkBuffContext) -> i32 {
    cgroup::<HOOK_CGROUP_EGRESS>(&ctx);
    PASS
}

#[classifier]
pub(crate) fn tc_look_back(ctx: TcContext) -> i32 {
    look_back::<false>(&ctx);
    TCX_NEXT
}

#[classifier]
pub(crate) fn tc_look_back_headers(ctx: TcContext) -> i32 {
    look_back::<true>(&ctx);
    TCX_NEXT
}

#[classifier]
pub(crate) fn tc_decide(ctx: TcContext) -> i32 {
    decide::<false>(&ctx);
    TCX_NEXT
}

#[cgroup_skb]
pub(crate) fn cgroup_decide(ctx: SkBuffContext) -> i32 {
    maps::CGROUP_TAP.name();
    decide::<true>(&ctx);
    PASS
}

#[classifier]
pub(crate) fn tc_capture(ctx: TcContext) -> i32 {
    capture::<false>(&ctx);
    TCX_NEXT
}

#[classifier]
pub(crate) fn tc_capture_headers(ctx: TcContext) -> i32 {
    capture::packet::<false, true>(Skb::of(&ctx));
    TCX_NEXT
}

#[cgroup_skb]
pub(crate) fn cgroup_capture(ctx: SkBuffContext) -> i32 {
    maps::CGROUP_TAP.name();
    capture::<true>(&ctx);
    PASS
}

#[cgroup_skb]
pub(crate) fn cgroup_capture_headers(ctx: SkBuffContext) -> i32 {
    maps::CGROUP_TAP.name();
    capture::packet::<true, true>(Skb::of(&ctx));
    PASS
}

#[inline(always)]
fn tcx<const HOOK: u8>(ctx: &TcContext) {
    let skb = Skb::of(ctx);
    let Some(gate) = table::first(&maps::GATE) else {
        return;
    };
    if gate.in_use == 0 {
        return;
    }
    let Some(tap) = taps::of_interface(skb.ifindex()) else {
        return;
    };
    // In this order: a packet that does not see a session that is just being armed has seen the
    // ring that is frozen for it right afterwards.
    let ring = taps::ring(tap);
    let sessions = taps::sessions(tap, HOOK);
    let work = Work {
        sessions,
        tap: tap as u32,
        hook: u32::from(HOOK),
    };
    if sessions != 0 {
        taps::seen(tap);
    }
    if ring != 0 {
        stage::look_back(ctx, skb, work, ring);
    } else if sessions != 0 {
        stage::decide::<false>(ctx, skb, work);
    }
}

#[inline(always)]
fn cgroup<const HOOK: u8>(ctx: &SkBuffContext) {
    let skb = Skb::of(ctx);
    let Some(tap) = taps::of_cgroup(&skb, HOOK) else {
        return;
    };
    let mut sessions = taps::sessions(tap, HOOK);
    if sessions == 0 {
        return;
    }
    taps::seen(tap);
    if HOOK == HOOK_CGROUP_EGRESS {
        sessions = taps::senders_sessions(&skb, tap, sessions);
    }
    if sessions != 0 {
        let hook = u32::from(HOOK);
        let work = Work {
            sessions,
            tap,
            hook,
        };
        stage::decide::<true>(ctx, skb, work);
    }
}

#[inline(always)]
fn look_back<const HEADERS_ONLY: bool>(ctx: &TcContext) {
    let skb = Skb::of(ctx);
    look_back::record::<false, HEADERS_ONLY>(skb);
    if skb.sessions() != 0 {
        stage::decide_on::<false>(ctx, skb);
    }
}

#[inline(always)]
fn decide<const L3: bool>(ctx: &impl EbpfContext) {
    let skb = Skb::of(ctx);
    let takers = decide::takers::<L3>(&skb);
    if takers != 0 {
        stage::capture::<L3>(ctx, skb, takers);
    }
}

#[inline(always)]
fn capture<const L3: bool>(ctx: &impl EbpfContext) {
    if capture::packet::<L3, false>(Skb::of(ctx)) == Payload::Forbidden {
        stage::capture_headers::<L3>(ctx);
    }
}

/// The helpers that are used (`bpf_get_local_storage`, `bpf_ringbuf_*`, `bpf_loop`) are not
/// `gpl_only`, but `bpf_ktime_get_ns` is.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program that can reach this.
    unsafe { core::hint::unreachable_unchecked() }
}
