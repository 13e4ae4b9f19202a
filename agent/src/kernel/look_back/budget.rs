//! How large each look-back ring is: the node's memory, shared alike.

use remora_agent_common::look_back::{PAGE_VALUE, PAGES_MAX};

/// Memory of a page, in bytes.
const PAGE: u64 = PAGE_VALUE as u64;

/// Rings that lie ready to take the place of frozen ones: a part of the node's memory, as those of
/// pods are.
pub(super) const SPARES: usize = 2;
/// Pages of the smallest budget: one pod's ring, and the spares.
const PAGES_MIN: u64 = 1 + SPARES as u64;
/// The same in bytes.
const NODE_MIN: u64 = PAGES_MIN * PAGE;

/// What the node gives, and the most that one pod gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pages: u64,
    pod_pages: u32,
}

/// It is not enough for one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooSmall {
    #[error(
        "{0} bytes a node are too few for one pod's look-back ring and {SPARES} spare ones; use \
         {NODE_MIN} or more, or 0 for none"
    )]
    Node(u64),
    #[error(
        "{0} bytes a pod are too few for one look-back ring; use {PAGE} or more, or 0 for none"
    )]
    Pod(u64),
}

impl Budget {
    /// In bytes. 0 for the node: no look-back.
    ///
    /// # Errors
    /// It is too small for one pod.
    pub fn new(node_bytes: u64, pod_bytes: u64) -> Result<Self, TooSmall> {
        let off = Self {
            pages: 0,
            pod_pages: 0,
        };
        if node_bytes == 0 || pod_bytes == 0 {
            return Ok(off);
        }
        let (node, pod) = (node_bytes / PAGE, pod_bytes / PAGE);
        if node < PAGES_MIN {
            return Err(TooSmall::Node(node_bytes));
        }
        if pod == 0 {
            return Err(TooSmall::Pod(pod_bytes));
        }
        Ok(Self {
            pages: node,
            pod_pages: pod.min(PAGES_MAX.into()) as u32,
        })
    }

    /// Nothing is recorded.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.pages == 0
    }

    /// Bytes of the node's memory for look-back.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.pages * PAGE
    }

    /// The same in pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes of so many pages.
    #[must_use]
    pub fn bytes(pages: u64) -> u64 {
        pages * PAGE
    }

    /// There is room for a ring beside those that are there.
    #[must_use]
    pub fn has_room(&self, pages: u64, ring: u32) -> bool {
        pages + u64::from(ring) <= self.pages
    }

    /// Pages of each ring when so many pods are recorded; 0 when there is not even one for each.
    #[must_use]
    pub fn share(&self, pods: usize) -> u32 {
        let each = self.pages / (pods.max(1) + SPARES) as u64;
        u32::try_from(each).map_or(self.pod_pages, |each| each.min(self.pod_pages))
    }

    /// A ring of `pages` is to be made anew: it takes more than its share, or could be twice as
    /// large. Not for less, or each pod that comes or goes would cost all others their past.
    #[must_use]
    pub fn is_wrong(pages: u32, share: u32) -> bool {
        pages > share || share >= pages.saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_budget_that_is_too_small_for_one_pod_is_refused() {
        for node in [1, PAGE, 3 * PAGE - 1] {
            assert_eq!(Budget::new(node, PAGE), Err(TooSmall::Node(node)));
        }
        assert_eq!(Budget::new(3 * PAGE, 5), Err(TooSmall::Pod(5)));
        assert!(Budget::new(0, PAGE).unwrap().is_off());
        assert!(Budget::new(PAGE, 0).unwrap().is_off());
        assert_eq!(Budget::new(3 * PAGE, PAGE).unwrap().share(1), 1);
    }

    proptest! {
        #[test]
        fn all_rings_together_never_take_more_than_the_node_gives(
            node in 1u64..1 << 33, pod in 1u64..1 << 26, pods in 1usize..5000,
        ) {
            if let Ok(budget) = Budget::new(node, pod) {
                let share = budget.share(pods);
                prop_assert!(u64::from(share) * PAGE * (pods + SPARES) as u64 <= node);
                prop_assert!(u64::from(share) * PAGE <= pod);
                prop_assert!(budget.share(1) > 0);
                prop_assert!(budget.share(pods + 1) <= share && !Budget::is_wrong(share.max(1), share.max(1)));
            }
        }
    }
}
