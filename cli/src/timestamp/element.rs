//! DER as a list of elements: as much of ASN.1 as a time stamp needs.

use der::{Decode as _, Reader as _, SliceReader, asn1::AnyRef};

/// A tag, a length and a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) value: &'a [u8],
    /// Tag, length and value.
    pub(super) whole: &'a [u8],
}

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// Context-specific and constructed: \[0\].
pub(super) const FIRST: u8 = 0xa0;

/// Most elements of one list.
const ELEMENTS_MAX: usize = 256;

/// It is not DER, or not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl<'a> Element<'a> {
    /// The one element that these bytes are.
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match List::new(bytes)? {
            List(ref elements) if elements.len() == 1 => Ok(elements[0]),
            List(_) => Err(Malformed),
        }
    }

    /// The elements in it, if it has this tag.
    pub(super) fn list(&self, tag: u8) -> Result<List<'a>, Malformed> {
        List::new(self.value(tag)?)
    }

    pub(super) fn value(&self, tag: u8) -> Result<&'a [u8], Malformed> {
        (self.tag == tag).then_some(self.value).ok_or(Malformed)
    }
}

/// Elements, taken one after the other.
pub(super) struct List<'a>(Vec<Element<'a>>);

impl<'a> List<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let malformed = |_other| Malformed;
        let mut reader = SliceReader::new(bytes).map_err(malformed)?;
        let mut elements = Vec::new();
        while !reader.is_finished() {
            let whole = reader.tlv_bytes().map_err(malformed)?;
            let any = AnyRef::from_der(whole).map_err(malformed)?;
            elements.push(Element {
                tag: *whole.first().ok_or(Malformed)?,
                value: any.value(),
                whole,
            });
            if elements.len() > ELEMENTS_MAX {
                return Err(Malformed);
            }
        }
        elements.reverse();
        Ok(Self(elements))
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Result<Element<'a>, Malformed> {
        self.0.pop().ok_or(Malformed)
    }

    /// The next one's value, if it has this tag.
    pub(super) fn value(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        self.next()?.value(tag)
    }

    /// The next one, if it has this tag; else it stays.
    pub(super) fn optional(&mut self, tag: u8) -> Option<Element<'a>> {
        self.0.pop_if(|element| element.tag == tag)
    }

    pub(super) fn rest(self) -> impl Iterator<Item = Element<'a>> {
        self.0.into_iter().rev()
    }
}

/// An element's bytes.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    // Ours are short.
    let len = u8::try_from(value.len()).unwrap_or(u8::MAX);
    debug_assert!(len < 0x80);
    [&[tag, len], value.as_slice()].concat()
}
