//! Asks the kernel for the addresses of all interfaces, as `RTM_GETADDR` of rtnetlink(7) tells them.

use std::io;
use std::net::IpAddr;

use crate::dataplane::netlink::message::Attributes;
use crate::dataplane::netlink::message::Message;
use crate::dataplane::netlink::route::Socket;
use crate::dataplane::netlink::route::interface_names;

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfaceAddress {
    /// The address.
    pub(super) ip: IpAddr,
    /// The interface.
    pub(super) interface: String,
    /// Whether it is usable and meant to stay.
    pub(super) lasts: bool,
}

/// The length of `ifaddrmsg`.
const HEADER: usize = 8;
const GET_ADDRESS: u16 = 22;

const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const FLAGS: u16 = 8;

/// Temporary, duplicate, deprecated, tentative. Of IPv4 addresses the first bit means "secondary", which lasts.
const FLEETING_V6: u32 = 0x01 | 0x08 | 0x20 | 0x40;

/// The addresses of all interfaces.
pub(super) fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    // Of any family.
    let found = Socket::open()?.list(GET_ADDRESS, &[0; HEADER], Found::parse)?;
    let names = interface_names(found.iter().map(|found| found.interface).collect())?;
    // An interface that is gone by now has taken its addresses with it.
    let with_name = |Found { ip, interface, lasts }| {
        Some(InterfaceAddress { ip, interface: names.get(&interface)?.clone(), lasts })
    };
    Ok(found.into_iter().filter_map(with_name).collect())
}

/// Reads messages as if the kernel had sent them, for the fuzzer: nothing may panic.
pub fn read_messages(mut input: &[u8]) {
    while let Some(message) = Message::take(&mut input) {
        Found::parse(message.payload);
    }
}

/// An address whose interface is known by number only.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    ip: IpAddr,
    interface: u32,
    lasts: bool,
}

impl Found {
    fn parse(payload: &[u8]) -> Option<Self> {
        let [_, _, flags, _, interface @ ..] = *payload.first_chunk::<HEADER>()?;
        let attributes = Attributes(payload.get(HEADER..)?);
        let flags = attributes.native(FLAGS).unwrap_or(u32::from(flags));
        // On a point-to-point link "address" is the peer's.
        let ip = attributes.ip(LOCAL).or_else(|| attributes.ip(ADDRESS))?;
        let lasts = ip.is_ipv4() || flags & FLEETING_V6 == 0;
        Some(Self { ip, interface: u32::from_ne_bytes(interface), lasts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn payload(flags: u8, interface: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![2, 24, flags, 0];
        bytes.extend(interface.to_ne_bytes());
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn on_a_point_to_point_link_the_local_address_counts() {
        let attributes = [attribute(ADDRESS, &[10, 0, 0, 1]), attribute(LOCAL, &[10, 0, 0, 2])];
        let found = Found::parse(&payload(0x80, 3, &attributes)).unwrap();
        assert_eq!(found, Found { ip: "10.0.0.2".parse().unwrap(), interface: 3, lasts: true });
    }

    #[test]
    fn temporary_ipv6_addresses_do_not_last_and_secondary_ipv4_addresses_do() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let IpAddr::V6(octets) = v6 else { panic!() };
        let address = attribute(ADDRESS, &octets.octets());
        let flags = attribute(FLAGS, &0x101_u32.to_ne_bytes());
        assert!(!Found::parse(&payload(0, 2, &[address.clone(), flags])).unwrap().lasts);
        assert!(Found::parse(&payload(0x80, 2, &[address])).unwrap().lasts);
        let secondary = attribute(LOCAL, &[203, 0, 113, 7]);
        assert!(Found::parse(&payload(0x01, 2, &[secondary])).unwrap().lasts);
    }

    #[test]
    fn a_cut_message_is_left_alone() {
        assert!(Found::parse(&[2, 24]).is_none());
    }

    #[test]
    fn the_kernel_lists_the_loopback_address() {
        let found = addresses().unwrap();
        assert!(
            found.iter().any(|address| address.interface == "lo" && address.ip.is_loopback()),
            "{found:?}"
        );
    }
}
