//! Elements as the kernel's messages hold them: read into values and written from them.
//!
//! A key is its fields one after another, each filled up to four bytes. An interval over several fields is a first
//! and a last key; over one field, two elements of which the second is the first key behind it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;

use crate::dataplane::counters::Counters;
use crate::dataplane::netlink::message::Attributes;
use crate::dataplane::netlink::message::Builder;
use crate::dataplane::netlink::message::int;
use crate::dataplane::netlink::message::text;
use crate::dataplane::nftables::element::Collection;
use crate::dataplane::nftables::element::Data;
use crate::dataplane::nftables::element::ElementKey;
use crate::dataplane::nftables::element::Field;
use crate::dataplane::nftables::element::Held;
use crate::dataplane::nftables::element::Value;
use crate::dataplane::nftables::lists;
use crate::dataplane::nftables::plan::Step;
use crate::model::address::Family;
use crate::model::interface::InterfaceName;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::entry::Key;
use crate::ruleset::entry::Target;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
/// The elements of a message.
pub(crate) const LIST_ELEMENTS: u16 = 3;
/// Each of them.
const LIST_ELEMENT: u16 = 1;

const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_USERDATA: u16 = 6;
const ELEMENT_EXPRESSION: u16 = 7;
const ELEMENT_KEY_END: u16 = 10;
/// Marks the element behind an interval.
const INTERVAL_END: u32 = 1;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// The verdict that leads to a chain and not back to this one.
const GOTO: i32 = -4;
/// What an expression is called.
pub(crate) const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
/// The expression that counts.
pub(crate) const COUNTER: &str = "counter";

/// In user data, a comment comes behind its kind and its length.
const COMMENT: u8 = 0;

/// Elements of one set as they come, until all have come.
#[derive(Debug)]
pub(crate) struct Reader {
    collection: Collection,
    family: Family,
    held: BTreeMap<ElementKey, Held>,
    /// First addresses of intervals, and first addresses behind intervals.
    starts: Vec<u128>,
    ends: Vec<u128>,
    strange: usize,
}

impl Reader {
    pub(crate) const fn new(collection: Collection, family: Family) -> Self {
        Self { collection, family, held: BTreeMap::new(), starts: Vec::new(), ends: Vec::new(), strange: 0 }
    }

    /// Reads the elements of one message.
    pub(crate) fn read(&mut self, list: &Attributes<'_>) {
        for (kind, element) in list.nested(LIST_ELEMENTS).into_iter().flatten() {
            if kind == LIST_ELEMENT && self.element(&Attributes(element)).is_none() {
                self.strange += 1;
            }
        }
    }

    fn element(&mut self, element: &Attributes<'_>) -> Option<()> {
        let value = |kind| element.nested(kind)?.find(DATA_VALUE);
        let first = value(ELEMENT_KEY)?;
        if self.collection.is_networks() {
            let is_end = element.int(ELEMENT_FLAGS).unwrap_or_default() & INTERVAL_END != 0;
            let edges = if is_end { &mut self.ends } else { &mut self.starts };
            edges.push(bits(address(first, self.family)?));
            return Some(());
        }
        let last = value(ELEMENT_KEY_END).unwrap_or(first);
        let key = self.key(first, last)?;
        let referred = || {
            let verdict = element.nested(ELEMENT_DATA)?.nested(DATA_VERDICT)?;
            let leads = verdict.int(VERDICT_CODE)? == GOTO.cast_unsigned();
            lists::of_chain(verdict.text(VERDICT_CHAIN)?).filter(|_| leads)
        };
        let data = match (self.collection.data(), value(ELEMENT_DATA)) {
            ([], None) => Data::None,
            ([Field::Chain], None) => Data::List(referred()?),
            ([Field::Address], Some(data)) => Data::Address(address(data, self.family)?),
            ([Field::Address, Field::Port], Some(data)) => {
                let ip = address(data, self.family)?;
                Data::Target(Target { ip, first: port(data.get(address_length(self.family)..)?)? })
            }
            _ => return None,
        };
        let comment = element.find(ELEMENT_USERDATA).and_then(comment).map(Into::into);
        let counters =
            element.nested(ELEMENT_EXPRESSION).and_then(|counter| counters(&counter)).unwrap_or_default();
        self.held.insert(key, Held { value: Value { data, comment }, counters });
        Some(())
    }

    fn key(&self, first: &[u8], last: &[u8]) -> Option<ElementKey> {
        if self.collection.key() == [Field::Interface] {
            return InterfaceName::from_padded(first).map(ElementKey::Interface);
        }
        let at_address = address_length(self.family);
        let external = address(first, self.family)?;
        if self.collection.key() == [Field::Address] {
            return Some(ElementKey::Address(external));
        }
        let same = first.get(..at_address + 4)? == last.get(..at_address + 4)?;
        let protocol = match first.get(at_address)? {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return None,
        };
        let at_port = at_address + 4;
        let ports = PortRange::new(port(first.get(at_port..)?)?, port(last.get(at_port..)?)?)?;
        let key = Key { external, protocol, ports };
        if !same {
            return None;
        }
        Some(ElementKey::Ports(key))
    }

