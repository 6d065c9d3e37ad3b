//! Admission: which request for external ports is granted, and what a refused one is told.
//!
//! [`decide`] is the only place with rules. The webhook, `pinhole check`, the demo and the node agent's re-check all
//! call it, so that "admitted" and "understood" cannot drift apart. It reads the user's own annotation or
//! Pinhole and nothing that we wrote. No I/O, no clock: what is known of the cluster comes as an [`index::Index`].

mod ack;
pub mod conflict;
pub mod effective;
mod entries;
mod fixed;
mod grant;
pub mod handover;
pub mod index;
mod json;
pub mod masquerade;
mod misplaced;
mod occupied;
mod ordinals;
pub mod pinhole;
pub mod policy;
pub mod reservation;
pub mod sharing;
mod short_form;
mod spread;
pub mod subject;
mod suggest;
pub mod suspended;
mod validate;
pub mod violation;
pub mod wanted;
mod warning;
mod word;

use crate::admission::conflict::Evidence;
use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::wanted::Located;
use crate::allocation;
use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::api::crd::pinhole::Sharing;
use crate::api::object::Object;
use crate::model::automatic::AutomaticPort;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;

/// What is being done to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is new.
    Create,
    /// It changes.
    Update,
    /// Deletes, connects, and whatever a later API server may bring: nothing that could ask for a port.
    Other,
}

/// A request to the API server, as far as rules read it.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is being done.
    pub operation: Operation,
    /// The namespace that it is done in.
    pub namespace: String,
    /// The object as it would be stored.
    pub object: Option<Object>,
    /// The object as it is stored, on an update.
    pub old_object: Option<Object>,
}

/// What a decision is made against.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// What the operator allows.
    pub policy: &'a Policy,
    /// What is known of the cluster.
    pub index: &'a Index,
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Everything that is wrong with it; the request is granted when there is nothing.
    pub violations: Vec<Violation>,
    /// What the user should know although it is granted. Each at most 120 characters.
    pub warnings: Vec<String>,
    /// What the object asks for, as far as it can be read. Empty when no rule applies to the request.
    pub mappings: Vec<Mapping>,
    /// The ports whose external side it leaves to a pool, likewise.
    pub automatic: Vec<AutomaticPort>,
    /// The pool of each mapping, where pools grant them; empty where nobody has to.
    pub pools: Vec<Option<String>>,
    /// What a refusal rests on that may have changed since it was seen: read these live before refusing.
    pub evidence: Vec<Evidence>,
}

impl Decision {
    /// Whether the request is granted.
    pub fn is_granted(&self) -> bool {
        self.violations.is_empty()
    }

    /// Whether the object asks for anything that could be read.
    pub fn asks(&self) -> bool {
        !self.mappings.is_empty() || !self.automatic.is_empty()
    }
}

/// Decides on a request.
///
/// Deletes, updates that leave the asking annotations alone, and objects that ask for nothing are granted whatever
/// they are: what runs is never blocked by a rule that came later.
pub fn decide(request: &Request, world: &World<'_>) -> Decision {
    judge(request, world, conflict::judge)
}

/// Decides on a request but for what other holders have, which whoever knows their claims knows better.
pub fn decide_apart_from_others(request: &Request, world: &World<'_>) -> Decision {
    judge(request, world, |_, _, _, _, _| {})
}

fn judge(
    request: &Request,
    world: &World<'_>,
    judge_others: impl FnOnce(&Subject<'_>, &str, &[Located], &World<'_>, &mut Decision),
) -> Decision {
    let misplaced = misplaced::violations(request, world.policy);
    let Some(subject) = judged_subject(request) else {
        return Decision { violations: misplaced, ..Decision::default() };
    };
    if let Some(old) = unchanged_since(request, &subject, world.policy) {
        let violations = misplaced.into_iter().chain(suspended::changed_to(&old, &subject, world.policy));
        return Decision { violations: violations.collect(), ..Decision::default() };
    }
    let Some(wanted) = wanted::of(&subject, world.policy) else {
        return Decision { warnings: warning::ignored_keys(&subject, world.policy), ..Decision::default() };
    };
    let mut decision = Decision {
        violations: wanted.violations,
        warnings: warning::ignored_keys(&subject, world.policy),
        mappings: wanted.entries.iter().map(|entry| entry.mapping.clone()).collect(),
        automatic: wanted.automatic.iter().map(|entry| entry.port.clone()).collect(),
        pools: Vec::new(),
        evidence: Vec::new(),
    };
    decision.violations.extend(misplaced);
    decision.violations.extend(spread::is_asked_for(&subject, of_one_pod(&wanted.entries)).err());
    decision.violations.extend(handover::violations(&subject));
    decision.violations.extend(suspended::violation(&subject));
    decision.violations.extend(sharing::violation(&subject, &wanted.entries));
    judge_alone(&subject, &request.namespace, &wanted.entries, world, &mut decision);
    decision.violations.extend(fixed::violations(&subject, &wanted.automatic, world.policy));
    grant::judge(&subject, &request.namespace, &wanted.entries, world, &mut decision);
    grant::judge_automatic(&subject, &request.namespace, &wanted.automatic, world, &mut decision);
    occupied::judge(&subject, &request.namespace, &wanted.entries, world, &mut decision);
    judge_others(&subject, &request.namespace, &wanted.entries, world, &mut decision);
    violation::sort(&mut decision.violations);
    violation::fold(&mut decision.violations);
    decision.warnings.extend(warning::shared_by_replicas(&subject, &wanted.entries));
    decision.warnings.extend(warning::exclusive_in_vain(&subject, &wanted.entries));
    decision.warnings.extend(warning::spread_in_vain(&subject, &wanted.entries));
    decision.warnings.extend(warning::gate_in_vain(&subject, world.policy));
    decision.warnings.extend(warning::transfer_in_vain(&subject, &request.namespace, world.policy));
    decision
}

