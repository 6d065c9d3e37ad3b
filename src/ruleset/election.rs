//! Which pod receives the new connections of an external port that several pods of a node want.
//!
//! Two questions, asked one after the other, so that a rolling update can never lose its port to itself:
//!
//! 1. Within one holder: the newest pod whose containers are ready. With none ready the one that is served now stays,
//!    else the newest that has an address. A pod that is being deleted is served only until another one is ready.
//!    That is the handover `WhenReady`. With `WhenGone` the one that is served now stays whatever becomes of it, and with
//!    `Immediate` a pod counts as ready as soon as it has an address; the newest pod that is to stay says which it is.
//!    A suspended pod keeps the ports, closed, where no other pod of the holder that has an address can have them.
//! 2. Between holders, which admission refuses but cannot always see (it was off, or the node was not known yet): the
//!    holder that is served now, then the one with the oldest pod, then the lowest UID.
//!
//! Both go from the best claim to the worst and take what is still free. A claim that shares a single port with a
//! better one gets nothing at all: half a range would be a service that works for half of its users.
//!
//! # Guarantees
//! - No two elected endpoints share an external port of the node.
//! - The outcome depends on the candidates, the node and what is programmed, never on the order in which pods were
//!   seen (R03, R04), and electing again once it is programmed elects the same pods (R07).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::model::handover::Handover;
use crate::model::handover::UdpHandover;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Mapping;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::ruleset::Ruleset;
use crate::ruleset::desired::places;
use crate::ruleset::endpoint::Endpoint;
use crate::ruleset::endpoint::Leaving;
use crate::ruleset::entry::Key;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// A pod that wants external ports of this node and may have them if nobody else has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The pod.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: String,
    /// Its root owner.
    pub holder: Holder,
    /// When it was created, RFC 3339 in UTC.
    pub created: String,
    /// Whether its containers are ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Its addresses; none until it has one.
    pub ips: Vec<IpAddr>,
    /// Whether its ports are closed without being given up.
    pub suspended: bool,
    /// What it wants.
    pub mappings: Vec<Mapping>,
    /// When it takes over from an older pod of its holder.
    pub handover: Handover,
    /// What becomes of that one's UDP flows then; `None` leaves it to the node.
    pub udp_handover: Option<UdpHandover>,
    /// How it leaves the cluster.
    pub leaving: Leaving,
}

/// The outcome of an election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elected {
    /// Who is served, in the order of external ports.
    pub endpoints: Vec<Endpoint>,
    /// Who is not, because somebody else is. Pods that wait behind another pod of their own holder are not losers.
    pub losers: Vec<Loser>,
}

/// A pod that stays without ports because somebody else has some of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loser {
    /// The pod.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: String,
    /// What it wanted.
    pub mapping: Mapping,
    /// Who has it.
    pub winner: Winner,
}

/// Who has a port that somebody else wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Winner {
    /// The holder.
    pub holder: Holder,
    /// The holder's pod.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: String,
    /// Its mapping, which shares at least one port.
    pub mapping: Mapping,
}

impl fmt::Display for Winner {
    /// `Deployment mail/web (pod web-1)`, or `Pod mail/web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.holder.fmt(f)?;
        if self.holder.object == self.pod { Ok(()) } else { write!(f, " (pod {})", self.pod.name) }
    }
}

impl Loser {
    /// Who has the port and what to do. A winner in another namespace is named only where that may be disclosed.
    pub fn reason(&self, disclose: bool) -> String {
        let Self { pod, uid, mapping, winner } = self;
        if *uid == winner.uid {
            return format!(
                "{mapping}: this pod asks for it twice on this node, also as {}; remove one of the two entries",
                winner.mapping
            );
        }
        let is_disclosed = disclose || pod.namespace == winner.pod.namespace;
        let whom =
            if is_disclosed { winner.to_string() } else { "an object in another namespace".to_owned() };
        // A mapping reads as its external side; what is behind it is nobody else's business.
        let (ours, theirs) = (mapping.to_string(), winner.mapping.to_string());
        let shared = if ours == theirs { String::new() } else { format!(" as {theirs}") };
        format!(
            "{ours}: is served on this node for {whom}{shared}; choose another external port, or remove it there first"
        )
    }
}

