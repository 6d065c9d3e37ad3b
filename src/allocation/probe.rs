//! Finding free ports for whoever leaves them open.
//!
//! # Guarantees
//! - All ports of one request are on one address, and those of a group (TCP and UDP of one number) have one number.
//! - The same request starts its search at the same place, and different ones at different places: of many that search at once
//!   with old news, few meet. The first free port would be everybody's.
//! - The static band is left alone until the rest is taken.
//!
//! - A search is bounded, however large the pool is: it looks at 65 536 addresses of a family from where it starts, and
//!   searches 4096 of those that may serve.
//!
//! What is found is only likely to be free; the claim decides. Whoever loses searches again, one attempt further.

use crate::allocation::key::ClaimKey;
use crate::allocation::key::PortBlock;
use crate::allocation::pool::Pool;
use crate::model::address::ExternalAddress;
use crate::model::address::Family;
use crate::model::digest::fnv1a;
use crate::model::mapping::Address;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// The most addresses of a family that one search looks at, as many as a /16 has.
const MOST_LOOKED_AT: usize = 65_536;

/// The most addresses of a family whose ports one search goes through.
const MOST_SEARCHED: usize = 4096;

/// One port that is to be found, for one protocol or for several at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The protocols that need the same number.
    pub protocols: Vec<Protocol>,
    /// What tells this port from others of its holder, as `<protocols>/<pod port>`.
    pub slot: String,
}

/// A port that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The address.
    pub address: ExternalAddress,
    /// The port, of every protocol that was wanted.
    pub port: Port,
}

/// Likely free ports for everything that is wanted, in that order and all on one address that may serve, or on the one
/// address `only`; `None` when none of those that were looked at has so many. `holder` is whose ports they are, `attempt` how often
/// it has tried. In a pool of both families IPv4 addresses are searched first.
pub fn find(
    pool: &Pool,
    holder: &str,
    wanted: &[Wanted],
    attempt: u32,
    only: Option<ExternalAddress>,
    may_serve: impl Fn(ExternalAddress) -> bool,
    is_taken: impl Fn(ClaimKey) -> bool,
) -> Option<Vec<Found>> {
    let search = |address| on_address(pool, address, holder, wanted, attempt, &is_taken);
    if let Some(only) = only {
        return (pool.has(Address::Fixed(only)) && may_serve(only)).then(|| search(only)).flatten();
    }
    [Family::V4, Family::V6].into_iter().find_map(|family| {
        let addresses = pool.addresses();
        let turn = addresses.from(family, place(&[holder], addresses.count(family)));
        let serving = turn.take(MOST_LOOKED_AT).flatten().filter(|address| may_serve(*address));
        serving.take(MOST_SEARCHED).find_map(search)
    })
}

fn on_address(
    pool: &Pool,
    address: ExternalAddress,
    holder: &str,
    wanted: &[Wanted],
    attempt: u32,
    is_taken: &impl Fn(ClaimKey) -> bool,
) -> Option<Vec<Found>> {
    let mut found: Vec<Found> = Vec::with_capacity(wanted.len());
    for one in wanted {
        let is_free = |port: Port| {
            let is_of_this_request = found.iter().any(|found| found.port == port);
            let is_possible = |protocol: &Protocol| {
                let single = PortRange::single(port);
                let key = ClaimKey::ports(address, *protocol, PortBlock::single(port));
                pool.covers(*protocol, single) && pool.reserved(*protocol, single).is_none() && !is_taken(key)
            };
            !is_of_this_request && one.protocols.iter().all(is_possible)
        };
        let seed = [holder, &one.slot, &attempt.to_string()];
        let bands = pool.bands();
        let dynamic = bands.iter().filter_map(|bands| bands.dynamic);
        let fixed = bands.iter().filter_map(|bands| bands.fixed);
        let port = dynamic.chain(fixed).find_map(|range| search(range, &seed, is_free))?;
        found.push(Found { address, port });
    }
    Some(found)
}

/// The first free port of a range from where the seed says, and on from its begin.
fn search(range: PortRange, seed: &[&str], is_free: impl Fn(Port) -> bool) -> Option<Port> {
    let first = usize::try_from(place(seed, range.count().into())).ok()?;
    range.ports().skip(first).chain(range.ports().take(first)).find(|port| is_free(*port))
}