/// What is said of a request whose namespace would hold more of a pool than it may, by what it holds and what the request
/// would claim; `None` when it may.
pub fn over_quota(
    request: &Request,
    world: &World<'_>,
    held: &[StoredClaim],
    wishes: &[Claim],
) -> Option<Violation> {
    let subject = Subject::of(request.object.as_ref()?)?;
    let asker = grant::asker(&subject, &request.namespace, world);
    let refusal = allocation::grant::over_quota(world.index.pools()?, asker, held, wishes)?;
    Some(Violation {
        field: subject.asking_path(),
        value: String::new(),
        problem: refusal.to_string(),
        rule: Rule::Pool,
    })
}

/// The subject of a request that rules apply to.
fn judged_subject(request: &Request) -> Option<Subject<'_>> {
    let subject = Subject::of(request.object.as_ref()?)?;
    let is_exempt =
        request.operation == Operation::Other || subject.is_mirror() || subject.is_derived_workload();
    (!is_exempt).then_some(subject)
}

/// What an update changes that asks for nothing new.
fn unchanged_since<'a>(request: &'a Request, subject: &Subject<'_>, policy: &Policy) -> Option<Subject<'a>> {
    let old = request.old_object.as_ref().filter(|_| request.operation == Operation::Update)?;
    let unchanged = |old: &Subject<'_>| match (old.pinhole, subject.pinhole) {
        (Some(old), Some(new)) => pinhole::asks_the_same(old, new),
        _ => policy
            .request_keys()
            .all(|key| old.metadata.annotations.get(key) == subject.metadata.annotations.get(key)),
    };
    Subject::of(old).filter(|old| unchanged(old) && !gets_more_that_counts(old, subject, policy))
}

/// Whether a template gets pods that it has not had, and asks for what depends on how many there are.
fn gets_more_that_counts(old: &Subject<'_>, new: &Subject<'_>, policy: &Policy) -> bool {
    let is_exclusive = || sharing::of(&new.metadata.annotations) == Some(Sharing::Exclusive);
    new.pods().reach_beyond(old.pods()) && (ordinals::are_asked_for(new, policy) || is_exclusive())
}

/// What each single pod asks for, of what a template does for all of them.
fn of_one_pod(entries: &[Located]) -> impl Iterator<Item = &Mapping> + Clone {
    // Those of the other pods stand behind it, and are of the same field.
    let is_first = |at: usize, entry: &Located| {
        let before = at.checked_sub(1).and_then(|before| entries.get(before));
        before.is_none_or(|before| entry.ordinal.is_none() || before.port_field != entry.port_field)
    };
    let each = entries.iter().enumerate().filter(move |(at, entry)| is_first(*at, entry));
    each.map(|(_, entry)| &entry.mapping)
}

/// The rules that need no other object.
fn judge_alone(
    subject: &Subject<'_>,
    namespace: &str,
    entries: &[Located],
    world: &World<'_>,
    decision: &mut Decision,
) {
    let labels = world.index.namespace_labels(namespace);
    if !world.policy.namespaces.allows(namespace, labels) {
        decision.violations.push(validate::namespace(namespace, world.policy));
        decision.evidence.push(Evidence::Namespace(namespace.to_owned()));
    }
    let on_node = |address| match address {
        Address::Node => true,
        Address::Fixed(address) => world.index.is_node_address(address),
    };
    decision.violations.extend(validate::violations(subject, entries, world.policy, on_node));
}

#[cfg(test)]
mod tests;
