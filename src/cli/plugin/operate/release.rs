//! What `release` says of a claim, and whether it takes it from whoever has it: pure.

use crate::admission::index::Finder;
use crate::admission::index::Holding;
use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::index::Scope;
use crate::allocation::claim::Claim;
use crate::allocation::key::Claimed;
use crate::api::crd::port_claim::ClaimOrigin;
use crate::api::crd::port_claim::ClaimState;
use crate::api::crd::shared::RetentionPolicy;
use crate::api::object::Kind;
use crate::api::object::OwnerReference;
use crate::cli::plugin::picture::Picture;
use crate::model::automatic::AutomaticPort;
use crate::model::holder::ObjectName;

/// Whether a claim may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It may.
    Free,
    /// It may not, for this reason.
    Refused(String),
}

/// What of the claim's holder asks for the port: pods that have not ended, templates. Whoever's holder cannot be read may be one.
pub(super) fn users(claim: &Claim, picture: &Picture) -> Vec<ObjectKey> {
    let index = picture.claiming_index();
    let mut users = match &claim.slot {
        Some(slot) => finding(claim, slot, &index),
        None => naming(claim, &index),
    };
    users.sort();
    users.dedup();
    users
}

/// Who asks for the port by name.
fn naming(claim: &Claim, index: &Index) -> Vec<ObjectKey> {
    let Claimed::Ports(protocol, block) = claim.key.claimed() else { return Vec::new() };
    let held = match claim.origin {
        // On which node the address is, the claim says by the pod that it leads to.
        ClaimOrigin::Node => index.held_on_nodes(protocol, block.range()),
        ClaimOrigin::Static | ClaimOrigin::Dynamic => {
            index.held(&Scope::Address(claim.key.address()), protocol, block.range())
        }
    };
    let is_led_to = |held: &Holding| {
        claim.origin != ClaimOrigin::Node || claim.pod_uid.as_ref().is_none_or(|uid| *uid == held.uid)
    };
    let is_its = |held: &Holding| {
        is_led_to(held) && is_of_holder(claim, &held.object, held.controller.as_deref(), index)
    };
    held.into_iter().filter(|held| is_its(held)).map(|held| held.object.clone()).collect()
}

/// Whom the port was found for: the pod of the claim's slot, and the StatefulSet that has such a pod or is about to.
fn finding(claim: &Claim, slot: &str, index: &Index) -> Vec<ObjectKey> {
    let pod = AutomaticPort::pod_of(slot);
    let has_slot = |finder: &Finder<'_>| {
        let ObjectName { name, .. } = &finder.object.name;
        let is_it = |port: &AutomaticPort| match finder.ordinals {
            Some(ordinals) => port.is_fixed() && ordinals.has_pod(name, pod) && port.slot(pod, "") == slot,
            None => finder.object.kind == Kind::Pod && port.slot(name, finder.uid) == slot,
        };
        finder.ports.iter().any(is_it)
    };
    let is_its = |finder: &Finder<'_>| {
        has_slot(finder) && is_of_holder(claim, finder.object, finder.controller, index)
    };
    index.finders().filter(is_its).map(|finder| finder.object.clone()).collect()
}

fn is_of_holder(
    claim: &Claim,
    object: &ObjectKey,
    controller: Option<&OwnerReference>,
    index: &Index,
) -> bool {
    let is_near = object.name.namespace == claim.holder.object.namespace;
    // Whoever has handed it over serves it until the new holder can.
    let is_one = |holder| holder == claim.holder || Some(&holder) == claim.previous_holder.as_ref();
    index.holder(object, controller).map_or(is_near, is_one)
}

/// Whether it may be released.
pub(super) fn judge(users: &[ObjectKey], force: bool) -> Judgement {
    let Some(user) = users.iter().find(|user| user.kind == Kind::Pod).or(users.first()) else {
        return Judgement::Free;
    };
    if force {
        return Judgement::Free;
    }
    let advice = match user.kind {
        Kind::Pod => "delete the pod, or take the port out of its annotation",
        Kind::Pinhole => "delete it, or take the port out of its spec",
        _ => "take the port out of the annotation of its template",
    };
    Judgement::Refused(format!(
        "{} {} asks for it, so it would be claimed again at once, by whoever is first; {advice}. --force releases it all the same",
        user.kind.name(),
        user.name
    ))
}