/// A place below `count`, the same for the same seed on every machine and in every version (FNV-1a, 64 bits).
fn place(seed: &[&str], count: u128) -> u128 {
    let bytes: Vec<_> = seed.iter().flat_map(|part| part.bytes().chain([0])).collect();
    let hash = fnv1a(&bytes);
    // The low bits of FNV-1a alone follow the last byte.
    let mixed = hash ^ (hash >> 32);
    u128::from(mixed) % count.max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;
    use serde_json::json;

    use super::*;

    fn pool(spec: Value) -> Pool {
        Pool::read("edge", &serde_json::from_value(spec).unwrap()).unwrap()
    }

    fn wanted(protocols: &[Protocol], slot: &str) -> Wanted {
        Wanted { protocols: protocols.to_vec(), slot: slot.to_owned() }
    }

    /// Claims what was found, as a request that wins does.
    fn claim(taken: &mut BTreeSet<ClaimKey>, wanted: &[Wanted], found: &[Found]) {
        for (wanted, found) in wanted.iter().zip(found) {
            for protocol in &wanted.protocols {
                let key = ClaimKey::ports(found.address, *protocol, PortBlock::single(found.port));
                assert!(taken.insert(key), "{key} was found twice");
            }
        }
    }

    #[test]
    fn a_pool_fills_up_to_its_last_port_and_the_static_band_comes_last() {
        let spec = json!({"addresses": ["203.0.113.7", "203.0.113.8"],
            "ports": [{"first": 100, "last": 131}], "reservedPorts": [{"first": 110}, {"first": 120}]});
        let pool = pool(spec);
        let mut taken = BTreeSet::new();
        let mut numbers = Vec::new();
        loop {
            let wanted = [wanted(&[Protocol::Tcp], "tcp/80")];
            let holder = format!("games/lobby-{}", numbers.len());
            let Some(found) = find(&pool, &holder, &wanted, 0, None, |_| true, |key| taken.contains(&key))
            else {
                break;
            };
            claim(&mut taken, &wanted, &found);
            numbers.push((found[0].address, found[0].port.get()));
        }
        assert_eq!(numbers.len(), 2 * 30);
        for address in pool.addresses().from(Family::V4, 0).flatten() {
            let of_address: Vec<_> =
                numbers.iter().filter(|(found, _)| *found == address).map(|(_, port)| *port).collect();
            let band_begins = of_address.iter().position(|port| *port < 116).unwrap();
            assert!(of_address[band_begins..].iter().all(|port| *port < 116), "{of_address:?}");
            assert!(!of_address.contains(&110) && !of_address.contains(&120));
        }
    }

    #[test]
    fn all_ports_of_a_request_are_on_one_address_and_a_pair_has_one_number() {
        let pool = pool(json!({"addresses": ["203.0.113.7", "203.0.113.8"],
            "ports": [{"first": 100, "last": 103, "staticBand": 0}]}));
        let both = [Protocol::Tcp, Protocol::Udp];
        let wanted = [wanted(&both, "dns/53"), wanted(&[Protocol::Tcp], "tcp/80"), wanted(&both, "sip/5060")];
        let [full, other] =
            [0, 1].map(|place| pool.addresses().from(Family::V4, place).next().flatten().unwrap());
        // Three TCP ports are free on the first address, but only one number of both protocols.
        let is_taken = |key: ClaimKey| {
            let udp =
                |port: u16| ClaimKey::ports(full, Protocol::Udp, PortBlock::single(Port::new(port).unwrap()));
            [udp(100), udp(101), udp(102)].contains(&key)
        };
        for attempt in 0..50 {
            let found = find(&pool, "voice/pbx", &wanted, attempt, None, |_| true, is_taken).unwrap();
            assert!(found.iter().all(|one| one.address == other), "{found:?}");
            let numbers: BTreeSet<_> = found.iter().map(|one| one.port).collect();
            assert_eq!(numbers.len(), 3);
        }
        let four: Vec<_> = (0..5).map(|port| self::wanted(&both, &port.to_string())).collect();
        assert_eq!(
            find(&pool, "voice/pbx", &four, 0, None, |_| true, |_| false),
            None,
            "no address has five ports"
        );
    }

    #[test]
    fn a_request_starts_where_it_started_before_and_others_elsewhere() {
        let pool = pool(json!({"addresses": ["203.0.113.0/28"], "ports": [{"first": 1024, "last": 65535}]}));
        let find = |holder: &str, attempt| {
            find(&pool, holder, &[wanted(&[Protocol::Udp], "udp/7777")], attempt, None, |_| true, |_| false)
                .unwrap()[0]
        };
        assert_eq!(find("games/lobby-0", 0), find("games/lobby-0", 0));
        assert_ne!(find("games/lobby-0", 0), find("games/lobby-0", 1));
        let starts: Vec<_> = (0..64).map(|number| find(&format!("games/lobby-{number}"), 0)).collect();
        let different =
            starts.iter().enumerate().filter(|(index, one)| !starts[..*index].contains(one)).count();
        assert!(60 <= different, "64 searches began at {different} places");
    }

    #[test]
    fn sixty_four_that_search_at_once_in_a_half_full_pool_need_few_attempts() {
        let pool = pool(json!({"addresses": ["203.0.113.7"], "ports": [{"first": 10000, "last": 10511}]}));
        let address = pool.addresses().from(Family::V4, 0).next().flatten().unwrap();
        let key = |port: Port| ClaimKey::ports(address, Protocol::Tcp, PortBlock::single(port));
        let mut claimed: BTreeSet<_> = (10000..10512).step_by(2).filter_map(Port::new).map(key).collect();
        // Everybody sees what was claimed before all of them began, and learns only of what it lost.
        let old_news = claimed.clone();
        let mut attempts = 0;
        for number in 0..64 {
            let mut lost = BTreeSet::new();
            for attempt in 0.. {
                attempts += 1;
                let is_taken = |key: ClaimKey| old_news.contains(&key) || lost.contains(&key);
                let holder = format!("games/lobby-{number}");
                let found = find(
                    &pool,
                    &holder,
                    &[wanted(&[Protocol::Tcp], "80")],
                    attempt,
                    None,
                    |_| true,
                    is_taken,
                )
                .unwrap();
                if claimed.insert(key(found[0].port)) {
                    break;
                }
                lost.insert(key(found[0].port));
            }
        }
        assert!(attempts <= 2 * 64, "{attempts} attempts for 64 grants");
    }

    #[test]
    fn a_search_sees_both_families_and_every_part_of_a_large_pool() {
        let one = [wanted(&[Protocol::Udp], "udp/7777")];
        let both = pool(json!({"addresses": ["2001:db8::/64", "203.0.113.7"]}));
        let v4 = ExternalAddress::new("203.0.113.7".parse().unwrap()).unwrap();
        assert_eq!(find(&both, "games/a", &one, 0, None, |_| true, |_| false).unwrap()[0].address, v4);
        let is_v4 = |key: ClaimKey| key.address() == v4;
        let found = find(&both, "games/a", &one, 0, None, |_| true, is_v4).unwrap();
        assert_eq!(found[0].address.family(), Family::V6);

        let large = pool(json!({"addresses": ["10.0.0.0/8"]}));
        let addresses: BTreeSet<_> = (0..64)
            .map(|number| find(&large, &format!("games/{number}"), &one, 0, None, |_| true, |_| false))
            .map(|found| found.unwrap()[0].address)
            .collect();
        let second_octets: BTreeSet<_> = addresses
            .iter()
            .map(|address| address.ip().to_string().split('.').nth(1).map(str::to_owned))
            .collect();
        assert!(40 < second_octets.len(), "{second_octets:?}");
    }

    #[test]
    fn the_address_that_a_pod_has_ports_on_already_is_found_wherever_it_is_in_the_pool() {
        let large = pool(json!({"addresses": ["10.0.0.0/8"]}));
        let address = |text: &str| ExternalAddress::new(text.parse().unwrap()).unwrap();
        let one = [wanted(&[Protocol::Udp], "udp/7777")];
        for (text, expected) in [("10.200.3.4", true), ("192.0.2.1", false)] {
            let only = address(text);
            let found = find(&large, "games/a", &one, 0, Some(only), |_| true, |_| false);
            assert_eq!(found.map(|found| found[0].address), expected.then_some(only), "{text}");
        }
        assert_eq!(find(&large, "games/a", &one, 0, None, |_| false, |_| false), None, "and a search ends");
    }
}
