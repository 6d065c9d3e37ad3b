//! Ports that pods leave to pools: which claim is which pod's, what is to be claimed for one that has none, and what a pod is
//! told of it. Pure.
//!
//! # Guarantees
//! - A port that was found is its pod's alone: a claim names the pod in its slot, and nobody else finds it by that. A fixed one
//!   is the next pod's of the same name, too, as long as it is claimed.
//! - All ports that are found for a pod are on one address, and those that lead to one port of it have one number.
//! - A pod is let go to the scheduler only when all its ports are claimed, in the same write that tells it which.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::grant;
use crate::allocation::grant::Reason;
use crate::allocation::grant::Refusal;
use crate::allocation::key::ClaimKey;
use crate::allocation::key::Claimed;
use crate::allocation::key::PortBlock;
use crate::allocation::life::Usage;
use crate::allocation::overlap;
use crate::allocation::overlap::Rank;
use crate::allocation::pool::Asker;
use crate::allocation::pool::Pool;
use crate::allocation::probe;
use crate::allocation::probe::Wanted;
use crate::api::crd::pinhole::Endpoint;
use crate::api::crd::port_claim::ClaimOrigin;
use crate::api::crd::port_claim::ClaimState;
use crate::api::keys;
use crate::api::object::Kind;
use crate::api::object::Metadata;
use crate::api::object::NodeSelectorRequirement;
use crate::api::object::NodeSelectorTerm;
use crate::api::object::Object;
use crate::cluster::claim_watch::Claims;
use crate::controller::pinholes;
use crate::controller::standing::Granted;
use crate::controller::standing::Known;
use crate::controller::standing::Standing;
use crate::controller::standing::Verdict;
use crate::model::address::ExternalAddress;
use crate::model::automatic::AutomaticPort;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::ordinals::Ordinals;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// The ServiceAccount of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// The claims that were made for slots.
#[derive(Debug, Default)]
pub struct Found<'a> {
    by_slot: HashMap<(&'a Holder, &'a str), &'a StoredClaim>,
}

impl<'a> Found<'a> {
    /// What these claims say. Should there be two for one slot, because two controllers led for a moment, the first by its key
    /// counts and the other is nobody's; so is one that was never granted, because another overlaps it.
    pub fn of(claims: &'a Claims) -> Self {
        Self::among(claims, |_| true)
    }

    /// What those of one namespace say, in which all pods of a holder are.
    pub fn of_namespace(claims: &'a Claims, namespace: &str) -> Self {
        Self::among(claims, |claim| *claim.holder.object.namespace == *namespace)
    }

    fn among(claims: &'a Claims, is_asked: impl Fn(&Claim) -> bool) -> Self {
        let mut by_slot = HashMap::new();
        for stored in claims.values() {
            if let Some(slot) = &stored.claim.slot
                && is_asked(&stored.claim)
                && overlap::rank(stored, claims) == Rank::First
            {
                by_slot.entry((&stored.claim.holder, slot.as_str())).or_insert(stored);
            }
        }
        Self { by_slot }
    }

    /// The claim of a slot, whatever its state.
    pub fn get(&self, holder: &Holder, slot: &str) -> Option<&'a StoredClaim> {
        self.by_slot.get(&(holder, slot)).copied()
    }

    /// The claim of a slot that its holder can rely on.
    pub fn usable(&self, holder: &Holder, slot: &str) -> Option<&'a StoredClaim> {
        self.get(holder, slot)
            .filter(|stored| matches!(stored.claim.state, ClaimState::Reserved | ClaimState::Bound))
    }

    /// Whether a claim is the one that counts for its slot.
    fn counts(&self, claim: &Claim) -> bool {
        let found = claim.slot.as_deref().and_then(|slot| self.get(&claim.holder, slot));
        found.is_some_and(|found| found.claim.key == claim.key)
    }
}

/// The pods that slots belong to, and the StatefulSets that are about to have such pods.
#[derive(Debug, Default)]
pub struct Users<'a> {
    by_slot: HashMap<(Holder, String), Arc<str>>,
    sets: HashMap<&'a ObjectName, (Ordinals, &'a [AutomaticPort])>,
    /// The namespaces of pods whose holder is not known yet.
    unknown: BTreeSet<Arc<str>>,
}

impl<'a> Users<'a> {
    /// Who leaves ports to pools.
    pub fn of(index: &'a Index) -> Self {
        let mut users = Self::default();
        for finder in index.finders() {
            if let Some(ordinals) = finder.ordinals {
                users.sets.insert(&finder.object.name, (ordinals, finder.ports));
            }
            if finder.object.kind != Kind::Pod {
                continue;
            }
            let Ok(holder) = index.holder(finder.object, finder.controller) else {
                users.unknown.insert(Arc::clone(&finder.object.name.namespace));
                continue;
            };
            for port in finder.ports {
                let slot = port.slot(&finder.object.name.name, finder.uid);
                users.by_slot.insert((holder.clone(), slot), Arc::clone(finder.uid));
            }
        }
        users
    }

