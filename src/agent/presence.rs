//! Which pods are gone, so that their connections end before somebody else gets their addresses.
//!
//! # Guarantees
//! - A pod that still runs on the node is not gone, whatever is asked for it.
//! - Where nobody knows a Pinhole's pods any more, because it, its Service or all of them went at once, none of them is gone.
//! - A pod of another node is gone when its Pinhole says so, and not when this node only serves it no more.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::agent::desired::Plan;
use crate::agent::desired::Pod;
use crate::ruleset::diff::Change;
use crate::ruleset::owner::Owner;

/// Who was there when it was asked last.
#[derive(Debug, Default)]
pub struct Presence {
    pods: BTreeMap<Owner, Pod>,
    behind: BTreeMap<String, String>,
    remote: BTreeSet<String>,
}

impl Presence {
    /// The addresses of pods that went since this was asked last, or while nobody looked. `here` are the UIDs of the pods that
    /// run on the node.
    pub fn gone(&mut self, plan: &Plan, changes: &[Change], here: &BTreeSet<String>) -> BTreeSet<IpAddr> {
        let now = Self { pods: plan.pods.clone(), behind: plan.behind.clone(), remote: plan.remote.clone() };
        let before = std::mem::replace(self, now);
        let known: BTreeSet<&str> = plan.pods.values().map(|pod| pod.uid.as_str()).collect();
        let is_led = |pinhole: &String| plan.behind.values().any(|by| by == pinhole);
        let is_over =
            |pod: &Pod| plan.subjects.get(&pod.name).is_some_and(|uid| uid.as_ref() != Some(&pod.uid));
        let went = before.pods.values().filter(|pod| {
            !known.contains(pod.uid.as_str())
                && !here.contains(&pod.uid)
                && before.behind.get(&pod.uid).is_none_or(is_led)
                && (!before.remote.contains(&pod.uid) || is_over(pod))
        });
        let mut gone: BTreeSet<IpAddr> = went.flat_map(|pod| pod.ips.iter().copied()).collect();
        for change in changes {
            // Their pods went while nobody looked.
            if let Change::Removed(entry) | Change::Replaced { before: entry, .. } = change
                && !plan.pods.contains_key(&entry.owner)
                && !before.pods.contains_key(&entry.owner)
            {
                gone.extend(entry.target.map(|target| target.ip));
            }
        }
        gone
    }

