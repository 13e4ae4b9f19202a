//! A word for each cgroup that the programs are attached to, which is there when one runs: no look-up
//! by the socket's cgroup and those around it.

use core::{arch::asm, cell::UnsafeCell};

use aya_ebpf::{
    bindings::{bpf_map_def, bpf_map_type::BPF_MAP_TYPE_CGROUP_STORAGE},
    helpers::bpf_get_local_storage,
};

/// Cgroup id (u64) -> u64, one for both directions (linux/bpf-cgroup.h, v6.1: a key of this size). An
/// entry comes with the attachment, as 0, and goes with the cgroup.
#[repr(transparent)]
pub(crate) struct AttachPoint(UnsafeCell<bpf_map_def>);

// SAFETY: it is only a name for the map.
unsafe impl Sync for AttachPoint {}

impl AttachPoint {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(bpf_map_def {
            type_: BPF_MAP_TYPE_CGROUP_STORAGE,
            key_size: size_of::<u64>() as u32,
            value_size: size_of::<u64>() as u32,
            // The kernel has it so.
            max_entries: 0,
            map_flags: 0,
            id: 0,
            pinning: 0,
        }))
    }

    /// The word of the cgroup that the program runs for.
    #[inline(always)]
    pub(crate) fn get(&self) -> u64 {
        // SAFETY: the helper never gives null; userspace replaces the value as a whole.
        unsafe {
            bpf_get_local_storage(self.0.get().cast(), 0)
                .cast::<u64>()
                .read_volatile()
        }
    }

    /// Names the map in a program that has no use for it: the kernel lets a program that uses one of
    /// this kind call only such as use the same (kernel/bpf/core.c, `bpf_prog_map_compatible`, v6.18).
    #[inline(always)]
    pub(crate) fn name(&self) {
        // SAFETY: it does nothing with the map's address.
        unsafe { asm!("/* {0} */", in(reg) self.0.get(), options(nomem, nostack)) };
    }
}
