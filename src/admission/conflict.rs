//! One request against the ports that others hold.
//!
//! A port of a fixed address is unique in the cluster, a port of a node's own address on its node. The same holder
//! never conflicts with itself, so that a rolling update is never blocked, nor with one that has handed its ports over to it
//! (`allocation::transfer`), which is the claims' to settle. A refusal lists the evidence that it rests
//! on, for the caller to read live: a cached view may name a holder that has just let go.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::admission::Decision;
use crate::admission::World;
use crate::admission::grant;
use crate::admission::index::Holding;
use crate::admission::index::ObjectKey;
use crate::admission::index::Scope;
use crate::admission::index::occupants::Source;
use crate::admission::index::scope;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::wanted::Located;
use crate::admission::warning;
use crate::api::object::Kind;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::ExternalPorts;
use crate::model::mapping::Mapping;

/// What a refusal rests on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// That this pod or workload exists and asks for what it asks for, or who manages it.
    Object(ObjectKey),
    /// How this namespace is labelled.
    Namespace(String),
    /// Which pools there are.
    Pools,
    /// What this object says of the ports that are taken.
    Occupant(Source),
}

/// Adds to a decision what others have against these entries.
pub(crate) fn judge(
    subject: &Subject<'_>,
    namespace: &str,
    entries: &[Located],
    world: &World<'_>,
    decision: &mut Decision,
) {
    let itself =
        ObjectKey { kind: subject.kind, name: ObjectName::new(namespace, subject.owner.name.as_str()) };
    let claimant = world.index.holder(&itself, subject.owner.controller());
    let node = subject.pinned_node().map(|pinned| world.index.node_name(pinned));
    let judge = Judge { world, itself: &itself, claimant, namespace };
    for entry in entries {
        let mapping = &entry.mapping;
        let Some(scope) = scope(mapping.address(), node.as_ref()) else {
            let held = world.index.held_on_nodes(mapping.protocol(), mapping.external());
            decision.warnings.extend(judge.taken_nodes(entry, &held));
            continue;
        };
        let held = world.index.held(&scope, mapping.protocol(), mapping.external());
        if let Some((violation, evidence)) = judge.first_conflict(entry, &scope, &held) {
            decision.violations.push(violation);
            decision.evidence.extend(evidence);
        }
    }
    decision.evidence.sort();
    decision.evidence.dedup();
}

struct Judge<'a> {
    world: &'a World<'a>,
    itself: &'a ObjectKey,
    claimant: Result<Holder, ObjectKey>,
    namespace: &'a str,
}

