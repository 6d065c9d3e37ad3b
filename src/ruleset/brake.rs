//! The brake: a node whose view of the cluster suddenly loses most of what it serves should doubt the view first.
//!
//! A deleted CRD, a restored etcd or a wrong flag look exactly like a wish to remove everything. While the brake
//! holds, entries are added and changed but none is removed; how long it holds is the caller's business.

use std::net::IpAddr;

use crate::ruleset::Ruleset;
use crate::ruleset::entry::Entry;
use crate::ruleset::owner::Owner;

/// When the brake engages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// The share of entries that may vanish at once, in percent.
    pub threshold_percent: u8,
    /// Below this many entries the brake never engages: small nodes lose large shares every day.
    pub minimum: usize,
}

impl Default for Brake {
    fn default() -> Self {
        Self { threshold_percent: 20, minimum: 20 }
    }
}

/// A removal that the brake stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{removed} of {present} entries would be removed at once")]
pub struct MassRemoval {
    /// How many entries would vanish.
    pub removed: usize,
    /// How many there are.
    pub present: usize,
}

impl Brake {
    /// Whether going from `observed` to `desired` removes too much at once.
    pub fn engages(self, observed: &Ruleset, desired: &Ruleset) -> Option<MassRemoval> {
        let present = observed.len();
        let removed = vanishing(observed, desired).count();
        let too_many = removed * 100 > present * usize::from(self.threshold_percent);
        (self.minimum <= present && too_many).then_some(MassRemoval { removed, present })
    }
}

/// `desired`, and whatever is observed and would vanish. What leads to an address that `is_anothers` by now, and not the owner's
/// any more, stays reserved and leads nowhere: that pod has not asked for it.
pub fn without_removals(
    observed: &Ruleset,
    desired: &Ruleset,
    is_anothers: &dyn Fn(IpAddr, &Owner) -> bool,
) -> Ruleset {
    let mut kept = desired.clone();
    for entry in vanishing(observed, desired) {
        let target = entry.target.filter(|target| !is_anothers(target.ip, &entry.owner));
        // Cannot be taken: nothing desired overlaps it, and observed entries do not overlap each other.
        let _ = kept.insert(Entry { target, ..entry.clone() });
    }
    kept = kept.sheltering_like(observed);
    for egress in observed.egress().filter(|egress| desired.egress_of(&egress.pod).is_none()) {
        if !is_anothers(egress.pod, &egress.owner) {
            kept.set_egress(egress.clone());
        }
    }
    kept
}

/// Entries whose ports nobody serves afterwards. An entry that is re-pointed or cut differently does not count.
fn vanishing<'a>(observed: &'a Ruleset, desired: &Ruleset) -> impl Iterator<Item = &'a Entry> {
    observed.entries().filter(|entry| desired.overlapping(&entry.key).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::address::Family;
    use crate::ruleset::endpoint::Endpoint;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;
    use crate::ruleset::node::NodeFacts;

    fn serving(ports: std::ops::Range<u16>) -> Ruleset {
        let pod = |port| endpoint(&format!("{port}/tcp"), &format!("pod-{port}"), &["10.244.1.9"]);
        ruleset(&ports.map(pod).collect::<Vec<Endpoint>>(), &v4_node())
    }

    #[test]
    fn the_brake_engages_above_a_share_of_enough_entries() {
        let brake = Brake::default();
        for (present, left, engaged) in
            [(20, 16, false), (20, 15, true), (19, 0, false), (100, 0, true), (100, 80, false)]
        {
            let removal = brake.engages(&serving(1..present + 1), &serving(1..left + 1));
            assert_eq!(removal.is_some(), engaged, "{present} -> {left}");
        }
        let removal = brake.engages(&serving(1..101), &serving(1..1)).unwrap();
        assert_eq!(removal.to_string(), "100 of 100 entries would be removed at once");
    }

    #[test]
    fn moving_every_entry_to_another_pod_is_no_removal() {
        let pods = |ip: &str| {
            let pod = |port| endpoint(&format!("{port}/tcp"), "web", &[ip]);
            ruleset(&(1..50).map(pod).collect::<Vec<_>>(), &v4_node())
        };
        assert_eq!(Brake::default().engages(&pods("10.244.1.9"), &pods("10.244.1.10")), None);
    }

    #[test]
    fn a_fixed_address_that_is_kept_is_still_not_shown_to_private_networks() {
        let node = NodeFacts { cluster_cidrs: Vec::new(), ..v4_node() };
        let observed = ruleset(&[endpoint("80/tcp", "web", &["10.244.1.9"])], &node);
        let kept = without_removals(&observed, &ruleset(&[], &node), &|_, _| false);
        assert_eq!((kept.egress().count(), kept.sheltered(Family::V4).count()), (1, 5));
    }

    #[test]
    fn while_the_brake_holds_entries_are_added_and_changed_but_none_goes() {
        let observed = ruleset(
            &[endpoint("25/tcp", "old", &["10.244.1.8"]), endpoint("7000-7010/udp", "gone", &["10.244.1.9"])],
            &v4_node(),
        );
        let desired = ruleset(
            &[endpoint("25/tcp", "new", &["10.244.1.10"]), endpoint("80/tcp", "web", &["10.244.1.11"])],
            &v4_node(),
        );
        let kept = without_removals(&observed, &desired, &|_, _| false);
        let shown: Vec<_> = kept.entries().map(Entry::to_string).collect();
        assert_eq!(
            shown,
            [
                "203.0.113.7:25/tcp -> 10.244.1.10:25",
                "203.0.113.7:80/tcp -> 10.244.1.11:80",
                "203.0.113.7:7000-7010/udp -> 10.244.1.9:7000-7010"
            ]
        );
        assert_eq!(kept.egress().count(), 4);
    }

    #[test]
    fn what_leads_to_an_address_that_another_pod_has_by_now_is_closed_meanwhile() {
        let observed = ruleset(
            &[endpoint("25/tcp", "old", &["10.244.1.8"]), endpoint("80/tcp", "web", &["10.244.1.9"])],
            &v4_node(),
        );
        let reused: IpAddr = "10.244.1.8".parse().unwrap();
        let kept = without_removals(&observed, &ruleset(&[], &v4_node()), &|ip, _| ip == reused);
        let shown: Vec<_> = kept.entries().map(Entry::to_string).collect();
        assert_eq!(shown, ["203.0.113.7:25/tcp -> reserved", "203.0.113.7:80/tcp -> 10.244.1.9:80"]);
        let leaving: Vec<_> = kept.egress().map(|egress| egress.pod.to_string()).collect();
        assert_eq!(leaving, ["10.244.1.9"], "nor does it leave with the other's address");
    }
}