    /// How a found port is used: by a pod, or kept for one that its StatefulSet has or is about to have, as its template and its
    /// replicas say. `None` where nobody can say yet.
    pub fn usage(&self, claim: &Claim, found: &Found<'_>) -> Option<Usage> {
        if self.unknown.contains(&claim.holder.object.namespace) {
            return None;
        }
        let Some(slot) = claim.slot.as_deref().filter(|_| found.counts(claim)) else {
            return Some(Usage::default());
        };
        let set = self.asking_set(&claim.holder, slot);
        let awaits = |set: Ordinals| set.has_pod(&claim.holder.object.name, AutomaticPort::pod_of(slot));
        let pod = self.by_slot.get(&(claim.holder.clone(), slot.to_owned())).cloned();
        let (is_declared, holder_exists) = (set.is_some_and(awaits), set.is_some());
        Some(Usage { pod, is_declared, holder_exists, ..Usage::default() })
    }

    /// The ordinals of the StatefulSet that holds a slot, if its template asks to keep such a port for the next pod of the name.
    fn asking_set(&self, holder: &Holder, slot: &str) -> Option<Ordinals> {
        let (ordinals, ports) =
            self.sets.get(&holder.object).filter(|_| *holder.kind == *Kind::StatefulSet.name())?;
        let is_its =
            |port: &AutomaticPort| port.is_fixed() && port.slot(AutomaticPort::pod_of(slot), "") == slot;
        ports.iter().any(is_its).then_some(*ordinals)
    }
}

/// What tells a pod's ports from those of others of its holder.
pub fn slot(pod: &Metadata, port: &AutomaticPort) -> String {
    port.slot(&pod.name, &pod.uid)
}

/// The mapping that a claim gives to a port.
pub fn mapping(port: &AutomaticPort, stored: &StoredClaim) -> Option<Mapping> {
    let Claimed::Ports(_, block) = stored.claim.key.claimed() else { return None };
    port.at(stored.claim.key.address(), block.range().first())
}

/// The claims to try next for a pod whose ports have yet to be found. `taken` is what was found to be somebody's since the
/// watch last showed anything, `attempt` how often it was tried.
pub fn choose(
    pod: &Object,
    standing: &Standing,
    known: &Known<'_>,
    taken: &BTreeSet<ClaimKey>,
    attempt: u32,
    now: Timestamp,
) -> Result<Vec<Claim>, Refusal> {
    let Known { claims, index, policy, .. } = *known;
    let pools = index.pools().map_or(&[][..], |pools| pools);
    let asker = asker(pod, index);
    let retention = |port: &AutomaticPort, pool: Option<&String>| {
        let pool = pools.iter().find(|known| port.is_fixed() && Some(&known.name) == pool);
        pool.map(|pool| pool.retention.clone()).unwrap_or_default()
    };
    let wish = |port: &AutomaticPort, key: ClaimKey, pool: Option<String>| Claim {
        retention: retention(port, pool.as_ref()),
        pool,
        origin: ClaimOrigin::Dynamic,
        slot: Some(slot(&pod.metadata, port)),
        ..Claim::reserve(key, standing.holder.clone(), now)
    };
    // What it had a moment ago, and nobody else has yet, is its own again.
    let given_up = |port: &AutomaticPort| {
        let stored = known.found.get(&standing.holder, &slot(&pod.metadata, port))?;
        let is_gone = taken.contains(&stored.claim.key);
        (!is_gone).then(|| wish(port, stored.claim.key, stored.claim.pool.clone()))
    };
    let given_up: Vec<_> = standing.open().filter_map(given_up).collect();
    if !given_up.is_empty() {
        return Ok(given_up);
    }
    let open: Vec<_> = standing.open().collect();
    let protocols = open.iter().map(|port| port.protocol).collect();
    let named = pod.metadata.annotations.get(keys::POOL).map(String::as_str);
    let finding = grant::finding(pools, asker, &protocols, named)?;
    let mut groups: BTreeMap<Port, Vec<&AutomaticPort>> = BTreeMap::new();
    for port in &open {
        groups.entry(port.target).or_default().push(port);
    }
    let wanted: Vec<_> = groups.values().map(|ports| group(ports)).collect();
    let found_before = found_before(standing);
    let node = node(pod, index);
    let is_taken = |key: ClaimKey| {
        taken.contains(&key)
            || claims.contains_key(&key)
            || key.around().iter().any(|wider| claims.contains_key(wider))
            || is_somebody_elses(key, index, policy)
    };
    let passed_over = Cell::new(None);
    for pool in &finding {
        let is_kept = |key: ClaimKey| {
            let kept = kept_for_node_ports(key, pool, index);
            passed_over.set(passed_over.get().or(kept));
            kept.is_some()
        };
        let may_serve =
            |address: ExternalAddress| node.as_deref().is_none_or(|node| serves(pool, address, node, index));
        let seed = format!("{}/{}", pod.metadata.namespace, pod.metadata.uid);
        let is_taken = |key| is_taken(key) || is_kept(key);
        let Some(found) = probe::find(pool, &seed, &wanted, attempt, found_before, may_serve, is_taken)
        else {
            continue;
        };
        let chosen = groups.values().zip(found).flat_map(|(ports, found)| {
            let key = move |port: &AutomaticPort| {
                ClaimKey::ports(found.address, port.protocol, PortBlock::single(found.port))
            };
            ports.iter().map(move |port| wish(port, key(port), Some(pool.name.clone())))
        });
        return Ok(chosen.collect());
    }
    Err(Refusal {
        pool: None,
        reason: Reason::Full {
            pools: finding.iter().map(|pool| pool.name.clone()).collect(),
            wanted: wanted.len(),
            node: node.as_deref().map(str::to_owned),
            node_ports: passed_over.get(),
        },
        usable: grant::usable(pools, asker),
    })
}

