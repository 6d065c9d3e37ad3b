//! Whether somebody may claim certain ports: the pool that grants them, or why none does.
//!
//! What no pool grants cannot be claimed. A refusal names the pools that the namespace may use, because whoever reads it can
//! change the request and rarely the pool.

use std::collections::BTreeSet;
use std::fmt;

use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::key::Claimed;
use crate::allocation::pool::Asker;
use crate::allocation::pool::Pool;
use crate::api::crd::nat_pool::ClaimMode;
use crate::api::crd::port_claim::ClaimOrigin;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// Ports of one address that somebody asks for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The address.
    pub address: Address,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortRange,
    /// The NodePort range, where some of them are of it and the address is a node's.
    pub node_ports: Option<PortRange>,
}

impl From<&Mapping> for Named {
    fn from(mapping: &Mapping) -> Self {
        let (address, protocol, ports) = (mapping.address(), mapping.protocol(), mapping.external());
        Self { address, protocol, ports, node_ports: None }
    }
}

impl Named {
    /// What a claim is for; `None` for a whole address.
    pub fn of(claim: &Claim) -> Option<Self> {
        let address = match claim.origin {
            ClaimOrigin::Node => Address::Node,
            ClaimOrigin::Static | ClaimOrigin::Dynamic => Address::Fixed(claim.key.address()),
        };
        match claim.key.claimed() {
            Claimed::Whole => None,
            Claimed::Ports(protocol, block) => {
                Some(Self { address, protocol, ports: block.range(), node_ports: None })
            }
        }
    }

    /// The same, of which some are kept for NodePorts.
    pub fn within(self, node_ports: Option<PortRange>) -> Self {
        Self { node_ports, ..self }
    }
}

/// Why no pool grants what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The pool that came nearest to granting it; `None` where the address is of no pool.
    pub pool: Option<String>,
    /// What is against it.
    pub reason: Reason,
    /// The pools that the namespace may use, each with its ports.
    pub usable: Vec<String>,
}

