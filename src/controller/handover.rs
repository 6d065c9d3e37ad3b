//! Which ports that were handed over are served by their new holders by now: those of which a pod is ready. Pure.
//!
//! Until then the pods of the one that handed them over go on serving them, as the old pods of a rolling update do. On the node
//! that serves both stand in one election, so that it is a ready pod that takes over, at once and without a gap; here only those
//! are sent away that might come back later.

use std::sync::Arc;

use crate::admission::index::Holding;
use crate::admission::index::Index;
use crate::admission::suspended;
use crate::allocation::claim::Claim;
use crate::allocation::key::Claimed;
use crate::api::object::Kind;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::claim_watch::Claims;
use crate::cluster::pinhole_watch::Pinholes;
use crate::controller::standing::HandedOver;

/// The claims that were handed over to holders which can serve them now.
pub fn handed_over(claims: &Claims, index: &Index, pods: &AskingPods, pinholes: &Pinholes) -> HandedOver {
    let transferred =
        claims.values().map(|stored| &stored.claim).filter(|claim| claim.previous_holder.is_some());
    transferred.filter(|claim| is_ready(claim, index, pods, pinholes)).map(|claim| claim.key).collect()
}

/// Whether a pod of the claim's holder can serve it.
fn is_ready(claim: &Claim, index: &Index, pods: &AskingPods, pinholes: &Pinholes) -> bool {
    let Claimed::Ports(protocol, block) = claim.key.claimed() else { return false };
    let address = claim.key.address();
    let serves = |held: &Arc<Holding>| match held.object.kind {
        Kind::Pod => pods.get(&held.object.name).is_some_and(|pod| {
            let is_staying = pod.metadata.deletion_timestamp.is_none();
            is_staying && pod.are_containers_ready() && !suspended::is(&pod.metadata.annotations)
        }),
        Kind::Pinhole => {
            pinholes.get(&held.object.name).filter(|pinhole| !pinhole.spec.suspended).is_some_and(|pinhole| {
                pinhole.status.iter().flat_map(|status| &status.targets).any(|target| target.active)
            })
        }
        _ => false,
    };
    let held = index.held_at(address, protocol, block.range());
    held.iter().any(|held| {
        let holder = index.holder(&held.object, held.controller.as_deref());
        holder.is_ok_and(|holder| holder == claim.holder) && serves(held)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::jiff::Timestamp;
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::admission::index::occupants::Occupants;
    use crate::admission::index::occupants::Source;
    use crate::admission::policy::Policy;
    use crate::allocation::claim::StoredClaim;
    use crate::allocation::claim::Version;
    use crate::api::object::Object;
    use crate::model::holder::Holder;
    use crate::model::holder::ObjectName;

    /// A ready pod of blue or green on node-1; `changes` is merged into it.
    #[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
    fn pod(holder: &str, changes: Value) -> Object {
        let mut pod = json!({
            "kind": "Pod",
            "metadata": {"namespace": "shop", "name": format!("{holder}-0"), "uid": format!("uid-{holder}"),
                "annotations": {"pinhole.dev/expose": "203.0.113.7:443"},
                "ownerReferences": [{"kind": "StatefulSet", "name": holder, "uid": "s", "controller": true}]},
            "spec": {"nodeName": "node-1"},
            "status": {"conditions": [{"type": "ContainersReady", "status": "True"}]},
        });
        json_patch::merge(&mut pod, &changes);
        serde_json::from_value(pod).unwrap()
    }

    fn is_handed_over(pods: Vec<Object>, is_transferred: bool) -> bool {
        let mut index = Index::new(Arc::new(Policy::default()));
        index.set_occupants(Occupants {
            source: Source::NatNode("node-1".into()),
            version: None,
            taken: Vec::new(),
            addresses: vec![("203.0.113.7".parse().unwrap(), true)],
        });
        let mut known = AskingPods::new();
        for pod in pods {
            index.apply(&pod);
            known.insert(ObjectName::new("shop", pod.metadata.name.as_str()), pod);
        }
        let holder = |name: &str| Holder::new("StatefulSet", ObjectName::new("shop", name));
        let key = "v4-203-0-113-7-tcp-443".parse().unwrap();
        let claim = Claim::reserve(key, holder("green"), Timestamp::UNIX_EPOCH);
        let claim = Claim { previous_holder: is_transferred.then(|| holder("blue")), ..claim };
        let version = Version { key, uid: "1".into(), revision: 1 };
        let claims = [(key, StoredClaim { claim, version })].into();
        handed_over(&claims, &index, &known, &Pinholes::new()).contains(&key)
    }

    #[test]
    fn a_port_is_handed_over_once_a_pod_of_the_new_holder_can_serve_it() {
        let starting = json!({"status": {"conditions": []}});
        let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let closed = json!({"metadata": {"annotations": {"pinhole.dev/suspended": "true"}}});
        let away = json!({"spec": {"nodeName": "node-2"}});
        let cases = [
            ("nobody is there", vec![], false),
            ("only pods of the old one are", vec![pod("blue", json!({}))], false),
            ("it starts", vec![pod("blue", json!({})), pod("green", starting)], false),
            ("it ends", vec![pod("green", ending)], false),
            ("it is suspended", vec![pod("green", closed)], false),
            ("it is ready where the address is not", vec![pod("green", away)], true),
            ("it is ready", vec![pod("blue", json!({})), pod("green", json!({}))], true),
        ];
        for (name, pods, expected) in cases {
            assert_eq!(is_handed_over(pods, true), expected, "{name}");
        }
        assert!(!is_handed_over(vec![pod("green", json!({}))], false), "nobody handed it over");
    }
}