    /// What was read; an error when there was something that we cannot have written.
    pub(crate) fn finish(mut self) -> Result<BTreeMap<ElementKey, Held>, String> {
        let mut edges: Vec<_> = self.starts.iter().chain(&self.ends).copied().collect();
        edges.sort_unstable();
        let highest = match self.family {
            Family::V4 => u128::from(u32::MAX),
            Family::V6 => u128::MAX,
        };
        for start in &self.starts {
            // Where a network begins right behind another, the kernel may have no end of that.
            let behind = edges.get(edges.partition_point(|edge| edge <= start));
            let last = behind.map_or(highest, |end| end - 1);
            match network(*start, last, self.family) {
                Some(net) => {
                    let value = Value { data: Data::None, comment: None };
                    self.held.insert(ElementKey::Net(net), Held { value, counters: Counters::default() });
                }
                None => self.strange += 1,
            }
        }
        match self.strange {
            0 => Ok(self.held),
            _ => Err(format!("{} has elements that are not ours", self.collection.name())),
        }
    }
}

/// Writes the message's attributes that make one change; false when it takes more than one element.
pub(crate) fn write(message: &mut Builder<'_>, table: &str, step: &Step) {
    let Step { collection, key, add } = step;
    let (first, last) = ends(key);
    message.text(LIST_TABLE, table).text(LIST_SET, collection.name());
    message.nested(LIST_ELEMENTS, |list| {
        list.nested(LIST_ELEMENT, |element| {
            element.nested(ELEMENT_KEY, |key| {
                key.bytes(DATA_VALUE, &first);
            });
            if collection.is_interval() {
                element.nested(ELEMENT_KEY_END, |key| {
                    key.bytes(DATA_VALUE, &last);
                });
            }
            let Some((Value { data, comment }, counters)) = add else { return };
            let mut bytes = Vec::new();
            match data {
                Data::None | Data::Networks(_) => {}
                Data::List(id) => {
                    element.nested(ELEMENT_DATA, |data| {
                        data.nested(DATA_VERDICT, |verdict| {
                            verdict.bytes(VERDICT_CODE, &GOTO.to_be_bytes());
                            verdict.text(VERDICT_CHAIN, &lists::chain_name(*id));
                        });
                    });
                }
                Data::Address(ip) => put_address(&mut bytes, *ip),
                Data::Target(Target { ip, first }) => {
                    put_address(&mut bytes, *ip);
                    put_port(&mut bytes, *first);
                }
            }
            if !bytes.is_empty() {
                element.nested(ELEMENT_DATA, |data| {
                    data.bytes(DATA_VALUE, &bytes);
                });
            }
            if let Some(comment) = comment {
                let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
                let userdata = [&[COMMENT, length], comment.as_bytes(), &[0]].concat();
                element.bytes(ELEMENT_USERDATA, &userdata);
            }
            if counters.packets != 0 {
                element.nested(ELEMENT_EXPRESSION, |expression| {
                    expression.text(EXPRESSION_NAME, COUNTER).nested(EXPRESSION_DATA, |counter| {
                        counter.bytes(COUNTER_BYTES, &counters.bytes.to_be_bytes());
                        counter.bytes(COUNTER_PACKETS, &counters.packets.to_be_bytes());
                    });
                });
            }
        });
    });
}

/// The first and the last key that are meant.
fn ends(key: &ElementKey) -> (Vec<u8>, Vec<u8>) {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let ports = |first: &mut Vec<u8>, last: &mut Vec<u8>, key: &Key| {
        let protocol = match key.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        };
        for (bytes, port) in [(first, key.ports.first()), (last, key.ports.last())] {
            put_address(bytes, key.external);
            bytes.extend([protocol, 0, 0, 0]);
            put_port(bytes, port);
        }
    };
    match key {
        ElementKey::Ports(key) => ports(&mut first, &mut last, key),
        ElementKey::Address(ip) => {
            put_address(&mut first, *ip);
            put_address(&mut last, *ip);
        }
        ElementKey::Net(net) => {
            put_address(&mut first, net.network());
            put_address(&mut last, net.broadcast());
        }
        // Never an element: a set of its own.
        ElementKey::List(_) => {}
        ElementKey::Interface(interface) => {
            first.extend(interface.padded());
            last.extend(interface.padded());
        }
    }
    (first, last)
}

fn put_address(bytes: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}

fn put_port(bytes: &mut Vec<u8>, port: Port) {
    bytes.extend(port.get().to_be_bytes());
    bytes.extend([0, 0]);
}

const fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

fn address(bytes: &[u8], family: Family) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(int(bytes)?)),
        Family::V6 => {
            let octets: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    })
}

