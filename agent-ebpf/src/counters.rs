//! Exact counting.
//!
//! A TC program runs with softirqs off, so no other program of ours interrupts it on its CPU and a
//! plain addition to a per-CPU value is exact. A cgroup program can be interrupted by a TC program
//! (measured: 113 of 44 483 runs), so it adds atomically.

use core::intrinsics::{AtomicOrdering, atomic_xadd, atomic_xchg};

/// Adds `n` to a per-CPU counter.
///
/// # Safety
/// `counter` points into a map value of this CPU.
#[inline(always)]
pub(crate) unsafe fn add<const ATOMIC: bool>(counter: *mut u64, n: u64) {
    if ATOMIC {
        // SAFETY: valid and aligned, as the caller promises.
        unsafe { fetch_add(counter, n) };
    } else {
        // SAFETY: valid and aligned; nobody else writes it meanwhile (see the module).
        unsafe { *counter = (*counter).wrapping_add(n) };
    }
}

/// Adds `n` (which may be a negative number in two's complement) and returns the value before.
///
/// # Safety
/// `value` points into a map value.
#[inline(always)]
pub(crate) unsafe fn fetch_add(value: *mut u64, n: u64) -> u64 {
    // SAFETY: valid and aligned, as the caller promises.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(value, n) }
}

/// Sets a value and returns the one before.
///
/// # Safety
/// `value` points into a map value.
#[inline(always)]
pub(crate) unsafe fn swap(value: *mut u64, new: u64) -> u64 {
    // SAFETY: valid and aligned, as the caller promises.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(value, new) }
}
