//! What `explain` says of one external port: who has it, by which claim, and what it waits for.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::jiff::SignedDuration;

use crate::allocation::claim::Claim;
use crate::allocation::life::GRACE;
use crate::api::crd::port_claim::ClaimState;
use crate::api::keys;
use crate::api::object::Metadata;
use crate::api::object::Object;
use crate::cli::plugin::explain::ended;
use crate::cli::plugin::explain::field;
use crate::cli::plugin::explain::judge;
use crate::cli::plugin::explain::paragraphs;
use crate::cli::plugin::explain::split;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::overlaps;
use crate::cli::plugin::picture::standing::Standing;
use crate::cli::plugin::picture::standing::State;
use crate::cli::plugin::reference::PortReference;
use crate::cli::terminal::Palette;
use crate::model::mapping::Address;
use crate::model::port::PortRange;
use crate::ruleset::entry::Key;

/// A claim on the port, or on more than it.
#[derive(Clone, Debug)]
pub(crate) struct ClaimOnIt {
    /// The claim.
    pub(crate) claim: Claim,
    /// How long its pool keeps it from others when it is given back; `None` where the pool cannot be read.
    pub(crate) cooldown: Option<SignedDuration>,
}

/// Explains one external port, and the claims on it.
pub(crate) fn port(
    picture: &Picture,
    namespace: &str,
    wanted: &PortReference,
    claims: &[ClaimOnIt],
    palette: Palette,
) -> String {
    let ports = PortRange::single(wanted.port);
    let key = Key { external: wanted.address, protocol: wanted.protocol, ports };
    let mut lines = vec![palette.bold(&wanted.to_string())];
    let nodes = nodes_with(picture, wanted.address);
    let place = if nodes.is_empty() {
        "no node is known to have this address".to_owned()
    } else {
        format!("an address of {}", nodes.iter().cloned().collect::<Vec<_>>().join(", "))
    };
    lines.push(field("address", &place, palette));
    let standings = picture.standings();
    let concerned: Vec<_> = standings.iter().filter(|one| concerns(one, &key, &nodes)).collect();
    for claim in claims {
        lines.push(field("claim", &claimed(&claim.claim), palette));
        lines.extend(waiting(claim, &concerned).map(|waiting| field("waits", &waiting, palette)));
    }
    // Whoever is served has it, though nodes have yet to let go of it for somebody else.
    let mut holders: Vec<_> = concerned.iter().filter(|one| one.state.is_held()).collect();
    holders.sort_by_key(|one| one.state == State::Releasing);
    let holder = holders.first();
    let said = match (holder, claims) {
        (Some(one), _) => who(one),
        (None, [claim, ..]) => format!("{}, by its claim; no node serves it", claim.claim.holder),
        (None, []) if concerned.is_empty() => "nobody, and no pod asks for it".to_owned(),
        (None, []) => "nobody, although it is asked for".to_owned(),
    };
    lines.push(field("holder", &said, palette));
    lines.extend(paragraphs(concerned.iter().copied(), palette));
    if holder.is_none() && claims.is_empty() {
        lines.push(String::new());
        lines.extend(for_a_new_pod(picture, namespace, wanted, &nodes, palette));
    }
    ended(&lines)
}

fn claimed(claim: &Claim) -> String {
    let Claim { key, holder, pool, state, since, .. } = claim;
    let pool = pool.as_ref().map_or_else(String::new, |pool| format!(", pool {pool}"));
    format!("{key} for {holder}, {} since {since}{pool}", state.name())
}

/// What a claim that nobody uses waits for.
fn waiting(on_it: &ClaimOnIt, concerned: &[&Standing]) -> Option<String> {
    let ClaimOnIt { claim, cooldown } = on_it;
    match claim.state {
        ClaimState::Bound => None,
        ClaimState::Reserved => {
            let end = claim.renewed.checked_add(GRACE).unwrap_or(claim.renewed);
            Some(format!(
                "for a pod, a template or a Pinhole that uses it; without one it is free after {end}"
            ))
        }
        ClaimState::Releasing => {
            let nodes = concerned.iter().filter(|one| one.state == State::Releasing);
            let nodes: BTreeSet<_> = nodes.filter_map(|one| one.node.as_deref()).collect();
            let nodes = nodes.into_iter().collect::<Vec<_>>().join(", ");
            let nodes = if nodes.is_empty() { "the nodes that may have it in their kernels" } else { &nodes };
            Some(format!(
                "for {nodes} to say that it is gone from there; then {} has it for its cooldown",
                claim.holder
            ))
        }
        ClaimState::Cooldown => {
            let end = cooldown.and_then(|cooldown| claim.since.checked_add(cooldown).ok());
            let end = end.map_or_else(|| "its pool's cooldown is over".to_owned(), |end| end.to_string());
            Some(format!("until {end} only {} may have it", claim.holder))
        }
    }
}

/// The nodes that have an address, as far as is known.
fn nodes_with(picture: &Picture, address: IpAddr) -> BTreeSet<String> {
    let nodes = picture.objects.iter().filter(|object| object.kind == "Node");
    let has_it = |node: &&Object| {
        let name = &node.metadata.name;
        picture.node_facts(name).addresses.contains(&address)
    };
    nodes.filter(has_it).map(|node| node.metadata.name.clone()).collect()
}

fn concerns(standing: &Standing, key: &Key, nodes: &BTreeSet<String>) -> bool {
    if let Some(found) = standing.key {
        return found.overlaps(key);
    }
    let Some(mapping) = &standing.mapping else { return false };
    let is_there = || standing.node.as_ref().is_some_and(|node| nodes.contains(node));
    overlaps(key, mapping) && (mapping.address() != Address::Node || is_there())
}

/// What a new pod that asked for the port would be told.
fn for_a_new_pod(
    picture: &Picture,
    namespace: &str,
    wanted: &PortReference,
    nodes: &BTreeSet<String>,
    palette: Palette,
) -> Vec<String> {
    let request = wanted.to_string();
    let metadata = Metadata {
        namespace: namespace.to_owned(),
        annotations: [(keys::EXPOSE.to_owned(), request.clone())].into(),
        ..Metadata::default()
    };
    let mut pod = Object { kind: "Pod".to_owned(), metadata, ..Object::default() };
    if let [node] = nodes.iter().collect::<Vec<_>>().as_slice() {
        pod.spec.node_name = Some((*node).clone());
    }
    let violations = judge(picture, pod, namespace, &picture.index());
    if violations.is_empty() {
        let granted = format!("granted, as {}: \"{request}\"", keys::EXPOSE);
        return vec![field("a new pod", &format!("in namespace {namespace} would be {granted}"), palette)];
    }
    let mut lines = Vec::new();
    for violation in violations {
        let (why, next) = split(&violation.message());
        lines.push(field("a new pod", &format!("in namespace {namespace} would be refused: {why}"), palette));
        lines.extend(next.map(|next| field("next", &next, palette)));
    }
    lines
}

fn who(standing: &Standing) -> String {
    let asker = &standing.asker;
    let node = standing.node.as_deref().unwrap_or("no node");
    match &standing.holder {
        Some(holder) if standing.state == State::Releasing => {
            format!("{holder}, until {node} has let go of it")
        }
        Some(holder) if holder.object == *asker.name() => format!("{holder}, on {node}"),
        Some(holder) => format!("{holder}, by pod {} on {node}", asker.name().name),
        None => format!("{asker} on {node}, which does not ask for it any more"),
    }
}