fn port(bytes: &[u8]) -> Option<Port> {
    Port::new(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The network that has exactly these addresses.
fn network(first: u128, last: u128, family: Family) -> Option<IpNet> {
    let (width, ip) = match family {
        Family::V4 => (32, IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(first).ok()?))),
        Family::V6 => (128, IpAddr::V6(Ipv6Addr::from_bits(first))),
    };
    let free = 128 - last.checked_sub(first)?.leading_zeros();
    let net = IpNet::new(ip, u8::try_from(width - free).ok()?).ok()?;
    (bits(net.network()) == first && bits(net.broadcast()) == last).then_some(net)
}

/// The comment in user data.
pub(crate) fn comment(mut userdata: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return text(value);
        }
        userdata = rest.get(value.len()..)?;
    }
    None
}

fn counters(expression: &Attributes<'_>) -> Option<Counters> {
    if expression.text(EXPRESSION_NAME)? != COUNTER {
        return None;
    }
    let counter = expression.nested(EXPRESSION_DATA)?;
    let number = |kind| Some(u64::from_be_bytes(counter.find(kind)?.get(..8)?.try_into().ok()?));
    Some(Counters { packets: number(COUNTER_PACKETS)?, bytes: number(COUNTER_BYTES)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataplane::netlink::message::Message;

    fn read_back(family: Family, step: &Step) -> Result<BTreeMap<ElementKey, Held>, String> {
        let mut bytes = Vec::new();
        let mut message = Builder::new(&mut bytes, 0, 0, 0, &[0; 4]);
        write(&mut message, "PINHOLE", step);
        message.end();
        let message = Message::take(&mut bytes.as_slice()).unwrap();
        let mut reader = Reader::new(step.collection, family);
        reader.read(&message.attributes());
        reader.finish()
    }

    #[test]
    fn an_element_is_read_as_it_was_written() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let key = |external: &str, ports: &str| Key {
            external: ip(external),
            protocol: Protocol::Sctp,
            ports: ports.parse().unwrap(),
        };
        let target = |text: &str| Data::Target(Target { ip: ip(text), first: Port::new(8080).unwrap() });
        let ports = |external, ports| ElementKey::Ports(key(external, ports));
        let list = crate::ruleset::sources::Sources::default().id();
        for (collection, key, data) in [
            (Collection::Ports, ports("203.0.113.7", "65535"), target("10.244.1.9")),
            (Collection::Ports, ports("2001:db8::7", "1"), target("fd00::9")),
            (Collection::Ranges, ports("203.0.113.7", "7000-7010"), Data::Address(ip("10.244.1.9"))),
            (Collection::ClosedRanges, ports("2001:db8::7", "7000-7010"), Data::None),
            (Collection::Listed, ports("203.0.113.7", "80"), Data::List(list)),
            (Collection::ListedRanges, ports("2001:db8::7", "7000-7010"), Data::List(list)),
            (Collection::Egress, ElementKey::Address(ip("fd00::9")), Data::Address(ip("2001:db8::7"))),
            (Collection::ExcludedInterfaces, ElementKey::Interface("wg0".parse().unwrap()), Data::None),
        ] {
            let value = Value { data, comment: Some("default/web:3c8afc1a".into()) };
            let counters = Counters { packets: 1 << 40, bytes: u64::MAX };
            let step = Step { collection, key, add: Some((value.clone(), counters)) };
            let family = match key {
                ElementKey::Ports(key) => key.family(),
                ElementKey::Address(ip) => Family::of(ip),
                ElementKey::Net(net) => Family::of(net.addr()),
                ElementKey::Interface(_) | ElementKey::List(_) => Family::V4,
            };
            assert_eq!(
                read_back(family, &step),
                Ok(BTreeMap::from([(key, Held { value, counters })])),
                "{key}"
            );
        }
    }

    #[test]
    fn a_range_of_addresses_is_a_network_or_strange() {
        let net =
            |first: u32, last: u32| network(first.into(), last.into(), Family::V4).map(|net| net.to_string());
        assert_eq!(net(0, u32::MAX).as_deref(), Some("0.0.0.0/0"));
        assert_eq!(net(0x0a00_0000, 0x0aff_ffff).as_deref(), Some("10.0.0.0/8"));
        assert_eq!(net(7, 7).as_deref(), Some("0.0.0.7/32"));
        assert_eq!(net(1, 2), None);
        assert_eq!(net(2, 1), None);
        assert_eq!(network(0, u128::MAX, Family::V6).unwrap().to_string(), "::/0");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_strange(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for collection in Collection::ALL {
                for family in Family::ALL {
                    let mut reader = Reader::new(collection, family);
                    reader.read(&Attributes(&bytes));
                    let _ = reader.element(&Attributes(&bytes));
                    let _ = reader.finish();
                }
            }
            let _ = comment(&bytes);
        }
    }
}
