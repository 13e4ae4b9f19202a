//! Numbered packets: a payload that says which one it is, and the set of those that arrived.
//!
//! ```text
//! 0      4      6                14                22
//! +------+------+----------------+----------------+------------
//! | RMRT | run  | sequence       | send time      | filling
//! +------+------+----------------+----------------+------------
//! ```
//! Numbers are big-endian; the send time is in nanoseconds since the epoch. With the Ethernet,
//! IPv4 and UDP headers (42 bytes) the smallest such frame has 64 bytes.

use std::{collections::HashMap, ops::RangeInclusive};

/// Bytes of a payload without filling.
pub const PAYLOAD_MIN: usize = 22;
/// Ethernet, IPv4 and UDP headers, in bytes.
pub const HEADERS: usize = 14 + 20 + 8;

const MAGIC: [u8; 4] = *b"RMRT";

/// What a numbered payload says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// Which generator.
    pub run: u16,
    /// Counts from 0.
    pub sequence: u64,
    /// Nanoseconds since the epoch.
    pub sent_ns: u64,
}

impl Number {
    /// Writes the payload's first [`PAYLOAD_MIN`] bytes.
    ///
    /// # Panics
    /// `payload` is shorter.
    pub fn encode(&self, payload: &mut [u8]) {
        payload[..4].copy_from_slice(&MAGIC);
        payload[4..6].copy_from_slice(&self.run.to_be_bytes());
        payload[6..14].copy_from_slice(&self.sequence.to_be_bytes());
        payload[14..22].copy_from_slice(&self.sent_ns.to_be_bytes());
    }

    /// Reads a payload from its start; `None` if it is not a numbered one.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let rest = payload.strip_prefix(&MAGIC)?;
        Some(Self {
            run: u16::from_be_bytes(*rest.first_chunk()?),
            sequence: u64::from_be_bytes(*rest.get(2..)?.first_chunk()?),
            sent_ns: u64::from_be_bytes(*rest.get(10..)?.first_chunk()?),
        })
    }

    /// Reads the UDP payload of an Ethernet frame with IPv4 without options.
    #[must_use]
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let ipv4_udp = frame.get(12..15)? == [0x08, 0x00, 0x45] && frame.get(23) == Some(&17);
        if ipv4_udp {
            Self::decode(frame.get(HEADERS..)?)
        } else {
            None
        }
    }
}

/// Which numbers of one run arrived, and how often.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    seen: HashMap<u64, u32>,
    /// Earliest and latest send time of what arrived.
    pub sent_ns: Option<RangeInclusive<u64>>,
    /// Frames that are not of this run.
    pub foreign: u64,
}

impl Numbers {
    /// Of the frames of run `run` in `frames`.
    pub fn collect<'a>(run: u16, frames: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut numbers = Self::default();
        for frame in frames {
            match Number::of_frame(frame) {
                Some(number) if number.run == run => numbers.insert(number),
                _ => numbers.foreign += 1,
            }
        }
        numbers
    }

    pub fn insert(&mut self, number: Number) {
        *self.seen.entry(number.sequence).or_default() += 1;
        let at = number.sent_ns;
        self.sent_ns = Some(match self.sent_ns.take() {
            None => at..=at,
            Some(range) => at.min(*range.start())..=at.max(*range.end()),
        });
    }

    /// How many different numbers arrived.
    #[must_use]
    pub fn distinct(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Packets beyond the first of their number.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.seen.values().map(|&times| u64::from(times) - 1).sum()
    }

    #[must_use]
    pub fn contains(&self, sequence: u64) -> bool {
        self.seen.contains_key(&sequence)
    }

    #[must_use]
    pub fn highest(&self) -> Option<u64> {
        self.seen.keys().max().copied()
    }

    /// The ranges of 0 to `sent - 1` that did not arrive.
    #[must_use]
    pub fn missing(&self, sent: u64) -> Vec<RangeInclusive<u64>> {
        let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
        for sequence in (0..sent).filter(|sequence| !self.contains(*sequence)) {
            match ranges.last_mut() {
                Some(range) if range.end() + 1 == sequence => *range = *range.start()..=sequence,
                _ => ranges.push(sequence..=sequence),
            }
        }
        ranges
    }

    /// How many numbers of 0 to `sent - 1` did not arrive.
    #[must_use]
    pub fn missing_count(&self, sent: u64) -> u64 {
        sent - self
            .seen
            .keys()
            .filter(|&&sequence| sequence < sent)
            .count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_reads_back_from_a_64_byte_frame() {
        let number = Number {
            run: 7,
            sequence: 1 << 40,
            sent_ns: u64::MAX,
        };
        let mut frame = [0u8; HEADERS + PAYLOAD_MIN];
        frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        frame[23] = 17;
        number.encode(&mut frame[HEADERS..]);
        assert_eq!(frame.len(), 64);
        assert_eq!(Number::of_frame(&frame), Some(number));
        assert_eq!(Number::of_frame(&frame[..63]), None);
        frame[23] = 6;
        assert_eq!(Number::of_frame(&frame), None);
    }

    #[test]
    fn missing_numbers_are_told_in_ranges_and_duplicates_are_counted() {
        let mut numbers = Numbers::default();
        for sequence in [0, 1, 4, 4, 7] {
            numbers.insert(Number {
                run: 0,
                sequence,
                sent_ns: 100 - sequence,
            });
        }
        assert_eq!(numbers.missing(10), [2..=3, 5..=6, 8..=9]);
        assert_eq!(numbers.missing_count(10), 6);
        assert_eq!((numbers.distinct(), numbers.duplicates()), (4, 1));
        assert_eq!(numbers.sent_ns, Some(93..=100));
    }
}
