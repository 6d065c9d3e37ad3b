//! Transport ports: one port, an ordered range of them, and the protocol they belong to.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// A transport port, 1-65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// The lowest port.
    pub const MIN: Self = Self(NonZeroU16::MIN);
    /// The highest port.
    pub const MAX: Self = Self(NonZeroU16::MAX);

    /// `None` for port 0, which no connection can name.
    pub const fn new(port: u16) -> Option<Self> {
        match NonZeroU16::new(port) {
            Some(port) => Some(Self(port)),
            None => None,
        }
    }

    /// The port as a number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }

    /// The port `distance` above this one, or `None` past 65535.
    pub fn checked_add(self, distance: u16) -> Option<Self> {
        self.get().checked_add(distance).and_then(Self::new)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is not a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a port; write a number from 1 to 65535")]
pub struct PortError(pub String);

impl FromStr for Port {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `u16::from_str` takes a leading '+', which no port is written with.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number.and_then(Self::new).ok_or_else(|| PortError(text.to_owned()))
    }
}

/// One or more consecutive ports, `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: Port,
    last: Port,
}

impl PortRange {
    /// The range of exactly one port.
    pub const fn single(port: Port) -> Self {
        Self { first: port, last: port }
    }

    /// `None` when `last` lies below `first`.
    pub fn new(first: Port, last: Port) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    pub const fn first(self) -> Port {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> Port {
        self.last
    }

    /// How many ports lie between the first and the last: 0 for a single port.
    pub const fn span(self) -> u16 {
        self.last.get() - self.first.get()
    }

    /// How many ports the range has, 1-65535.
    pub fn count(self) -> u32 {
        u32::from(self.span()) + 1
    }

    /// As many ports from another one on; `None` when they would pass 65535.
    pub fn moved_to(self, first: Port) -> Option<Self> {
        Self::new(first, first.checked_add(self.span())?)
    }

    /// Whether the range is one port.
    pub fn is_single(self) -> bool {
        self.first == self.last
    }

    /// Whether `port` lies in the range.
    pub fn contains(self, port: Port) -> bool {
        self.first <= port && port <= self.last
    }

    /// The ports that both ranges have.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// Every port of the range, ascending.
    pub fn ports(self) -> impl Iterator<Item = Port> {
        (self.first.get()..=self.last.get()).filter_map(Port::new)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Why a text is not a port or a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    /// One side is not a port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The range runs backwards.
    #[error("\"{0}-{1}\" runs backwards; write \"{1}-{0}\"")]
    Backwards(Port, Port),
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('-') {
            None => Ok(Self::single(text.parse()?)),
            Some((first, last)) => {
                let (first, last) = (first.trim().parse()?, last.trim().parse()?);
                Self::new(first, last).ok_or(PortRangeError::Backwards(first, last))
            }
        }
    }
}

/// A transport protocol that NAT can tell ports of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, single-homed: NAT cannot rewrite the addresses inside a multi-homed association.
    Sctp,
}

impl Protocol {
    /// Every protocol, in order.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The lower-case name, as iptables and users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is not a protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a protocol: write tcp, udp or sctp")]
pub struct ProtocolError(pub String);

impl FromStr for Protocol {
    type Err = ProtocolError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| ProtocolError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_from_1_to_65535_are_ports() {
        for good in ["1", "80", "65535", "0080"] {
            assert!(good.parse::<Port>().is_ok(), "{good}");
        }
        for bad in ["", "0", "65536", "65558", "-1", "+80", "8 0", "http", "80.0", "0x50"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_is_ordered_and_knows_what_it_shares_with_another() {
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        assert_eq!(range("7000-7010").count(), 11);
        assert_eq!(range("80").to_string(), "80");
        assert_eq!(range("7000-7010").to_string(), "7000-7010");
        assert_eq!(range("10-20").intersection(range("15-30")), Some(range("15-20")));
        assert_eq!(range("10-20").intersection(range("21-30")), None);
        let error = "20-10".parse::<PortRange>().unwrap_err().to_string();
        assert_eq!(error, "\"20-10\" runs backwards; write \"10-20\"");
    }

    #[test]
    fn protocols_are_read_in_any_letter_case_and_written_in_lower_case() {
        assert_eq!("UDP".parse::<Protocol>().unwrap().to_string(), "udp");
        assert_eq!("Sctp".parse::<Protocol>().unwrap(), Protocol::Sctp);
        assert!("icmp".parse::<Protocol>().is_err());
    }
}
