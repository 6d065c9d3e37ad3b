//! What a claim is for, and the name that says so.
//!
//! Ports are claimed one by one or in blocks of 16, 256 or 4096 ports that are aligned to their size, and an address as a
//! whole: two claims overlap exactly if one is the other or contains it, as with networks. So whoever holds one port need
//! only look at four other names to know that nobody holds a block around it, and a range of ten thousand ports is some forty
//! claims.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::model::address::ExternalAddress;
use crate::model::mapping::Address;
use crate::model::mapping::ExternalPorts;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// How many ports a block can have, the largest first.
const BLOCK_SIZES: [u16; 4] = [4096, 256, 16, 1];

/// One port, or a block of 16, 256 or 4096 ports that begins at a multiple of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortBlock {
    first: Port,
    size: u16,
}

impl PortBlock {
    /// The block of exactly this port.
    pub const fn single(port: Port) -> Self {
        Self { first: port, size: 1 }
    }

    /// The block that is this range; `None` when its size or its begin is not that of a block.
    pub fn of(range: PortRange) -> Option<Self> {
        let size = u16::try_from(range.count()).ok().filter(|size| BLOCK_SIZES.contains(size))?;
        range.first().get().is_multiple_of(size).then_some(Self { first: range.first(), size })
    }

    /// The fewest blocks that are together a range, ascending.
    pub fn cover(range: PortRange) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut next = Some(range.first());
        while let Some(first) = next.filter(|first| *first <= range.last()) {
            let fits = |size: &u16| {
                first.get().is_multiple_of(*size)
                    && first.checked_add(size - 1).is_some_and(|last| last <= range.last())
            };
            let size = BLOCK_SIZES.into_iter().find(fits).unwrap_or(1);
            blocks.push(Self { first, size });
            next = first.checked_add(size);
        }
        blocks
    }

    /// The ports of the block.
    pub fn range(self) -> PortRange {
        let last = self.first.checked_add(self.size - 1).unwrap_or(Port::MAX);
        PortRange::new(self.first, last).unwrap_or(PortRange::single(self.first))
    }

    /// The larger blocks around it, the smallest first. Port 0 is no port, so nothing is around the lowest ones.
    fn around(self) -> impl Iterator<Item = Self> {
        BLOCK_SIZES.into_iter().rev().filter(move |size| self.size < *size).filter_map(move |size| {
            Port::new(self.first.get() / size * size).map(|first| Self { first, size })
        })
    }
}

/// What is claimed of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claimed {
    /// Every port of every protocol: 1:1 NAT.
    Whole,
    /// Ports of one protocol.
    Ports(Protocol, PortBlock),
}

/// What a claim is for. Two different keys have different names, and their order is that in which claims are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimKey {
    address: ExternalAddress,
    claimed: Claimed,
}

impl ClaimKey {
    /// The key of the whole address.
    pub const fn whole(address: ExternalAddress) -> Self {
        Self { address, claimed: Claimed::Whole }
    }

    /// The key of a block of ports.
    pub const fn ports(address: ExternalAddress, protocol: Protocol, block: PortBlock) -> Self {
        Self { address, claimed: Claimed::Ports(protocol, block) }
    }

    /// The keys of a range of ports, ascending.
    pub fn of_range(address: ExternalAddress, protocol: Protocol, range: PortRange) -> Vec<Self> {
        PortBlock::cover(range).into_iter().map(|block| Self::ports(address, protocol, block)).collect()
    }

    /// The external address.
    pub const fn address(self) -> ExternalAddress {
        self.address
    }

    /// What is claimed of it.
    pub const fn claimed(self) -> Claimed {
        self.claimed
    }

    /// How many ports it is for.
    pub fn count(self) -> u32 {
        match self.claimed {
            Claimed::Whole => 65_535,
            Claimed::Ports(_, block) => block.range().count(),
        }
    }

    /// Whether both keys have a port in common.
    pub fn overlaps(self, other: Self) -> bool {
        let shares_ports = match (self.claimed, other.claimed) {
            (Claimed::Whole, _) | (_, Claimed::Whole) => true,
            (Claimed::Ports(protocol, block), Claimed::Ports(other_protocol, other_block)) => {
                protocol == other_protocol && block.range().intersection(other_block.range()).is_some()
            }
        };
        self.address == other.address && shares_ports
    }

