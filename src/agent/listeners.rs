//! The ports that programs on the node listen on, read from `/proc/net`.
//!
//! Nobody is granted one of them on the node's own addresses, for NAT would take it from its program. The namespace that is
//! looked at is the agent's own, which is its node's. Only text is read, and of the TCP sockets only those that listen: the
//! kernel lists them first.
//!
//! A socket on an ephemeral port counts once it has lasted for a minute. A UDP client's socket looks like a server's, and what
//! comes and goes (a program that picks a port for one transfer) is nobody's port.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use crate::api::crd::nat_node::PortInUse;
use crate::api::crd::nat_node::PortUser;
use crate::api::crd::shared::Transport;
use crate::model::address::ExternalAddress;

/// The network namespace of the thread that asks.
const NET: &str = "/proc/thread-self/net";

/// Where the kernel says which ports it picks for those that ask for any.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// What the kernel picks from unless somebody changed it.
const USUAL_EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// How long a socket on an ephemeral port must last to count.
const LASTING: Duration = Duration::from_mins(1);

/// The state of a socket that listens, and of a UDP socket without a peer.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// The files, with the protocol and the state that a server's socket has there.
const FILES: [(&str, Transport, &str); 4] = [
    ("tcp", Transport::Tcp, TCP_LISTEN),
    ("tcp6", Transport::Tcp, TCP_LISTEN),
    ("udp", Transport::Udp, UDP_UNCONNECTED),
    ("udp6", Transport::Udp, UDP_UNCONNECTED),
];

/// The most ranges that a NatNode holds.
const MOST: usize = 4096;

/// A socket that waits for whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Socket {
    protocol: Transport,
    local: SocketAddr,
    /// Tells it from the next one on the same port.
    inode: u64,
}

/// The sockets of a node, and since when each is there.
#[derive(Debug, Default)]
pub struct Listeners {
    since: BTreeMap<Socket, Instant>,
}

impl Listeners {
    /// The ports in use now.
    pub fn look(&mut self, now: Instant) -> io::Result<Vec<PortInUse>> {
        let mut sockets = BTreeSet::new();
        for (file, protocol, state) in FILES {
            match File::open(Path::new(NET).join(file)) {
                Ok(file) => read(BufReader::new(file), protocol, state, &mut sockets)?,
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.take(&sockets, &ephemeral(), now))
    }

    fn take(
        &mut self,
        sockets: &BTreeSet<Socket>,
        ephemeral: &RangeInclusive<u16>,
        now: Instant,
    ) -> Vec<PortInUse> {
        self.since.retain(|socket, _| sockets.contains(socket));
        let lasting = sockets.iter().filter(|socket| {
            let since = *self.since.entry(**socket).or_insert(now);
            !ephemeral.contains(&socket.local.port()) || LASTING <= now.duration_since(since)
        });
        ports(lasting)
    }
}

/// Reads one file, whose TCP sockets come with those that listen first.
fn read(
    mut lines: impl BufRead,
    protocol: Transport,
    state: &str,
    sockets: &mut BTreeSet<Socket>,
) -> io::Result<()> {
    let mut line = String::new();
    let mut is_header = true;
    while {
        line.clear();
        lines.read_line(&mut line)? != 0
    } {
        if std::mem::replace(&mut is_header, false) {
            continue;
        }
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, _peer, found) = (words.next(), words.next(), words.next());
        if found != Some(state) {
            // Of the other sockets a busy node has many thousands.
            if protocol == Transport::Tcp {
                return Ok(());
            }
            continue;
        }
        let inode = words.nth(5).and_then(|word| word.parse().ok()).unwrap_or_default();
        sockets.extend(local.and_then(address).map(|local| Socket { protocol, local, inode }));
    }
    Ok(())
}

/// `0100007F:1F90`: each four bytes of the address as a number of this machine, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if ip.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut octets = [0_u8; 16];
        for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
            chunk.copy_from_slice(&word(at)?);
        }
        Ipv6Addr::from(octets).to_canonical()
    };
    Some(SocketAddr::new(ip, port))
}

/// The ports of these sockets, neighbours joined. A socket on an address that nobody outside can reach takes nothing.
fn ports<'a>(sockets: impl Iterator<Item = &'a Socket>) -> Vec<PortInUse> {
    let mut taken: BTreeMap<(Transport, u16), BTreeSet<IpAddr>> = BTreeMap::new();
    for Socket { protocol, local, inode: _ } in sockets {
        if local.port() != 0 && (local.ip().is_unspecified() || ExternalAddress::new(local.ip()).is_ok()) {
            taken.entry((*protocol, local.port())).or_default().insert(local.ip());
        }
    }
    let mut found: Vec<PortInUse> = Vec::new();
    for ((protocol, port), addresses) in taken {
        let addresses = shown(addresses);
        match found.last_mut() {
            Some(last)
                if last.protocol == protocol
                    && last.last.checked_add(1) == Some(port)
                    && last.addresses == addresses =>
            {
                last.last = port;
            }
            _ => found.push(PortInUse { protocol, first: port, last: port, addresses, by: PortUser::Socket }),
        }
    }
    found.truncate(MOST);
    found
}

