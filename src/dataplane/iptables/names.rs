//! The names of our chains. Whatever has such a name is ours, and nothing else is touched.
//!
//! ```text
//! filter  P-IN  P-FWD  P-ACCEPT
//!         P-STRAY              mapped pods of other nodes, whose packets that conntrack rejects are dropped; only with some
//! mangle  P-LINK               only with links
//! nat     P-DNAT               one jump per external address and protocol
//!           P-T-CB007107       one jump per 64 ports in use (T tcp, U udp, S sctp)
//!             P-T-CB007107-001 the entries of 203.0.113.7, tcp, ports 64-127
//!           P-L-PQC7I5SILNDM5  a list of sources that several entries may share, one jump per network of its buckets
//!             P-L-PQC7I5SILNDM5-001 up to 64 of its networks
//!         P-SNAT               one jump per 64 pod addresses
//!           P-KEEP             what keeps its source whatever others have rules for
//!           P-OUT              the jumps per 64 pod addresses, where some destinations see no fixed address; only then
//!           P-E-0AF40100       the pods of 10.244.1.0/26 that leave with a fixed address
//! ```

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::dataplane::settings::Prefix;
use crate::model::address::Family;
use crate::model::digest::fnv1a;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::sources::ListId;

/// The kernel's limit.
pub const MAX_LENGTH: usize = 28;
/// Digits of an IPv6 address' digest: as many as the limit leaves.
const DIGEST_DIGITS: usize = 13;
const BUCKET_DIGITS: usize = 3;
const BUCKET_SHIFT: u32 = 6;
/// Bits of a pod address that tell pods of one egress chain apart.
const EGRESS_BITS: u8 = 6;

/// Builds and recognises names under one prefix.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a>(pub &'a Prefix);

/// Which 64 ports a port is among.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket(u16);

impl Bucket {
    /// The bucket that has all of these ports; `None` when they span several.
    pub fn of(ports: PortRange) -> Option<Self> {
        let bucket = |port: Port| port.get() >> BUCKET_SHIFT;
        (bucket(ports.first()) == bucket(ports.last())).then(|| Self(bucket(ports.first())))
    }

    /// The bucket's ports.
    pub fn ports(self) -> PortRange {
        let first = self.0 << BUCKET_SHIFT;
        let last = first | ((1 << BUCKET_SHIFT) - 1);
        let port = |port| Port::new(port).unwrap_or(Port::MIN);
        // Port 0 does not exist, so the first bucket has one port fewer.
        PortRange::new(port(first), port(last)).unwrap_or(PortRange::single(Port::MIN))
    }
}