/// What is against a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The address is of no pool.
    NoPool(Address),
    /// The pool is about to go.
    Deleting,
    /// The pool does not admit the namespace or the ServiceAccount.
    NotAdmitted,
    /// The pool's ports are found, not named.
    DynamicOnly,
    /// The ports or the protocol are not of the pool; its ports.
    OutOfRange(String),
    /// Nobody may have these ports, for this reason.
    Reserved(PortRange, String),
    /// Services get their NodePorts from this range, and the pool does not open it.
    NodePorts(PortRange),
    /// There is no pool of that name.
    NoSuchPool,
    /// The pool's ports are named, not found.
    StaticOnly,
    /// The pool has nodes' own addresses alone, of which none is chosen before the node is.
    NodeAddressesOnly,
    /// The pool has not all of the protocols; its ports.
    NoProtocol(String),
    /// No pool finds ports for whoever asks.
    NoneFinds,
    /// No address of these pools has so many ports free, where the pod may run.
    Full {
        /// Their names.
        pools: Vec<String>,
        /// How many ports are needed.
        wanted: usize,
        /// The node that the pod is bound to.
        node: Option<String>,
        /// The NodePort range, where ports of it were passed over.
        node_ports: Option<PortRange>,
    },
    /// The namespace would hold more ports than it may.
    Quota {
        /// How many it may hold.
        limit: u32,
        /// How many it holds.
        used: u32,
        /// How many it asks for.
        more: u32,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = self.pool.as_deref().unwrap_or_default();
        match &self.reason {
            Reason::NoPool(Address::Node) => {
                f.write_str("is on its node's own address, which no NatPool opens (nodeAddresses)")?;
            }
            Reason::NoPool(address) => write!(f, "is on {address}, which no NatPool has")?,
            Reason::Deleting => write!(f, "is of NatPool {pool}, which is being deleted and grants nothing")?,
            Reason::NotAdmitted => {
                write!(f, "is of NatPool {pool}, which does not admit this namespace or ServiceAccount")?;
            }
            Reason::DynamicOnly => {
                write!(f, "is of NatPool {pool}, which finds ports by itself; ask for auto")?;
            }
            Reason::OutOfRange(ports) => write!(f, "is outside NatPool {pool}, which has {ports}")?,
            Reason::Reserved(ports, reason) if reason.is_empty() => {
                write!(f, "is reserved in NatPool {pool} ({ports})")?;
            }
            Reason::Reserved(ports, reason) => {
                write!(f, "is reserved in NatPool {pool} ({ports}: {reason})")?;
            }
            Reason::NodePorts(range) => write!(
                f,
                "overlaps the NodePort range ({range}), of which a Service may get any port on every node; choose another \
                 external port, or have NatPool {pool} open it by a range of ports inside of it"
            )?,
            Reason::NoSuchPool => write!(f, "is left to NatPool {pool}, which does not exist")?,
            Reason::StaticOnly => {
                write!(f, "is left to NatPool {pool}, whose ports are asked for by number")?;
            }
            Reason::NodeAddressesOnly => write!(
                f,
                "is left to NatPool {pool}, which has only nodes' own addresses; ports are found on addresses of a pool"
            )?,
            Reason::NoProtocol(ports) => {
                write!(f, "is left to NatPool {pool}, which has {ports}")?;
            }
            Reason::NoneFinds => {
                f.write_str("is left to a pool, and no NatPool finds ports for this namespace")?;
            }
            Reason::Full { pools, wanted, node, node_ports } => {
                let (ports, has) = if *wanted == 1 { ("port", "a") } else { ("ports", "so many") };
                let outside = node_ports
                    .map_or_else(String::new, |range| format!(" outside the NodePort range ({range})"));
                let on_node = node.as_ref().map_or_else(String::new, |node| format!(" on node {node}"));
                write!(
                    f,
                    "waits for {wanted} free {ports} on one address: no address of NatPool {}{on_node} has {has} free \
                     {ports}{outside}; give ports up, or ask for a larger pool",
                    pools.join(" or "),
                )?;
            }
            Reason::Quota { limit, used, more } => write!(
                f,
                "needs {more} more of NatPool {pool}, of which this namespace holds {used} and may hold {limit} ports"
            )?,
        }
        match self.usable.as_slice() {
            [] => f.write_str("; no NatPool admits this namespace: ask whoever runs the cluster for one"),
            usable => write!(f, "; this namespace may use {}", usable.join(", ")),
        }
    }
}

/// The pool that grants ports that were asked for by name, as far as it does not depend on what others hold.
pub fn named<'p>(pools: &'p [Pool], asker: Asker<'_>, wish: Named) -> Result<&'p Pool, Refusal> {
    let candidates = ordered(pools).into_iter().filter(|pool| pool.has(wish.address));
    let mut nearest = (None, Reason::NoPool(wish.address));
    for pool in candidates {
        match against(pool, asker, wish) {
            None => return Ok(pool),
            Some(reason) if nearest.0.is_none() || rank(&nearest.1) < rank(&reason) => {
                nearest = (Some(pool.name.clone()), reason);
            }
            Some(_) => {}
        }
    }
    let (pool, reason) = nearest;
    Err(Refusal { pool, reason, usable: usable(pools, asker) })
}

