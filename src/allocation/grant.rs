//! Whether somebody may claim certain ports: the pool that grants them, or why none does.
//!
//! What no pool grants cannot be claimed. A refusal names the pools that the namespace may use, because whoever reads it can
//! change the request and rarely the pool.

use std::fmt;

use crate::allocation::pool::Asker;
use crate::allocation::pool::Pool;
use crate::api::crd::nat_pool::ClaimMode;
use crate::model::address::ExternalAddress;
use crate::model::mapping::Address;
use crate::model::mapping::ExternalPorts;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// Ports of one address that somebody asks for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The address.
    pub address: ExternalAddress,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortRange,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, protocol, ports } = *self;
        ExternalPorts { address: Address::Fixed(address), protocol, ports }.fmt(f)
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
    NoPool(ExternalAddress),
    /// The pool does not admit the namespace or the ServiceAccount.
    NotAdmitted,
    /// The pool's ports are found, not named.
    DynamicOnly,
    /// The ports or the protocol are not of the pool; its ports.
    OutOfRange(String),
    /// Nobody may have these ports, for this reason.
    Reserved(PortRange, String),
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
            Reason::NoPool(address) => write!(f, "is on {address}, which no NatPool has")?,
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
            Reason::Quota { limit, used, more } => write!(
                f,
                "needs {more} ports more, and this namespace holds {used} of the {limit} that NatPool {pool} grants it"
            )?,
        }
        match self.usable.as_slice() {
            [] => f.write_str("; no NatPool admits this namespace: ask whoever runs the cluster for one"),
            usable => write!(f, "; this namespace may use {}", usable.join(", ")),
        }
    }
}

/// The pool that grants ports that were asked for by name. `used` says how many ports a namespace holds in a pool.
pub fn named<'p>(
    pools: &'p [Pool],
    asker: Asker<'_>,
    wish: Named,
    used: impl Fn(&Pool) -> u32,
) -> Result<&'p Pool, Refusal> {
    let candidates = ordered(pools).into_iter().filter(|pool| pool.has(wish.address));
    let mut nearest = (None, Reason::NoPool(wish.address));
    for pool in candidates {
        match against(pool, asker, wish, used(pool)) {
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

/// Pools in the order in which they are asked.
pub fn ordered(pools: &[Pool]) -> Vec<&Pool> {
    let mut ordered: Vec<_> = pools.iter().collect();
    ordered.sort_by(|one, other| other.priority.cmp(&one.priority).then_with(|| one.name.cmp(&other.name)));
    ordered
}

/// The pools that somebody may use, for a message.
pub fn usable(pools: &[Pool], asker: Asker<'_>) -> Vec<String> {
    let admitting = ordered(pools).into_iter().filter(|pool| pool.admits(asker));
    admitting.map(|pool| format!("{} ({})", pool.name, pool.shown_ports())).collect()
}

fn against(pool: &Pool, asker: Asker<'_>, wish: Named, used: u32) -> Option<Reason> {
    let Named { address: _, protocol, ports } = wish;
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
    let limit = pool.ports_per_namespace?;
    let more = ports.count();
    (limit < used.saturating_add(more)).then_some(Reason::Quota { limit, used, more })
}

/// How near a pool came to granting: the later the check, the nearer.
fn rank(reason: &Reason) -> u8 {
    match reason {
        Reason::NoPool(_) => 0,
        Reason::NotAdmitted => 1,
        Reason::DynamicOnly => 2,
        Reason::OutOfRange(_) => 3,
        Reason::Reserved(..) => 4,
        Reason::Quota { .. } => 5,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;

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
        ]
    }

    fn ask(namespace: &str, address: &str, ports: &str, used: u32) -> Result<String, String> {
        let wish = Named {
            address: ExternalAddress::new(address.parse().unwrap()).unwrap(),
            protocol: if ports.ends_with("/udp") { Protocol::Udp } else { Protocol::Tcp },
            ports: ports.trim_end_matches("/udp").parse().unwrap(),
        };
        let asker = Asker { namespace, labels: None, service_account: "default" };
        let pools = pools();
        let granted = named(&pools, asker, wish, |_| used);
        granted.map(|pool| pool.name.clone()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn the_first_pool_that_grants_a_port_does() {
        assert_eq!(ask("mail", "203.0.113.7", "25", 0).unwrap(), "mail");
        assert_eq!(ask("mail", "203.0.113.7", "40000", 0).unwrap(), "fallback");
        assert_eq!(ask("web", "203.0.113.7", "40000-40009/udp", 0).unwrap(), "fallback");
        assert_eq!(ask("mail", "203.0.113.7", "100-105", 4).unwrap(), "mail");
    }

    #[test]
    fn a_refusal_says_what_is_against_it_and_which_pools_there_are() {
        let mail = "; this namespace may use mail (25-1000/tcp), fallback (40000-40009)";
        let web = "; this namespace may use fallback (40000-40009)";
        let cases = [
            (ask("mail", "203.0.113.9", "25", 0), "is on 203.0.113.9, which no NatPool has", mail),
            (
                ask("web", "203.0.113.8", "25", 0),
                "is of NatPool games, which does not admit this namespace or ServiceAccount",
                web,
            ),
            (ask("web", "203.0.113.7", "25", 0), "is outside NatPool fallback, which has 40000-40009", web),
            (
                ask("mail", "203.0.113.7", "995-1005", 0),
                "is outside NatPool mail, which has 25-1000/tcp",
                mail,
            ),
            (ask("mail", "203.0.113.7", "25/udp", 0), "is outside NatPool mail, which has 25-1000/tcp", mail),
            (ask("mail", "203.0.113.7", "50-55", 0), "is reserved in NatPool mail (53: the resolver)", mail),
            (ask("mail", "203.0.113.7", "111", 0), "is reserved in NatPool mail (111)", mail),
            (
                ask("mail", "203.0.113.7", "100-105", 5),
                "needs 6 ports more, and this namespace holds 5 of the 10 that NatPool mail grants it",
                mail,
            ),
            (
                ask("games", "203.0.113.8", "2000", 0),
                "is of NatPool games, which finds ports by itself; ask for auto",
                "; this namespace may use games (1024-65535), fallback (40000-40009)",
            ),
        ];
        for (answer, reason, usable) in cases {
            assert_eq!(answer.unwrap_err(), format!("{reason}{usable}"));
        }
    }

    #[test]
    fn without_any_pool_the_reader_is_told_whom_to_ask() {
        let asker = Asker { namespace: "web", labels: None, service_account: "default" };
        let address = ExternalAddress::new("203.0.113.7".parse().unwrap()).unwrap();
        let wish = Named { address, protocol: Protocol::Tcp, ports: "80".parse().unwrap() };
        let refusal = named(&[], asker, wish, |_| 0).unwrap_err().to_string();
        assert_eq!(
            refusal,
            "is on 203.0.113.7, which no NatPool has; no NatPool admits this namespace: ask whoever runs the cluster for one"
        );
    }
}
