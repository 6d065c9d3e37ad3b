//! What a node says in the status of each Pinhole that it serves: whether the kernel answers for it, and if not, why.
//!
//! A report names the generation that it is about only when the controller has said what is granted of it, and nothing else is
//! left in the kernel: it is on such a report that a port may become somebody else's. It never says that all is programmed while
//! something is granted on the node that the node serves for nobody.

use std::collections::BTreeMap;

use crate::agent::desired::Plan;
use crate::agent::grants;
use crate::agent::grants::Grants;
use crate::api::crd::pinhole::NodeReport;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::REMOVING;
use crate::api::crd::pinhole::STANDBY;
use crate::api::crd::pinhole::SUSPENDED;
use crate::api::keys;
use crate::cluster::pinhole_reports::Report;
use crate::cluster::pinhole_watch::Pinholes;
use crate::dataplane::Applied;
use crate::model::holder::ObjectName;
use crate::ruleset::Ruleset;
use crate::ruleset::entry::Entry;
use crate::ruleset::owner::Owner;

/// The longest message of a report.
const LONGEST_MESSAGE: usize = 1024;

/// What reports are made from.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The name of the node.
    pub node_name: &'a str,
    /// What it should serve.
    pub plan: &'a Plan,
    /// What became of it.
    pub applied: &'a Applied,
    /// What was granted.
    pub grants: &'a Grants,
    /// Whether a report may name a holder in another namespace.
    pub disclose_holder: bool,
    /// Whether an operator wants nothing to be changed on the node.
    pub is_paused: bool,
}

impl Seen<'_> {
    /// Whether the controller has decided about all that the pod or Pinhole of this UID asks for here.
    fn is_decided(&self, uid: &str) -> bool {
        self.grants.is_decided(uid) && !self.plan.awaiting.contains(uid)
    }
}

/// The reports that differ from what the Pinholes say already.
pub fn news(pinholes: &Pinholes, seen: &Seen<'_>) -> Vec<Report> {
    let wanted_of_name = by_pod(&seen.plan.ruleset);
    let present = by_pod(&seen.applied.observed.ruleset);
    let report = |(name, pinhole): (&ObjectName, &Pinhole)| {
        let uid = grants::subject_uid(pinhole)?;
        let owner = Owner::new(name, uid);
        // Those of whoever had the name before, too; but a pod and a user's Pinhole may have one name at the same time.
        let present = present.get(owner.pod()).map_or(&[][..], Vec::as_slice);
        let all = wanted_of_name.get(owner.pod()).map_or(&[][..], Vec::as_slice);
        let wanted: Vec<_> = all.iter().copied().filter(|entry| entry.owner == owner).collect();
        let leftover: Vec<_> = present.iter().copied().filter(|entry| !all.contains(entry)).collect();
        let said = say(&owner, uid, &wanted, present, &leftover, seen);
        let generation = pinhole.metadata.generation;
        let is_current = pinhole.status.as_ref().is_some_and(|status| pinhole.is_current(status));
        // Until it is decided the kernel keeps what it has, granted or not.
        let report =
            said.into_report(seen.node_name, generation.filter(|_| is_current && seen.is_decided(uid)));
        let stored = pinhole.status.iter().flat_map(|status| &status.nodes);
        let is_news = !stored.into_iter().any(|stored| *stored == report);
        let uid = pinhole.metadata.uid.clone()?;
        is_news.then(|| Report { pinhole: name.clone(), uid, report })
    };
    pinholes.iter().filter_map(report).collect()
}

/// What is said of one pod, or of one Pinhole that a user wrote.
struct Said {
    reason: &'static str,
    message: String,
    is_programmed: bool,
    is_current: bool,
}

