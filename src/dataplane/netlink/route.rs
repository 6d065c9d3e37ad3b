//! The kernel's addresses, routes and rules, as rtnetlink(7) has them: lists, changes, and what tells of changes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::netdevice;

use crate::dataplane::netlink;
use crate::dataplane::netlink::message::ACKNOWLEDGE;
use crate::dataplane::netlink::message::Builder;
use crate::dataplane::netlink::message::DUMP;
use crate::dataplane::netlink::message::Message;

/// How often a list is asked for that changed while it was read.
const ATTEMPTS: usize = 3;
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
pub(crate) struct Socket(netlink::Socket);

/// Hears of every change in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Listener(netlink::Socket);

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        open(0)?.patient_for(PATIENCE).map(Self)
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
            if self.0.ask(kind, DUMP, header, |_| {}, |message| found.extend(read(message.payload)))? {
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
        self.0.ask(kind, ACKNOWLEDGE | flags, header, describe, |_| {}).map(drop)
    }
}

impl Listener {
    /// Listens in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        open(GROUPS).map(Self)
    }

    /// Whether anything that matters has changed since this was asked last, or may have.
    pub(crate) fn has_news(&mut self, matters: impl Fn(&Message<'_>) -> bool) -> bool {
        let mut has_news = false;
        let heard = self.0.hear(|message| has_news |= matters(message));
        has_news || !heard.unwrap_or(false)
    }
}

fn open(groups: u32) -> io::Result<netlink::Socket> {
    // Without a protocol it is NETLINK_ROUTE.
    netlink::Socket::open(None, groups)
}

/// The number of an interface; `None` when there is none of this name.
pub(crate) fn interface(name: &str) -> io::Result<Option<u32>> {
    match netdevice::name_to_index(&any_socket()?, name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The names of interfaces by their numbers, without those that are gone.
pub(crate) fn interface_names(numbers: BTreeSet<u32>) -> io::Result<BTreeMap<u32, String>> {
    let socket = any_socket()?;
    let name = |number| Some((number, netdevice::index_to_name(&socket, number).ok()?));
    Ok(numbers.into_iter().filter_map(name).collect())
}

/// Interfaces are asked for by any socket.
fn any_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}
