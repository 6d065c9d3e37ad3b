//! A pool: which addresses and ports may be claimed, and by whom.
//!
//! Read once from its `NatPool`; one that cannot be read grants nothing and says why.

pub mod addresses;
pub mod usage;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;

use crate::allocation::claim::Claim;
use crate::allocation::pool::addresses::Addresses;
use crate::api::crd::nat_pool::AdvertisedAddress;
use crate::api::crd::nat_pool::ClaimMode;
use crate::api::crd::nat_pool::NamespaceGrant;
use crate::api::crd::nat_pool::NatPoolSpec;
use crate::api::crd::nat_pool::PoolPorts;
use crate::api::crd::nat_pool::ServiceAccountGrant;
use crate::api::crd::port_claim::ClaimState;
use crate::api::crd::shared::LabelSelector;
use crate::api::crd::shared::Retention;
use crate::model::address::ExternalAddress;
use crate::model::mapping::Address;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// The smallest and the largest static band that is chosen by itself.
const STATIC_BAND: (u32, u32) = (16, 128);

/// The most addresses that a message names of one pool.
const SHOWN_ADDRESSES: usize = 3;

/// A pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// How long a released port is kept from other holders.
    pub cooldown: SignedDuration,
    /// When fixed ports are given back.
    pub retention: Retention,
    /// Which of several pools is asked first: the highest.
    pub priority: i32,
    /// How many ports a namespace may hold.
    pub ports_per_namespace: Option<u32>,
    /// The nodes that carry its addresses; `None` for every node.
    pub nodes: Option<LabelSelector>,
    /// Whether it grants nothing any more and waits for its claims to end.
    pub is_deleting: bool,
    /// Whether pods with the same port of their node's own address are kept on different nodes, even if they do not ask for it.
    pub spreads: bool,
    has_node_addresses: bool,
    networks: Vec<IpNet>,
    addresses: Addresses,
    advertised: BTreeMap<ExternalAddress, ExternalAddress>,
    bands: Vec<Bands>,
    protocols: Vec<Protocol>,
    reserved: Vec<Reserved>,
    modes: Vec<ClaimMode>,
    namespaces: NamespaceGrant,
    service_accounts: Vec<ServiceAccountGrant>,
}

/// A range of ports in two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    /// What is handed out only on request, until the rest is taken; `None` when there is no such part.
    pub fixed: Option<PortRange>,
    /// What is searched for a free port first.
    pub dynamic: Option<PortRange>,
}

impl Bands {
    fn range(self) -> Option<PortRange> {
        let first = self.fixed.or(self.dynamic)?.first();
        PortRange::new(first, self.dynamic.or(self.fixed)?.last())
    }
}

/// Ports of a pool that nobody may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The ports.
    pub range: PortRange,
    /// The protocol, or `None` for every protocol.
    pub protocol: Option<Protocol>,
    /// What they are kept for; empty when nobody said.
    pub reason: String,
}

/// Who asks for a port.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The namespace's labels, if it is known.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// The pod's ServiceAccount.
    pub service_account: &'a str,
}

/// How long released ports are kept from other holders: each pool says so for its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cooldowns {
    default: SignedDuration,
    by_pool: BTreeMap<String, SignedDuration>,
}

impl From<SignedDuration> for Cooldowns {
    fn from(default: SignedDuration) -> Self {
        Self { default, by_pool: BTreeMap::new() }
    }
}

impl Cooldowns {
    /// What these pools say, and `default` for claims of none of them.
    pub fn new(default: SignedDuration, pools: &[Pool]) -> Self {
        Self { default, by_pool: pools.iter().map(|pool| (pool.name.clone(), pool.cooldown)).collect() }
    }

    /// Whether a claim has cooled down, so that its ports are anybody's.
    pub fn are_over_for(&self, claim: &Claim, now: Timestamp) -> bool {
        let end = claim.since.checked_add(self.of(claim)).unwrap_or(Timestamp::MAX);
        claim.state == ClaimState::Cooldown && end <= now
    }

    /// How long the port of a claim is kept from others.
    pub fn of(&self, claim: &Claim) -> SignedDuration {
        claim.pool.as_ref().and_then(|pool| self.by_pool.get(pool)).copied().unwrap_or(self.default)
    }
}