/// Elects the pods that are served. `programmed` is what the kernel holds now: who has a port keeps it.
///
/// What the node cannot serve at all takes nothing from anybody; it is among the endpoints all the same, for
/// [`crate::ruleset::desired`] to refuse with the reason.
pub fn elect(candidates: &[Candidate], node: &NodeFacts, programmed: &Ruleset) -> Elected {
    let programmed: Programmed<'_> = programmed.entries().map(|entry| (entry.key, &entry.owner)).collect();
    let mut holders: BTreeMap<&Holder, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates {
        holders.entry(&candidate.holder).or_default().push(candidate);
    }
    let mut losers = Vec::new();
    let mut claims = Vec::new();
    for pods in holders.values() {
        claims.extend(representatives(claims_of(pods, node, &programmed), &mut losers));
    }
    claims.sort_by_cached_key(Claim::rank_between_holders);
    let (granted, refused) = Granted::from_best_to_worst(claims);
    losers.extend(refused.iter().filter_map(|claim| Some(claim.lost_to(granted.overlapping(claim).next()?))));
    let mut endpoints: Vec<_> = granted.claims.into_iter().map(|claim| claim.endpoint).collect();
    endpoints.sort_by_cached_key(|endpoint| {
        (endpoint.mapping.clone(), endpoint.pod.clone(), endpoint.uid.clone())
    });
    losers.sort_by_cached_key(|loser| (loser.mapping.clone(), loser.pod.clone(), loser.uid.clone()));
    Elected { endpoints, losers }
}

/// What the kernel holds and for whom.
type Programmed<'a> = BTreeMap<Key, &'a Owner>;

/// Everything that the pods of one holder want.
fn claims_of<'a>(pods: &[&'a Candidate], node: &NodeFacts, programmed: &Programmed<'_>) -> Vec<Claim<'a>> {
    let owners: Vec<_> = pods.iter().map(|pod| Owner::new(&pod.pod, &pod.uid)).collect();
    let oldest = pods.iter().map(|pod| (pod.created.as_str(), pod.uid.as_str())).min().unwrap_or_default();
    let newest = pods.iter().max_by_key(|pod| (!pod.terminating, pod.created.as_str(), pod.uid.as_str()));
    let handover = newest.map(|pod| pod.handover).unwrap_or_default();
    let claim = |pod: &'a Candidate, owner: &Owner, mapping: &Mapping| {
        let endpoint = Endpoint {
            mapping: mapping.clone(),
            pod: pod.pod.clone(),
            uid: pod.uid.clone(),
            ips: pod.ips.clone(),
            leaving: pod.leaving,
            udp_handover: pod.udp_handover,
            suspended: pod.suspended,
        };
        let places = places(&endpoint, node).unwrap_or_default();
        let keys: Vec<_> = places.into_iter().map(|(key, _)| key).collect();
        let served = keys.iter().any(|key| programmed.get(key).is_some_and(|found| *found == owner));
        let incumbency =
            keys.iter().map(|key| incumbency(key, &owners, programmed)).max().unwrap_or_default();
        Claim { pod, endpoint, keys, standing: standing(pod, served, handover), incumbency, oldest }
    };
    let of_pod = |(pod, owner): (&&'a Candidate, _)| {
        let pod: &'a Candidate = pod;
        pod.mappings.iter().map(|mapping| claim(pod, owner, mapping)).collect::<Vec<_>>()
    };
    pods.iter().zip(&owners).flat_map(of_pod).collect()
}

/// The claims that one holder makes towards others: of those that overlap, the one of its best pod.
fn representatives<'a>(mut claims: Vec<Claim<'a>>, losers: &mut Vec<Loser>) -> Vec<Claim<'a>> {
    claims.sort_by_cached_key(Claim::rank_within_holder);
    let (granted, refused) = Granted::from_best_to_worst(claims);
    // The others wait behind another pod of their holder, as every pod of a rollout does.
    let to_itself = |claim: &Claim<'_>| {
        let winner = granted.overlapping(claim).find(|winner| winner.pod.uid == claim.pod.uid)?;
        Some(claim.lost_to(winner))
    };
    losers.extend(refused.iter().filter_map(to_itself));
    granted.claims
}

/// One mapping of one pod.
struct Claim<'a> {
    pod: &'a Candidate,
    endpoint: Endpoint,
    /// What it would be programmed as; none where the node cannot serve it, which conflicts with nobody.
    keys: Vec<Key>,
    standing: Standing,
    incumbency: Incumbency,
    /// The creation and UID of the holder's oldest pod.
    oldest: (&'a str, &'a str),
}