    /// Whether the pod that has an address by now is another than the one whom an entry of this owner was to lead to. The pods behind
    /// Pinholes are known by them alone, also a while after they are.
    pub fn is_anothers(&self, owner: &Owner, plan: &Plan, now: Option<&(Owner, String)>) -> bool {
        let is_behind = |uid: &String| self.behind.contains_key(uid) || plan.behind.contains_key(uid);
        now.is_some_and(|(pod, uid)| pod != owner && !is_behind(uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::holder::ObjectName;
    use crate::ruleset::diff::diff;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    fn put(plan: &mut Plan, name: &str, ips: &[&str]) {
        let name = ObjectName::new("shop", name);
        let uid = format!("uid-{}", name.name);
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        plan.pods.insert(Owner::new(&name, &uid), Pod { name, uid, ips });
    }

    /// A plan with these pods, and a Pinhole with those behind it.
    fn plan(asking: &[(&str, &str)], behind: Option<&[(&str, &str)]>) -> Plan {
        let mut plan = Plan::default();
        for (name, ip) in asking.iter().chain(behind.unwrap_or_default()) {
            put(&mut plan, name, &[ip]);
        }
        if let Some(behind) = behind {
            put(&mut plan, "pinhole", &[]);
            plan.behind =
                behind.iter().map(|(name, _)| (format!("uid-{name}"), "uid-pinhole".to_owned())).collect();
        }
        plan
    }

    #[test]
    fn a_pod_is_gone_when_it_is_and_not_when_only_the_reason_to_know_it_is() {
        let asking: &[_] = &[("a", "10.244.1.1")];
        let (two, one): (&[_], &[_]) = (&[("x", "10.244.9.1"), ("y", "10.244.9.2")], &[("y", "10.244.9.2")]);
        for (what, before, after, here, expected) in [
            ("it went", plan(asking, None), plan(&[], None), "", &["10.244.1.1"][..]),
            ("it is still here", plan(asking, None), plan(&[], None), "uid-a", &[]),
            ("another took over", plan(&[], Some(two)), plan(&[], Some(one)), "", &["10.244.9.1"]),
            ("left the Service", plan(&[], Some(two)), plan(&[], Some(one)), "uid-x", &[]),
            ("the Service went", plan(&[], Some(two)), plan(&[], Some(&[])), "", &[]),
            ("the Pinhole went", plan(&[], Some(two)), plan(&[], None), "", &[]),
        ] {
            let mut presence = Presence::default();
            presence.gone(&before, &[], &BTreeSet::new());
            let gone = presence.gone(&after, &[], &[here.to_owned()].into());
            assert_eq!(gone, expected.iter().map(|ip| ip.parse().unwrap()).collect(), "{what}");
        }
    }

    #[test]
    fn a_pod_of_another_node_is_gone_when_its_pinhole_is_anothers_or_over_and_not_when_it_is_not_served_any_more()
     {
        let name = ObjectName::new("shop", "far");
        let mut before = plan(&[("far", "10.244.9.1")], None);
        before.remote = ["uid-far".to_owned()].into();
        for (what, now, expected) in [
            ("the address went to another node", None, &[][..]),
            ("the Pinhole is still its own", Some(Some("uid-far")), &[]),
            ("another pod has its name", Some(Some("uid-next")), &["10.244.9.1"]),
            ("it is over", Some(None), &["10.244.9.1"]),
        ] {
            let mut presence = Presence::default();
            presence.gone(&before, &[], &BTreeSet::new());
            let mut after = plan(&[], None);
            after.subjects.extend(now.map(|uid| (name.clone(), uid.map(str::to_owned))));
            let gone = presence.gone(&after, &[], &BTreeSet::new());
            assert_eq!(gone, expected.iter().map(|ip| ip.parse().unwrap()).collect(), "{what}");
        }
    }

    #[test]
    fn an_address_is_anothers_when_neither_the_owner_nor_a_pod_behind_a_pinhole_has_it() {
        let owner = |name: &str| {
            (Owner::new(&ObjectName::new("shop", name), &format!("uid-{name}")), format!("uid-{name}"))
        };
        let mut presence = Presence::default();
        presence.gone(&plan(&[], Some(&[("x", "10.244.9.1")])), &[], &BTreeSet::new());
        for (now, plan, expected) in [
            (None, Plan::default(), false),
            (Some("a"), Plan::default(), false),
            (Some("b"), Plan::default(), true),
            (Some("x"), Plan::default(), false),
            (Some("y"), plan(&[], Some(&[("y", "10.244.9.2")])), false),
        ] {
            let pod = now.map(owner);
            assert_eq!(presence.is_anothers(&owner("a").0, &plan, pod.as_ref()), expected, "{now:?}");
        }
    }

    #[test]
    fn an_entry_of_nobody_who_is_known_tells_of_a_pod_that_went_while_nobody_looked() {
        let changes = diff(
            &ruleset(&[endpoint("80/tcp", "web", &["10.244.1.9"])], &v4_node()),
            &ruleset(&[], &v4_node()),
        );
        let mut owner = changes.iter().find_map(|change| match change {
            Change::Removed(entry) => Some(entry.owner.clone()),
            _ => None,
        });
        let gone = Presence::default().gone(&Plan::default(), &changes, &BTreeSet::new());
        assert_eq!(gone, ["10.244.1.9".parse().unwrap()].into());
        // A Pinhole that was known until now says nothing of the pods behind it.
        let pinhole = Pod { name: ObjectName::new("default", "web"), uid: "u".to_owned(), ips: Vec::new() };
        let pods = [(owner.take().unwrap(), pinhole)].into();
        let mut presence = Presence { pods, ..Presence::default() };
        assert_eq!(presence.gone(&Plan::default(), &changes, &BTreeSet::new()), BTreeSet::new());
    }
}