/// Why a `NatPool` grants nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("spec.{field}: {value:?} {problem}")]
pub struct PoolError {
    /// The field.
    pub field: String,
    /// What it says.
    pub value: String,
    /// What is wrong with that, and what to write.
    pub problem: String,
}

impl Pool {
    /// Reads a pool.
    pub fn read(name: &str, spec: &NatPoolSpec) -> Result<Self, PoolError> {
        if spec.node_addresses && spec.nodes.is_some() {
            return Err(PoolError {
                field: "nodes".to_owned(),
                value: "a selector".to_owned(),
                problem: "cannot be kept together with nodeAddresses: on which node a pod will run is not known when it asks; \
                          leave one of them out"
                    .to_owned(),
            });
        }
        let networks = spec.addresses.iter().enumerate();
        let networks = networks.map(|(index, text)| network(index, text)).collect::<Result<Vec<_>, _>>()?;
        let bands = spec.ports.iter().enumerate().map(|(index, ports)| bands(index, ports));
        let reserved = spec.reserved_ports.iter().enumerate().map(|(index, ports)| {
            let range =
                range(&format!("reservedPorts[{index}]"), ports.first, ports.last.unwrap_or(ports.first))?;
            let reason = ports.reason.clone().unwrap_or_default();
            Ok(Reserved { range, protocol: ports.protocol.map(Into::into), reason })
        });
        let pool = Self {
            name: name.to_owned(),
            cooldown: SignedDuration::from_secs(spec.cooldown_seconds.into()),
            retention: spec.retention.clone().unwrap_or_default(),
            priority: spec.priority,
            nodes: spec.nodes.as_ref().map(|nodes| nodes.selector.clone()),
            is_deleting: false,
            spreads: spec.spread,
            has_node_addresses: spec.node_addresses,
            ports_per_namespace: spec.quota.as_ref().and_then(|quota| quota.ports_per_namespace),
            addresses: Addresses::of(&networks),
            networks,
            advertised: BTreeMap::new(),
            bands: bands.collect::<Result<_, _>>()?,
            protocols: spec.protocols.iter().copied().map(Into::into).collect(),
            reserved: reserved.collect::<Result<_, _>>()?,
            modes: spec.modes.clone(),
            namespaces: spec.namespaces.clone(),
            service_accounts: spec.service_accounts.clone(),
        };
        let translated = spec.advertised_addresses.iter().enumerate();
        let advertised =
            translated.map(|(index, each)| pool.translated(index, each)).collect::<Result<_, _>>()?;
        Ok(Self { advertised, ..pool })
    }

    /// An address of the pool, and what the outside connects to instead.
    fn translated(
        &self,
        index: usize,
        each: &AdvertisedAddress,
    ) -> Result<(ExternalAddress, ExternalAddress), PoolError> {
        let wrong = |field: &str, value: &str, problem: String| PoolError {
            field: format!("advertisedAddresses[{index}].{field}"),
            value: value.to_owned(),
            problem,
        };
        let read = |field: &str, text: &str| {
            let ip = text.parse::<IpAddr>().map_err(|_| wrong(field, text, "is no IP address".to_owned()))?;
            ExternalAddress::new(ip).map_err(|error| wrong(field, text, error.to_string()))
        };
        let (address, advertised) = (read("address", &each.address)?, read("advertised", &each.advertised)?);
        // Nobody knows here which addresses the nodes have.
        if !self.has(Address::Fixed(address)) && !self.has_node_addresses {
            return Err(wrong(
                "address",
                &each.address,
                "is no address of the pool; name one of spec.addresses".to_owned(),
            ));
        }
        if address.ip().is_ipv4() != advertised.ip().is_ipv4() {
            let problem = format!("is not of the same IP family as {address}");
            return Err(wrong("advertised", &each.advertised, problem));
        }
        Ok((address, advertised))
    }

    /// The same pool on its way out, or not.
    pub fn deleting(self, is_deleting: bool) -> Self {
        Self { is_deleting, ..self }
    }

    /// Whether an address is of the pool.
    pub fn has(&self, address: Address) -> bool {
        match address {
            Address::Node => self.has_node_addresses,
            Address::Fixed(address) => self
                .networks
                .iter()
                .any(|network| network.contains(&address.ip()) && is_usable(network, address.ip())),
        }
    }

