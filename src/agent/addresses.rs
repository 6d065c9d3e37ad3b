//! The node's own addresses: which there are, and which one serves entries that name none (`ifaceAuto`).
//!
//! The choice is pure and always the same for the same addresses: per family the default route's source if it is
//! public, else the lowest public address of the node, else the default route's source with a warning, because
//! somebody in front of the node (1:1 NAT, as most clouds have it) must then forward the ports. Addresses are read
//! anew every few seconds, as cheaply as that must be: no program is started and no packet is sent (R31).

mod netlink;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::UdpSocket;

use ipnet::IpNet;

#[doc(hidden)]
pub use crate::agent::addresses::netlink::read_messages;
use crate::model::address::ExternalAddress;
use crate::model::address::Family;
use crate::model::address::is_public;

/// Interfaces that exist to make service addresses local: kube-proxy's in IPVS mode, and the node-local DNS cache's.
/// Whoever could claim one of their addresses could take a Service from its clients (R27).
const SERVICE_INTERFACES: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

/// Somewhere on the internet for which nobody has a route of its own: a.root-servers.net.
const FAR_AWAY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 0x2, 0x30)),
];

/// The addresses of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those that somebody else can reach and that stay.
    pub lasting: BTreeSet<IpAddr>,
    /// Those that come and go: temporary, deprecated or not yet usable ones. Entries that name none are not served on
    /// them.
    pub fleeting: BTreeSet<IpAddr>,
    /// The source of the default IPv4 route.
    pub default_v4: Option<Ipv4Addr>,
    /// The source of the default IPv6 route.
    pub default_v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Every address.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.lasting.union(&self.fleeting).copied()
    }
}

/// Which addresses the operator wants and does not want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Networks whose addresses count as public, and are served though no interface has them.
    pub include: Vec<IpNet>,
    /// Networks whose addresses are never served.
    pub exclude: Vec<IpNet>,
}

/// The addresses that serve entries which name none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// What the operator should know of the choice.
    pub warnings: Vec<String>,
}

/// Reads the addresses of the network namespace that the process is in.
pub fn read() -> io::Result<Addresses> {
    let mut found = Addresses::default();
    for address in netlink::addresses()? {
        let is_external = ExternalAddress::new(address.ip).is_ok();
        if is_external && !SERVICE_INTERFACES.contains(&address.interface.as_str()) {
            let kind = if address.lasts { &mut found.lasting } else { &mut found.fleeting };
            kind.insert(address.ip);
        }
    }
    for far_away in FAR_AWAY {
        match source_towards(far_away) {
            Some(IpAddr::V4(source)) => found.default_v4 = Some(source),
            Some(IpAddr::V6(source)) => found.default_v6 = Some(source),
            None => {}
        }
    }
    Ok(found)
}

