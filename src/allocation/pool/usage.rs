//! How full a pool is: its size, and what of it is claimed.
//!
//! A port is one number of one protocol on one address. Ports of nodes' own addresses are not counted: how many there are
//! depends on the nodes.

use std::collections::BTreeSet;

use crate::allocation::claim::Claim;
use crate::allocation::grant::Named;
use crate::allocation::pool::Pool;
use crate::api::crd::nat_pool::PoolUsage;
use crate::api::crd::port_claim::ClaimState;
use crate::model::address::ExternalAddress;
use crate::model::address::Family;
use crate::model::mapping::Address;
use crate::model::port::Port;
use crate::model::port::PortRange;

/// Which ports are kept for the NodePorts of Services, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePorts {
    /// The range of all NodePorts, if one is kept.
    pub range: Option<PortRange>,
    /// The addresses at which they are answered.
    pub addresses: BTreeSet<ExternalAddress>,
}

/// How full a pool is with these claims, all of which are its.
pub fn usage<'a>(
    pool: &Pool,
    node_ports: &NodePorts,
    claims: impl IntoIterator<Item = &'a Claim>,
) -> PoolUsage {
    let addresses = addresses(pool);
    let is_of_pool = |address: &&ExternalAddress| pool.has(Address::Fixed(**address));
    let of_nodes = node_ports.addresses.iter().filter(is_of_pool).count();
    let of_nodes = u64::try_from(of_nodes).unwrap_or(u64::MAX).min(addresses);
    let (open, kept) = ports(pool, None);
    let (open_on_nodes, kept_on_nodes) = if of_nodes == 0 { (0, 0) } else { ports(pool, node_ports.range) };
    let total = |elsewhere: u64, on_nodes: u64| {
        (addresses - of_nodes).saturating_mul(elsewhere).saturating_add(of_nodes.saturating_mul(on_nodes))
    };
    let capacity = total(open, open_on_nodes);
    let mut usage =
        PoolUsage { addresses, capacity, reserved: total(kept, kept_on_nodes), ..PoolUsage::default() };
    for claim in claims {
        let count = u64::from(claim.key.count());
        if !is_covered(pool, node_ports, claim) {
            usage.out_of_range += count;
            continue;
        }
        usage.used += count;
        if matches!(claim.state, ClaimState::Releasing | ClaimState::Cooldown) {
            usage.cooling += count;
        }
    }
    usage.free = capacity.saturating_sub(usage.used);
    usage
}

/// Whether the pool, as it is now, has what a claim is for and keeps it for nobody else.
pub fn is_covered(pool: &Pool, node_ports: &NodePorts, claim: &Claim) -> bool {
    let is_kept = |ports| {
        let range = node_ports.range.filter(|_| node_ports.addresses.contains(&claim.key.address()));
        range.is_some_and(|range| pool.keeps_for_node_ports(range, ports))
    };
    Named::of(claim).is_some_and(|Named { address, protocol, ports, .. }| {
        pool.has(address)
            && pool.covers(protocol, ports)
            && pool.reserved(protocol, ports).is_none()
            && !is_kept(ports)
    })
}

/// How many addresses there are, each once.
fn addresses(pool: &Pool) -> u64 {
    let count = |family| u64::try_from(pool.addresses().count(family)).unwrap_or(u64::MAX);
    count(Family::V4).saturating_add(count(Family::V6))
}