    /// The keys that contain this one, itself not among them: what else could stand in its way.
    pub fn around(self) -> Vec<Self> {
        match self.claimed {
            Claimed::Whole => Vec::new(),
            Claimed::Ports(protocol, block) => {
                let blocks = block.around().map(|around| Self::ports(self.address, protocol, around));
                blocks.chain([Self::whole(self.address)]).collect()
            }
        }
    }

    /// Where those that lie inside this one are among all in their order, itself among them. Larger ones that begin where it
    /// does are there, too.
    pub fn within(self) -> RangeInclusive<Self> {
        let at = |protocol, first, size| Self::ports(self.address, protocol, PortBlock { first, size });
        match self.claimed {
            Claimed::Whole => {
                let [.., last] = Protocol::ALL;
                self..=at(last, Port::MAX, u16::MAX)
            }
            Claimed::Ports(protocol, block) => {
                at(protocol, block.first, 1)..=at(protocol, block.range().last(), u16::MAX)
            }
        }
    }

    /// What it is for as people write ports: `203.0.113.7:8080/tcp`, or an address.
    pub fn in_words(self) -> String {
        let Claimed::Ports(protocol, block) = self.claimed else { return self.address.to_string() };
        let address = Address::Fixed(self.address);
        ExternalPorts { address, protocol, ports: block.range() }.to_string()
    }

    /// Whether other keys can lie inside this one, so that whoever claims it has to look for them.
    pub fn contains_others(self) -> bool {
        match self.claimed {
            Claimed::Whole => true,
            Claimed::Ports(_, block) => 1 < block.size,
        }
    }
}

impl fmt::Display for ClaimKey {
    /// The name: `v4-203-0-113-7-tcp-8080`, `v6-20010db8000000000000000000000001-udp-7008-7023`, `v4-203-0-113-7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address.ip() {
            IpAddr::V4(address) => write!(f, "v4-{}", address.to_string().replace('.', "-"))?,
            IpAddr::V6(address) => write!(f, "v6-{:032x}", u128::from(address))?,
        }
        match self.claimed {
            Claimed::Whole => Ok(()),
            Claimed::Ports(protocol, block) => write!(f, "-{protocol}-{}", block.range()),
        }
    }
}

/// Why a text is not the name of a claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a claim: those read v4-203-0-113-7-tcp-8080, v4-203-0-113-7-udp-7008-7023 for a block, or \
     v4-203-0-113-7 for a whole address; IPv6 is v6- and 32 digits"
)]
pub struct ClaimNameError(pub String);

impl FromStr for ClaimKey {
    type Err = ClaimNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        // Nothing but the one way in which a key is written: else two names would be one port.
        read(name).filter(|key| key.to_string() == name).ok_or_else(|| ClaimNameError(name.to_owned()))
    }
}