/// All that [`choose`] asks of a pod: where there is nothing for one, there is nothing for another that needs the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Need {
    namespace: String,
    service_account: String,
    pool: Option<String>,
    node: Option<Arc<str>>,
    before: Option<ExternalAddress>,
    ports: Vec<(Port, Protocol)>,
    /// The pod itself, where a claim of its own waits for it.
    pod: Option<String>,
}

impl Need {
    /// What this pod needs.
    pub fn of(pod: &Object, standing: &Standing, known: &Known<'_>) -> Self {
        let slots = || standing.open().map(|port| slot(&pod.metadata, port));
        let has_own = slots().any(|slot| known.found.get(&standing.holder, &slot).is_some());
        Self {
            namespace: pod.metadata.namespace.clone(),
            service_account: pod.spec.service_account_name.clone(),
            pool: pod.metadata.annotations.get(keys::POOL).cloned(),
            node: node(pod, known.index),
            before: found_before(standing),
            ports: standing.open().map(|port| (port.target, port.protocol)).collect(),
            pod: has_own.then(|| pod.metadata.uid.clone()),
        }
    }
}

/// The node that a pod is bound to.
fn node(pod: &Object, index: &Index) -> Option<Arc<str>> {
    let node = Subject::of(pod).and_then(|subject| subject.pinned_node());
    node.map(|pinned| index.node_name(pinned))
}

/// The address of what was found for a pod already.
fn found_before(standing: &Standing) -> Option<ExternalAddress> {
    standing.found().find_map(|mapping| match mapping.address() {
        Address::Fixed(address) => Some(address),
        Address::Node => None,
    })
}

/// Whose pod it is, as pools see it.
pub fn asker<'a>(pod: &'a Object, index: &'a Index) -> Asker<'a> {
    let namespace = pod.metadata.namespace.as_str();
    let account = pod.spec.service_account_name.as_str();
    Asker {
        namespace,
        labels: index.namespace_labels(namespace),
        service_account: if account.is_empty() { DEFAULT_ACCOUNT } else { account },
    }
}

/// The ports of a pod that need one number.
fn group(ports: &[&AutomaticPort]) -> Wanted {
    let protocols: Vec<_> = ports.iter().map(|port| port.protocol).collect();
    let names: Vec<_> = protocols.iter().map(|protocol| protocol.name()).collect();
    let target = ports.first().map_or_else(String::new, |port| port.target.to_string());
    Wanted { slot: format!("{}/{target}", names.join("+")), protocols }
}

/// Whether a port is one that nobody is granted, that something has which never asks for it, or that a stored object asks for by
/// name: while claims are being built it may be served without one.
fn is_somebody_elses(key: ClaimKey, index: &Index, policy: &Policy) -> bool {
    let Claimed::Ports(protocol, block) = key.claimed() else { return true };
    let (address, ports) = (key.address(), block.range());
    let is_protected = || {
        (index.is_node_address(address) || index.node_of_address(address).is_some())
            && policy.protected_ports.first_match(protocol, ports).is_some()
    };
    policy.restricted_ports.first_match(protocol, ports).is_some()
        || is_protected()
        || index.occupant_of_address(address, protocol, ports).is_some()
        || !index.held_at(address, protocol, ports).is_empty()
}

