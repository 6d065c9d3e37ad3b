//! The addresses of a pool, each once, without ever listing them: a network of IPv6 has more than any list.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;

use crate::model::address::ExternalAddress;
use crate::model::address::Family;

/// The addresses of some networks, in the order of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    v4: Vec<Run>,
    v6: Vec<Run>,
}

/// Addresses that follow on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// The first one, as a number.
    first: u128,
    count: u128,
}

impl Addresses {
    /// Those of these networks. A network inside another one adds none.
    pub fn of(networks: &[IpNet]) -> Self {
        let distinct: BTreeSet<_> = networks.iter().collect();
        let mut seen = BTreeSet::new();
        let mut addresses = Self::default();
        for network in networks {
            let is_inside = network
                .prefix_len()
                .checked_sub(1)
                .and_then(|_| network.supernet())
                .into_iter()
                .flat_map(|wider| std::iter::successors(Some(wider), IpNet::supernet))
                .any(|wider| distinct.contains(&wider));
            if is_inside || !seen.insert(network) {
                continue;
            }
            match network {
                IpNet::V4(_) => addresses.v4.push(Run::of(network)),
                IpNet::V6(_) => addresses.v6.push(Run::of(network)),
            }
        }
        addresses
    }

    /// How many there are of a family.
    pub fn count(&self, family: Family) -> u128 {
        self.runs(family).iter().fold(0, |sum, run| sum.saturating_add(run.count))
    }

    /// Those of a family from the one at this place on, and around to it. What can be nobody's external address is left out.
    pub fn from(&self, family: Family, place: u128) -> impl Iterator<Item = Option<ExternalAddress>> {
        let count = self.count(family);
        let first = place.checked_rem(count).unwrap_or_default();
        // Neither part goes beyond the count.
        (first..count).chain(0..first).map(move |place| self.at(family, place))
    }

    fn at(&self, family: Family, mut place: u128) -> Option<ExternalAddress> {
        for run in self.runs(family) {
            if place < run.count {
                let number = run.first + place;
                let address = match family {
                    Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).ok()?)),
                    Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
                };
                return ExternalAddress::new(address).ok();
            }
            place -= run.count;
        }
        None
    }

    fn runs(&self, family: Family) -> &[Run] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Run {
    /// Of an IPv4 network the first and the last address name the network itself.
    fn of(network: &IpNet) -> Self {
        let bits = u32::from(network.max_prefix_len() - network.prefix_len());
        let all = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        match network {
            IpNet::V4(v4) if 1 < bits => {
                Self { first: u128::from(v4.network().to_bits()) + 1, count: all - 2 }
            }
            IpNet::V4(v4) => Self { first: v4.network().to_bits().into(), count: all },
            IpNet::V6(v6) => Self { first: v6.network().to_bits(), count: all },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(networks: &[&str]) -> Addresses {
        let networks: Vec<IpNet> = networks.iter().map(|text| text.parse().unwrap()).collect();
        Addresses::of(&networks)
    }

    fn shown(addresses: &Addresses, family: Family, place: u128, most: usize) -> Vec<String> {
        addresses.from(family, place).flatten().take(most).map(|address| address.to_string()).collect()
    }

    #[test]
    fn each_address_comes_once_in_order_and_the_search_goes_around() {
        let addresses = addresses(&[
            "203.0.113.8/30",
            "198.51.100.7/32",
            "203.0.113.8/31",
            "203.0.113.8/30",
            "2001:db8::/127",
            "192.0.2.0/31",
        ]);
        assert_eq!(
            shown(&addresses, Family::V4, 2, 9),
            ["198.51.100.7", "192.0.2.0", "192.0.2.1", "203.0.113.9", "203.0.113.10"]
        );
        assert_eq!(shown(&addresses, Family::V6, 7, 9), ["2001:db8::1", "2001:db8::"]);
        assert_eq!((addresses.count(Family::V4), addresses.count(Family::V6)), (5, 2));
    }

    #[test]
    fn the_widest_networks_and_none_at_all_are_counted_and_searched() {
        let all = addresses(&["::/0", "2001:db8::/64", "0.0.0.0/0"]);
        assert_eq!((all.count(Family::V4), all.count(Family::V6)), ((1 << 32) - 2, u128::MAX));
        assert_eq!(shown(&all, Family::V4, 0x0808_0807, 1), ["8.8.8.8"]);
        assert_eq!(all.from(Family::V6, u128::MAX - 1).take(3).count(), 3);
        assert_eq!(addresses(&[]).from(Family::V4, 7).count(), 0);
    }
}
