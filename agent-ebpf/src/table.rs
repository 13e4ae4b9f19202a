//! Map look-ups without the stack.
//!
//! A key is usually put on the stack. To an agent without CAP_PERFMON the verifier adds a barrier
//! (`lfence`) to each first write of a stack slot, against speculative reads of what was there
//! before (kernel/bpf/verifier.c, `check_stack_write_fixed_off`, v6.18). With keys, spilled
//! registers and records on the stack a packet that no filter took cost 462 ns by test run, and
//! 167 ns with CAP_PERFMON. So keys are constants, and what is being worked on is in maps.
//!
//! Each barrier takes some 13 ns, for it waits for what is being read. So the programs that most packets
//! meet keep no more across a call than the four registers that outlive it (r6 to r9): what can be had again
//! is read again. `the_verifier_puts_no_barriers_on_the_common_way` counts them; `bpftool prog dump xlated
//! id ID linum` shows each with its source line.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    helpers::bpf_map_lookup_elem,
    maps::{Array, PerCpuArray},
};
use remora_agent_common::{IFINDEX_ARRAY, TAP_SLOTS, program::PROGRAM_POOL};

/// Keys there are: every index of an array map here is below.
const KEYS: usize = 65_536;

/// The number `i` at index `i`.
static KEY: [u32; KEYS] = {
    let mut keys = [0; KEYS];
    let mut i = 0;
    while i < KEYS {
        keys[i] = i as u32;
        i += 1;
    }
    keys
};

/// The value at `index` of an array. As with the two below: none if the array has no such index, and
/// an index is taken modulo [`KEYS`].
#[inline(always)]
pub(crate) fn array<T>(map: &'static Array<T>, index: impl Into<u64>) -> Option<&'static T> {
    // SAFETY: the map's values are `T`s, and live as long as the program.
    unsafe { lookup::<T>((&raw const *map).cast(), index).as_ref() }
}

/// The same, to be written.
#[inline(always)]
pub(crate) fn array_mut<T>(map: &'static Array<T>, index: impl Into<u64>) -> Option<*mut T> {
    some(lookup((&raw const *map).cast(), index))
}

/// The value at `index` of an array map that is itself a map's value.
#[inline(always)]
pub(crate) fn inner<T>(map: *mut c_void, index: impl Into<u64>) -> Option<*mut T> {
    some(lookup(map, index))
}

/// The map at `index` of an array of maps.
#[inline(always)]
pub(crate) fn map<T>(maps: &'static T, index: impl Into<u64>) -> Option<*mut c_void> {
    some(lookup((&raw const *maps).cast(), index))
}

/// The first value of an array.
#[inline(always)]
pub(crate) fn first<T>(map: &'static Array<T>) -> Option<&'static T> {
    // SAFETY: as in `array`.
    unsafe { lookup_first::<T>((&raw const *map).cast()).as_ref() }
}

/// The first value of an array map that is itself a map's value.
#[inline(always)]
pub(crate) fn inner_first<T>(map: *mut c_void) -> Option<*mut T> {
    some(lookup_first(map))
}

/// This CPU's first value.
#[inline(always)]
pub(crate) fn per_cpu_first<T>(map: &'static PerCpuArray<T>) -> Option<*mut T> {
    some(lookup_first((&raw const *map).cast()))
}

/// This CPU's value at `index`.
#[inline(always)]
pub(crate) fn per_cpu<T>(map: &'static PerCpuArray<T>, index: impl Into<u64>) -> Option<*mut T> {
    some(lookup((&raw const *map).cast(), index))
}

const _: () = {
    assert!(IFINDEX_ARRAY as usize <= KEYS && TAP_SLOTS as usize <= KEYS);
    assert!(PROGRAM_POOL as usize <= KEYS);
};

#[inline(always)]
fn some<T>(value: *mut T) -> Option<*mut T> {
    if value.is_null() { None } else { Some(value) }
}

#[inline(always)]
fn lookup<T>(map: *const c_void, index: impl Into<u64>) -> *mut T {
    let key: *const u32;
    // By hand, each time: the compiler would keep the addresses, or parts of them, for the next look-up, in
    // registers that are then missing, and copy them, which costs a barrier of its own (the verifier loses
    // the bounds of a pointer that is copied after an addition, v6.18).
    // SAFETY: the address of one of the `KEYS` keys.
    unsafe {
        asm!(
            "{index} &= {mask}",
            "{index} <<= 2",
            "{key} = {keys} ll",
            "{key} += {index}",
            key = out(reg) key,
            index = inout(reg) index.into() => _,
            keys = sym KEY,
            mask = const KEYS - 1,
            options(nomem, nostack),
        );
    }
    at(map, key)
}

/// [`lookup`] of index 0.
#[inline(always)]
fn lookup_first<T>(map: *const c_void) -> *mut T {
    let key: *const u32;
    // SAFETY: the address of the first of the `KEYS` keys.
    unsafe {
        asm!("{key} = {keys} ll", key = out(reg) key, keys = sym KEY, options(nomem, nostack))
    };
    at(map, key)
}

#[inline(always)]
fn at<T>(map: *const c_void, key: *const u32) -> *mut T {
    // SAFETY: the map is an array, whose keys are u32s, and the key is one of [`KEY`].
    unsafe { bpf_map_lookup_elem(map.cast_mut(), key.cast_mut().cast()).cast() }
}
