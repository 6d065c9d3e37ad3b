//! What is said in Events of ports that somebody does not have, and that it is said once.
//!
//! Its pod hears of it, from the agent of its node where it has one, and so does the root owner, which is what people look at. What a
//! condition says by a word, an Event says by the same.
//!
//! # Guarantees
//! - An owner hears of a trouble in one Event, however many of its pods are in it, and of how it changes every five minutes at most.
//! - What lasts is said again when API servers have forgotten the Event, and not before.
//! - What finds no room is said in a later turn. Owners come first.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use tracing::warn;

use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::reservation;
use crate::api::crd::port_claim::ClaimState;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cluster::events::Events;
use crate::cluster::events::ObjectEvent;
use crate::cluster::events::Reason;
use crate::cluster::events::Regarding;
use crate::controller::plan::Dispute;
use crate::controller::standing::Standing;
use crate::controller::standing::Verdict;
use crate::model::holder::Holder;

/// How long an owner hears nothing more of a trouble that changes.
const PAUSE: SignedDuration = SignedDuration::from_mins(5);

/// After how long a trouble that lasts is said again: a little longer than API servers keep Events.
const FORGOTTEN: SignedDuration = SignedDuration::from_mins(65);

/// What there is to say in a turn: of each reason one thing about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    events: BTreeMap<(Arc<str>, Reason), ObjectEvent>,
}

impl News {
    /// Adds something. Of several texts the one that comes first in the alphabet stays, so that it is the same in the next turn.
    pub fn add(&mut self, event: ObjectEvent) {
        let key = (Arc::clone(&event.regarding.uid), event.reason);
        match self.events.get_mut(&key) {
            Some(known) if known.note <= event.note => {}
            Some(known) => *known = event,
            None => drop(self.events.insert(key, event)),
        }
    }

    /// Adds what is to be said of a pod that has not all that it asks for, as far as nobody else says it.
    pub fn add_of_pod(&mut self, pod: &Object, standing: &Standing, index: &Index) {
        let Some((reason, message)) = standing.verdict.trouble() else { return };
        // The agent of its node says the same, but of what was to be found for it.
        if pod.spec.node_name.is_none() || reason == Reason::NoFreePort {
            self.add(ObjectEvent { regarding: Regarding::pod(pod), reason, note: message.to_owned() });
        }
        // Of what another holder has, owners hear in disputes: those without pods, too.
        if matches!(standing.verdict, Verdict::Taken(_)) {
            return;
        }
        let Some(itself) = ObjectKey::of(pod, &pod.metadata.namespace) else { return };
        if let Some(owner) = index.root_owner(&itself, pod.metadata.controller()) {
            let regarding = Regarding::owner(&itself.name.namespace, owner);
            self.add(ObjectEvent { regarding, reason, note: format!("pods lack ports: {message}") });
        }
    }

    /// Adds what the root owner is to hear of a port that somebody else has; nothing of one that is about to be free, which it gets
    /// by itself. Pods and users' Pinholes are told by how they stand.
    pub fn add_dispute(&mut self, dispute: &Dispute, policy: &Policy) {
        let Dispute { owner, wanted, by } = dispute;
        let Some(owner) = owner else { return };
        if !matches!(by.claim.state, ClaimState::Reserved | ClaimState::Bound) {
            return;
        }
        let asker = Holder::new(Arc::clone(&owner.kind), owner.object.clone());
        let problem = reservation::in_its_way(policy, by, &asker);
        let note = format!("{}: {problem}", wanted.in_words());
        self.add(ObjectEvent { regarding: owner.clone(), reason: Reason::PortTaken, note });
    }

    #[cfg(test)]
    pub(super) fn said(&self) -> Vec<String> {
        let said =
            |event: &ObjectEvent| format!("{} {}: {}", event.regarding, event.reason.name(), event.note);
        self.events.values().map(said).collect()
    }
}

/// Whether an object speaks for all its pods.
fn is_owner(regarding: &Regarding) -> bool {
    !matches!(Kind::from_name(&regarding.kind), Some(Kind::Pod | Kind::Pinhole))
}

/// Says what is new.
#[derive(Debug, Default)]
pub struct Teller {
    told: HashMap<(Arc<str>, Reason), Told>,
}

#[derive(Debug)]
struct Told {
    note: String,
    at: Timestamp,
}

impl Told {
    fn is_past(&self, time: SignedDuration, now: Timestamp) -> bool {
        self.at.checked_add(time).is_ok_and(|end| end <= now)
    }

    fn leaves_unsaid(&self, event: &ObjectEvent, now: Timestamp) -> bool {
        let is_other = self.note != event.note;
        let is_time = !is_owner(&event.regarding) || self.is_past(PAUSE, now);
        (is_other && is_time) || self.is_past(FORGOTTEN, now)
    }
}

impl Teller {
    /// Offers what of this was not said yet.
    pub fn tell(&mut self, news: News, events: &Events, now: Timestamp) {
        self.told.retain(|key, told| news.events.contains_key(key) || !told.is_past(PAUSE, now));
        let (owners, others): (Vec<_>, Vec<_>) =
            news.events.into_iter().partition(|(_, event)| is_owner(&event.regarding));
        for (key, event) in owners.into_iter().chain(others) {
            if self.told.get(&key).is_some_and(|told| !told.leaves_unsaid(&event, now)) {
                continue;
            }
            let (regarding, note) = (event.regarding.clone(), event.note.clone());
            // The rest waits for the next turn, as this does.
            if events.offer(event).is_err() {
                return;
            }
            warn!(object = %regarding, reason = key.1.name(), problem = note, "Not served");
            self.told.insert(key, Told { note, at: now });
        }
    }
}

#[cfg(test)]
mod tests;
