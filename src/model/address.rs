//! External addresses: which IP addresses a port can be published on, and which of a node's own are public.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;
use ipnet::Ipv4Net;
use ipnet::Ipv6Net;

/// An IP family. Each has its own kernel tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in order.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// The IP families of some addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        !self.v4 && !self.v6
    }

    /// Whether something of this family can be meant: it is among them, or nothing is known of them.
    pub const fn admit(self, family: Family) -> bool {
        let is_among_them = match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        };
        is_among_them || self.is_empty()
    }
}

impl FromIterator<IpAddr> for Families {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut families = Self::default();
        for address in addresses {
            match Family::of(address) {
                Family::V4 => families.v4 = true,
                Family::V6 => families.v6 = true,
            }
        }
        families
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A unicast address that the outside can connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExternalAddress(IpAddr);

/// Why nobody outside can connect to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// `0.0.0.0` or `::`.
    #[error("is the unspecified address; name one address, or leave it out to use the node's own")]
    Unspecified,
    /// `127.0.0.0/8` or `::1`.
    #[error("is a loopback address, which is reachable only from the same machine; name an external address")]
    Loopback,
    /// `169.254.0.0/16` or `fe80::/10`.
    #[error("is a link-local address, which no router forwards; name an external address")]
    LinkLocal,
    /// `224.0.0.0/4` or `ff00::/8`.
    #[error("is a multicast address; NAT needs a unicast address")]
    Multicast,
    /// `255.255.255.255`.
    #[error("is the broadcast address; NAT needs a unicast address")]
    Broadcast,
    /// `::ffff:a.b.c.d`.
    #[error("is an IPv4 address written as IPv6; write {0}")]
    Mapped(Ipv4Addr),
}

impl ExternalAddress {
    /// Takes a unicast address that can be reached over a link.
    pub fn new(address: IpAddr) -> Result<Self, AddressError> {
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        match address {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
                Err(AddressError::Mapped(v6.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED)))
            }
            IpAddr::V4(Ipv4Addr::BROADCAST) => Err(AddressError::Broadcast),
            _ if address.is_unspecified() => Err(AddressError::Unspecified),
            _ if address.is_loopback() => Err(AddressError::Loopback),
            _ if address.is_multicast() => Err(AddressError::Multicast),
            _ if link_local => Err(AddressError::LinkLocal),
            _ => Ok(Self(address)),
        }
    }

    /// The address.
    pub const fn ip(self) -> IpAddr {
        self.0
    }

    /// Its family.
    pub const fn family(self) -> Family {
        Family::of(self.0)
    }
}

impl fmt::Display for ExternalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether the internet can route to the address: not private (RFC 1918, RFC 4193), not shared carrier space
/// (RFC 6598), not link-local, loopback, multicast or unspecified. Documentation ranges count as public, so that
/// examples behave as the real thing does.
pub fn is_public(address: IpAddr) -> bool {
    if ExternalAddress::new(address).is_err() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let shared = first == 100 && (64..128).contains(&second);
            let reserved = first == 0 || first >= 240;
            !v4.is_private() && !shared && !reserved
        }
        IpAddr::V6(v6) => !v6.is_unique_local(),
    }
}

/// The networks that [`is_public`] says no to and that somebody can be in: private, shared and link-local ones.
pub const PRIVATE: [IpNet; 7] = [
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v6(0xfc00, 7),
    v6(0xfe80, 10),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unicast_addresses_that_can_be_reached_are_external() {
        let error = |text: &str| ExternalAddress::new(text.parse().unwrap()).unwrap_err();
        assert_eq!(error("0.0.0.0"), AddressError::Unspecified);
        assert_eq!(error("::"), AddressError::Unspecified);
        assert_eq!(error("127.0.0.53"), AddressError::Loopback);
        assert_eq!(error("::1"), AddressError::Loopback);
        assert_eq!(error("169.254.169.254"), AddressError::LinkLocal);
        assert_eq!(error("fe80::1"), AddressError::LinkLocal);
        assert_eq!(error("224.0.0.1"), AddressError::Multicast);
        assert_eq!(error("ff02::1"), AddressError::Multicast);
        assert_eq!(error("255.255.255.255"), AddressError::Broadcast);
        assert_eq!(error("::ffff:203.0.113.7"), AddressError::Mapped(Ipv4Addr::new(203, 0, 113, 7)));
        for good in ["203.0.113.7", "10.1.2.3", "2001:db8::1", "fd00::1"] {
            assert!(ExternalAddress::new(good.parse().unwrap()).is_ok(), "{good}");
        }
    }

    #[test]
    fn r31_private_shared_and_link_local_addresses_are_not_public() {
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.9.9",
            "169.254.1.1",
            "fd00::1",
            "fe80::1",
        ] {
            let private: IpAddr = private.parse().unwrap();
            assert!(!is_public(private), "{private}");
            assert!(PRIVATE.iter().any(|net| net.contains(&private)), "{private}");
        }
        for public in ["203.0.113.7", "100.128.0.1", "172.32.0.1", "8.8.8.8", "2001:db8::1"] {
            let public: IpAddr = public.parse().unwrap();
            assert!(is_public(public), "{public}");
            assert!(!PRIVATE.iter().any(|net| net.contains(&public)), "{public}");
        }
    }
}