impl Said {
    fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), is_programmed: false, is_current: true }
    }

    /// What is said of a pod whose ports are closed because it says so itself.
    fn suspended(what_follows: &str) -> Self {
        Self::no(SUSPENDED, format!("the pod has {}: \"true\", {what_follows}", keys::SUSPENDED))
    }

    fn into_report(self, node_name: &str, generation: Option<i64>) -> NodeReport {
        NodeReport {
            name: node_name.to_owned(),
            programmed: self.is_programmed,
            reason: self.reason.to_owned(),
            message: self.message.chars().take(LONGEST_MESSAGE).collect(),
            observed_generation: generation.filter(|_| self.is_current),
        }
    }
}

fn say(
    owner: &Owner,
    uid: &str,
    wanted: &[&Entry],
    present: &[&Entry],
    leftover: &[&Entry],
    seen: &Seen<'_>,
) -> Said {
    let Seen { node_name, plan, applied, disclose_holder, is_paused, .. } = *seen;
    let is_written = plan.pinholes.contains(uid);
    let is_suspended = plan.suspended.contains(uid);
    if !leftover.is_empty() {
        let listed = list(leftover.iter().map(|entry| entry.key));
        let message = format!("{listed} is still in the kernel of {node_name}");
        return Said { is_current: false, ..Said::no(REMOVING, message) };
    }
    let refused = applied.refused.iter().filter(|refused| refused.entry.owner == *owner);
    let refused: Vec<_> = refused.map(|refused| format!("{}: {}", refused.entry, refused.error)).collect();
    if !refused.is_empty() {
        return Said::no("KernelRefused", refused.join("; "));
    }
    let losers = plan.losers.iter().filter(|loser| loser.uid == uid);
    let lost: Vec<_> = losers.map(|loser| loser.reason(disclose_holder)).collect();
    if !lost.is_empty() {
        return Said::no("PortTaken", lost.join("; "));
    }
    let unserved = plan.unserved.iter().filter(|unserved| unserved.uid == uid);
    let unserved: Vec<_> = unserved.map(|unserved| unserved.problem.as_str()).collect();
    if !unserved.is_empty() {
        return Said::no("NotProgrammed", unserved.join("; "));
    }
    if wanted.is_empty() {
        let is_decided = seen.is_decided(uid);
        let is_over = is_decided && (is_written || plan.idle.contains(uid));
        return match plan.pods.contains_key(owner) && !is_over {
            false => Said::no("Released", format!("{node_name} serves nothing of it")),
            true if !is_decided => Said::no("Waiting", "the controller has not granted it yet"),
            true if is_suspended => Said::suspended("and another pod of the same holder is served"),
            true if plan.unready.contains(uid) => Said::no(
                "NotReady",
                "its containers are not ready, and another pod of the same holder is served",
            ),
            true => Said::no(STANDBY, "another pod of the same holder is served"),
        };
    }
    if !wanted.iter().all(|entry| present.contains(entry)) {
        let failures: Vec<_> = applied.failures.iter().map(ToString::to_string).collect();
        return if is_paused {
            Said::no("Paused", format!("an operator has paused {node_name}"))
        } else {
            Said::no("Failed", failures.join("; "))
        };
    }
    if wanted.iter().all(|entry| entry.target.is_none()) {
        return if is_written {
            Said::no("NoTarget", "there is no ready pod to lead to")
        } else if is_suspended {
            Said::suspended("so its ports are kept and nothing is let through")
        } else {
            Said::no("NoAddress", "the pod has no address yet")
        };
    }
    if let Some(unwanted) = plan.unwanted.get(uid) {
        let listed = list(unwanted.iter());
        let message = format!(
            "{listed} is granted on {node_name}, whose agent does not find it among what is asked for there, so it is served for \
             nobody; an agent that is older than the controller may not read all of a request"
        );
        return Said::no("NotProgrammed", message);
    }
    Said { is_programmed: true, ..Said::no("Programmed", "") }
}

fn by_pod(ruleset: &Ruleset) -> BTreeMap<&str, Vec<&Entry>> {
    let mut found: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in ruleset.entries() {
        found.entry(entry.owner.pod()).or_default().push(entry);
    }
    found
}

fn list(items: impl Iterator<Item: ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