impl Names<'_> {
    fn named(self, stem: &str) -> String {
        format!("{}-{stem}", self.0)
    }

    /// Drops what is meant for reserved ports and reached nobody, on its way to the node itself.
    pub fn input(self) -> String {
        self.named("IN")
    }

    /// The same for packets that are forwarded.
    pub fn forward(self) -> String {
        self.named("FWD")
    }

    /// Drops what mapped pods of other nodes send and conntrack rejects.
    pub fn strays(self) -> String {
        self.named("STRAY")
    }

    /// Accepts forwarded packets of our connections.
    pub fn accept(self) -> String {
        self.named("ACCEPT")
    }

    /// Remembers which link a connection came in by, and lets its replies leave by it.
    pub fn links(self) -> String {
        self.named("LINK")
    }

    /// Sends connections to pods.
    pub fn dnat(self) -> String {
        self.named("DNAT")
    }

    /// Chooses the source address of connections that leave.
    pub fn snat(self) -> String {
        self.named("SNAT")
    }

    /// Keeps the source address of connections from being rewritten by others.
    pub fn keep(self) -> String {
        self.named("KEEP")
    }

    /// Gives pods their fixed address, unless they connect to where nobody sees it.
    pub fn out(self) -> String {
        self.named("OUT")
    }

    /// The chain of a bucket below an address' chain.
    pub fn bucket(self, address_chain: &str, bucket: Bucket) -> String {
        format!("{address_chain}-{:0BUCKET_DIGITS$X}", bucket.0)
    }

    /// Where only what comes from the list's networks returns from.
    pub fn list(self, id: ListId) -> String {
        self.named(&format!("L-{id}"))
    }

    /// The chain of a part of a list.
    pub fn list_bucket(self, list_chain: &str, bucket: usize) -> String {
        format!("{list_chain}-{bucket:0BUCKET_DIGITS$X}")
    }

    /// Whether the chain is that of a whole list.
    pub fn is_list(self, chain: &str) -> bool {
        let stem = chain.strip_prefix(self.0.as_str()).and_then(|rest| rest.strip_prefix("-L-"));
        stem.is_some_and(|stem| ListId::parse(stem).is_some())
    }

    /// The chains of external addresses, one per protocol in use.
    pub fn addresses(
        self,
        served: impl Iterator<Item = (IpAddr, Protocol)>,
    ) -> BTreeMap<(IpAddr, Protocol), String> {
        let served: BTreeSet<_> = served.collect();
        let digests = digests(served.iter().map(|(address, _)| *address));
        let letter = |protocol| match protocol {
            Protocol::Tcp => 'T',
            Protocol::Udp => 'U',
            Protocol::Sctp => 'S',
        };
        let name = |(address, protocol): (IpAddr, Protocol)| {
            let digest = digests.get(&address).map_or("", String::as_str);
            ((address, protocol), self.named(&format!("{}-{digest}", letter(protocol))))
        };
        served.into_iter().map(name).collect()
    }

    /// The chains of pods that leave with a fixed address, one per small network of pod addresses.
    pub fn egress(self, pods: impl Iterator<Item = IpAddr>) -> BTreeMap<IpNet, String> {
        let nets: BTreeSet<_> = pods.map(egress_net).collect();
        let digests = digests(nets.iter().map(IpNet::addr));
        let name = |net: IpNet| {
            let digest = digests.get(&net.addr()).map_or("", String::as_str);
            (net, self.named(&format!("E-{digest}")))
        };
        nets.into_iter().map(name).collect()
    }

    /// Whether a chain is ours.
    pub fn owns(self, chain: &str) -> bool {
        let Some(stem) = chain.strip_prefix(self.0.as_str()).and_then(|rest| rest.strip_prefix('-')) else {
            return false;
        };
        let hex = |text: &str, lengths: &[usize]| {
            lengths.contains(&text.len()) && text.bytes().all(|byte| b"0123456789ABCDEF".contains(&byte))
        };
        let mut parts = stem.split('-');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (
                Some("IN" | "FWD" | "STRAY" | "ACCEPT" | "LINK" | "DNAT" | "SNAT" | "KEEP" | "OUT"),
                None,
                None,
                None,
            ) => true,
            (Some("T" | "U" | "S" | "E"), Some(address), None, None) => hex(address, &[8, DIGEST_DIGITS]),
            (Some("T" | "U" | "S"), Some(address), Some(bucket), None) => {
                hex(address, &[8, DIGEST_DIGITS]) && hex(bucket, &[BUCKET_DIGITS])
            }
            (Some("L"), Some(list), None, None) => ListId::parse(list).is_some(),
            (Some("L"), Some(list), Some(bucket), None) => {
                ListId::parse(list).is_some() && hex(bucket, &[BUCKET_DIGITS])
            }
            _ => false,
        }
    }
}

/// The prefix under which a chain is one of those that rules of others lead to.
pub(crate) fn prefix_of(chain: &str) -> Option<Prefix> {
    let (prefix, stem) = chain.rsplit_once('-')?;
    let is_ours = ["IN", "FWD", "ACCEPT", "LINK", "DNAT", "SNAT"].contains(&stem);
    prefix.parse().ok().filter(|_| is_ours)
}

