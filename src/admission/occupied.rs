//! One request against what else has ports: programs on the nodes, Services, and pods by `hostPort`.

use std::sync::Arc;

use crate::admission::Decision;
use crate::admission::World;
use crate::admission::conflict::Evidence;
use crate::admission::grant::has_already;
use crate::admission::index::ObjectKey;
use crate::admission::index::occupants::Occupant;
use crate::admission::index::occupants::Place;
use crate::admission::index::occupants::Source;
use crate::admission::index::occupants::Taken;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::wanted::Located;
use crate::admission::warning;
use crate::api::object::Kind;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;

/// Adds to a decision what else has these ports. What the holder has asked for before stays its own: it came first.
pub(crate) fn judge(
    subject: &Subject<'_>,
    namespace: &str,
    entries: &[Located],
    world: &World<'_>,
    decision: &mut Decision,
) {
    let itself =
        ObjectKey { kind: subject.kind, name: ObjectName::new(namespace, subject.owner.name.as_str()) };
    let holder = world.index.holder(&itself, subject.owner.controller());
    let node = subject.pinned_node().map(|pinned| world.index.node_name(pinned));
    for entry in entries {
        let mapping = &entry.mapping;
        let taken = match mapping.address() {
            Address::Fixed(address) => world
                .index
                .occupant_of_address(address, mapping.protocol(), mapping.external())
                .map(Taken::Everywhere),
            Address::Node => {
                world.index.occupant_of_node(node.as_ref(), mapping.protocol(), mapping.external())
            }
        };
        let Some(taken) = taken else { continue };
        if holder.as_ref().is_ok_and(|holder| has_already(world, holder, mapping)) {
            continue;
        }
        match taken {
            Taken::Everywhere(occupant) => {
                decision.violations.push(violation(entry, &occupant, namespace, world));
                decision.evidence.push(evidence(&occupant.source));
                decision.evidence.extend(holder.as_ref().err().cloned().map(Evidence::Object));
            }
            Taken::Some(nodes) => {
                let nodes: Vec<_> = nodes.iter().map(|node| &**node).collect();
                decision.warnings.push(warning::taken_on(mapping, &nodes));
            }
        }
    }
}

/// What to read again before a refusal that rests on this object.
fn evidence(source: &Source) -> Evidence {
    match source {
        Source::Pod(name) => Evidence::Object(ObjectKey { kind: Kind::Pod, name: name.clone() }),
        Source::NatNode(_) | Source::Service(_) => Evidence::Occupant(source.clone()),
    }
}

fn violation(entry: &Located, occupant: &Arc<Occupant>, namespace: &str, world: &World<'_>) -> Violation {
    let asked = entry.mapping.external();
    let shared = occupant.ports.intersection(asked).filter(|shared| *shared != asked);
    let shared = shared.map_or_else(String::new, |ports| format!("port {ports} "));
    let place = match &occupant.place {
        Place::EveryNode => "on every node ".to_owned(),
        Place::Node { name, .. } => format!("on node {name} "),
        Place::Address(address) | Place::NodeAddress { address, .. } => format!("on {address} "),
    };
    let named = |kind: &str, name: &ObjectName| {
        if world.policy.disclose_holder || *name.namespace == *namespace {
            format!("{kind} {name} ({})", occupant.by)
        } else {
            format!("a {kind} in another namespace ({})", occupant.by)
        }
    };
    let who = match &occupant.source {
        Source::NatNode(name) => format!("a program that listens there (NatNode {name})"),
        Source::Service(name) => named("Service", name),
        Source::Pod(name) => named("Pod", name),
    };
    Violation {
        field: entry.port_field.clone(),
        value: entry.mapping.to_string(),
        problem: format!(
            "{shared}is in use {place}by {who}; choose another external port, or free it there first"
        ),
        rule: Rule::InUse,
    }
}
