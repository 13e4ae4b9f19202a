//! SHA-256 of files, whole and by chunks.
//!
//! ```text
//!              root                     node = SHA-256(1, left, right)
//!            /      \                   leaf = SHA-256(0, chunk)
//!        node        node               chunks of 1 MiB, the last as long as it is
//!       /    \      /    \              an odd one out goes up as it is (RFC 6962, section 2.1)
//!    leaf  leaf   leaf  leaf
//! ```
//! The whole file's digest is what other tools compute; the root is what lets a part of the file be
//! proved without the rest.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A SHA-256 digest, in 64 lower-case hexadecimal digits where it is text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A text is not a digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a SHA-256 digest in 64 lower-case hexadecimal digits")]
pub struct DigestError;

impl Digest {
    /// Of nothing: what stands where there is nothing to follow from.
    pub const ZERO: Self = Self([0; 32]);

    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of_parts(tag: u8, parts: [&[u8]; 2]) -> Self {
        let mut hash = Sha256::new_with_prefix([tag]);
        for part in parts {
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    pub(super) fn node(left: Self, right: Self) -> Self {
        Self::of_parts(1, [&left.0, &right.0])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(DigestError),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return Err(DigestError);
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The tree over a file's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkTree {
    /// Bytes of each chunk but the last.
    pub size: u64,
    pub count: u64,
    /// Of no chunks: the digest of nothing.
    pub root: Digest,
}

/// What a file's bytes come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    pub bytes: u64,
    pub sha256: Digest,
    pub chunks: ChunkTree,
}

/// Digests a file piece by piece.
#[derive(Clone, Debug)]
pub struct Digester {
    bytes: u64,
    whole: Sha256,
    chunk: Sha256,
    /// Roots of the full subtrees so far, the largest first; their heights fall.
    roots: Vec<(u32, Digest)>,
    chunks: u64,
    /// Of all chunks, if they are wanted.
    leaves: Option<Vec<Digest>>,
}

impl Default for Digester {
    fn default() -> Self {
        Self {
            bytes: 0,
            whole: Sha256::new(),
            chunk: leaf(),
            roots: Vec::new(),
            chunks: 0,
            leaves: None,
        }
    }
}

fn leaf() -> Sha256 {
    Sha256::new_with_prefix([0])
}

impl Digester {
    /// Keeps the digest of each chunk, 32 bytes of memory a MiB, for [`Digester::finish_with_leaves`].
    #[must_use]
    pub fn keeping_leaves() -> Self {
        Self {
            leaves: Some(Vec::new()),
            ..Self::default()
        }
    }

    /// Bytes that went in.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() {
            let filled = (self.bytes % CHUNK_BYTES as u64) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES - filled));
            self.chunk.update(now);
            self.bytes += now.len() as u64;
            if filled + now.len() == CHUNK_BYTES {
                self.end_chunk();
            }
            bytes = rest;
        }
    }

    fn end_chunk(&mut self) {
        let leaf = std::mem::replace(&mut self.chunk, leaf());
        let (mut height, mut root) = (0, Digest(leaf.finalize().into()));
        if let Some(leaves) = &mut self.leaves {
            leaves.push(root);
        }
        while let Some((_, left)) = self.roots.pop_if(|(of, _)| *of == height) {
            root = Digest::node(left, root);
            height += 1;
        }
        self.roots.push((height, root));
        self.chunks += 1;
    }

    #[must_use]
    pub fn finish(self) -> FileDigest {
        self.finish_with_leaves().0
    }

    /// With the digests of all chunks, if they were kept.
    #[must_use]
    pub fn finish_with_leaves(mut self) -> (FileDigest, Vec<Digest>) {
        if !self.bytes.is_multiple_of(CHUNK_BYTES as u64) {
            self.end_chunk();
        }
        let root = self
            .roots
            .into_iter()
            .map(|(_, root)| root)
            .rev()
            .reduce(|right, left| Digest::node(left, right))
            .unwrap_or_else(|| Digest::of(&[]));
        let digest = FileDigest {
            bytes: self.bytes,
            sha256: Digest(self.whole.finalize().into()),
            chunks: ChunkTree {
                size: CHUNK_BYTES as u64,
                count: self.chunks,
                root,
            },
        };
        (digest, self.leaves.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962's own definition.
    fn tree(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Digest::of(&[]),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                Digest::node(tree(left), tree(right))
            }
        }
    }

    #[test]
    fn digests_do_not_depend_on_how_a_file_is_cut_into_pieces() {
        let mut bytes = vec![0; 6 * CHUNK_BYTES + 17];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (at / 4093) as u8;
        }
        for len in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            3 * CHUNK_BYTES,
            5 * CHUNK_BYTES + 1,
            bytes.len(),
        ] {
            let file = &bytes[..len];
            let leaves: Vec<_> = file
                .chunks(CHUNK_BYTES)
                .map(|chunk| Digest::of_parts(0, [chunk, &[]]))
                .collect();
            let expected = FileDigest {
                bytes: len as u64,
                sha256: Digest::of(file),
                chunks: ChunkTree {
                    size: CHUNK_BYTES as u64,
                    count: leaves.len() as u64,
                    root: tree(&leaves),
                },
            };
            for piece in [1_000_003, 65_536, CHUNK_BYTES, 3 * CHUNK_BYTES + 5] {
                let mut digester = Digester::default();
                file.chunks(piece).for_each(|piece| digester.update(piece));
                assert_eq!(digester.finish(), expected, "{len} bytes by {piece}");
            }
        }
    }

    #[test]
    fn a_digest_is_that_of_other_tools_and_reads_back() {
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        for bad in [
            "",
            &text[1..],
            &text.to_uppercase(),
            &format!("{text}0"),
            &text.replace('b', "g"),
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(DigestError), "{bad}");
        }
    }
}