/// How well a pod can serve, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It is served now, and stays until it is gone.
    Stays,
    Ready,
    ServedNow,
    HasAddress,
    HasAddressAndEnds,
    /// It has an address, and nobody is let through to it.
    Suspended,
    HasNoAddress,
    HasNoAddressAndEnds,
}

/// How far a holder has a claim's ports already, the strongest last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Incumbency {
    #[default]
    None,
    /// It has some of the ports, under another range.
    Partly,
    /// It has exactly these ports. Only one holder can.
    Exactly,
}

impl Claim<'_> {
    fn rank_within_holder(&self) -> impl Ord + use<> {
        let newest = Reverse((self.pod.created.clone(), self.pod.uid.clone()));
        (self.standing, newest, self.endpoint.mapping.clone())
    }

    fn rank_between_holders(&self) -> impl Ord + use<> {
        let (created, uid) = self.oldest;
        let oldest = (created.to_owned(), uid.to_owned(), self.pod.holder.clone());
        (Reverse(self.incumbency), oldest, self.endpoint.mapping.clone(), self.pod.uid.clone())
    }

    fn lost_to(&self, winner: &Self) -> Loser {
        Loser {
            pod: self.pod.pod.clone(),
            uid: self.pod.uid.clone(),
            mapping: self.endpoint.mapping.clone(),
            winner: Winner {
                holder: winner.pod.holder.clone(),
                pod: winner.pod.pod.clone(),
                uid: winner.pod.uid.clone(),
                mapping: winner.endpoint.mapping.clone(),
            },
        }
    }
}

fn standing(pod: &Candidate, served: bool, handover: Handover) -> Standing {
    match (pod.ips.is_empty(), pod.terminating) {
        (true, false) => Standing::HasNoAddress,
        (true, true) => Standing::HasNoAddressAndEnds,
        (false, _) if served && handover == Handover::WhenGone => Standing::Stays,
        (false, _) if pod.suspended => Standing::Suspended,
        (false, false) if pod.ready || handover == Handover::Immediate => Standing::Ready,
        (false, _) if served => Standing::ServedNow,
        (false, false) => Standing::HasAddress,
        (false, true) => Standing::HasAddressAndEnds,
    }
}

fn incumbency(key: &Key, owners: &[Owner], programmed: &Programmed<'_>) -> Incumbency {
    let own = overlapping(programmed, key).filter(|(_, owner)| owners.contains(owner));
    let strength = own.map(|(held, _)| if held == key { Incumbency::Exactly } else { Incumbency::Partly });
    strength.max().unwrap_or_default()
}

/// What shares a port with `key`. The keys of the map must not overlap each other, so that those which overlap this
/// one stand together, right below its last port.
fn overlapping<'m, V>(map: &'m BTreeMap<Key, V>, key: &Key) -> impl Iterator<Item = (&'m Key, &'m V)> {
    let ports = PortRange::new(key.ports.last(), Port::MAX).unwrap_or(key.ports);
    map.range(..=Key { ports, ..*key }).rev().take_while(move |(found, _)| found.overlaps(key))
}

/// The claims that were granted so far.
#[derive(Default)]
struct Granted<'a> {
    claims: Vec<Claim<'a>>,
    by_key: BTreeMap<Key, usize>,
}

impl<'a> Granted<'a> {
    /// Grants each claim unless one before it has some of the ports; returns those that are not granted, too.
    fn from_best_to_worst(claims: Vec<Claim<'a>>) -> (Self, Vec<Claim<'a>>) {
        let mut granted = Self::default();
        let mut refused = Vec::new();
        for claim in claims {
            if granted.overlapping(&claim).next().is_some() {
                refused.push(claim);
            } else {
                let position = granted.claims.len();
                granted.by_key.extend(claim.keys.iter().map(|key| (*key, position)));
                granted.claims.push(claim);
            }
        }
        (granted, refused)
    }

    /// The granted claims that have some of the ports.
    fn overlapping(&self, claim: &Claim<'_>) -> impl Iterator<Item = &Claim<'a>> {
        let positions = claim.keys.iter().flat_map(|key| overlapping(&self.by_key, key));
        positions.filter_map(|(_, position)| self.claims.get(*position))
    }
}

#[cfg(test)]
mod tests;
