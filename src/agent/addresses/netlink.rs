//! Asks the kernel for the addresses of all interfaces over a netlink socket.
//!
//! One request and its answers take some tens of microseconds and start no program. Only what is needed of the
//! format is read: `RTM_GETADDR` of rtnetlink(7).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::netdevice;
use rustix::net::netlink;
use rustix::net::sockopt;

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

const HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ATTRIBUTE_HEADER: usize = 4;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;

const REQUEST_DUMP: u16 = 0x301;
/// Addresses changed while they were listed.
const INTERRUPTED: u16 = 0x10;

const ATTRIBUTE_ADDRESS: u16 = 1;
const ATTRIBUTE_LOCAL: u16 = 2;
const ATTRIBUTE_FLAGS: u16 = 8;

/// Temporary, duplicate, deprecated, tentative. Of IPv4 addresses the first bit means "secondary", which lasts.
const FLEETING_V6: u32 = 0x01 | 0x08 | 0x20 | 0x40;

const ATTEMPTS: usize = 3;
const BUFFER: usize = 64 * 1024;
/// The kernel answers at once; this only keeps a surprise from becoming a hang.
const PATIENCE: Duration = Duration::from_secs(1);

/// The addresses of all interfaces.
pub(super) fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    // Without a protocol it is NETLINK_ROUTE.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    for _ in 0..ATTEMPTS {
        if let Some(found) = list(&socket)? {
            return name_interfaces(found);
        }
    }
    Err(io::Error::other("the node's addresses keep changing while they are listed"))
}

/// One listing; `None` when addresses changed meanwhile.
fn list(socket: &OwnedFd) -> io::Result<Option<Vec<Found>>> {
    rustix::net::send(socket, &request(), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut is_consistent = true;
    let mut buffer = vec![0_u8; BUFFER];
    loop {
        let (received, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = buffer.get(..received).unwrap_or_default();
        while let Some(message) = Message::take(&mut rest) {
            is_consistent &= message.flags & INTERRUPTED == 0;
            match message.kind {
                DONE => return Ok(is_consistent.then_some(found)),
                ERROR => return Err(error(message.payload)),
                NEW_ADDRESS => found.extend(Found::parse(message.payload)),
                _ => {}
            }
        }
    }
}

fn request() -> Vec<u8> {
    let length = HEADER + ADDRESS_HEADER;
    let mut request = Vec::with_capacity(length);
    request.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    request.extend(GET_ADDRESS.to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    // Sequence number, our port, and an address of any family.
    request.resize(length, 0);
    request
}

fn error(payload: &[u8]) -> io::Error {
    match int(payload, 0).map(u32::cast_signed) {
        Some(code) if code < 0 => io::Error::from_raw_os_error(-code),
        _ => io::Error::other("the kernel refused to list addresses"),
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let length = usize::try_from(int(rest, 0)?).ok()?;
        let (kind, flags) = (short(rest, 4)?, short(rest, 6)?);
        let payload = rest.get(HEADER..length)?;
        *rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(Self { kind, flags, payload })
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
        let mut flags = u32::from(*payload.get(2)?);
        let interface = int(payload, 4)?;
        let (mut address, mut local) = (None, None);
        let mut rest = payload.get(ADDRESS_HEADER..)?;
        while let (Some(length), Some(kind)) = (short(rest, 0), short(rest, 2)) {
            let Some(value) = rest.get(ATTRIBUTE_HEADER..usize::from(length)) else { break };
            match kind {
                ATTRIBUTE_ADDRESS => address = ip(value),
                ATTRIBUTE_LOCAL => local = ip(value),
                ATTRIBUTE_FLAGS => flags = int(value, 0)?,
                _ => {}
            }
            rest = rest.get(aligned(usize::from(length))..).unwrap_or_default();
        }
        // On a point-to-point link "address" is the peer's.
        let ip = local.or(address)?;
        Some(Self { ip, interface, lasts: ip.is_ipv4() || flags & FLEETING_V6 == 0 })
    }
}

fn name_interfaces(found: Vec<Found>) -> io::Result<Vec<InterfaceAddress>> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut addresses = Vec::with_capacity(found.len());
    for Found { ip, interface, lasts } in found {
        let name = match names.entry(interface) {
            Entry::Occupied(known) => known.into_mut(),
            // An interface that is gone by now has taken its addresses with it.
            Entry::Vacant(unknown) => match netdevice::index_to_name(&socket, interface) {
                Ok(name) => unknown.insert(name),
                Err(_) => continue,
            },
        };
        addresses.push(InterfaceAddress { ip, interface: name.clone(), lasts });
    }
    Ok(addresses)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(v6)
}

fn int(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
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
        let attributes =
            [attribute(ATTRIBUTE_ADDRESS, &[10, 0, 0, 1]), attribute(ATTRIBUTE_LOCAL, &[10, 0, 0, 2])];
        let found = Found::parse(&payload(0x80, 3, &attributes)).unwrap();
        assert_eq!(found, Found { ip: "10.0.0.2".parse().unwrap(), interface: 3, lasts: true });
    }

    #[test]
    fn temporary_ipv6_addresses_do_not_last_and_secondary_ipv4_addresses_do() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let IpAddr::V6(octets) = v6 else { panic!() };
        let address = attribute(ATTRIBUTE_ADDRESS, &octets.octets());
        let flags = attribute(ATTRIBUTE_FLAGS, &0x101_u32.to_ne_bytes());
        assert!(!Found::parse(&payload(0, 2, &[address.clone(), flags])).unwrap().lasts);
        assert!(Found::parse(&payload(0x80, 2, &[address])).unwrap().lasts);
        let secondary = attribute(ATTRIBUTE_LOCAL, &[203, 0, 113, 7]);
        assert!(Found::parse(&payload(0x01, 2, &[secondary])).unwrap().lasts);
    }

    #[test]
    fn a_cut_message_is_left_alone() {
        assert!(Found::parse(&[2, 24]).is_none());
        let mut rest: &[u8] = &[40, 0, 0, 0, 20, 0];
        assert!(Message::take(&mut rest).is_none());
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
