//! What a granted request claims, and what a refusal says when a claim is somebody else's.
//!
//! Only ports of a fixed address are claimed here: those of a node's own address the controller claims once it is known which node
//! that is.

use k8s_openapi::jiff::Timestamp;

use crate::admission::Decision;
use crate::admission::Request;
use crate::admission::conflict::or_free_it;
use crate::admission::conflict::transfer_verb;
use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::wanted;
use crate::admission::wanted::Located;
use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::key::ClaimKey;
use crate::api::crd::port_claim::ClaimState;
use crate::model::address::ExternalAddress;
use crate::model::holder::Holder;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;

/// The claims that a granted request needs, all of its holder. `Err` names an owner that must be known first.
pub fn claims(
    request: &Request,
    decision: &Decision,
    index: &Index,
    now: Timestamp,
) -> Result<Vec<Claim>, ObjectKey> {
    let pool = |at: usize| decision.pools.get(at).cloned().flatten();
    let mappings = decision.mappings.iter().enumerate();
    let keys: Vec<_> = mappings
        .flat_map(|(at, mapping)| keys(mapping).into_iter().map(move |key| (key, pool(at))))
        .collect();
    let Some(object) = request.object.as_ref().filter(|_| !keys.is_empty()) else { return Ok(Vec::new()) };
    let key = ObjectKey::of(object, &request.namespace).filter(|key| !key.name.name.is_empty());
    let Some(itself) = key else { return Ok(Vec::new()) };
    let holder = index.holder(&itself, object.metadata.controller())?;
    let is_itself = &*holder.kind == itself.kind.name() && holder.object == itself.name;
    let holder_uid = if is_itself { object.metadata.uid.clone() } else { String::new() };
    let claim = |(key, pool)| Claim {
        pool,
        holder_uid: holder_uid.clone(),
        ..Claim::reserve(key, holder.clone(), now)
    };
    Ok(keys.into_iter().map(claim).collect())
}

/// The keys of a mapping; none for a node's own address.
pub fn keys(mapping: &Mapping) -> Vec<ClaimKey> {
    match mapping.address() {
        Address::Node => Vec::new(),
        Address::Fixed(address) => keys_at(mapping, address),
    }
}

/// The keys of a mapping at an address, whichever it names.
pub fn keys_at(mapping: &Mapping, address: ExternalAddress) -> Vec<ClaimKey> {
    ClaimKey::of_range(address, mapping.protocol(), mapping.external())
}

/// Why a request is refused that wants what another holder has claimed, in words for the one that asks as far as it is known.
pub fn held(
    request: &Request,
    policy: &Policy,
    key: ClaimKey,
    by: &StoredClaim,
    asker: &Holder,
) -> Violation {
    let (field, value) = place(request, policy, key);
    Violation { field, value, problem: in_its_way(policy, by, asker), rule: Rule::Conflict }
}

/// What another holder's claim means for one that asks for the port, and what it can do.
pub fn in_its_way(policy: &Policy, by: &StoredClaim, asker: &Holder) -> String {
    let holder = &by.claim.holder;
    let is_disclosed = policy.disclose_holder || holder.object.namespace == asker.object.namespace;
    let holder = if is_disclosed { holder.to_string() } else { "an object in another namespace".to_owned() };
    match by.claim.state {
        ClaimState::Reserved | ClaimState::Bound => format!(
            "is claimed by {holder} (PortClaim {}, since {}); choose another external port, {}",
            by.claim.key,
            by.claim.since,
            or_free_it(transfer_verb(&by.claim.holder, asker).filter(|_| by.claim.slot.is_none()))
        ),
        ClaimState::Releasing | ClaimState::Cooldown => format!(
            "was given up by {holder} and is not free yet (PortClaim {}, {} since {}); try again in a few minutes, or choose \
             another external port",
            by.claim.key,
            by.claim.state.name(),
            by.claim.since
        ),
    }
}

/// Why a pod is served no more whose holder has handed its port over.
pub fn handed_over(request: &Request, policy: &Policy, key: ClaimKey, to: &StoredClaim) -> Violation {
    let (field, value) = place(request, policy, key);
    let problem = format!(
        "was handed over to {}, of which a pod is ready; delete this, or take the port out of it",
        to.claim.holder
    );
    Violation { field, value, problem, rule: Rule::Conflict }
}

