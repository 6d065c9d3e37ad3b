//! Packets that belong to no connection any more, as conntrack sees it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use pinhole::dataplane::settings::ReturnPath;
use pinhole::ruleset::endpoint::Leaving;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketType;
use rustix::net::ipproto;

use crate::kernel::gateway::Beyond;
use crate::kernel::gateway::FAR;
use crate::kernel::lab::A;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::lab::leaving;
use crate::kernel::namespace::Namespace;
use crate::kernel::with_every_backend;

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// A socket that TCP packets are sent by as they are, and that gets a copy of all that arrive.
fn raw(namespace: &Namespace) -> OwnedFd {
    let socket = || rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::TCP));
    namespace.run(socket).unwrap()
}

/// What a segment says of its place in the connection.
#[derive(Clone, Copy)]
struct Place {
    sequence: u32,
    acknowledged: u32,
}

/// A segment from far beyond what the other side lets the connection send: what lies before that, conntrack takes for a
/// repetition.
fn stray(source: SocketAddrV4, destination: SocketAddrV4, last: Place) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend(last.sequence.wrapping_add(1 << 30).to_be_bytes());
    segment.extend(last.acknowledged.to_be_bytes());
    segment.extend([0x50, 0x10, 0x20, 0, 0, 0, 0, 0]); // length, ACK, window, checksum, urgent
    let pseudo = [source.ip().octets(), destination.ip().octets(), [0, 6, 0, 20]].concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while 0xffff < sum {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// Who sent what arrived for a port, in order.
fn arrivals(socket: &OwnedFd, port: u16) -> Vec<(Ipv4Addr, Place)> {
    let mut arrivals = Vec::new();
    let mut packet = [0; 2048];
    while let Ok((length, _)) = rustix::net::recv(socket, &mut packet[..], RecvFlags::DONTWAIT) {
        let header = usize::from(packet[0] & 0xf) * 4;
        if packet[..length][header + 2..header + 4] == port.to_be_bytes() {
            let number =
                |at: usize| u32::from_be_bytes(packet[header + at..header + at + 4].try_into().unwrap());
            let place = Place { sequence: number(4), acknowledged: number(8) };
            arrivals.push((Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]), place));
        }
    }
    arrivals
}

fn senders(socket: &OwnedFd, port: u16) -> BTreeSet<Ipv4Addr> {
    arrivals(socket, port).into_iter().map(|(sender, _)| sender).collect()
}

/// Lets a pod send a segment that conntrack rejects, in a connection that the client has to it.
fn reject(lab: &Lab, pod: &Namespace, address: Ipv4Addr, client: Ipv4Addr) {
    let (heard, sending) = (raw(&lab.client), raw(pod));
    let mut connection = lab.client.connect("203.0.113.7:80").unwrap();
    connection.ask().unwrap();
    let port = connection.port();
    thread::sleep(Duration::from_millis(200));
    let answers = arrivals(&heard, port);
    assert!(answers.iter().all(|(sender, _)| *sender == EXTERNAL), "{:?}", answers.len());
    let (_, last) = *answers.last().unwrap();
    let send = || {
        let packet = stray(SocketAddrV4::new(address, 80), SocketAddrV4::new(client, port), last);
        rustix::net::sendto(&sending, &packet, SendFlags::empty(), &SocketAddrV4::new(client, 0)).unwrap();
        thread::sleep(Duration::from_millis(200));
    };
    send();
    assert_eq!(senders(&heard, port), BTreeSet::new(), "it does not arrive");

    if lab.is_nftables() {
        lab.node.sh("nft flush chain ip PINHOLE c_forward");
    } else {
        lab.iptables("-F PINHOLE-FWD");
    }
    send();
    assert_eq!(senders(&heard, port), BTreeSet::from([address]), "it is our rule that holds it back");
}

fn r55_a_packet_that_conntrack_rejects_does_not_leave_with_the_pods_address(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.apply(&[endpoint("80/tcp", "a", A)]);
    reject(lab, &lab.a, Ipv4Addr::new(10, 244, 1, 9), Ipv4Addr::new(198, 51, 100, 9));
}

fn r55_nor_does_one_of_a_pod_on_another_node(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let _far = beyond.pod.serve("far", "[::]:80");
    beyond.route_back();
    lab.settings.return_path = ReturnPath::Routed;
    for leaves in [Leaving::WithItsPorts, Leaving::AsTheClusterDoes] {
        let wanted = [leaving(endpoint("80/tcp", "far", FAR), leaves)];
        lab.apply(&wanted);
        lab.read();
        assert_eq!(lab.apply(&wanted).transactions, [], "{leaves:?}: it is read as it was written");
        reject(lab, &beyond.pod, Ipv4Addr::new(10, 244, 2, 9), Ipv4Addr::new(198, 18, 0, 9));
        lab.read();
    }
}

with_every_backend!(
    r55_a_packet_that_conntrack_rejects_does_not_leave_with_the_pods_address,
    r55_nor_does_one_of_a_pod_on_another_node,
);