/// The address that packets to `destination` would leave with; `None` without a route. Connecting a UDP socket asks
/// the kernel for the route and sends nothing.
fn source_towards(destination: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match Family::of(destination) {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((destination, 9)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    ExternalAddress::new(source).is_ok().then_some(source)
}

/// Chooses the addresses that serve entries which name none.
pub fn choose(addresses: &Addresses, filter: &Filter) -> Own {
    let mut own = Own::default();
    for family in Family::ALL {
        let default = match family {
            Family::V4 => addresses.default_v4.map(IpAddr::V4),
            Family::V6 => addresses.default_v6.map(IpAddr::V6),
        };
        match choose_one(family, default, addresses, filter, &mut own.warnings) {
            Some(IpAddr::V4(address)) => own.v4 = Some(address),
            Some(IpAddr::V6(address)) => own.v6 = Some(address),
            None => {}
        }
    }
    if own.v4.is_none() && own.v6.is_none() {
        own.warnings.push(
            "the node has no address for entries that name none (ifaceAuto): it has no default route and no public \
             address; give it one, or pass --include-net with the network of the address to use"
                .to_owned(),
        );
    }
    own
}

fn choose_one(
    family: Family,
    default: Option<IpAddr>,
    addresses: &Addresses,
    filter: &Filter,
    warnings: &mut Vec<String>,
) -> Option<IpAddr> {
    let is_in = |nets: &[IpNet], address: IpAddr| nets.iter().any(|net| net.contains(&address));
    let counts_as_public = |address: IpAddr| is_public(address) || is_in(&filter.include, address);
    let default =
        default.filter(|address| !is_in(&filter.exclude, *address) && !addresses.fleeting.contains(address));
    if let Some(public) = default.filter(|address| counts_as_public(*address)) {
        return Some(public);
    }
    let mut lasting = addresses.lasting.iter().copied().filter(|address| Family::of(*address) == family);
    let lowest = lasting.find(|address| counts_as_public(*address) && !is_in(&filter.exclude, *address));
    if lowest.is_none()
        && let Some(private) = default
    {
        warnings.push(format!(
            "no {family} address of the node is public; entries that name none (ifaceAuto) are served on {private}, \
             which the outside reaches only if something in front of the node forwards to it (1:1 NAT); pass \
             --include-net {private}/{} if that is meant, or --exclude-net to serve none",
            if family == Family::V4 { 32 } else { 128 }
        ));
    }
    lowest.or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(lasting: &[&str], default_v4: Option<&str>, default_v6: Option<&str>) -> Addresses {
        Addresses {
            lasting: lasting.iter().map(|address| address.parse().unwrap()).collect(),
            fleeting: BTreeSet::new(),
            default_v4: default_v4.map(|address| address.parse().unwrap()),
            default_v6: default_v6.map(|address| address.parse().unwrap()),
        }
    }

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn r31_the_default_route_s_source_then_the_lowest_public_address_then_the_source_with_a_warning() {
        let cases = [
            ("a public source", "203.0.113.9 203.0.113.7", "203.0.113.9", "203.0.113.9", 0),
            ("a private source", "10.0.0.5 203.0.113.9 203.0.113.7", "10.0.0.5", "203.0.113.7", 0),
            ("1:1 NAT", "10.0.0.5", "10.0.0.5", "10.0.0.5", 1),
            ("carrier NAT", "100.64.0.5", "100.64.0.5", "100.64.0.5", 1),
            ("no default route", "10.0.0.5 203.0.113.9", "", "203.0.113.9", 0),
            ("no default route, nothing public", "10.0.0.5", "", "", 1),
            ("no address", "", "", "", 1),
        ];
        for (why, lasting, source, chosen, warnings) in cases {
            let lasting: Vec<_> = lasting.split_whitespace().collect();
            let source = (!source.is_empty()).then_some(source);
            let own = choose(&addresses(&lasting, source, None), &Filter::default());
            assert_eq!(own.v4, chosen.parse().ok(), "{why}");
            assert_eq!(own.warnings.len(), warnings, "{why}: {:?}", own.warnings);
        }
    }

    #[test]
    fn each_family_is_chosen_by_itself() {
        let found = addresses(&["10.0.0.5", "2001:db8::7", "fd00::7"], Some("10.0.0.5"), Some("fd00::7"));
        let own = choose(&found, &Filter::default());
        assert_eq!(own.v4, Some("10.0.0.5".parse().unwrap()));
        assert_eq!(own.v6, Some("2001:db8::7".parse().unwrap()));
        assert_eq!(own.warnings.len(), 1, "only IPv4 has nothing public");
    }

    #[test]
    fn the_operator_can_count_private_addresses_as_public_and_rule_addresses_out() {
        let found = addresses(&["10.0.0.5", "192.168.1.5", "203.0.113.7"], Some("10.0.0.5"), None);
        let include = Filter { include: nets(&["10.0.0.0/24"]), exclude: Vec::new() };
        let own = choose(&found, &include);
        assert_eq!(own, Own { v4: Some("10.0.0.5".parse().unwrap()), v6: None, warnings: Vec::new() });
        let exclude = Filter { include: Vec::new(), exclude: nets(&["203.0.113.0/24"]) };
        assert_eq!(choose(&found, &exclude).v4, Some("10.0.0.5".parse().unwrap()));
        let neither = Filter { include: Vec::new(), exclude: nets(&["203.0.113.0/24", "10.0.0.0/8"]) };
        assert_eq!(choose(&found, &neither).v4, None);
    }

    #[test]
    fn an_address_that_comes_and_goes_is_not_chosen() {
        let mut found = addresses(&["2001:db8::7"], None, Some("2001:db8::abcd"));
        found.fleeting.insert("2001:db8::abcd".parse().unwrap());
        assert_eq!(choose(&found, &Filter::default()).v6, Some("2001:db8::7".parse().unwrap()));
    }

    #[test]
    fn the_kernel_tells_its_addresses_without_loopback() {
        let found = read().unwrap();
        assert!(found.all().all(|address| !address.is_loopback()), "{found:?}");
        if let Some(source) = found.default_v4 {
            assert!(found.all().any(|address| address == source), "{found:?}");
        }
    }
}
