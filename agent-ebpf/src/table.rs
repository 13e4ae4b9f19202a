//! Map look-ups without the stack.
//!
//! A key is usually put on the stack. To an agent without CAP_PERFMON the verifier adds a barrier
//! (`lfence`) to each first write of a stack slot, against speculative reads of what was there
//! before (kernel/bpf/verifier.c, `check_stack_write_fixed_off`, v6.18). With keys, spilled
//! registers and records on the stack a packet that no filter took cost 462 ns by test run, and
//! 167 ns with CAP_PERFMON. So keys are constants, and what is being worked on is in maps.

use core::ffi::c_void;

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
pub(crate) fn array<T>(map: &'static Array<T>, index: u32) -> Option<&'static T> {
    // SAFETY: the map's values are `T`s, and live as long as the program.
    unsafe { lookup::<T>((&raw const *map).cast(), index).as_ref() }
}

/// The same, to be written.
#[inline(always)]
pub(crate) fn array_mut<T>(map: &'static Array<T>, index: u32) -> Option<*mut T> {
    some(lookup((&raw const *map).cast(), index))
}

/// The value at `index` of an array map that is itself a map's value.
#[inline(always)]
pub(crate) fn inner<T>(map: *mut c_void, index: u32) -> Option<*mut T> {
    some(lookup(map, index))
}

/// The map at `index` of an array of maps.
#[inline(always)]
pub(crate) fn map<T>(maps: &'static T, index: u32) -> Option<*mut c_void> {
    some(lookup((&raw const *maps).cast(), index))
}

/// This CPU's value at `index`.
#[inline(always)]
pub(crate) fn per_cpu<T>(map: &'static PerCpuArray<T>, index: u32) -> Option<*mut T> {
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
fn lookup<T>(map: *const c_void, index: u32) -> *mut T {
    // SAFETY: the index is bounded by the mask.
    let key = unsafe {
        (&raw const KEY)
            .cast::<u32>()
            .add(index as usize & (KEYS - 1))
    };
    // SAFETY: the map is an array, whose keys are u32s.
    unsafe { bpf_map_lookup_elem(map.cast_mut(), key.cast_mut().cast()).cast() }
}