    /// What the outside connects to instead of an address of the pool, where that is another.
    pub fn advertised(&self, address: ExternalAddress) -> Option<ExternalAddress> {
        self.advertised.get(&address).copied()
    }

    /// Whether it has addresses beside nodes' own.
    pub fn has_addresses(&self) -> bool {
        !self.networks.is_empty()
    }

    /// Whether ports of a protocol can be claimed.
    pub fn has_protocol(&self, protocol: Protocol) -> bool {
        self.protocols.contains(&protocol)
    }

    /// The pool's addresses, each once.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Whether whoever asks may have anything of the pool.
    pub fn admits(&self, asker: Asker<'_>) -> bool {
        let NamespaceGrant { all, names, selector } = &self.namespaces;
        let selects = |labels| selector.as_ref().is_some_and(|selector| selector.selects(labels));
        let is_namespace_admitted =
            *all || names.iter().any(|name| name == asker.namespace) || asker.labels.is_some_and(selects);
        let is_account_admitted = self.service_accounts.is_empty()
            || self
                .service_accounts
                .iter()
                .any(|account| account.namespace == asker.namespace && account.name == asker.service_account);
        is_namespace_admitted && is_account_admitted
    }

    /// Whether ports may be chosen like this.
    pub fn allows(&self, mode: ClaimMode) -> bool {
        self.modes.contains(&mode)
    }

    /// Whether all of these ports are of the pool, in one of its ranges.
    pub fn covers(&self, protocol: Protocol, ports: PortRange) -> bool {
        let is_inside = |range: PortRange| range.first() <= ports.first() && ports.last() <= range.last();
        self.protocols.contains(&protocol)
            && self.bands.iter().filter_map(|bands| bands.range()).any(is_inside)
    }

    /// What of these ports nobody may have, if there is such a part.
    pub fn reserved(&self, protocol: Protocol, ports: PortRange) -> Option<(&Reserved, PortRange)> {
        let reserved =
            self.reserved.iter().filter(|reserved| reserved.protocol.is_none_or(|only| only == protocol));
        let mut shared =
            reserved.filter_map(|reserved| Some((reserved, reserved.range.intersection(ports)?)));
        shared.next()
    }

    /// Whether some of these ports are kept for the NodePorts of Services, on addresses of nodes: those of `node_ports`, unless a
    /// range of the pool's that lies inside of it has them. Whoever writes such a range means it.
    pub fn keeps_for_node_ports(&self, node_ports: PortRange, ports: PortRange) -> bool {
        let is_inside = |outer: PortRange, inner: PortRange| outer.intersection(inner) == Some(inner);
        let opens = |shared| move |range| is_inside(node_ports, range) && is_inside(range, shared);
        let mut ranges = self.bands.iter().filter_map(|bands| bands.range());
        node_ports.intersection(ports).is_some_and(|shared| !ranges.any(opens(shared)))
    }

    /// The pool's ranges.
    pub fn bands(&self) -> &[Bands] {
        &self.bands
    }

    /// What a reader is told of the pool: `edge (203.0.113.7: 1024-32767)`.
    pub fn shown(&self) -> String {
        let node = self.has_node_addresses.then(|| "each node's own address".to_owned());
        let mut addresses: Vec<_> = node.into_iter().chain(self.networks.iter().map(shown_network)).collect();
        let more = addresses.len().saturating_sub(SHOWN_ADDRESSES);
        addresses.truncate(SHOWN_ADDRESSES);
        if 0 < more {
            addresses.push(format!("{more} more"));
        }
        format!("{} ({}: {})", self.name, addresses.join(", "), self.shown_ports())
    }

    /// The ranges as a reader wants to see them: `1024-32767, 40000`, `25-1000/tcp`.
    pub fn shown_ports(&self) -> String {
        let names: Vec<_> = self.protocols.iter().map(|protocol| protocol.name()).collect();
        let is_any = Protocol::ALL.iter().all(|protocol| self.protocols.contains(protocol));
        let suffix = if is_any { String::new() } else { format!("/{}", names.join("+")) };
        let ranges = self.bands.iter().filter_map(|bands| bands.range());
        ranges.map(|range| format!("{range}{suffix}")).collect::<Vec<_>>().join(", ")
    }
}