/// The small network of pod addresses that share an egress chain.
pub fn egress_net(pod: IpAddr) -> IpNet {
    let bits = match Family::of(pod) {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    IpNet::new_assert(pod, bits - EGRESS_BITS).trunc()
}

/// A different text of few digits for each address: the address itself when it is short enough, else a digest.
fn digests(addresses: impl Iterator<Item = IpAddr>) -> BTreeMap<IpAddr, String> {
    let mut taken = BTreeSet::new();
    let mut digests = BTreeMap::new();
    for address in addresses.collect::<BTreeSet<_>>() {
        let digest = match address {
            IpAddr::V4(v4) => format!("{:08X}", v4.to_bits()),
            IpAddr::V6(v6) => (0_u8..=u8::MAX)
                .map(|salt| {
                    let mut bytes = v6.octets().to_vec();
                    bytes.push(salt);
                    format!("{:0DIGEST_DIGITS$X}", fnv1a(&bytes) >> (64 - 4 * DIGEST_DIGITS))
                })
                .find(|digest| !taken.contains(digest))
                .unwrap_or_default(),
        };
        taken.insert(digest.clone());
        digests.insert(address, digest);
    }
    digests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    #[test]
    fn r33_the_longest_name_fits_whatever_the_prefix() {
        let prefix = "PREFIX78".parse().unwrap();
        let names = Names(&prefix);
        let address = "2001:db8::1".parse().unwrap();
        let chains = names.addresses([(address, Protocol::Sctp)].into_iter());
        let leaf = names.bucket(&chains[&(address, Protocol::Sctp)], Bucket::of(range("65535")).unwrap());
        assert_eq!(leaf.len(), MAX_LENGTH, "{leaf}");
        assert!(names.owns(&leaf));
    }

    #[test]
    fn a_bucket_has_the_64_ports_around_a_port() {
        let ports = |text: &str| Bucket::of(range(text)).unwrap().ports().to_string();
        assert_eq!(ports("1"), "1-63");
        assert_eq!(ports("80"), "64-127");
        assert_eq!(ports("65535"), "65472-65535");
        assert_eq!(ports("64-127"), "64-127");
        assert_eq!(Bucket::of(range("127-128")), None);
    }

    #[test]
    fn only_names_of_this_exact_shape_are_owned() {
        let prefix = Prefix::default();
        let names = Names(&prefix);
        for ours in [
            "PINHOLE-IN",
            "PINHOLE-T-CB007107",
            "PINHOLE-U-CB007107-001",
            "PINHOLE-E-0AF40100",
            "PINHOLE-L-PQC7I5SILNDM5",
            "PINHOLE-L-PQC7I5SILNDM5-00A",
        ] {
            assert!(names.owns(ours), "{ours}");
        }
        for ours in [
            names.input(),
            names.forward(),
            names.strays(),
            names.accept(),
            names.links(),
            names.dnat(),
            names.snat(),
            names.keep(),
            names.out(),
        ] {
            assert!(names.owns(&ours), "{ours}");
        }
        for foreign in [
            "PINHOLE",
            "PINHOLE-",
            "PINHOLE-A-IN",
            "PINHOLE-CUSTOM",
            "PINHOLE-T-CB0071",
            "PINHOLE-T-cb007107",
            "PINHOLE-L-PQC7I5SILNDM",
            "PINHOLE2-IN",
            "KUBE-SERVICES",
        ] {
            assert!(!names.owns(foreign), "{foreign}");
        }
    }

    #[test]
    fn each_address_has_its_own_chain() {
        let prefix = Prefix::default();
        let many = (0..5000_u128).map(|n| IpAddr::from(std::net::Ipv6Addr::from(n << 64)));
        let chains = Names(&prefix).addresses(many.map(|address| (address, Protocol::Tcp)));
        let names: BTreeSet<_> = chains.values().collect();
        assert_eq!(names.len(), 5000);
    }
}
