//! A set of ports as an operator writes it on a command line: `22, 53/udp, 9000-9100`.
//!
//! The parser is strict on purpose. The predecessor stopped reading at the first item it did not understand and
//! so left every later port unprotected (R30); here one bad item refuses the whole list.

use std::fmt;
use std::str::FromStr;

use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::PortRangeError;
use crate::model::port::Protocol;
use crate::model::port::ProtocolError;

/// One item of a list: ports, of one protocol or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSetItem {
    /// The ports.
    pub ports: PortRange,
    /// The protocol, or `None` for every protocol.
    pub protocol: Option<Protocol>,
}

impl fmt::Display for PortSetItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ports.fmt(f)?;
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

/// A list of ports, in the order it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<PortSetItem>);

impl PortSet {
    /// The lowest of `ports` that the set has for `protocol`, and the item that says so.
    pub fn first_match(&self, protocol: Protocol, ports: PortRange) -> Option<(Port, PortSetItem)> {
        self.0
            .iter()
            .filter(|item| item.protocol.is_none_or(|only| only == protocol))
            .filter_map(|item| item.ports.intersection(ports).map(|shared| (shared.first(), *item)))
            .min()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, item) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(f, "{separator}{item}")?;
        }
        Ok(())
    }
}

/// Why a text is not a list of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// Two commas with nothing between them, or one at an end.
    #[error("item {0} of the list is empty: remove the extra comma")]
    EmptyItem(usize),
    /// An item's ports cannot be read.
    #[error("item {position} of the list: {source}")]
    Ports {
        /// Which item, counted from 1.
        position: usize,
        /// What is wrong with it.
        source: PortRangeError,
    },
    /// An item's protocol cannot be read.
    #[error("item {position} of the list: {source}")]
    Protocol {
        /// Which item, counted from 1.
        position: usize,
        /// What is wrong with it.
        source: ProtocolError,
    },
}

impl FromStr for PortSet {
    type Err = PortSetError;

    /// An empty text is the empty set; everything else must be understood to the last item.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        text.split(',')
            .enumerate()
            .map(|(index, item)| parse_item(index + 1, item.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn parse_item(position: usize, item: &str) -> Result<PortSetItem, PortSetError> {
    if item.is_empty() {
        return Err(PortSetError::EmptyItem(position));
    }
    let (ports, protocol) = match item.split_once('/') {
        Some((ports, protocol)) => (ports.trim_end(), Some(protocol.trim_start())),
        None => (item, None),
    };
    Ok(PortSetItem {
        ports: ports.parse().map_err(|source| PortSetError::Ports { position, source })?,
        protocol: protocol
            .map(str::parse)
            .transpose()
            .map_err(|source| PortSetError::Protocol { position, source })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r30_spaces_ranges_and_protocols_are_understood() {
        let set: PortSet = "22, 53/udp , 9000-9100,6443 / TCP".parse().unwrap();
        assert_eq!(set.to_string(), "22, 53/udp, 9000-9100, 6443/tcp");
        let port = |number| PortRange::single(Port::new(number).unwrap());
        assert!(set.first_match(Protocol::Udp, port(22)).is_some());
        assert!(set.first_match(Protocol::Udp, port(53)).is_some());
        assert!(set.first_match(Protocol::Tcp, port(53)).is_none());
        assert!(set.first_match(Protocol::Tcp, port(9050)).is_some());
        let (first, item) = set.first_match(Protocol::Tcp, "8990-9200".parse().unwrap()).unwrap();
        assert_eq!((first.get(), item.to_string().as_str()), (9000, "9000-9100"));
    }

    #[test]
    fn r30_one_bad_item_refuses_the_whole_list_and_says_which() {
        let cases = [
            ("22,,53", "item 2 of the list is empty: remove the extra comma"),
            ("22,", "item 2 of the list is empty: remove the extra comma"),
            ("22,65558", "item 2 of the list: \"65558\" is not a port; write a number from 1 to 65535"),
            ("0", "item 1 of the list: \"0\" is not a port; write a number from 1 to 65535"),
            ("22,25-20", "item 2 of the list: \"25-20\" runs backwards; write \"20-25\""),
            ("53/dns", "item 1 of the list: \"dns\" is not a protocol: write tcp, udp or sctp"),
            ("22 53", "item 1 of the list: \"22 53\" is not a port; write a number from 1 to 65535"),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<PortSet>().unwrap_err().to_string(), expected, "{text}");
        }
    }
}