fn shown_network(network: &IpNet) -> String {
    let is_single = network.prefix_len() == network.max_prefix_len();
    if is_single { network.addr().to_string() } else { network.to_string() }
}

/// Of an IPv4 network the first and the last address name the network itself.
fn is_usable(network: &IpNet, address: IpAddr) -> bool {
    match network {
        IpNet::V4(v4) => {
            31 <= v4.prefix_len()
                || (address != IpAddr::V4(v4.network()) && address != IpAddr::V4(v4.broadcast()))
        }
        IpNet::V6(_) => true,
    }
}

fn network(index: usize, text: &str) -> Result<IpNet, PoolError> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let wrong = |problem: &str| PoolError {
        field: format!("addresses[{index}]"),
        value: text.to_owned(),
        problem: problem.to_owned(),
    };
    let network: IpNet =
        text.parse().ok().or_else(address).ok_or_else(|| {
            wrong("is neither an address nor a network; write 203.0.113.7 or 203.0.113.0/28")
        })?;
    if network.trunc() != network {
        return Err(wrong(&format!("has bits beyond its prefix; write {}", network.trunc())));
    }
    match ExternalAddress::new(network.addr()) {
        Err(error) if network.prefix_len() == network.max_prefix_len() => Err(wrong(&error.to_string())),
        _ => Ok(network),
    }
}

fn range(field: &str, first: u16, last: u16) -> Result<PortRange, PoolError> {
    let range = Port::new(first).zip(Port::new(last)).and_then(|(first, last)| PortRange::new(first, last));
    range.ok_or_else(|| PoolError {
        field: field.to_owned(),
        value: format!("{first}-{last}"),
        problem: "is no range of ports; write first and last from 1 to 65535, the lower one first".to_owned(),
    })
}

