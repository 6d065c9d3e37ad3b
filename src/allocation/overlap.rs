//! Where a claim stands among those of others that overlap it.
//!
//! A request stores its claims before it looks for others, and takes them back when it sees one. So for a moment, and for
//! longer where taking back failed, a claim is stored that nobody was granted. By its name and its holder it looks like any
//! other reservation; only what overlaps it tells.
//!
//! # Guarantees
//! - Of two claims of which one is only reserved, at most one is [`Rank::First`], and never one whose request has seen the
//!   other: whoever acts for the first alone gives no port to two.
//! - One of them is [`Rank::Second`], so that two never wait for each other for ever.

use std::collections::BTreeMap;

use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::key::ClaimKey;
use crate::api::crd::port_claim::ClaimState;
use crate::model::holder::Holder;

/// Where a claim stands among those of others that overlap it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It may be used: nobody else can have been granted its ports.
    First,
    /// Which of two reservations was first does not show; the other one goes.
    Unclear,
    /// It stands behind another, so that its request was never granted.
    Second,
}

/// The claims that overlap a key, itself among them, and are not of this holder and slot.
pub fn others<'a>(
    claims: &'a BTreeMap<ClaimKey, StoredClaim>,
    key: ClaimKey,
    holder: &Holder,
    slot: Option<&str>,
) -> impl Iterator<Item = &'a StoredClaim> {
    let around = key.around().into_iter().filter_map(|around| claims.get(&around));
    let within = claims.range(key.within()).map(|(_, stored)| stored);
    // Larger ones that begin where it does lie in between.
    let within = within.filter(move |stored| stored.claim.key.count() <= key.count());
    let overlapping = around.chain(within);
    overlapping.filter(move |stored| stored.claim.holder != *holder || stored.claim.slot.as_deref() != slot)
}

/// Where a stored claim stands among all.
pub fn rank(stored: &StoredClaim, claims: &BTreeMap<ClaimKey, StoredClaim>) -> Rank {
    // What has been in use stood first then.
    if stored.claim.state != ClaimState::Reserved {
        return Rank::First;
    }
    let Claim { key, holder, slot, .. } = &stored.claim;
    let others = others(claims, *key, holder, slot.as_deref());
    others.map(|other| between(stored, other)).max().unwrap_or(Rank::First)
}

/// Where a reservation stands beside one other claim.
fn between(stored: &StoredClaim, other: &StoredClaim) -> Rank {
    if other.claim.state != ClaimState::Reserved {
        return Rank::Second;
    }
    let is_later = other.version.revision < stored.version.revision;
    if is_later && is_as_made(&stored.claim) {
        return Rank::Second;
    }
    if !is_later && is_as_made(&other.claim) {
        return Rank::First;
    }
    let age = |stored: &StoredClaim| (stored.claim.since, stored.version.revision);
    if age(other) < age(stored) { Rank::Second } else { Rank::Unclear }
}

/// Whether a reservation has not been written since it was made, so that its version tells when that was. A renewal always shows.
fn is_as_made(claim: &Claim) -> bool {
    claim.renewed == claim.since && claim.pod_uid.is_none() && claim.previous_holder.is_none()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::allocation::claim::Version;
    use crate::model::holder::Holder;
    use crate::model::holder::ObjectName;

    const BLOCK: &str = "v4-192-0-2-1-tcp-7008-7023";
    const PORT: &str = "v4-192-0-2-1-tcp-7010";

    fn claim(holder: &str, name: &str, revision: u64) -> StoredClaim {
        let holder = Holder::new("Deployment", ObjectName::new("games", holder));
        let claim = Claim::reserve(name.parse().unwrap(), holder, at(revision));
        let version = Version { key: claim.key, uid: name.into(), revision };
        StoredClaim { claim, version }
    }

    fn at(second: u64) -> Timestamp {
        Timestamp::from_second(i64::try_from(second).unwrap()).unwrap()
    }

    fn bound(stored: StoredClaim) -> StoredClaim {
        let StoredClaim { claim, version } = stored;
        StoredClaim { claim: claim.into_state(ClaimState::Bound, at(version.revision)), version }
    }

    fn renewed(stored: StoredClaim, revision: u64) -> StoredClaim {
        let StoredClaim { claim, version } = stored;
        StoredClaim {
            claim: Claim { renewed: at(revision), ..claim },
            version: Version { revision, ..version },
        }
    }

    fn ranks(all: &[StoredClaim]) -> Vec<Rank> {
        let claims: BTreeMap<_, _> = all.iter().map(|stored| (stored.claim.key, stored.clone())).collect();
        all.iter().map(|stored| rank(stored, &claims)).collect()
    }

    #[test]
    fn of_two_that_overlap_the_one_that_was_never_granted_is_second() {
        use Rank::First;
        use Rank::Second;
        use Rank::Unclear;
        let slot = |slot: &str, stored: StoredClaim| StoredClaim {
            claim: Claim { slot: Some(slot.to_owned()), ..stored.claim },
            ..stored
        };
        let cases = [
            ("apart", claim("g", "v4-192-0-2-1-tcp-7024", 1), claim("h", BLOCK, 2), [First, First]),
            (
                "another protocol",
                claim("g", "v4-192-0-2-1-udp-7010", 1),
                claim("h", BLOCK, 2),
                [First, First],
            ),
            ("one holder", claim("g", PORT, 1), claim("g", BLOCK, 2), [First, First]),
            ("in use and around it", bound(claim("g", PORT, 3)), claim("h", BLOCK, 2), [First, Second]),
            ("in use and within it", bound(claim("g", BLOCK, 3)), claim("h", PORT, 2), [First, Second]),
            ("whole", bound(claim("g", PORT, 3)), claim("h", "v4-192-0-2-1", 2), [First, Second]),
            ("reserved before", claim("g", PORT, 1), claim("h", BLOCK, 2), [First, Second]),
            ("renewed before", renewed(claim("g", PORT, 1), 2), claim("h", BLOCK, 3), [First, Second]),
            ("renewed since", renewed(claim("g", PORT, 1), 3), claim("h", BLOCK, 2), [Unclear, Second]),
            (
                "both renewed",
                renewed(claim("g", PORT, 1), 4),
                renewed(claim("h", BLOCK, 2), 3),
                [Unclear, Second],
            ),
            (
                "found for a pod of the holder",
                slot("a/tcp/80", claim("g", PORT, 1)),
                claim("g", BLOCK, 2),
                [First, Second],
            ),
        ];
        for (name, one, other, expected) in cases {
            assert_eq!(ranks(&[one, other]), expected, "{name}");
        }
    }
}
