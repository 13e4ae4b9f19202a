//! One budget for all that the agent keeps in memory, and what is made of it. Pure.
//!
//! ```text
//! budget = the program itself and its fixed maps + what is shared:
//!          an eighth   the kernel's ring            a half     sessions, each with all that it may take
//!          a quarter   look-back                    an eighth  calls, lists, hashing
//! ```
//! Meant is what the kernel cannot take back: memory of the process's own, and of its maps. The program's
//! text lies in its file and is read again when it is needed; it is not counted.

use remora_agent_common::{SESSION_SLOTS, look_back::PAGE_VALUE};

/// Of the program and its fixed maps while nothing is captured, with room for what grows in a storm;
/// measured by the test `a_small_device`.
const PROGRAM: u64 = 16 << 20;
/// Of a session: two batches that have grown by their last packet, its thread, its file's buffer.
const SESSION: u64 = 2 * (320 << 10) + (128 << 10);
/// Of a look-back page.
const PAGE: u64 = PAGE_VALUE as u64;
/// Of a batch that whoever needs it gets.
const BATCH: u64 = 320 << 10;

/// Smallest share that gives each part what it needs at least: two sessions are half of it.
const SHARED_MIN: u64 = 4 << 20;
/// The smallest budget.
const BUDGET_MIN: u64 = PROGRAM + SHARED_MIN;

/// Sizes of what takes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// A power of two.
    pub ring_bytes: u64,
    /// Of all pods together; 0 for none.
    pub look_back_bytes: u64,
    /// Most of it that one pod gets.
    pub look_back_pod_bytes: u64,
    /// Captures at a time.
    pub sessions: u32,
    /// Batches that sessions share beside two of their own.
    pub common_batches: usize,
}

/// It is not enough for one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--memory {0} is too small: the agent itself takes {own} MiB, its smallest ring, look-back and two captures \
     {shared} MiB; use {least} MiB or more",
    own = PROGRAM >> 20,
    shared = SHARED_MIN >> 20,
    least = BUDGET_MIN >> 20
)]
pub struct TooSmall(pub u64);

impl Sizes {
    /// What a budget in bytes gives.
    ///
    /// # Errors
    /// [`TooSmall`].
    pub fn of(budget: u64) -> Result<Self, TooSmall> {
        if budget < BUDGET_MIN {
            return Err(TooSmall(budget));
        }
        let shared = budget - PROGRAM;
        let ring_bytes = power_of_two(shared / 8).min(16 << 20);
        let look_back_bytes = (shared / 4).min(64 << 20);
        // A session copies what it looks back to.
        let look_back_pod_bytes = (look_back_bytes / 16).clamp(PAGE, 1 << 20);
        let session = SESSION + look_back_pod_bytes;
        let of_sessions = shared / 2;
        let sessions = (of_sessions / session).min(SESSION_SLOTS.into());
        let common = (of_sessions - sessions * session) / BATCH;
        Ok(Self {
            ring_bytes,
            look_back_bytes,
            look_back_pod_bytes,
            sessions: sessions as u32,
            common_batches: common.min(128) as usize,
        })
    }
}

fn power_of_two(most: u64) -> u64 {
    1 << most.ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn too_little_is_refused_with_the_least_that_works() {
        let error = Sizes::of(BUDGET_MIN - 1).unwrap_err().to_string();
        assert!(error.contains("use 20 MiB or more"), "{error}");
        let least = Sizes::of(BUDGET_MIN).unwrap();
        assert_eq!((least.sessions, least.ring_bytes), (2, 512 << 10));
        assert!(least.look_back_bytes >= 3 * PAGE);
    }

    #[test]
    fn a_small_device_and_a_large_budget() {
        let small = Sizes::of(32 << 20).unwrap();
        assert_eq!(small.ring_bytes, 2 << 20);
        assert_eq!(small.look_back_bytes, 4 << 20);
        assert_eq!(small.sessions, 8);
        let large = Sizes::of(1 << 30).unwrap();
        assert_eq!(
            large,
            Sizes {
                ring_bytes: 16 << 20,
                look_back_bytes: 64 << 20,
                look_back_pod_bytes: 1 << 20,
                sessions: 64,
                common_batches: 128,
            }
        );
    }

    proptest! {
        /// What the parts may take together is never more than the budget, and each can work.
        #[test]
        fn the_parts_are_within_the_budget(budget in BUDGET_MIN..4 << 30) {
            let Sizes { ring_bytes, look_back_bytes, look_back_pod_bytes, sessions, common_batches } =
                Sizes::of(budget).unwrap();
            let sum = PROGRAM
                + ring_bytes
                + look_back_bytes
                + u64::from(sessions) * (SESSION + look_back_pod_bytes)
                + common_batches as u64 * BATCH;
            prop_assert!(sum <= budget);
            prop_assert!(ring_bytes.is_power_of_two() && ring_bytes >= 256 << 10);
            prop_assert!(look_back_bytes >= 3 * PAGE && look_back_pod_bytes >= PAGE);
            prop_assert!((2..=SESSION_SLOTS).contains(&sessions));
        }
    }
}
