//! What the controller is to do, from what is known: pure, so that a test can ask it anything.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;

use crate::admission::index::Holding;
use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::index::Scope;
use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::grant;
use crate::allocation::grant::Named;
use crate::allocation::key::ClaimKey;
use crate::allocation::key::Claimed;
use crate::allocation::life;
use crate::allocation::life::Change;
use crate::allocation::life::Usage;
use crate::allocation::overlap;
use crate::allocation::overlap::Rank;
use crate::allocation::pool::Asker;
use crate::allocation::pool::Cooldowns;
use crate::allocation::pool::Pool;
use crate::api::crd::port_claim::ClaimOrigin;
use crate::api::crd::port_claim::ClaimState;
use crate::api::crd::shared::Retention;
use crate::api::crd::shared::RetentionPolicy;
use crate::api::object::Kind;
use crate::api::object::OwnerReference;
use crate::cluster::events::Regarding;
use crate::cluster::pinhole_watch::Pinholes;
use crate::controller::automatic::Found;
use crate::controller::automatic::Users;
use crate::controller::releasing::Serving;
use crate::model::address::ExternalAddress;

/// How long claims take to their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long a node that is not heard of is waited for with a released port.
    pub release: SignedDuration,
    /// How long a released port is kept from other holders after that.
    pub cooldown: SignedDuration,
}

/// What to do in one turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Claims that are not as they should be.
    pub changes: Vec<Planned>,
    /// Objects whose ports nobody has claimed, the oldest first.
    pub missing: Vec<Missing>,
    /// Objects that cannot get all their ports, because somebody else has claimed one.
    pub disputes: Vec<Dispute>,
}

/// A change of one claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The claim as it is.
    pub stored: StoredClaim,
    /// What becomes of it.
    pub change: Change,
}

/// An object with ports that have no claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The pod or workload.
    pub object: ObjectKey,
    /// Its UID.
    pub uid: Arc<str>,
    /// The controller that manages it, if one does.
    pub controller: Option<Arc<OwnerReference>>,
    /// The claims to make.
    pub claims: Vec<Claim>,
}

/// An object that asks for a port which somebody else has claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// The root owner of whoever asks, or itself where it is a workload; none for a bare pod and for a user's Pinhole.
    pub owner: Option<Regarding>,
    /// What it asks for.
    pub wanted: ClaimKey,
    /// What stands in its way.
    pub by: StoredClaim,
}

/// What is to be done now.
pub fn plan(
    claims: &BTreeMap<ClaimKey, StoredClaim>,
    index: &Index,
    pinholes: &Pinholes,
    times: &Times,
    now: Timestamp,
) -> Plan {
    let serving = LazyCell::new(|| Serving::of(pinholes));
    let pools = index.pools().map_or(&[][..], |pools| pools);
    let cooldowns = Cooldowns::new(times.cooldown, pools);
    let (users, found) = (Users::of(index), Found::of(claims));
    let change = |stored: &StoredClaim| {
        let claim = &stored.claim;
        let usage = if claim.slot.is_some() { users.usage(claim, &found) } else { usage(claim, index) };
        let usage = usage.and_then(|usage| match overlap::rank(stored, claims) {
            Rank::First => Some(usage),
            Rank::Unclear => Some(usage).filter(|usage| !usage.is_used()),
            // It was never granted, whoever asks for it.
            Rank::Second => Some(Usage { lent_to: usage.lent_to, ..Usage::default() }),
        });
        let known = |usage: Usage| {
            if usage.is_used() {
                return naming_the_shown(claim, usage, &serving);
            }
            let Usage { holder_exists, lent_to, .. } = usage;
            Usage { holder_exists, lent_to, ..unused(claim, &serving, times, now) }
        };
        let lives = usage
            .and_then(|usage| life::next(&retained(claim, pools), &known(usage), cooldowns.of(claim), now));
        let change = lives.or_else(|| into_pool(claim, index, pools))?;
        Some(Planned { stored: stored.clone(), change })
    };
    let changes = claims.values().filter_map(change).collect();
    let missing = missing(claims, index, pinholes, now);
    let (missing, disputes) = settle(missing, claims, index, &cooldowns, now);
    Plan { changes, missing, disputes }
}

/// The pool that a claim belongs to, by what is known of its holder; `None` for one of no pool.
fn pool_of<'p>(claim: &Claim, index: &Index, pools: &'p [Pool]) -> Option<&'p Pool> {
    let namespace = &claim.holder.object.namespace;
    let labels = index.namespace_labels(namespace);
    // Of which ServiceAccount its pods are, the claim does not say.
    let asker = Asker { namespace, labels, service_account: "" };
    grant::pool_of(pools, asker, Named::of(claim)?)
}