/// Addresses as a NatNode has them: none for every address, which `::` stands for unless a program says otherwise, and
/// `0.0.0.0` for every IPv4 address.
fn shown(addresses: BTreeSet<IpAddr>) -> Vec<String> {
    if addresses.contains(&IpAddr::V6(Ipv6Addr::UNSPECIFIED)) {
        return Vec::new();
    }
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let is_any = addresses.contains(&any);
    let kept = addresses.into_iter().filter(|address| !is_any || *address == any || address.is_ipv6());
    kept.take(64).map(|address| address.to_string()).collect()
}

fn ephemeral() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string(EPHEMERAL).unwrap_or_default();
    let mut words = text.split_ascii_whitespace().filter_map(|word| word.parse().ok());
    words.next().zip(words.next()).map_or(USUAL_EPHEMERAL, |(first, last)| first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0 0 10 0
   1: 0100007F:1F95 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1 0 100 0 0 10 0
   2: 077100CB:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 103 1 0 100 0 0 10 0
   3: 00000000:0017 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 104 1 0 100 0 0 10 0
   4: 00000000:9C40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 105 1 0 100 0 0 10 0
   5: 077100CB:0016 0A7100CB:C350 01 00000000:00000000 00:00000000 00000000     0        0 106 1 0 100 0 0 10 0
   6: 00000000:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 107 1 0 100 0 0 10 0
";

    const UDP: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 201 2 0 0
   1: 0000000000000000FFFF0000077100CB:C351 0000000000000000FFFF00000A7100CB:0035 01 00000000:00000000 00:00000000 00000000     0        0 202 2 0 0
   2: B80D0120000000000000000001000000:CA6C 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 203 2 0 0
";

    fn sockets(text: &str, protocol: Transport, state: &str) -> BTreeSet<Socket> {
        let mut sockets = BTreeSet::new();
        read(text.as_bytes(), protocol, state, &mut sockets).unwrap();
        sockets
    }

    fn said(ports: &[PortInUse]) -> Vec<String> {
        let said = |port: &PortInUse| {
            format!("{:?} {}-{} {}", port.protocol, port.first, port.last, port.addresses.join(","))
        };
        ports.iter().map(said).collect()
    }

    #[test]
    fn listeners_are_found_and_neither_clients_nor_what_only_the_node_itself_can_reach() {
        let mut found = sockets(TCP, Transport::Tcp, TCP_LISTEN);
        found.extend(sockets(UDP, Transport::Udp, UDP_UNCONNECTED));
        let mut listeners = Listeners::default();
        let start = Instant::now();
        let at_first = said(&listeners.take(&found, &USUAL_EPHEMERAL, start));
        assert_eq!(at_first, ["Tcp 22-23 0.0.0.0", "Tcp 80-80 203.0.113.7", "Udp 53-53 "]);

        let later = said(&listeners.take(&found, &USUAL_EPHEMERAL, start + LASTING));
        assert_eq!(
            later,
            [
                "Tcp 22-23 0.0.0.0",
                "Tcp 80-80 203.0.113.7",
                "Tcp 40000-40000 0.0.0.0",
                "Udp 53-53 ",
                "Udp 51820-51820 2001:db8::1",
            ],
            "what lasts on an ephemeral port is a server"
        );
    }

    #[test]
    fn a_socket_that_takes_the_place_of_another_on_an_ephemeral_port_has_not_lasted() {
        let at = |inode| {
            let local = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 40000);
            BTreeSet::from([Socket { protocol: Transport::Udp, local, inode }])
        };
        let mut listeners = Listeners::default();
        let start = Instant::now();
        for second in 0_u32..300 {
            let now = start + Duration::from_secs(1) * second;
            let found = listeners.take(&at(u64::from(second) / 30), &USUAL_EPHEMERAL, now);
            assert!(found.is_empty(), "{found:?} at {second}");
        }
    }

    #[test]
    fn a_real_listener_of_this_machine_is_found() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut listeners = Listeners::default();
        let start = Instant::now();
        listeners.look(start).unwrap();
        let found = listeners.look(start + LASTING).unwrap();
        let is_it =
            |use_: &&PortInUse| use_.protocol == Transport::Tcp && (use_.first..=use_.last).contains(&port);
        assert!(found.iter().any(|found| is_it(&found)), "{port} is not in {:?}", said(&found));
    }
}
