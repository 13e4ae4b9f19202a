//! Waiting for programs that are running.

use std::{io, thread, time::Duration};

/// `MEMBARRIER_CMD_GLOBAL` (linux/membarrier.h, v4.3): waits for an RCU grace period when there is
/// more than one CPU. eBPF programs run under RCU, so afterwards none that ran before still runs.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// What stands in for it where the kernel refuses (nohz_full, one CPU, a seccomp filter): much
/// longer than any program runs.
const INSTEAD: Duration = Duration::from_millis(50);

/// Returns when every eBPF program that ran at the call has ended. Blocks for some milliseconds.
pub fn wait() {
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // SAFETY: the call takes two integers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 || cpus == 1 {
        if result != 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "no membarrier, waiting instead");
        }
        thread::sleep(INSTEAD);
    }
}
