//! A socket to the kernel's addresses, routes and rules, as rtnetlink(7) has them: lists, changes, and what tells of changes.
//!
//! One request and its answers take some tens of microseconds and start no program. What a message says is for others to read.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::netdevice;
use rustix::net::netlink;
use rustix::net::sockopt;

use crate::dataplane::nftables::message::ACKNOWLEDGE;
use crate::dataplane::nftables::message::Builder;
use crate::dataplane::nftables::message::DONE;
use crate::dataplane::nftables::message::DUMP;
use crate::dataplane::nftables::message::ERROR;
use crate::dataplane::nftables::message::INTERRUPTED;
use crate::dataplane::nftables::message::Message;
use crate::dataplane::nftables::message::REQUEST;

const BUFFER: usize = 64 * 1024;
const ATTEMPTS: usize = 3;
/// The kernel answers at once; this only keeps a surprise from becoming a hang.
const PATIENCE: Duration = Duration::from_secs(1);

/// The groups that tell of interfaces, addresses, routes and rules. When an interface goes down or loses an address, the kernel
/// says no more of the IPv4 routes that go with it.
const GROUPS: u32 = LINKS | ADDRESSES_V4 | ROUTES_V4 | RULES_V4 | ADDRESSES_V6 | ROUTES_V6 | RULES_V6;
const LINKS: u32 = 1;
const ADDRESSES_V4: u32 = 1 << 4;
const ROUTES_V4: u32 = 1 << 6;
const RULES_V4: u32 = 1 << 7;
const ADDRESSES_V6: u32 = 1 << 8;
const ROUTES_V6: u32 = 1 << 10;
const RULES_V6: u32 = 1 << 18;

/// A socket in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Hears of every change in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let fd = socket(0)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Everything of a kind that `read` makes something of.
    pub(crate) fn list<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let is_consistent =
                self.exchange(kind, DUMP, header, |_| {}, |payload| found.extend(read(payload)))?;
            if is_consistent {
                return Ok(found);
            }
        }
        Err(io::Error::other("the node's addresses or routes keep changing while they are listed"))
    }

    /// Asks for a change.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        describe: impl FnOnce(&mut Builder<'_>),
    ) -> io::Result<()> {
        self.exchange(kind, ACKNOWLEDGE | flags, header, describe, |_| {}).map(drop)
    }

    /// Sends a request and reads its answers; false when they do not fit together.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        describe: impl FnOnce(&mut Builder<'_>),
        mut found: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        let mut message = Builder::new(&mut request, kind, REQUEST | flags, self.sequence, header);
        describe(&mut message);
        message.end();
        rustix::net::send(&self.fd, &request, SendFlags::empty())?;
        let mut is_consistent = true;
        loop {
            let (received, _) = rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty())?;
            let mut rest = self.buffer.get(..received).unwrap_or_default();
            while let Some(message) = Message::take(&mut rest) {
                if message.sequence != self.sequence {
                    continue;
                }
                is_consistent &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    DONE => return Ok(is_consistent),
                    ERROR if message.error() == 0 => return Ok(is_consistent),
                    ERROR => return Err(io::Error::from_raw_os_error(message.error())),
                    _ => found(message.payload),
                }
            }
        }
    }
}

impl Listener {
    /// Listens in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { fd: socket(GROUPS)?, buffer: vec![0; BUFFER] })
    }

    /// Whether anything that matters has changed since this was asked last, or may have.
    pub(crate) fn has_news(&mut self, matters: impl Fn(&Message<'_>) -> bool) -> bool {
        let mut has_news = false;
        loop {
            let received = match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((received, _)) => received,
                Err(Errno::AGAIN) => return has_news,
                Err(Errno::INTR) => continue,
                // More came than there was room for.
                Err(Errno::NOBUFS) => {
                    has_news = true;
                    continue;
                }
                Err(_) => return true,
            };
            let mut rest = self.buffer.get(..received).unwrap_or_default();
            while let Some(message) = Message::take(&mut rest) {
                has_news |= matters(&message);
            }
        }
    }
}

fn socket(groups: u32) -> io::Result<OwnedFd> {
    // Without a protocol it is NETLINK_ROUTE.
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, groups))?;
    Ok(fd)
}

/// The number of an interface; `None` when there is none of this name.
pub(crate) fn interface(name: &str) -> io::Result<Option<u32>> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The name of an interface; `None` when it is gone.
pub(crate) fn interface_name(number: u32) -> io::Result<Option<String>> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(netdevice::index_to_name(&socket, number).ok())
}

/// An address as messages have it.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(v6)
}

/// A number as messages have it.
pub(crate) fn native(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}