/// The NodePort range, where a port of an address is kept for that.
fn kept_for_node_ports(key: ClaimKey, pool: &Pool, index: &Index) -> Option<PortRange> {
    let Claimed::Ports(_, block) = key.claimed() else { return None };
    let range = index.kept_for_node_ports(Address::Fixed(key.address()), block.range())?;
    pool.keeps_for_node_ports(range, block.range()).then_some(range)
}

/// Whether a pod on this node can be served at an address of the pool, as far as is known.
fn serves(pool: &Pool, address: ExternalAddress, node: &str, index: &Index) -> bool {
    let mut owners = index.nodes_of_address(address).peekable();
    if owners.peek().is_some() {
        return owners.any(|owner| **owner == *node);
    }
    pool.nodes
        .as_ref()
        .is_none_or(|selector| index.node_labels(node).is_none_or(|labels| selector.selects(labels)))
}

/// What a pod is to be told, and whether it is let go to the scheduler; `None` when it is as it should be.
pub fn announcement(pod: &Object, standing: &Standing, index: &Index) -> Option<Value> {
    let text = text(standing, index);
    let told = pod.metadata.annotations.get(keys::ENDPOINTS);
    // The webhook has told it what it was granted, and the watch on claims is about to show that: nothing is taken back meanwhile.
    let is_waiting = matches!(standing.verdict, Verdict::Waiting(_));
    let is_told = told == text.as_ref() || (is_waiting && told.is_some());
    let gates = &pod.spec.scheduling_gates;
    let is_gated = gates.iter().any(|gate| gate.name == keys::ENDPOINTS_GATE);
    let is_let_go = is_gated && !is_waiting && standing.open().next().is_none();
    if (is_told && !is_let_go) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mut patch = json!({"metadata": {
        "uid": pod.metadata.uid,
        "resourceVersion": pod.metadata.resource_version,
        "annotations": {keys::ENDPOINTS: text},
    }});
    if is_let_go {
        let others: Vec<_> = gates.iter().filter(|gate| gate.name != keys::ENDPOINTS_GATE).collect();
        patch["spec"] = json!({"schedulingGates": others});
        if let Some(terms) = pinned(pod, standing, index) {
            let required = json!({"nodeSelectorTerms": terms});
            patch["spec"]["affinity"] =
                json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
        }
    }
    Some(patch)
}

/// The external endpoints of a pod as JSON; `None` for none.
fn text(standing: &Standing, index: &Index) -> Option<String> {
    let without_pool = |endpoint: Endpoint| Endpoint { pool: None, ..endpoint };
    let endpoints: Vec<_> = standing
        .granted
        .iter()
        .filter_map(|granted| pinholes::endpoint(granted, index))
        .map(without_pool)
        .collect();
    Endpoint::announcement(&endpoints)
}

/// The required node terms of a pod whose found address lives on certain nodes only; `None` where it may run anywhere.
fn pinned(pod: &Object, standing: &Standing, index: &Index) -> Option<Vec<NodeSelectorTerm>> {
    let (address, pool) = standing.automatic.iter().find_map(|(_, found)| {
        let Granted { mapping, pool, .. } = found.as_ref()?;
        let Address::Fixed(address) = mapping.address() else { return None };
        Some((address, pool.as_deref()?))
    })?;
    let pool = index.pools()?.iter().find(|known| known.name == pool)?;
    // A gateway outside of the cluster is no place for a pod.
    let node = index.node_of_address(address).filter(|node| index.node_labels(node).is_some());
    let addition = match (node, &pool.nodes) {
        (Some(node), _) => {
            let field = NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: vec![node.to_string()],
            };
            NodeSelectorTerm { match_fields: vec![field], ..NodeSelectorTerm::default() }
        }
        (None, Some(selector)) => {
            NodeSelectorTerm { match_expressions: selector.requirements(), ..NodeSelectorTerm::default() }
        }
        (None, None) => return None,
    };
    let present = pod.spec.affinity.as_ref().map(|affinity| &affinity.node_affinity.required);
    let present = present.map_or(&[][..], |required| &required.node_selector_terms);
    if present.is_empty() {
        return Some(vec![addition]);
    }
    // Terms are alternatives: what must hold is added to each.
    let with_addition = |term: &NodeSelectorTerm| {
        let mut term = term.clone();
        for (present, more) in [
            (&mut term.match_expressions, &addition.match_expressions),
            (&mut term.match_fields, &addition.match_fields),
        ] {
            let missing: Vec<_> = more.iter().filter(|one| !present.contains(one)).cloned().collect();
            present.extend(missing);
        }
        term
    };
    Some(present.iter().map(with_addition).collect())
}

#[cfg(test)]
mod tests;
