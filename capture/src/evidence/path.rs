//! Audit paths: that a chunk is a file's, without the rest of the file (RFC 6962, section 2.1.1).
//!
//! ```text
//!              root             the path of chunk 2: leaf 3, node (0, 1)
//!            /      \
//!        node        node
//!       /    \      /    \
//!    leaf0 leaf1 leaf2  leaf3
//! ```

use super::{ChunkTree, Digest};

/// All nodes of a file's tree, by level, its leaves first.
#[derive(Clone, Debug)]
pub struct Paths(Vec<Vec<Digest>>);

impl Paths {
    /// Of the tree with these leaves.
    #[must_use]
    pub fn new(leaves: Vec<Digest>) -> Self {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last()
            && below.len() > 1
        {
            let (pairs, odd) = below.as_chunks::<2>();
            let nodes = pairs
                .iter()
                .map(|[left, right]| Digest::node(*left, *right));
            let level = nodes.chain(odd.iter().copied()).collect();
            levels.push(level);
        }
        Self(levels)
    }

    /// A chunk's digest and its path, from the leaf up.
    #[must_use]
    pub fn of(&self, chunk: u64) -> Option<(Digest, Vec<Digest>)> {
        let mut at = usize::try_from(chunk).ok()?;
        let leaf = *self.0.first()?.get(at)?;
        let mut path = Vec::new();
        for level in &self.0 {
            path.extend(level.get(at ^ 1));
            at /= 2;
        }
        Some((leaf, path))
    }
}

impl ChunkTree {
    /// A chunk with this digest is at this place of the file.
    #[must_use]
    pub fn proves(&self, chunk: u64, leaf: Digest, path: &[Digest]) -> bool {
        if chunk >= self.count {
            return false;
        }
        // RFC 9162, section 2.1.3.2.
        let (mut at, mut last, mut root) = (chunk, self.count - 1, leaf);
        for sibling in path {
            if last == 0 {
                return false;
            }
            if at % 2 == 1 || at == last {
                root = Digest::node(*sibling, root);
                while at % 2 == 0 && at != 0 {
                    at /= 2;
                    last /= 2;
                }
            } else {
                root = Digest::node(root, *sibling);
            }
            at /= 2;
            last /= 2;
        }
        last == 0 && root == self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::CHUNK_BYTES;

    /// RFC 6962's own definition.
    fn root(leaves: &[Digest]) -> Digest {
        match leaves {
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                Digest::node(root(left), root(right))
            }
        }
    }

    #[test]
    fn each_chunk_of_each_tree_is_proved_at_its_place_and_nowhere_else() {
        for count in 1..=40_u64 {
            let leaves: Vec<_> = (0..count).map(|n| Digest::of(&n.to_le_bytes())).collect();
            let tree = ChunkTree {
                size: CHUNK_BYTES as u64,
                count,
                root: root(&leaves),
            };
            let paths = Paths::new(leaves.clone());
            for chunk in 0..count {
                let (leaf, path) = paths.of(chunk).expect("there");
                assert!(tree.proves(chunk, leaf, &path), "{chunk} of {count}");
                for other in (0..=count).filter(|other| *other != chunk) {
                    assert!(!tree.proves(other, leaf, &path), "{other} of {count}");
                }
                assert!(!tree.proves(chunk, Digest::of(b"other"), &path));
                for left_out in 0..path.len() {
                    let mut path = path.clone();
                    path.remove(left_out);
                    assert!(!tree.proves(chunk, leaf, &path), "{chunk} of {count}");
                }
                let longer = [path.as_slice(), &[leaf]].concat();
                assert!(!tree.proves(chunk, leaf, &longer));
            }
            assert_eq!(paths.of(count), None);
        }
    }
}
