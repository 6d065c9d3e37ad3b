//! One request against the pools: which of them grants each of its ports.
//!
//! What no pool grants is refused, where pools are looked at at all. But what runs is never blocked by a rule that came later:
//! ports that the holder has asked for already, by its stored template or by another pod of its, stay granted, so that a
//! rollout, an eviction or a scale-up of it goes on whatever has become of the pools. Ports by ordinal that a template only keeps
//! are none of them: a set can be scaled without anybody being asked.

use crate::admission::Decision;
use crate::admission::World;
use crate::admission::conflict::Evidence;
use crate::admission::index::Holding;
use crate::admission::index::ObjectKey;
use crate::admission::index::Scope;
use crate::admission::index::occupants::Source;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::wanted::Located;
use crate::admission::wanted::LocatedPort;
use crate::allocation::grant;
use crate::allocation::grant::Named;
use crate::allocation::pool::Asker;
use crate::allocation::pool::Pool;
use crate::api::keys;
use crate::api::object::Kind;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;

/// The ServiceAccount of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// Who asks, as pools see it.
pub(crate) fn asker<'a>(subject: &Subject<'a>, namespace: &'a str, world: &World<'a>) -> Asker<'a> {
    let account = subject.spec.service_account_name.as_str();
    Asker {
        namespace,
        labels: world.index.namespace_labels(namespace),
        service_account: if account.is_empty() { DEFAULT_ACCOUNT } else { account },
    }
}

/// Adds to a decision which pool grants each entry, and what no pool grants.
pub(crate) fn judge(
    subject: &Subject<'_>,
    namespace: &str,
    entries: &[Located],
    world: &World<'_>,
    decision: &mut Decision,
) {
    let Some(pools) = world.index.pools() else { return };
    let asker = asker(subject, namespace, world);
    let itself =
        ObjectKey { kind: subject.kind, name: ObjectName::new(namespace, subject.owner.name.as_str()) };
    let holder = world.index.holder(&itself, subject.owner.controller());
    let mut is_refused = false;
    for entry in entries {
        let mapping = &entry.mapping;
        let node_ports = world.index.kept_for_node_ports(mapping.address(), mapping.external());
        let wish = Named::from(mapping).within(node_ports);
        let pool = match granted(pools, asker, wish, subject.pinhole.and_then(|spec| spec.pool.as_deref())) {
            Ok(pool) => Some(pool),
            Err(problem) => {
                if !holder.as_ref().is_ok_and(|holder| has_already(world, holder, &entry.mapping)) {
                    is_refused = true;
                    if let (Address::Fixed(address), Some(_)) = (mapping.address(), node_ports) {
                        let nodes = world.index.nodes_of_address(address).cloned();
                        decision.evidence.extend(nodes.map(Source::NatNode).map(Evidence::Occupant));
                    }
                    decision.violations.push(Violation {
                        field: entry.port_field.clone(),
                        value: entry.mapping.to_string(),
                        problem,
                        rule: Rule::Pool,
                    });
                }
                grant::pool_of(pools, asker, wish)
            }
        };
        decision.pools.push(pool.map(|pool| pool.name.clone()));
    }
    if is_refused {
        decision.evidence.extend([Evidence::Pools, Evidence::Namespace(namespace.to_owned())]);
        let root = match holder {
            Err(owner) => Some(owner),
            Ok(holder) => root_of(&holder).filter(|root| *root != itself),
        };
        decision.evidence.extend(root.map(Evidence::Object));
    }
}

/// The pool that grants a wish: any, or the one that the request names.
fn granted<'p>(
    pools: &'p [Pool],
    asker: Asker<'_>,
    wish: Named,
    name: Option<&str>,
) -> Result<&'p Pool, String> {
    let any = grant::named(pools, asker, wish).map_err(|refusal| refusal.to_string());
    let Some(name) = name else { return any };
    let other = any?;
    let found = pools.iter().find(|pool| pool.name == name);
    found.filter(|pool| grant::named(std::slice::from_ref(pool), asker, wish).is_ok()).ok_or_else(|| {
        let other = &other.name;
        format!("is not granted by NatPool {name}, which spec.pool names, but by {other}; write that, or leave pool out")
    })
}

/// Adds to a decision why no pool finds the ports that are left to it.
pub(crate) fn judge_automatic(
    subject: &Subject<'_>,
    namespace: &str,
    automatic: &[LocatedPort],
    world: &World<'_>,
    decision: &mut Decision,
) {
    let (Some(pools), Some(first)) = (world.index.pools(), automatic.first()) else { return };
    let asker = asker(subject, namespace, world);
    let protocols = automatic.iter().map(|entry| entry.port.protocol).collect();
    let named = subject.metadata.annotations.get(keys::POOL).map(String::as_str);
    let Err(refusal) = grant::finding(pools, asker, &protocols, named) else { return };
    let itself =
        ObjectKey { kind: subject.kind, name: ObjectName::new(namespace, subject.owner.name.as_str()) };
    let holder = world.index.holder(&itself, subject.owner.controller());
    let root = match &holder {
        Err(owner) => Some(owner.clone()),
        Ok(holder) => root_of(holder),
    };
    let leaves_open =
        |root: &ObjectKey| automatic.iter().all(|entry| world.index.leaves_open(root, &entry.port));
    if holder.is_ok() && root.as_ref().is_some_and(leaves_open) {
        return;
    }
    let shown: Vec<_> = automatic.iter().map(|entry| entry.port.to_string()).collect();
    decision.violations.push(Violation {
        field: first.field.clone(),
        value: shown.join(", "),
        problem: refusal.to_string(),
        rule: Rule::Pool,
    });
    decision.evidence.extend([Evidence::Pools, Evidence::Namespace(namespace.to_owned())]);
    decision.evidence.extend(root.filter(|root| *root != itself).map(Evidence::Object));
}

/// Whether a holder has asked for these ports before, by what is stored of it.
pub(crate) fn has_already(world: &World<'_>, holder: &Holder, mapping: &Mapping) -> bool {
    let (protocol, ports) = (mapping.protocol(), mapping.external());
    let root = root_of(holder);
    let is_declared =
        root.is_some_and(|root| world.index.asks_already(&root, mapping.address(), protocol, ports));
    let is_its = |held: &Holding| {
        let of = world.index.holder(&held.object, held.controller.as_deref());
        let has_all = held.ports.intersection(ports) == Some(ports) && !held.is_only_kept;
        has_all && of.is_ok_and(|of| of == *holder)
    };
    let held = || match mapping.address() {
        Address::Node => world.index.held_on_nodes(protocol, ports),
        Address::Fixed(address) => world.index.held(&Scope::Address(address), protocol, ports),
    };
    is_declared || held().iter().any(|held| is_its(held))
}

/// The object that a holder is, if it is of a kind that is known.
pub(crate) fn root_of(holder: &Holder) -> Option<ObjectKey> {
    Some(ObjectKey { kind: Kind::from_name(&holder.kind)?, name: holder.object.clone() })
}