/// The pools that find ports of these protocols for whoever asks, in the order in which they are asked: the named one, or all
/// that do.
pub fn finding<'p>(
    pools: &'p [Pool],
    asker: Asker<'_>,
    protocols: &BTreeSet<Protocol>,
    named: Option<&str>,
) -> Result<Vec<&'p Pool>, Refusal> {
    let against = |pool: &Pool| {
        if pool.is_deleting {
            return Some(Reason::Deleting);
        }
        if !pool.admits(asker) {
            return Some(Reason::NotAdmitted);
        }
        if !pool.allows(ClaimMode::Dynamic) {
            return Some(Reason::StaticOnly);
        }
        if !pool.has_addresses() {
            return Some(Reason::NodeAddressesOnly);
        }
        let is_missing = protocols.iter().any(|protocol| !pool.has_protocol(*protocol));
        is_missing.then(|| Reason::NoProtocol(pool.shown_ports()))
    };
    let refusal = |pool: Option<&str>, reason| {
        Err(Refusal { pool: pool.map(str::to_owned), reason, usable: usable(pools, asker) })
    };
    if let Some(name) = named {
        let Some(pool) = pools.iter().find(|pool| pool.name == name) else {
            return refusal(named, Reason::NoSuchPool);
        };
        return against(pool).map_or_else(|| Ok(vec![pool]), |reason| refusal(named, reason));
    }
    let finding: Vec<_> = ordered(pools).into_iter().filter(|pool| against(pool).is_none()).collect();
    if finding.is_empty() { refusal(None, Reason::NoneFinds) } else { Ok(finding) }
}

/// The pool that ports belong to which are held already, whoever granted them: one that would grant them, else one that has
/// them, else one that has their address.
pub fn pool_of<'p>(pools: &'p [Pool], asker: Asker<'_>, held: Named) -> Option<&'p Pool> {
    let of_address: Vec<_> = ordered(pools).into_iter().filter(|pool| pool.has(held.address)).collect();
    let having = || of_address.iter().filter(|pool| pool.covers(held.protocol, held.ports));
    let admitting = having().find(|pool| pool.admits(asker));
    admitting.or_else(|| having().next()).or_else(|| of_address.first()).copied()
}

/// What of `wishes` its holder has not been granted yet. For the rest no quota counts: one that was lowered holds up no rollout.
pub fn more(held: &[StoredClaim], wishes: &[Claim]) -> Vec<Claim> {
    let is_had = |wish: &Claim| {
        held.iter().any(|stored| stored.claim.key == wish.key && stored.claim.is_same_grant(wish))
    };
    wishes.iter().filter(|wish| !is_had(wish)).cloned().collect()
}

/// Whether a namespace would hold more of a pool than it may, with `wishes` that are new. `held` are its claims; those that are
/// also in `wishes` count once.
pub fn over_quota(
    pools: &[Pool],
    asker: Asker<'_>,
    held: &[StoredClaim],
    wishes: &[Claim],
) -> Option<Refusal> {
    // How many nodes its pods come to is nothing that a namespace asks for.
    let is_counted = |claim: &Claim| claim.origin != ClaimOrigin::Node;
    let is_of = |pool: &Pool, claim: &Claim| claim.pool.as_ref() == Some(&pool.name) && is_counted(claim);
    let is_wished = |claim: &Claim| wishes.iter().any(|wish| wish.key == claim.key);
    let count = |claims: &mut dyn Iterator<Item = &Claim>| claims.map(|claim| claim.key.count()).sum::<u32>();
    pools.iter().find_map(|pool| {
        let limit = pool.ports_per_namespace?;
        let more = count(&mut wishes.iter().filter(|wish| is_of(pool, wish)));
        let held = held.iter().map(|stored| &stored.claim);
        let used = count(&mut held.filter(|claim| is_of(pool, claim) && !is_wished(claim)));
        let is_over = 0 < more && limit < used.saturating_add(more);
        is_over.then(|| Refusal {
            pool: Some(pool.name.clone()),
            reason: Reason::Quota { limit, used, more },
            usable: usable(pools, asker),
        })
    })
}

/// Pools in the order in which they are asked.
pub fn ordered(pools: &[Pool]) -> Vec<&Pool> {
    let mut ordered: Vec<_> = pools.iter().collect();
    ordered.sort_by(|one, other| other.priority.cmp(&one.priority).then_with(|| one.name.cmp(&other.name)));
    ordered
}

