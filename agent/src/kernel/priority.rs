//! Which of the agent's threads go first.

use std::io;

/// How much further back a thread stands that [`yield_to_others`] was called in (nice(2), 0 to 19).
const NICE: libc::c_int = 10;

/// Lets other threads go before the calling one where CPUs are scarce. Needs no right; a kernel that
/// refuses leaves everything as it is.
pub fn yield_to_others() {
    // SAFETY: the call takes integers and touches no memory. On Linux a priority is a thread's own,
    // and 0 is the calling one (setpriority(2), "C library/kernel differences").
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "no lower priority");
    }
}
