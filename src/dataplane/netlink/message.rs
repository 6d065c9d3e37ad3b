//! Netlink messages as far as nf_tables and rtnetlink need them: written and read, without any I/O.
//!
//! Whatever is read may be cut or wrong; then there is nothing more to read.

use std::net::IpAddr;

use crate::model::address::Family;

/// A netlink message's header and that of netfilter behind it; rtnetlink has others in its place.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// Two bits of an attribute's kind tell how it is written, not what it is.
const KIND: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// Asks for an answer.
pub(crate) const REQUEST: u16 = 0x1;
/// Asks to be told of success too.
pub(crate) const ACKNOWLEDGE: u16 = 0x4;
/// Asks for everything of a kind.
pub(crate) const DUMP: u16 = 0x300;
/// Makes what is not there.
pub(crate) const CREATE: u16 = 0x400;
/// What is listed changed while it was listed.
pub(crate) const INTERRUPTED: u16 = 0x10;

/// The answer to a failure, and to a success that was to be told.
pub(crate) const ERROR: u16 = 2;
/// The end of a list.
pub(crate) const DONE: u16 = 3;

/// A message in the making.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Builder<'a> {
    /// Starts a message behind those that `bytes` holds.
    pub(crate) fn new(bytes: &'a mut Vec<u8>, kind: u16, flags: u16, sequence: u32, header: &[u8]) -> Self {
        let start = bytes.len();
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // Our port: the kernel knows it.
        bytes.extend([0; 4]);
        bytes.extend(header);
        Self { bytes, start }
    }

    /// Adds an attribute.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    /// Adds a text, which ends with a zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds those that `inside` adds.
    pub(crate) fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.bytes(kind | NESTED, &[]);
        inside(self);
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self
    }

    /// Writes the length down, which is known only now.
    pub(crate) fn end(self) {
        let length = u32::try_from(self.bytes.len() - self.start).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(self.start..self.start + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }
}

/// A message that was received.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Takes the first message from `rest`.
    pub(crate) fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let length = usize::try_from(native_int(rest, 0)?).ok()?;
        let (kind, flags) = (native_short(rest, 4)?, native_short(rest, 6)?);
        let sequence = native_int(rest, 8)?;
        let payload = rest.get(HEADER..length)?;
        *rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(Self { kind, flags, sequence, payload })
    }

    /// The attributes behind netfilter's header.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(FAMILY_HEADER..).unwrap_or_default())
    }

    /// The error number of an [`ERROR`] message; 0 for a success.
    pub(crate) fn error(&self) -> i32 {
        native_int(self.payload, 0).map_or(libc::EBADMSG, |code| code.cast_signed().wrapping_neg())
    }
}

/// Attributes one by one: what each is, and its value. A clone begins where this one is.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first one of a kind.
    pub(crate) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        let mut rest = self.clone();
        Iterator::find(&mut rest, |(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes in the first one of a kind.
    pub(crate) fn nested(&self, kind: u16) -> Option<Self> {
        self.find(kind).map(Self)
    }

    /// The number in the first one of a kind.
    pub(crate) fn int(&self, kind: u16) -> Option<u32> {
        int(self.find(kind)?)
    }

    /// The number in the first one of a kind, as this machine writes it.
    pub(crate) fn native(&self, kind: u16) -> Option<u32> {
        native_int(self.find(kind)?, 0)
    }

    /// The address in the first one of a kind.
    pub(crate) fn ip(&self, kind: u16) -> Option<IpAddr> {
        ip(self.find(kind)?)
    }

    /// The text in the first one of a kind.
    pub(crate) fn text(&self, kind: u16) -> Option<&'a str> {
        text(self.find(kind)?)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, kind) = (usize::from(native_short(self.0, 0)?), native_short(self.0, 2)?);
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind & KIND, value))
    }
}

/// A family as headers have it.
#[expect(clippy::cast_possible_truncation, reason = "the two families fit a byte")]
pub(crate) const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

/// An address.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(value).ok().map(IpAddr::from);
    v4().or_else(v6)
}

/// A number in network order.
pub(crate) fn int(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

/// A text up to its zero.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    str::from_utf8(value.get(..end)?).ok()
}

fn native_int(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn native_short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, 0x0a0c, REQUEST | CREATE, 7, &[2, 0, 0, 0]);
        builder.text(1, "PINHOLE").bytes(3, &[0, 0, 0x10, 0]).nested(5, |inside| {
            inside.bytes(1, &[9]);
        });
        builder.end();
        let mut rest = bytes.as_slice();
        let message = Message::take(&mut rest).unwrap();
        assert_eq!((message.kind, message.flags, message.sequence, rest.len()), (0x0a0c, 0x401, 7, 0));
        let attributes = message.attributes();
        assert_eq!(attributes.text(1), Some("PINHOLE"));
        assert_eq!(attributes.int(3), Some(0x1000));
        assert_eq!(attributes.nested(5).and_then(|inside| inside.find(1)), Some(&[9][..]));
        assert_eq!(attributes.find(2), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_to_its_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            while let Some(message) = Message::take(&mut rest) {
                let length = message.payload.len();
                prop_assert!(message.attributes().all(|(_, value)| value.len() <= length));
                message.error();
            }
        }
    }
}