impl Judge<'_> {
    /// The oldest holding of another holder, as a violation with its evidence.
    fn first_conflict(
        &self,
        entry: &Located,
        scope: &Scope,
        held: &[Arc<Holding>],
    ) -> Option<(Violation, Vec<Evidence>)> {
        // What a template keeps for the pods of a set keeps nobody from going on, and where it was claimed the claim tells.
        let goes_on = self.is_claimed(scope) || held.iter().any(|held| self.is_its_own(&entry.mapping, held));
        let counts = |held: &&Arc<Holding>| !(held.is_only_kept && goes_on);
        let others = held.iter().filter(counts).filter(|held| self.is_of_another(&entry.mapping, held));
        let mut others: Vec<_> = others.collect();
        others.sort_by_key(|held| (held.since.clone(), held.object.clone()));
        let first = others.first()?;
        let mut evidence: Vec<_> = others.iter().map(|held| Evidence::Object(held.object.clone())).collect();
        let unknown_owners = others
            .iter()
            .filter_map(|held| self.holder(held).err())
            .chain(self.claimant.as_ref().err().cloned());
        evidence.extend(unknown_owners.map(Evidence::Object));
        if self.is_claimed(scope) {
            // Whom it names as its heir stands on the holder itself.
            let holders = others.iter().filter_map(|held| grant::root_of(&self.holder(held).ok()?));
            evidence.extend(holders.map(Evidence::Object));
        }
        Some((self.violation(entry, scope, first), evidence))
    }

    /// Whether the claimant itself holds this, all that it asks for.
    fn is_its_own(&self, mapping: &Mapping, held: &Holding) -> bool {
        let has_all = held.ports.intersection(mapping.external()) == Some(mapping.external());
        let is_its =
            || self.claimant.as_ref().is_ok_and(|claimant| self.holder(held).as_ref() == Ok(claimant));
        has_all && is_its()
    }

    fn is_of_another(&self, mapping: &Mapping, held: &Holding) -> bool {
        if held.object == *self.itself && !self.itself.name.name.is_empty() {
            return false;
        }
        match (&self.claimant, self.holder(held)) {
            (Ok(claimant), Ok(holder)) => {
                *claimant != holder && !self.is_handed_over(mapping, held, claimant, &holder)
            }
            // With one owner unknown the two may or may not be one holder: it is the evidence that will tell.
            (Err(owner), Err(other)) => *owner != other,
            _ => true,
        }
    }

    /// Whether one of the two has handed the ports over to the other: then their claims say who may have them. Whoever did so may
    /// go on with what it has had, but has no right to anything new of the other's.
    fn is_handed_over(&self, mapping: &Mapping, held: &Holding, claimant: &Holder, holder: &Holder) -> bool {
        let heirs = self.world.index.heirs();
        let goes_on = || heirs.passes(claimant, holder) && grant::has_already(self.world, claimant, mapping);
        self.is_claimed(&held.scope) && (heirs.passes(holder, claimant) || goes_on())
    }

    /// Whether claims say who has a port, which can then be handed over. Pools are known exactly where claims are on.
    fn is_claimed(&self, scope: &Scope) -> bool {
        self.world.index.pools().is_some() && matches!(scope, Scope::Address(_))
    }

    fn holder(&self, held: &Holding) -> Result<Holder, ObjectKey> {
        self.world.index.holder(&held.object, held.controller.as_deref())
    }

    fn violation(&self, entry: &Located, scope: &Scope, held: &Holding) -> Violation {
        let mapping = &entry.mapping;
        let asked = mapping.external();
        let shared = held.ports.intersection(asked).filter(|shared| *shared != asked);
        let shared = shared.map_or_else(String::new, |ports| {
            format!("{} ", ExternalPorts { address: mapping.address(), protocol: mapping.protocol(), ports })
        });
        let place = match scope {
            Scope::Node(node) => format!(" on node {node}"),
            Scope::Address(_) => String::new(),
        };
        Violation {
            field: entry.port_field.clone(),
            value: mapping.to_string(),
            problem: format!(
                "{shared}is held{place} by {}; {}",
                self.describe(held, scope),
                self.advice(held)
            ),
            rule: Rule::Conflict,
        }
    }

    /// Who holds it, as far as the reader may know. The node is named where `scope` has not named it already.
    fn describe(&self, held: &Holding, scope: &Scope) -> String {
        if !self.world.policy.disclose_holder && &*held.object.name.namespace != self.namespace {
            return "an object in another namespace".to_owned();
        }
        let object = format!("{} {}", held.object.kind.name(), held.object.name);
        let holder = self.holder(held).map_or_else(
            |owner| format!("{} {}", owner.kind.name(), owner.name),
            |holder| holder.to_string(),
        );
        let mut details = Vec::new();
        if holder != object {
            details.push(format!("{} {}", held.object.kind.name().to_lowercase(), held.object.name.name));
        }
        let waits_for_a_node = held.object.kind == Kind::Pod && held.node.is_none();
        if let (Some(node), Kind::Pod, Scope::Address(_)) = (&held.node, held.object.kind, scope) {
            details.push(format!("on node {node}"));
        }
        if !held.since.is_empty() {
            let word = if waits_for_a_node { "created" } else { "since" };
            details.push(format!("{word} {}", held.since));
        }
        if waits_for_a_node {
            details.push("not on a node yet".to_owned());
        }
        if held.terminating {
            details.push("being deleted".to_owned());
        }
        if details.is_empty() { holder } else { format!("{holder} ({})", details.join(", ")) }
    }

    fn advice(&self, held: &Holding) -> String {
        if held.terminating {
            return "try again when it is gone, or choose another external port".to_owned();
        }
        let from = self.holder(held).ok().filter(|_| self.is_claimed(&held.scope));
        let verb = from.zip(self.claimant.as_ref().ok()).and_then(|(from, to)| transfer_verb(&from, to));
        format!("choose another external port, {}", or_free_it(verb))
    }

    /// Warns that a pod which is scheduled to certain nodes will get nothing there.
    fn taken_nodes(&self, entry: &Located, held: &[Arc<Holding>]) -> Option<String> {
        let others = held.iter().filter(|held| self.is_of_another(&entry.mapping, held));
        let nodes: BTreeSet<_> = others.filter_map(|held| held.node.as_deref()).collect();
        let nodes: Vec<_> = nodes.into_iter().collect();
        (!nodes.is_empty()).then(|| warning::taken_on(&entry.mapping, &nodes))
    }
}

/// The command that hands over what one holder has to another, where whoever asks may well be able to give it: in one namespace.
pub(super) fn transfer_verb(from: &Holder, to: &Holder) -> Option<String> {
    let is_one = from.object.namespace == to.object.namespace && !to.object.name.is_empty();
    let shown = |holder: &Holder| {
        Kind::from_name(&holder.kind)?;
        Some(format!("{}/{}", holder.kind.to_lowercase(), holder.object.name))
    };
    Some(format!("kubectl pinhole transfer {} --to {}", shown(from)?, shown(to)?)).filter(|_| is_one)
}

/// What else can be done about a port that somebody holds.
pub(super) fn or_free_it(verb: Option<String>) -> String {
    match verb {
        Some(verb) => format!("remove it there first, or have it handed over ({verb})"),
        None => "or remove it there first".to_owned(),
    }
}