/// How many ports of all protocols an address has that can be claimed, and how many that are reserved, among them those of
/// `node_ports`.
fn ports(pool: &Pool, node_ports: Option<PortRange>) -> (u64, u64) {
    let ranges = pool.bands.iter().filter_map(|bands| bands.range());
    let numbers: BTreeSet<Port> = ranges.flat_map(|range| range.ports().collect::<Vec<_>>()).collect();
    let is_kept = |port: &Port| {
        node_ports.is_some_and(|range| pool.keeps_for_node_ports(range, PortRange::single(*port)))
    };
    let kept_for_node_ports: BTreeSet<Port> = numbers.iter().copied().filter(is_kept).collect();
    let (mut open, mut kept) = (0, 0);
    for protocol in &pool.protocols {
        let reserved =
            pool.reserved.iter().filter(|reserved| reserved.protocol.is_none_or(|only| only == *protocol));
        let reserved = reserved.flat_map(|reserved| reserved.range.ports().collect::<Vec<_>>());
        let reserved: BTreeSet<Port> = reserved.chain(kept_for_node_ports.iter().copied()).collect();
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let shared = count(numbers.intersection(&reserved).count());
        kept += shared;
        open += count(numbers.len()) - shared;
    }
    (open, kept)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::model::holder::Holder;
    use crate::model::holder::ObjectName;

    fn pool(spec: Value) -> Pool {
        Pool::read("edge", &serde_json::from_value(spec).unwrap()).unwrap()
    }

    fn claim(name: &str, state: ClaimState) -> Claim {
        let holder = Holder::new("Pod", ObjectName::new("mail", "mx"));
        Claim { state, ..Claim::reserve(name.parse().unwrap(), holder, Timestamp::UNIX_EPOCH) }
    }

    #[test]
    fn the_size_of_a_pool_is_each_port_of_each_address_once() {
        let cases = [
            (json!({"addresses": ["203.0.113.7"]}), (1, 64512 * 3, 0)),
            (
                json!({"addresses": ["203.0.113.0/29", "203.0.113.7"], "protocols": ["TCP"]}),
                (6, 64512 * 6, 0),
            ),
            (json!({"addresses": ["203.0.113.8/31"], "protocols": ["TCP"]}), (2, 64512 * 2, 0)),
            (
                json!({"addresses": ["203.0.113.7"], "protocols": ["TCP", "UDP"],
                    "ports": [{"first": 10, "last": 29}, {"first": 20, "last": 39}],
                    "reservedPorts": [{"first": 15, "protocol": "TCP"}, {"first": 38, "last": 45}]}),
                (1, 60 - 5, 5),
            ),
            (json!({"addresses": ["2001:db8::/64"], "protocols": ["TCP"]}), (u64::MAX, u64::MAX, 0)),
            (json!({"nodeAddresses": true}), (0, 0, 0)),
        ];
        for (spec, expected) in cases {
            let PoolUsage { addresses, capacity, reserved, free, .. } =
                usage(&pool(spec.clone()), &NodePorts::default(), []);
            assert_eq!((addresses, capacity, reserved), expected, "{spec}");
            assert_eq!(free, capacity);
        }
    }

    #[test]
    fn claims_are_counted_by_their_ports_and_those_that_the_pool_no_longer_has_apart() {
        let pool = pool(json!({"addresses": ["203.0.113.7"], "protocols": ["TCP"],
            "ports": [{"first": 100, "last": 199}], "reservedPorts": [{"first": 150}]}));
        let claims = [
            claim("v4-203-0-113-7-tcp-100", ClaimState::Bound),
            claim("v4-203-0-113-7-tcp-112-127", ClaimState::Cooldown),
            claim("v4-203-0-113-7-tcp-200", ClaimState::Bound),
            claim("v4-203-0-113-7-udp-101", ClaimState::Bound),
            claim("v4-203-0-113-7-tcp-150", ClaimState::Bound),
            claim("v4-203-0-113-8-tcp-100", ClaimState::Bound),
        ];
        let PoolUsage { capacity, used, free, reserved, cooling, out_of_range, .. } =
            usage(&pool, &NodePorts::default(), &claims);
        assert_eq!((capacity, used, free, reserved), (99, 17, 82, 1));
        assert_eq!((cooling, out_of_range), (16, 4));
    }

    #[test]
    fn the_node_port_range_is_reserved_on_the_addresses_of_nodes_but_for_what_a_range_inside_opens() {
        let pool = pool(json!({"addresses": ["203.0.113.7", "203.0.113.8"], "protocols": ["TCP"],
            "ports": [{"first": 29990, "last": 30019}, {"first": 30015, "last": 30024}],
            "reservedPorts": [{"first": 30000}]}));
        let addresses =
            ["203.0.113.7", "203.0.113.99"].map(|text| ExternalAddress::new(text.parse().unwrap()).unwrap());
        let node_ports = NodePorts { range: "30000-32767".parse().ok(), addresses: addresses.into() };
        let claims = [
            claim("v4-203-0-113-7-tcp-29990", ClaimState::Bound),
            claim("v4-203-0-113-7-tcp-30001", ClaimState::Bound),
            claim("v4-203-0-113-7-tcp-30015", ClaimState::Bound),
            claim("v4-203-0-113-8-tcp-30001", ClaimState::Bound),
        ];
        let PoolUsage { capacity, used, free, reserved, out_of_range, .. } =
            usage(&pool, &node_ports, &claims);
        // Of 35 ports 30000 is reserved on both addresses, and 30001-30014 on that of the node.
        assert_eq!((capacity, reserved), (34 + 20, 1 + 15));
        assert_eq!((used, free, out_of_range), (3, 51, 1));
    }
}