/// What the claim is, and what its release breaks.
pub(super) fn text(claim: &Claim, users: &[ObjectKey]) -> String {
    let mut lines = vec![format!(
        "{}: {} since {}, held by {}{}",
        claim.key,
        claim.state.name(),
        claim.since,
        claim.holder,
        claim.pool.as_ref().map(|pool| format!(", pool {pool}")).unwrap_or_default()
    )];
    lines.extend(users.iter().map(|user| format!("  {} {} asks for it", user.kind.name(), user.name)));
    let effect = match (claim.state, users.is_empty()) {
        (_, false) => {
            "released, another holder can have it before these claim it again: their new connections would go to that one"
        }
        (ClaimState::Reserved, true) => {
            "a request was granted it, and no object of it has been seen; one that is still on its way would lose it"
        }
        (ClaimState::Bound, true) if claim.retention.policy != RetentionPolicy::Release => {
            "nothing that asks for it was found; its pool keeps it for the holder's next pod, which would get another one"
        }
        (ClaimState::Bound, true) => {
            "nothing that asks for it was found; the controller gives it back by itself in two minutes"
        }
        (ClaimState::Releasing, true) => {
            "nodes have not confirmed yet that they serve it no more: on one that still does, connections for the next holder \
             go to the old pod"
        }
        (ClaimState::Cooldown, true) => {
            "it is free by itself soon; released now, clients of the old holder that still connect reach the next one"
        }
    };
    if claim.key.count() != 1 {
        lines.push(format!("  all of its {} ports go together", claim.key.count()));
    }
    lines.push(format!("  {effect}\n"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::crd::shared::Retention;
    use crate::cli::plugin::testing::golden;
    use crate::cli::plugin::testing::object;
    use crate::cli::plugin::testing::owned_by;
    use crate::cli::plugin::testing::picture;
    use crate::cli::plugin::testing::pod;
    use crate::model::holder::Holder;

    fn claim(name: &str, kind: &str, holder: &str, state: ClaimState) -> Claim {
        let holder = Holder::new(kind, ObjectName::new("mail", holder));
        let claim = Claim::reserve(name.parse().unwrap(), holder, "2026-03-01T10:00:00Z".parse().unwrap());
        Claim { pool: Some("edge".to_owned()), state, ..claim }
    }

    #[test]
    fn what_a_release_breaks_is_said_and_what_is_in_use_is_not_released() {
        let template = json!({"kind": "Deployment", "metadata": {"namespace": "mail", "name": "idle", "uid": "i"},
            "spec": {"replicas": 0, "template": {"metadata": {"annotations": {"pinhole.dev/expose": "203.0.113.7:465"}}}}});
        let set = json!({"kind": "StatefulSet", "metadata": {"namespace": "mail", "name": "lobby", "uid": "l"},
            "spec": {"replicas": 2, "template": {"metadata": {"annotations": {"pinhole.dev/expose": "fixed:7777/udp"}}}}});
        let ended = json!({"status": {"phase": "Succeeded"}});
        let picture = picture(
            vec![
                object(template),
                object(set),
                pod("mail", "mx-0", "node-1", "10.244.1.9", "203.0.113.7:25", owned_by("StatefulSet", "mx")),
                pod("mail", "sent", "node-1", "10.244.1.8", "203.0.113.7:143", ended),
                pod("mail", "other", "node-1", "10.244.1.7", "203.0.113.7:993", json!({})),
                pod("mail", "here", "node-1", "10.244.1.6", "8080", owned_by("DaemonSet", "edge")),
                pod("mail", "there", "node-2", "10.244.2.6", "8080", owned_by("DaemonSet", "edge")),
                pod("mail", "game", "node-1", "10.244.1.5", "auto:9000", json!({})),
                pod(
                    "mail",
                    "orphan",
                    "node-1",
                    "10.244.1.4",
                    "203.0.113.7:587",
                    owned_by("ReplicaSet", "unread"),
                ),
            ],
            Vec::new(),
        );
        let found = |key, kind, holder, slot: &str| Claim {
            origin: ClaimOrigin::Dynamic,
            slot: Some(slot.to_owned()),
            ..claim(key, kind, holder, ClaimState::Bound)
        };
        let retention = Retention { policy: RetentionPolicy::Retain, ttl_seconds: None };
        let cases = [
            claim("v4-203-0-113-7-tcp-25", "StatefulSet", "mx", ClaimState::Bound),
            claim("v4-203-0-113-7-tcp-465", "Deployment", "idle", ClaimState::Bound),
            claim("v4-203-0-113-7-tcp-143", "Pod", "sent", ClaimState::Bound),
            claim("v4-203-0-113-7-tcp-993", "Pod", "gone", ClaimState::Releasing),
            claim("v4-203-0-113-7-udp-7008-7023", "Pod", "gone", ClaimState::Reserved),
            claim("v4-203-0-113-7", "Pod", "gone", ClaimState::Cooldown),
            Claim {
                origin: ClaimOrigin::Node,
                pod_uid: Some("uid-mail-there".into()),
                ..claim("v4-203-0-113-8-tcp-8080", "DaemonSet", "edge", ClaimState::Bound)
            },
            Claim {
                previous_holder: Some(Holder::new("StatefulSet", ObjectName::new("mail", "mx"))),
                ..claim("v4-203-0-113-7-tcp-25", "StatefulSet", "mx-2", ClaimState::Bound)
            },
            claim("v4-203-0-113-7-tcp-587", "Deployment", "unread", ClaimState::Bound),
            found("v4-203-0-113-7-tcp-31000", "Pod", "game", "uid-mail-game/tcp/9000"),
            found("v4-203-0-113-7-tcp-31001", "Pod", "game", "uid-of-one-before/tcp/9000"),
            found("v4-203-0-113-7-udp-31002", "StatefulSet", "lobby", "lobby-1/udp/7777"),
            Claim {
                retention,
                ..found("v4-203-0-113-7-udp-31003", "StatefulSet", "lobby", "lobby-2/udp/7777")
            },
        ];
        let mut said = Vec::new();
        for claim in cases {
            let users = users(&claim, &picture);
            said.push(format!("{}=> {:?}\n\n", text(&claim, &users), judge(&users, false)));
            assert_eq!(judge(&users, true), Judgement::Free);
        }
        golden("release.txt", &said.concat());
    }
}