/// A claim as it is retained: a pool that is being deleted keeps nothing for those who may come back.
fn retained<'c>(claim: &'c Claim, pools: &[Pool]) -> Cow<'c, Claim> {
    let is_going = |pool: &Pool| pool.is_deleting && Some(&pool.name) == claim.pool.as_ref();
    if claim.retention.policy == RetentionPolicy::Release || !pools.iter().any(is_going) {
        return Cow::Borrowed(claim);
    }
    Cow::Owned(Claim { retention: Retention::default(), ..claim.clone() })
}

/// Takes a claim into a pool that came after it.
fn into_pool(claim: &Claim, index: &Index, pools: &[Pool]) -> Option<Change> {
    let is_known = |name: &String| pools.iter().any(|pool| pool.name == *name);
    // The version of a reservation tells when it was made.
    if claim.state == ClaimState::Reserved || claim.pool.as_ref().is_some_and(is_known) {
        return None;
    }
    let pool = pool_of(claim, index, pools)?;
    Some(Change::Update(Box::new(Claim { pool: Some(pool.name.clone()), ..claim.clone() })))
}

/// What is known of a claim's use; `None` where an owner is not known yet, so that nobody can say.
fn usage(claim: &Claim, index: &Index) -> Option<Usage> {
    let Claimed::Ports(protocol, block) = claim.key.claimed() else {
        // Nothing that an annotation can say asks for a whole address.
        return Some(Usage::default());
    };
    let held = index.held_at(claim.key.address(), protocol, block.range());
    let held = held.into_iter().filter(|held| keys(held, index).contains(&claim.key));
    let holders = || [&claim.holder].into_iter().chain(&claim.previous_holder);
    let is_in_question =
        |held: &Arc<Holding>| holders().any(|holder| holder.object.namespace == held.object.name.namespace);
    let mut users = Vec::new();
    let mut lent_to = None;
    for held in held.filter(is_in_question) {
        let holder = index.holder(&held.object, held.controller.as_deref()).ok()?;
        if holder == claim.holder {
            users.push(held);
        } else if claim.previous_holder.as_ref() == Some(&holder) {
            lent_to = Some(holder);
        }
    }
    let pods = || users.iter().filter(|held| held.object.kind == Kind::Pod);
    let current = pods().find(|held| claim.pod_uid.as_ref() == Some(&held.uid));
    // Who serves is elected on the nodes; until they say so, the one that was there first stands for it.
    let pod = current
        .or_else(|| pods().min_by_key(|held| (held.terminating, held.since.clone(), held.uid.clone())));
    let is_declared = users.iter().any(|held| held.object.kind != Kind::Pod);
    let pod = pod.map(|held| Arc::clone(&held.uid));
    Some(Usage { pod, is_declared, lent_to, ..Usage::default() })
}

/// The use of a claim by a pod, which it names from when the pod has a Pinhole: before that no node was granted anything, so
/// that nobody is waited for when the pod ends.
fn naming_the_shown(claim: &Claim, usage: Usage, serving: &Serving<'_>) -> Usage {
    let is_shown = |uid: &Arc<str>| claim.pod_uid.as_ref() == Some(uid) || serving.is_settled(uid).is_some();
    Usage { is_declared: true, pod: usage.pod.filter(is_shown), ..usage }
}

/// The use of a claim that nothing asks for.
fn unused(claim: &Claim, serving: &Serving<'_>, times: &Times, now: Timestamp) -> Usage {
    let is_settled = || claim.pod_uid.as_deref().is_none_or(|uid| serving.is_settled(uid) == Some(true));
    let may_be_served = match claim.state {
        // It would be over at once, and what was granted of it may not show yet.
        ClaimState::Reserved => serving.knows(&claim.holder) || !is_settled(),
        ClaimState::Bound => !is_settled(),
        // Where the Pinhole that would tell is gone, or its node does not answer, there is nothing but time to wait for.
        ClaimState::Releasing => {
            let is_over = claim.since.checked_add(times.release).is_ok_and(|released| released <= now);
            !is_settled() && !is_over
        }
        ClaimState::Cooldown => false,
    };
    Usage { is_served: may_be_served || serving.has(&claim.key), ..Usage::default() }
}

/// The keys of what an object holds; none for a node's own address that is not known.
fn keys(held: &Holding, index: &Index) -> Vec<ClaimKey> {
    let at = |address| ClaimKey::of_range(address, held.protocol, held.ports);
    index.places(held).into_iter().flat_map(at).collect()
}

/// What of the missing can be had, once for all objects of a holder that ask for the same, and what is in dispute: as long as
/// another's claim is there, nothing is written for the sake of one that cannot win, and whoever holds it is left alone.
fn settle(
    missing: Vec<Missing>,
    claims: &BTreeMap<ClaimKey, StoredClaim>,
    index: &Index,
    cooldowns: &Cooldowns,
    now: Timestamp,
) -> (Vec<Missing>, Vec<Dispute>) {
    let mut free = Vec::new();
    let mut disputes = Vec::new();
    let mut asked = HashSet::new();
    for one in missing {
        let others = |wish: &Claim| {
            let is_in_its_way = |other: &&StoredClaim| {
                !cooldowns.are_over_for(&other.claim, now)
                    && !index.heirs().passes(&other.claim.holder, &wish.holder)
            };
            let by = overlap::others(claims, wish.key, &wish.holder, None).find(is_in_its_way)?;
            Some((wish.key, by.clone()))
        };
        if let Some((wanted, by)) = one.claims.iter().find_map(others) {
            disputes.push(Dispute { owner: root_owner(&one, index), wanted, by });
            continue;
        }
        let asks: Vec<_> = one.claims.iter().map(|claim| (claim.key, claim.holder.clone())).collect();
        if asked.insert(asks) {
            free.push(one);
        }
    }
    (free, disputes)
}

