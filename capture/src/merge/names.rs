//! Names of addresses, from all sources: each address has one.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    pcapng::name_resolution,
    session::{NAMES_MAX, NameHint},
};

/// Addresses that a merged file names.
const ADDRESSES_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Names(HashSet<IpAddr>);

impl Names {
    /// The Name Resolution Blocks of what the body of one has that is not named yet. The first name
    /// stays: which of two Wireshark shows depends on how it reads.
    pub(super) fn unite(&mut self, body: &[u8]) -> Vec<u8> {
        let fresh: Vec<_> = hints(body)
            .filter(|hint| {
                hint.is_usable() && self.0.len() < ADDRESSES_MAX && self.0.insert(hint.address)
            })
            .collect();
        fresh
            .chunks(NAMES_MAX)
            .filter_map(name_resolution)
            .flatten()
            .collect()
    }
}

/// Each record's address with the first of its names.
fn hints(mut records: &[u8]) -> impl Iterator<Item = NameHint> + '_ {
    std::iter::from_fn(move || {
        loop {
            let (&[a, b, c, d], rest) = records.split_first_chunk()?;
            let (kind, len) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            if kind == 0 {
                return None;
            }
            let value = rest.get(..usize::from(len))?;
            records = rest
                .get(usize::from(len).next_multiple_of(4)..)
                .unwrap_or_default();
            let (address, names) = match kind {
                1 => {
                    let (octets, names) = value.split_first_chunk::<4>()?;
                    (IpAddr::V4(Ipv4Addr::from(*octets)), names)
                }
                2 => {
                    let (octets, names) = value.split_first_chunk::<16>()?;
                    (IpAddr::V6(Ipv6Addr::from(*octets)), names)
                }
                _ => continue,
            };
            let name = names.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(NameHint {
                address,
                name: String::from_utf8_lossy(name).into_owned(),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(n: u16, name: &str) -> NameHint {
        let address = if n.is_multiple_of(2) {
            Ipv4Addr::new(10, 0, (n >> 8) as u8, n as u8).into()
        } else {
            Ipv6Addr::from(u128::from(n)).into()
        };
        NameHint {
            address,
            name: name.to_owned(),
        }
    }

    /// A block without its head and its second length.
    fn body(names: &[NameHint]) -> Vec<u8> {
        let block = name_resolution(names).expect("names");
        block[8..block.len() - 4].to_vec()
    }

    #[test]
    fn what_is_named_is_not_named_again() {
        let mut names = Names::default();
        let first = [hint(2, "a.shop"), hint(3, "b.shop")];
        let united = names.unite(&body(&first));
        assert_eq!(united, name_resolution(&first).expect("names"));
        assert!(names.unite(&body(&first)).is_empty());
        let second = names.unite(&body(&[hint(2, "other.shop"), hint(4, "c.shop")]));
        let expected = name_resolution(&[hint(4, "c.shop")]).expect("names");
        assert_eq!(second, expected);
    }

    #[test]
    fn a_cut_body_never_breaks_it() {
        let names: Vec<_> = (0..9).map(|n| hint(n, "web.shop")).collect();
        let body = body(&names);
        for cut in 0..body.len() {
            Names::default().unite(&body[..cut]);
        }
    }
}