fn bands(index: usize, ports: &PoolPorts) -> Result<Bands, PoolError> {
    let range = range(&format!("ports[{index}]"), ports.first, ports.last)?;
    let (least, most) = STATIC_BAND;
    let chosen = (range.count() / 32).clamp(least, most);
    let size = ports.static_band.map_or(chosen, u32::from).min(range.count());
    // The first port above the static band, where there is one.
    let Some(above) = u16::try_from(size).ok().and_then(|size| range.first().checked_add(size)) else {
        return Ok(Bands { fixed: Some(range), dynamic: None });
    };
    let fixed = Port::new(above.get() - 1).and_then(|last| PortRange::new(range.first(), last));
    Ok(Bands { fixed, dynamic: PortRange::new(above, range.last()) })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::model::address::Family;

    fn pool(spec: Value) -> Result<Pool, PoolError> {
        Pool::read("edge", &serde_json::from_value(spec).unwrap())
    }

    fn address(text: &str) -> ExternalAddress {
        ExternalAddress::new(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_pool_has_its_addresses_and_not_the_ends_of_an_ipv4_network() {
        let pool = pool(json!({"addresses": ["203.0.113.0/29", "198.51.100.7", "2001:db8::/126"]})).unwrap();
        let of = |family| pool.addresses().from(family, 0).flatten();
        let all: Vec<_> = of(Family::V4).chain(of(Family::V6)).collect();
        assert_eq!(all.len(), 6 + 1 + 4);
        for (text, expected) in [
            ("203.0.113.0", false),
            ("203.0.113.1", true),
            ("203.0.113.7", false),
            ("203.0.113.8", false),
            ("198.51.100.7", true),
            ("2001:db8::3", true),
            ("2001:db8::4", false),
        ] {
            assert_eq!(pool.has(Address::Fixed(address(text))), expected, "{text}");
        }
        assert!(all.iter().all(|address| pool.has(Address::Fixed(*address))));
        assert!(!pool.has(Address::Node), "a node's own address is opened by nodeAddresses alone");
    }

    #[test]
    fn the_static_band_is_a_32nd_of_a_range_within_limits() {
        let shown = |ports: Value| {
            let pool = pool(json!({"addresses": ["203.0.113.7"], "ports": [ports]})).unwrap();
            let Bands { fixed, dynamic } = pool.bands()[0];
            let text =
                |range: Option<PortRange>| range.map_or_else(|| "-".to_owned(), |range| range.to_string());
            (text(fixed), text(dynamic))
        };
        let cases = [
            (json!({"first": 1024, "last": 65535}), "1024-1151", "1152-65535"),
            (json!({"first": 30000, "last": 32767}), "30000-30085", "30086-32767"),
            (json!({"first": 100, "last": 131}), "100-115", "116-131"),
            (json!({"first": 100, "last": 107}), "100-107", "-"),
            (json!({"first": 100, "last": 131, "staticBand": 0}), "-", "100-131"),
            (json!({"first": 1, "last": 65535, "staticBand": 65535}), "1-65535", "-"),
        ];
        for (ports, fixed, dynamic) in cases {
            assert_eq!(shown(ports.clone()), (fixed.to_owned(), dynamic.to_owned()), "{ports}");
        }
    }

    #[test]
    fn nobody_is_admitted_who_is_not_named_or_selected() {
        let labels = BTreeMap::from([("nat".to_owned(), "allowed".to_owned())]);
        let admits = |spec: Value, labels: Option<&BTreeMap<String, String>>| {
            let mut whole = json!({"addresses": ["203.0.113.7"]});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            pool(whole).unwrap().admits(Asker { namespace: "mail", labels, service_account: "postfix" })
        };
        let selector = json!({"namespaces": {"selector": {"matchLabels": {"nat": "allowed"}}}});
        let account = |name: &str| json!({"namespaces": {"all": true}, "serviceAccounts": [{"namespace": "mail", "name": name}]});
        assert!(!admits(json!({}), None));
        assert!(admits(json!({"namespaces": {"all": true}}), None));
        assert!(admits(json!({"namespaces": {"names": ["mail"]}}), None));
        assert!(!admits(json!({"namespaces": {"names": ["mails"]}}), None));
        assert!(admits(selector.clone(), Some(&labels)));
        assert!(!admits(selector, None), "a namespace that is not known yet is not admitted");
        assert!(admits(account("postfix"), None));
        assert!(!admits(account("exim"), None));
    }

    fn translated(address: &str, advertised: &str) -> Value {
        json!({
            "addresses": ["203.0.113.7"],
            "advertisedAddresses": [{"address": address, "advertised": advertised}],
        })
    }

    #[test]
    fn an_address_is_advertised_as_what_a_router_translates_it_from() {
        let one = pool(translated("203.0.113.7", "198.51.100.7")).unwrap();
        assert_eq!(one.advertised(address("203.0.113.7")), Some(address("198.51.100.7")));
        assert_eq!(one.advertised(address("203.0.113.8")), None);
        let mut of_nodes = translated("10.0.0.5", "198.51.100.7");
        of_nodes["addresses"] = json!([]);
        of_nodes["nodeAddresses"] = json!(true);
        let of_nodes = pool(of_nodes).unwrap();
        assert_eq!(
            of_nodes.advertised(address("10.0.0.5")),
            Some(address("198.51.100.7")),
            "a node may have it"
        );
    }

    #[test]
    fn a_pool_that_cannot_be_read_says_which_field_and_what_to_write() {
        let cases = [
            (json!({"addresses": ["203.0.113"]}), "spec.addresses[0]: \"203.0.113\" is neither an address"),
            (json!({"addresses": ["203.0.113.9/28"]}), "write 203.0.113.0/28"),
            (json!({"addresses": ["127.0.0.1"]}), "is a loopback address"),
            (
                json!({"addresses": [], "nodeAddresses": true, "nodes": {"selector": {}}}),
                "spec.nodes: \"a selector\" cannot be kept together with nodeAddresses",
            ),
            (
                json!({"addresses": [], "ports": [{"first": 9, "last": 8}]}),
                "spec.ports[0]: \"9-8\" is no range",
            ),
            (
                translated("203.0.113.8", "198.51.100.7"),
                "spec.advertisedAddresses[0].address: \"203.0.113.8\" is no address of the pool",
            ),
            (
                translated("203.0.113.7", "2001:db8::7"),
                "spec.advertisedAddresses[0].advertised: \"2001:db8::7\" is not of the same IP family as 203.0.113.7",
            ),
            (translated("203.0.113.7", "127.0.0.1"), "advertised: \"127.0.0.1\" is a loopback address"),
        ];
        for (spec, expected) in cases {
            let error = pool(spec).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