/// Who is to hear what becomes of an object, beside its pods.
fn root_owner(missing: &Missing, index: &Index) -> Option<Regarding> {
    let Missing { object, uid, controller, .. } = missing;
    match object.kind {
        Kind::Pinhole => None,
        Kind::Pod => {
            let owner = index.root_owner(object, controller.as_deref())?;
            Some(Regarding::owner(&object.name.namespace, owner))
        }
        kind => Some(Regarding::new(kind, object.name.clone(), Arc::clone(uid))),
    }
}

/// These in groups of which no two have an address in common, each in the order in which they came: whoever comes first in a group
/// is to be served first, and no group waits for another.
pub fn apart(missing: impl IntoIterator<Item = Missing>) -> Vec<Vec<Missing>> {
    let mut groups: Vec<Vec<Missing>> = Vec::new();
    let mut by_address: BTreeMap<ExternalAddress, usize> = BTreeMap::new();
    for one in missing {
        let addresses: BTreeSet<_> = one.claims.iter().map(|claim| claim.key.address()).collect();
        let known: BTreeSet<_> =
            addresses.iter().filter_map(|address| by_address.get(address).copied()).collect();
        let group = known.first().copied().unwrap_or(groups.len());
        groups.resize_with(groups.len().max(group + 1), Vec::new);
        for other in known.into_iter().skip(1) {
            let moved = std::mem::take(&mut groups[other]);
            groups[group].extend(moved);
            by_address.values_mut().filter(|found| **found == other).for_each(|found| *found = group);
        }
        by_address.extend(addresses.into_iter().map(|address| (address, group)));
        groups[group].push(one);
    }
    groups
}

/// The objects whose ports nobody has claimed for them, the oldest first. On a node's own address each port of an object stands
/// for itself, as its agent sees it, and who is served there comes before all that are not.
fn missing(
    claims: &BTreeMap<ClaimKey, StoredClaim>,
    index: &Index,
    pinholes: &Pinholes,
    now: Timestamp,
) -> Vec<Missing> {
    let pools = index.pools().map_or(&[][..], |pools| pools);
    let mut objects = BTreeMap::new();
    // What a set only keeps was claimed when its template was admitted; where it was scaled since, each pod claims its own.
    for held in index.stored_holdings().filter(|held| !held.is_only_kept) {
        let Ok(holder) = index.holder(&held.object, held.controller.as_deref()) else { continue };
        let is_its = |key: &ClaimKey| {
            // What it has handed over it does not ask for again, unless that is handed back to it.
            let is_lent =
                |claim: &Claim| claim.is_lent_to(&holder) && !index.heirs().passes(&claim.holder, &holder);
            let is_its = |claim: &Claim| (claim.holder == holder && claim.slot.is_none()) || is_lent(claim);
            claims.get(key).is_some_and(|stored| is_its(&stored.claim))
        };
        let unclaimed: Vec<_> = keys(held, index).into_iter().filter(|key| !is_its(key)).collect();
        if unclaimed.is_empty() {
            continue;
        }
        let (origin, alone) = match held.scope {
            Scope::Address(_) => (ClaimOrigin::Static, None),
            Scope::Node(_) => (ClaimOrigin::Node, Some((held.protocol, held.ports))),
        };
        let claims = unclaimed.into_iter().map(|key| {
            let claim = Claim { origin, ..Claim::reserve(key, holder.clone(), now) };
            let pool = pool_of(&claim, index, pools).map(|pool| pool.name.clone());
            Claim { pool, ..claim }
        });
        let is_late = alone.is_some() && !is_served(held, pinholes);
        objects
            .entry((is_late, held.since.clone(), held.object.clone(), alone))
            .or_insert_with(|| Missing {
                object: held.object.clone(),
                uid: held.uid.clone(),
                controller: held.controller.clone(),
                claims: Vec::new(),
            })
            .claims
            .extend(claims);
    }
    objects.into_values().collect()
}

/// Whether a node says that all of a pod is in its kernel.
fn is_served(held: &Holding, pinholes: &Pinholes) -> bool {
    pinholes.get(&held.object.name).is_some_and(|pinhole| {
        let is_its = pinhole.spec.target.pod_uid.as_deref() == Some(&*held.uid);
        is_its && pinhole.status.iter().flat_map(|status| &status.nodes).any(|node| node.programmed)
    })
}
