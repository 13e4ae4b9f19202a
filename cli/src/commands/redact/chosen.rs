//! Which packets are kept.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use remora_capture::{
    evidence::PacketSeen,
    filter::{self, Filter, Meaning, Names, program::Frame},
};

/// Most ranges of numbers.
const RANGES_MAX: usize = 4096;

/// Numbers of packets: `1-100,205,300-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    text: String,
    /// In order, apart from each other.
    ranges: Vec<RangeInclusive<u64>>,
}

impl FromStr for Numbers {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u64>();
            let first = number(first);
            let last = match last.trim() {
                "" => Ok(u64::MAX),
                last => number(last),
            };
            match (first, last) {
                (Ok(first @ 1..), Ok(last)) if first <= last => ranges.push(first..=last),
                _ => bail!(
                    "`{part}` is no packet's number nor a range of them; as in 1-100,205,300-"
                ),
            }
        }
        if ranges.len() > RANGES_MAX {
            bail!("{} ranges; at most {RANGES_MAX} are taken", ranges.len());
        }
        ranges.sort_unstable_by_key(|range| *range.start());
        let mut apart: Vec<RangeInclusive<u64>> = Vec::new();
        for range in ranges {
            match apart.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => apart.push(range),
            }
        }
        Ok(Self {
            text: text.to_owned(),
            ranges: apart,
        })
    }
}

impl Numbers {
    fn has(&self, number: u64) -> bool {
        let after = self
            .ranges
            .partition_point(|range| *range.start() <= number);
        after > 0 && self.ranges[after - 1].contains(&number)
    }
}

/// All conditions hold.
#[derive(Debug)]
pub(super) struct Chosen {
    filter: Filter,
    numbers: Option<Numbers>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

impl Chosen {
    /// # Errors
    /// The filter is none.
    pub(super) fn new(
        filter: &str,
        numbers: Option<Numbers>,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> anyhow::Result<Self> {
        let filter = Filter::compile(filter, filter::compiler(Names::Refused))
            .with_context(|| format!("--keep {filter}"))?;
        Ok(Self {
            filter,
            numbers,
            from,
            to,
        })
    }

    pub(super) fn keeps(&self, packet: PacketSeen<'_>) -> bool {
        let time = i128::from(packet.time_ns);
        self.numbers.as_ref().is_none_or(|n| n.has(packet.number))
            && self.from.is_none_or(|from| time >= from.as_nanosecond())
            && self.to.is_none_or(|to| time <= to.as_nanosecond())
            && self.matches(packet.frame)
    }

    fn matches(&self, frame: &[u8]) -> bool {
        match self.filter.meaning() {
            Meaning::Terms(terms) => terms.matches(frame),
            Meaning::Programs(programs) => programs.ethernet.run(Frame::whole(frame)),
            Meaning::Unread => false,
        }
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut conditions = Vec::new();
        if !self.filter.is_empty() {
            conditions.push(format!("filter `{}`", self.filter.text()));
        }
        if let Some(numbers) = &self.numbers {
            conditions.push(format!("numbers {}", numbers.text));
        }
        if let Some(from) = self.from {
            conditions.push(format!("from {from}"));
        }
        if let Some(to) = self.to {
            conditions.push(format!("to {to}"));
        }
        if conditions.is_empty() {
            conditions.push("all packets".to_owned());
        }
        f.write_str(&conditions.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ranges_in_any_order() {
        let numbers: Numbers = "7,1-3,2-4, 9-".parse().unwrap();
        let has: Vec<_> = (0..12).filter(|n| numbers.has(*n)).collect();
        assert_eq!(has, [1, 2, 3, 4, 7, 9, 10, 11]);
        assert!(numbers.has(u64::MAX));
        for bad in [
            "",
            "0",
            "-3",
            "3-1",
            "a",
            "1,,2",
            "1-2-3",
            "99999999999999999999",
        ] {
            assert!(bad.parse::<Numbers>().is_err(), "{bad}");
        }
        let many = "1,".repeat(RANGES_MAX) + "1";
        assert!(many.parse::<Numbers>().is_err());
    }

    #[test]
    fn all_conditions_hold_and_are_told() {
        let time = |second| Timestamp::from_second(second).unwrap();
        let chosen = Chosen::new(
            "udp port 53",
            Some("2-3".parse().unwrap()),
            Some(time(10)),
            Some(time(20)),
        )
        .unwrap();
        let mut frame = vec![0; 60];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = 17;
        frame[37] = 53;
        let packet = PacketSeen {
            number: 2,
            time_ns: 15_000_000_000,
            frame: &frame,
            original_len: 60,
        };
        assert!(chosen.keeps(packet));
        let other = &[0; 60];
        for refused in [
            PacketSeen {
                number: 1,
                ..packet
            },
            PacketSeen {
                time_ns: 9_999_999_999,
                ..packet
            },
            PacketSeen {
                time_ns: 20_000_000_001,
                ..packet
            },
            PacketSeen {
                frame: other,
                ..packet
            },
        ] {
            assert!(!chosen.keeps(refused), "{refused:?}");
        }
        assert_eq!(
            chosen.to_string(),
            "filter `udp port 53`, numbers 2-3, from 1970-01-01T00:00:10Z, to 1970-01-01T00:00:20Z"
        );
        let all = Chosen::new("", None, None, None).unwrap();
        assert!(all.keeps(packet) && all.to_string() == "all packets");
        assert!(Chosen::new("no filter", None, None, None).is_err());
    }
}