/// Where a request asks for this, and in which words.
fn place(request: &Request, policy: &Policy, key: ClaimKey) -> (String, String) {
    let subject = request.object.as_ref().and_then(Subject::of);
    let entries = subject.and_then(|subject| wanted::of(&subject, policy));
    let entries = entries.map(|wanted| wanted.entries).unwrap_or_default();
    let asks_for_it = |entry: &Located| match entry.mapping.address() {
        Address::Node => keys_at(&entry.mapping, key.address()).contains(&key),
        Address::Fixed(_) => keys(&entry.mapping).contains(&key),
    };
    let entry = entries.into_iter().find(asks_for_it);
    entry.map_or_else(
        || (String::new(), key.to_string()),
        |entry| (entry.port_field, entry.mapping.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::admission::Operation;
    use crate::admission::World;
    use crate::admission::decide;
    use crate::allocation::claim::Version;
    use crate::model::holder::ObjectName;

    fn request(expose: &str, owners: &serde_json::Value) -> Request {
        let object = json!({"kind": "Pod", "metadata": {
            "name": "web-1", "namespace": "shop", "uid": "pod-uid", "annotations": {"pinhole.dev/expose": expose},
            "ownerReferences": owners,
        }});
        Request {
            operation: Operation::Create,
            namespace: "shop".to_owned(),
            object: Some(serde_json::from_value(object).unwrap()),
            old_object: None,
        }
    }

    fn wishes(request: &Request, index: &Index) -> Result<Vec<String>, ObjectKey> {
        let decision = decide(request, &World { policy: &Policy::default(), index });
        let claims = claims(request, &decision, index, Timestamp::UNIX_EPOCH)?;
        let said = |claim: &Claim| format!("{} {} {}", claim.key, claim.holder, claim.holder_uid);
        Ok(claims.iter().map(said).collect())
    }

    fn index() -> Index {
        Index::new(Arc::new(Policy::default()))
    }

    #[test]
    fn a_pod_claims_its_fixed_ports_for_itself_and_none_of_its_node() {
        let request = request("203.0.113.7:25,8080,203.0.113.7:7008-7024/udp", &json!([]));
        assert_eq!(
            wishes(&request, &index()).unwrap(),
            [
                "v4-203-0-113-7-tcp-25 Pod shop/web-1 pod-uid",
                "v4-203-0-113-7-udp-7008-7023 Pod shop/web-1 pod-uid",
                "v4-203-0-113-7-udp-7024 Pod shop/web-1 pod-uid",
            ]
        );
    }

    #[test]
    fn an_owner_that_is_not_known_is_asked_for_and_a_known_one_holds() {
        let owners = json!([{"kind": "ReplicaSet", "name": "web-5f", "uid": "rs-uid", "controller": true}]);
        let request = request("203.0.113.7:25", &owners);
        let mut index = index();
        assert_eq!(wishes(&request, &index).unwrap_err().name, ObjectName::new("shop", "web-5f"));
        let replica_set = json!({"kind": "ReplicaSet", "metadata": {
            "name": "web-5f", "namespace": "shop", "uid": "rs-uid",
            "ownerReferences": [{"kind": "Deployment", "name": "web", "uid": "d-uid", "controller": true}],
        }});
        index.apply(&serde_json::from_value(replica_set).unwrap());
        assert_eq!(wishes(&request, &index).unwrap(), ["v4-203-0-113-7-tcp-25 Deployment shop/web "]);
    }

    #[test]
    fn a_refusal_names_field_value_and_holder_as_far_as_it_may() {
        let request = request("8080,203.0.113.7:7000-7010", &json!([]));
        let key: ClaimKey = "v4-203-0-113-7-tcp-7005".parse().unwrap();
        let holder = Holder::new("Deployment", ObjectName::new("mail", "postfix"));
        let claim = Claim::reserve(key, holder, Timestamp::from_second(1_767_323_045).unwrap());
        let stored = |state| StoredClaim {
            claim: Claim { state, ..claim.clone() },
            version: Version { key, uid: "1".into(), revision: 1 },
        };
        let policy = Policy::default();
        // Of another namespace, so that nothing is said of handing over.
        let asker = Holder::new("Pod", ObjectName::new("shop", "web"));
        let said = held(&request, &policy, key, &stored(ClaimState::Bound), &asker).to_string();
        assert_eq!(
            said,
            "metadata.annotations[pinhole.dev/expose][1]: 203.0.113.7:7000-7010/tcp: is claimed by Deployment mail/postfix \
             (PortClaim v4-203-0-113-7-tcp-7005, since 2026-01-02T03:04:05Z); choose another external port, or remove it \
             there first"
        );
        let secretive = Policy { disclose_holder: false, ..policy };
        let said = held(&request, &secretive, key, &stored(ClaimState::Cooldown), &asker).to_string();
        assert!(
            said.contains("given up by an object in another namespace") && said.contains("try again"),
            "{said}"
        );
        assert!(!said.contains("postfix"), "{said}");
    }
}