fn read(name: &str) -> Option<ClaimKey> {
    let mut parts = name.split('-');
    let address: IpAddr = match parts.next()? {
        "v4" => {
            let mut octets = [0; 4];
            for octet in &mut octets {
                *octet = parts.next()?.parse().ok()?;
            }
            Ipv4Addr::from(octets).into()
        }
        "v6" => Ipv6Addr::from(u128::from_str_radix(parts.next()?, 16).ok()?).into(),
        _ => return None,
    };
    let address = ExternalAddress::new(address).ok()?;
    let Some(protocol) = parts.next() else { return Some(ClaimKey::whole(address)) };
    let first: Port = parts.next()?.parse().ok()?;
    let last = parts.next().map_or(Some(first), |last| last.parse().ok())?;
    let block = PortBlock::of(PortRange::new(first, last)?)?;
    parts.next().is_none().then_some(ClaimKey::ports(address, protocol.parse().ok()?, block))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::crd::LONGEST_CLAIM_NAME;

    fn address(text: &str) -> ExternalAddress {
        ExternalAddress::new(text.parse().unwrap()).unwrap()
    }

    fn key(name: &str) -> ClaimKey {
        name.parse().unwrap()
    }

    fn range(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    #[test]
    fn each_key_has_the_name_that_the_documentation_shows() {
        let port = |address, protocol, ports| {
            ClaimKey::of_range(address, protocol, range(ports))
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(port(address("203.0.113.7"), Protocol::Tcp, "8080"), ["v4-203-0-113-7-tcp-8080"]);
        assert_eq!(
            port(address("2001:db8::1"), Protocol::Udp, "7008-7023"),
            ["v6-20010db8000000000000000000000001-udp-7008-7023"]
        );
        assert_eq!(ClaimKey::whole(address("203.0.113.7")).to_string(), "v4-203-0-113-7");
        let longest = key("v6-fd000000000000000000000000000001-sctp-61440-65535");
        assert_eq!(longest.to_string().len(), LONGEST_CLAIM_NAME);
    }

    #[test]
    fn what_is_not_written_exactly_so_is_no_name() {
        for wrong in [
            "",
            "v4-203-0-113-7-TCP-8080",
            "v4-203-0-113-7-tcp-08080",
            "v4-203-0-113-07-tcp-8080",
            "v4-203-0-113-7-tcp-0",
            "v4-203-0-113-7-tcp-7000-7015",
            "v4-203-0-113-7-tcp-80-80",
            "v4-203-0-113-7-tcp",
            "v4-203-0-113-7-tcp-8080-",
            "v4-127-0-0-1-tcp-80",
            "v4-203-0-113-tcp-80",
            "v6-20010db8-tcp-80",
            "v6-20010DB8000000000000000000000001-tcp-80",
            "v6-00000000000000000000ffffcb007107-tcp-80",
            "v5-203-0-113-7-tcp-80",
        ] {
            assert!(wrong.parse::<ClaimKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_range_is_covered_by_few_blocks() {
        let cases = [
            ("80", 1),
            ("7000-7010", 11),
            ("7008-7023", 1),
            ("10000-20000", 41),
            ("1-65535", 60),
            ("1024-65535", 27),
        ];
        for (text, expected) in cases {
            assert_eq!(PortBlock::cover(range(text)).len(), expected, "{text}");
        }
    }

    #[test]
    fn only_what_contains_a_key_or_lies_inside_it_overlaps_it() {
        let port = key("v4-203-0-113-7-udp-7010");
        let names: Vec<_> = port.around().iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "v4-203-0-113-7-udp-7008-7023",
                "v4-203-0-113-7-udp-6912-7167",
                "v4-203-0-113-7-udp-4096-8191",
                "v4-203-0-113-7",
            ]
        );
        assert!(!port.overlaps(key("v4-203-0-113-7-tcp-7010")));
        assert!(!port.overlaps(key("v4-203-0-113-8")));
        assert!(key("v4-203-0-113-7").overlaps(key("v4-203-0-113-7-sctp-1")));
        assert!(key("v4-203-0-113-7-tcp-9").around().iter().all(|around| around.claimed() == Claimed::Whole));
    }

    fn keys() -> impl Strategy<Value = ClaimKey> {
        let addresses = prop_oneof![Just("203.0.113.7"), Just("203.0.113.8"), Just("2001:db8::1")];
        (addresses, 0..3usize, 1u16..=u16::MAX, 0..5usize).prop_map(|(text, protocol, port, size)| {
            let Some(size) = BLOCK_SIZES.get(size) else { return ClaimKey::whole(address(text)) };
            let first = Port::new(port / size * size).unwrap_or(Port::MIN);
            let block = PortBlock { first, size: if first == Port::MIN { 1 } else { *size } };
            ClaimKey::ports(address(text), Protocol::ALL[protocol], block)
        })
    }

    proptest! {
        #[test]
        fn every_key_is_read_back_from_its_name(key in keys()) {
            prop_assert_eq!(key.to_string().parse::<ClaimKey>().unwrap(), key);
        }

        #[test]
        fn two_keys_overlap_exactly_if_one_is_the_other_or_is_around_it(one in keys(), other in keys()) {
            let nested = one == other || one.around().contains(&other) || other.around().contains(&one);
            prop_assert_eq!(one.overlaps(other), nested);
        }

        #[test]
        fn what_lies_inside_a_key_is_in_its_range_with_nothing_that_does_not_overlap(one in keys(), other in keys()) {
            let is_inside = one == other || other.around().contains(&one);
            let is_in_range = one.within().contains(&other);
            prop_assert!(if is_in_range { one.overlaps(other) } else { !is_inside }, "{} {}", one, other);
        }

        #[test]
        fn a_cover_has_each_port_of_the_range_once(first in 1u16..=u16::MAX, length in 0u16..20_000) {
            let first = Port::new(first).unwrap();
            let last = first.checked_add(length).unwrap_or(Port::MAX);
            let range = PortRange::new(first, last).unwrap();
            let blocks = PortBlock::cover(range);
            let mut next = u32::from(first.get());
            for block in &blocks {
                prop_assert_eq!(u32::from(block.range().first().get()), next);
                next += block.range().count();
            }
            prop_assert_eq!(next, u32::from(last.get()) + 1);
            prop_assert!(blocks.len() <= 105);
        }
    }
}