/// The pools that somebody may use, for a message.
pub fn usable(pools: &[Pool], asker: Asker<'_>) -> Vec<String> {
    let admitting = ordered(pools).into_iter().filter(|pool| pool.admits(asker) && !pool.is_deleting);
    admitting.map(Pool::shown).collect()
}

fn against(pool: &Pool, asker: Asker<'_>, wish: Named) -> Option<Reason> {
    let Named { address: _, protocol, ports, node_ports } = wish;
    if pool.is_deleting {
        return Some(Reason::Deleting);
    }
    if !pool.admits(asker) {
        return Some(Reason::NotAdmitted);
    }
    if !pool.allows(ClaimMode::Static) {
        return Some(Reason::DynamicOnly);
    }
    if !pool.covers(protocol, ports) {
        return Some(Reason::OutOfRange(pool.shown_ports()));
    }
    if let Some((reserved, shared)) = pool.reserved(protocol, ports) {
        return Some(Reason::Reserved(shared, reserved.reason.clone()));
    }
    node_ports.filter(|range| pool.keeps_for_node_ports(*range, ports)).map(Reason::NodePorts)
}

/// How near a pool came to granting: the later the check, the nearer.
fn rank(reason: &Reason) -> u8 {
    match reason {
        Reason::Deleting => 1,
        Reason::NotAdmitted => 2,
        Reason::DynamicOnly => 3,
        Reason::OutOfRange(_) => 4,
        Reason::Reserved(..) | Reason::NodePorts(_) => 5,
        Reason::Quota { .. } => 6,
        // But for the first, not said of ports that are named.
        Reason::NoPool(_)
        | Reason::NoSuchPool
        | Reason::StaticOnly
        | Reason::NodeAddressesOnly
        | Reason::NoProtocol(_)
        | Reason::NoneFinds
        | Reason::Full { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::allocation::claim::Version;
    use crate::model::address::ExternalAddress;
    use crate::model::holder::Holder;
    use crate::model::holder::ObjectName;

    fn pools() -> Vec<Pool> {
        let pool =
            |name: &str, spec: Value| Pool::read(name, &serde_json::from_value(spec).unwrap()).unwrap();
        vec![
            pool(
                "mail",
                json!({"addresses": ["203.0.113.7"], "namespaces": {"names": ["mail"]},
                "ports": [{"first": 25, "last": 1000}], "protocols": ["TCP"],
                "reservedPorts": [{"first": 53, "reason": "the resolver"}, {"first": 111}],
                "quota": {"portsPerNamespace": 10}}),
            ),
            pool(
                "games",
                json!({"addresses": ["203.0.113.8"], "namespaces": {"names": ["games"]},
                "modes": ["Dynamic"]}),
            ),
            pool(
                "fallback",
                json!({"addresses": ["203.0.113.7"], "namespaces": {"all": true}, "priority": -1,
                "ports": [{"first": 40000, "last": 40009}]}),
            ),
            pool("old", json!({"addresses": ["203.0.113.5"], "namespaces": {"all": true}})).deleting(true),
        ]
    }

    fn fixed(address: &str) -> Address {
        Address::Fixed(ExternalAddress::new(address.parse().unwrap()).unwrap())
    }

    fn wish(address: Address, ports: &str) -> Named {
        let (ports, protocol) =
            ports.strip_suffix("/udp").map_or((ports, Protocol::Tcp), |ports| (ports, Protocol::Udp));
        Named { address, protocol, ports: ports.parse().unwrap(), node_ports: None }
    }

    fn ask(namespace: &str, address: &str, ports: &str) -> Result<String, String> {
        let address = if address == "node" { Address::Node } else { fixed(address) };
        let asker = Asker { namespace, labels: None, service_account: "default" };
        let pools = pools();
        let granted = named(&pools, asker, wish(address, ports));
        granted.map(|pool| pool.name.clone()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn the_first_pool_that_grants_a_port_does() {
        assert_eq!(ask("mail", "203.0.113.7", "25").unwrap(), "mail");
        assert_eq!(ask("mail", "203.0.113.7", "40000").unwrap(), "fallback");
        assert_eq!(ask("web", "203.0.113.7", "40000-40009/udp").unwrap(), "fallback");
        assert_eq!(ask("mail", "203.0.113.7", "100-105").unwrap(), "mail");
    }

    #[test]
    fn the_node_port_range_is_granted_by_the_pool_alone_that_has_a_range_inside_of_it() {
        let pool = |name: &str, ports: Value, priority: i32| {
            let spec = json!({"addresses": ["203.0.113.7"], "namespaces": {"all": true}, "ports": ports,
                "priority": priority});
            Pool::read(name, &serde_json::from_value(spec).unwrap()).unwrap()
        };
        let pools = [
            pool("wide", json!([{"first": 1024, "last": 65535}]), 1),
            pool("inside", json!([{"first": 30000, "last": 30099}, {"first": 32700, "last": 32800}]), 0),
        ];
        let asker = Asker { namespace: "web", labels: None, service_account: "default" };
        let range = Some("30000-32767".parse().unwrap());
        let granted = |ports: &str, node_ports| {
            named(&pools, asker, wish(fixed("203.0.113.7"), ports).within(node_ports))
                .map(|pool| pool.name.as_str())
                .map_err(|refusal| refusal.to_string())
        };
        for (ports, expected) in [
            ("29999", "wide"),
            ("32768", "wide"),
            ("30000-30099", "inside"),
            ("30050/udp", "inside"),
            ("30100", ""),
            ("30099-30100", ""),
            ("29999-30000", ""),
            ("32767-32768", ""),
        ] {
            assert_eq!(granted(ports, range).unwrap_or_default(), expected, "{ports}");
            assert!(granted(ports, None).is_ok(), "{ports}, where no node has the address");
        }
        assert_eq!(
            granted("31000", range).unwrap_err(),
            "overlaps the NodePort range (30000-32767), of which a Service may get any port on every node; choose another \
             external port, or have NatPool wide open it by a range of ports inside of it; this namespace may use wide \
             (203.0.113.7: 1024-65535), inside (203.0.113.7: 30000-30099, 32700-32800)"
        );
    }

    #[test]
    fn a_refusal_says_what_is_against_it_and_which_pools_there_are() {
        let mail =
            "; this namespace may use mail (203.0.113.7: 25-1000/tcp), fallback (203.0.113.7: 40000-40009)";
        let web = "; this namespace may use fallback (203.0.113.7: 40000-40009)";
        let cases = [
            (ask("mail", "203.0.113.9", "25"), "is on 203.0.113.9, which no NatPool has", mail),
            (
                ask("web", "203.0.113.8", "25"),
                "is of NatPool games, which does not admit this namespace or ServiceAccount",
                web,
            ),
            (ask("web", "203.0.113.7", "25"), "is outside NatPool fallback, which has 40000-40009", web),
            (ask("mail", "203.0.113.7", "995-1005"), "is outside NatPool mail, which has 25-1000/tcp", mail),
            (ask("mail", "203.0.113.7", "25/udp"), "is outside NatPool mail, which has 25-1000/tcp", mail),
            (ask("mail", "203.0.113.7", "50-55"), "is reserved in NatPool mail (53: the resolver)", mail),
            (ask("mail", "203.0.113.7", "111"), "is reserved in NatPool mail (111)", mail),
            (
                ask("web", "203.0.113.5", "2000"),
                "is of NatPool old, which is being deleted and grants nothing",
                web,
            ),
            (
                ask("web", "node", "2000"),
                "is on its node's own address, which no NatPool opens (nodeAddresses)",
                web,
            ),
            (
                ask("games", "203.0.113.8", "2000"),
                "is of NatPool games, which finds ports by itself; ask for auto",
                "; this namespace may use games (203.0.113.8: 1024-65535), fallback (203.0.113.7: 40000-40009)",
            ),
        ];
        for (answer, reason, usable) in cases {
            assert_eq!(answer.unwrap_err(), format!("{reason}{usable}"));
        }
    }

    #[test]
    fn a_namespace_gets_no_more_than_its_quota_and_keeps_what_it_has_when_that_is_lowered() {
        let holder = Holder::new("Pod", ObjectName::new("mail", "mx"));
        let claim = |name: &str| Claim {
            pool: Some("mail".to_owned()),
            ..Claim::reserve(name.parse().unwrap(), holder.clone(), Timestamp::UNIX_EPOCH)
        };
        let stored = |name: &str| {
            let key = name.parse().unwrap();
            StoredClaim { claim: claim(name), version: Version { key, uid: "u".into(), revision: 1 } }
        };
        let held = [stored("v4-203-0-113-7-tcp-25"), stored("v4-203-0-113-7-tcp-26")];
        let asker = Asker { namespace: "mail", labels: None, service_account: "default" };
        let over = |wishes: &[Claim]| {
            over_quota(&pools(), asker, &held, &more(&held, wishes)).map(|refusal| refusal.to_string())
        };
        let eight: Vec<_> = (30..38).map(|port| claim(&format!("v4-203-0-113-7-tcp-{port}"))).collect();
        assert_eq!(over(&eight), None);
        assert_eq!(over(&[&eight[..], &[claim("v4-203-0-113-7-tcp-25")]].concat()), None);
        let mut lowered = pools();
        for pool in &mut lowered {
            pool.ports_per_namespace = Some(1);
        }
        let have = [claim("v4-203-0-113-7-tcp-25"), claim("v4-203-0-113-7-tcp-26")];
        assert!(over_quota(&lowered, asker, &held, &more(&held, &have)).is_none());
        let others = Claim { holder: Holder::new("Pod", ObjectName::new("mail", "imap")), ..have[0].clone() };
        assert_eq!(more(&held, std::slice::from_ref(&others)), [others], "what another holder has");
        let said = over(&[&eight[..], &[claim("v4-203-0-113-7-tcp-40")]].concat()).unwrap();
        assert!(
            said.starts_with(
                "needs 9 more of NatPool mail, of which this namespace holds 2 and may hold 10 ports; "
            ),
            "{said}"
        );
        assert!(over(&[claim("v4-203-0-113-7-tcp-112-127")]).is_some(), "a block is as many ports as it has");
        let elsewhere = Claim { pool: Some("games".to_owned()), ..claim("v4-203-0-113-8-tcp-112-127") };
        assert_eq!(over(&[elsewhere]), None);
    }

    #[test]
    fn what_is_held_belongs_to_the_pool_that_would_grant_it_else_to_one_that_has_it() {
        let of = |namespace: &str, address: &str, ports: &str| {
            let asker = Asker { namespace, labels: None, service_account: "" };
            pool_of(&pools(), asker, wish(fixed(address), ports)).map(|pool| pool.name.clone())
        };
        assert_eq!(of("mail", "203.0.113.7", "25").as_deref(), Some("mail"));
        assert_eq!(of("web", "203.0.113.7", "25").as_deref(), Some("mail"), "its range has it");
        assert_eq!(of("web", "203.0.113.7", "40001").as_deref(), Some("fallback"));
        assert_eq!(of("web", "203.0.113.7", "50000").as_deref(), Some("mail"), "its address has it");
        assert_eq!(of("web", "203.0.113.9", "25"), None);
    }

    #[test]
    fn without_any_pool_the_reader_is_told_whom_to_ask() {
        let asker = Asker { namespace: "web", labels: None, service_account: "default" };
        let refusal = named(&[], asker, wish(fixed("203.0.113.7"), "80")).unwrap_err().to_string();
        assert_eq!(
            refusal,
            "is on 203.0.113.7, which no NatPool has; no NatPool admits this namespace: ask whoever runs the cluster for one"
        );
    }
}
