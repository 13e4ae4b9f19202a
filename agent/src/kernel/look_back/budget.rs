//! How large each look-back ring is: the node's memory, shared alike.

use remora_agent_common::look_back::{PAGE_VALUE, PAGES_MAX};

/// Memory of a page, in bytes.
const PAGE: u64 = PAGE_VALUE as u64;

/// What the node gives, and the most that one pod gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pages: u64,
    pod_pages: u32,
}

/// It is not enough for one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are too few for one look-back ring; use {PAGE} or more, or 0 for none")]
pub struct TooSmall(u64);

impl Budget {
    /// In bytes. 0 for the node: no look-back.
    ///
    /// # Errors
    /// It is too small for one ring.
    pub fn new(node_bytes: u64, pod_bytes: u64) -> Result<Self, TooSmall> {
        let pages = |bytes: u64| match bytes / PAGE {
            0 if bytes > 0 => Err(TooSmall(bytes)),
            pages => Ok(pages),
        };
        let pod = pages(pod_bytes)?.min(u64::from(PAGES_MAX));
        Ok(Self {
            pages: if pod == 0 { 0 } else { pages(node_bytes)? },
            pod_pages: pod as u32,
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

    /// Bytes of a ring.
    #[must_use]
    pub fn bytes(pages: u32) -> u64 {
        u64::from(pages) * PAGE
    }

    /// Pages of each ring when there are `rings`; 0 when there is not even one for each.
    #[must_use]
    pub fn share(&self, rings: usize) -> u32 {
        let each = self.pages / (rings.max(1) as u64);
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
        assert_eq!(Budget::new(PAGE - 1, PAGE), Err(TooSmall(PAGE - 1)));
        assert_eq!(Budget::new(PAGE, 5), Err(TooSmall(5)));
        assert!(Budget::new(0, PAGE).unwrap().is_off());
        assert!(Budget::new(PAGE, 0).unwrap().is_off());
        assert_eq!(Budget::new(PAGE, PAGE).unwrap().share(1), 1);
    }

    proptest! {
        #[test]
        fn all_rings_together_never_take_more_than_the_node_gives(
            node in 1u64..1 << 33, pod in 1u64..1 << 26, pods in 1usize..5000,
        ) {
            if let Ok(budget) = Budget::new(node, pod) {
                let share = budget.share(pods);
                prop_assert!(u64::from(share) * PAGE * pods as u64 <= node);
                prop_assert!(u64::from(share) * PAGE <= pod);
                prop_assert!(budget.share(pods + 1) <= share && !Budget::is_wrong(share.max(1), share.max(1)));
            }
        }
    }
}
