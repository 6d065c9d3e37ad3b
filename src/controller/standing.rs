//! How an annotated pod or a user's Pinhole stands: what it asks for, what of that its holder has claimed, and why not the rest. Pure.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::admission;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::reservation;
use crate::admission::violation;
use crate::admission::violation::Rule;
use crate::allocation::claim::StoredClaim;
use crate::allocation::key::ClaimKey;
use crate::allocation::overlap;
use crate::allocation::overlap::Rank;
use crate::api::object::Object;
use crate::cluster::claim_watch::Claims;
use crate::cluster::events::Reason;
use crate::controller::automatic;
use crate::controller::automatic::Found;
use crate::model::address::ExternalAddress;
use crate::model::automatic::AutomaticPort;
use crate::model::holder::Holder;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::PortRange;

/// What a standing is judged from.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Every claim.
    pub claims: &'a Claims,
    /// Those that were made for ports that are left to pools.
    pub found: &'a Found<'a>,
    /// Why no port is found for a pod, by its UID, where that is so.
    pub waiting: &'a Waiting,
    /// The claims that were handed over to holders which can serve them now.
    pub handed_over: &'a HandedOver,
    /// Owners, namespaces and nodes.
    pub index: &'a Index,
    /// What is allowed.
    pub policy: &'a Policy,
}

static NOBODY_WAITS: Waiting = Waiting::new();
static NOTHING_HANDED_OVER: HandedOver = HandedOver::new();

impl<'a> Known<'a> {
    /// What is claimed, without what only running pods tell: which of them wait, and which have taken a port over.
    pub const fn of_claims(
        claims: &'a Claims,
        found: &'a Found<'a>,
        index: &'a Index,
        policy: &'a Policy,
    ) -> Self {
        Self { claims, found, waiting: &NOBODY_WAITS, handed_over: &NOTHING_HANDED_OVER, index, policy }
    }
}

/// Why no port is found for pods, by their UIDs.
pub type Waiting = BTreeMap<String, String>;

/// The claims of which a pod of the new holder is ready, so that whoever handed them over serves them no more.
pub type HandedOver = BTreeSet<ClaimKey>;

/// What was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The ports, at their address.
    pub mapping: Mapping,
    /// The pool that granted them.
    pub pool: Option<String>,
    /// The address that was asked for: that one, or the node's own, whichever it is.
    pub asked: Address,
}

/// How a pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who holds its ports.
    pub holder: Holder,
    /// Whom it serves for: its holder has handed some over to that one, of which no pod is ready yet.
    pub serves_for: Option<Holder>,
    /// What it asks for by name, as far as that can be read.
    pub wanted: Vec<Mapping>,
    /// What it leaves to a pool, and what was found. With what is wanted by name never empty.
    pub automatic: Vec<(AutomaticPort, Option<Granted>)>,
    /// What of all that is claimed.
    pub granted: Vec<Granted>,
    /// The own addresses of the pod's node at which what names no address was looked for among the claims.
    pub own_addresses: Vec<ExternalAddress>,
    /// Whether it has all.
    pub verdict: Verdict,
}

/// Whether a pod has what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has.
    Granted,
    /// Some port is not claimed yet; the text says which.
    Waiting(String),
    /// Admission would refuse it, in these words.
    Refused(String),
    /// Another holder has some port, as this text says.
    Taken(String),
    /// No pool has a port for it, as this text says.
    Full(String),
}

impl Verdict {
    /// The reason of the condition `Accepted`, and what metrics count it by.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Granted => "Granted",
            Self::Waiting(_) => "Waiting",
            Self::Refused(_) => "Refused",
            Self::Taken(_) => Reason::PortTaken.name(),
            Self::Full(_) => Reason::NoFreePort.name(),
        }
    }

    /// What it says beside that.
    pub fn message(&self) -> &str {
        match self {
            Self::Granted => "",
            Self::Waiting(message) | Self::Refused(message) | Self::Taken(message) | Self::Full(message) => {
                message
            }
        }
    }

    /// What its owner is to hear of it, where it has not what it asks for and does not get it by waiting a moment.
    pub fn trouble(&self) -> Option<(Reason, &str)> {
        let is_trouble = matches!(self, Self::Refused(_) | Self::Taken(_) | Self::Full(_));
        is_trouble.then(|| (Reason::of_condition(self.word()), self.message()))
    }
}

impl Standing {
    /// Who is shown to hold its ports: whoever has claimed them.
    pub fn shown_holder(&self) -> &Holder {
        self.serves_for.as_ref().unwrap_or(&self.holder)
    }

    /// What has yet to be found.
    pub fn open(&self) -> impl Iterator<Item = &AutomaticPort> {
        self.automatic.iter().filter(|(_, found)| found.is_none()).map(|(port, _)| port)
    }

    /// What was found.
    pub fn found(&self) -> impl Iterator<Item = &Mapping> {
        self.automatic.iter().filter_map(|(_, found)| found.as_ref()).map(|found| &found.mapping)
    }

    /// All that it asks for, as people read it: what the outside connects to.
    pub fn shown(&self, index: &Index) -> Vec<String> {
        let outside = |mapping: &Mapping| match mapping.address() {
            Address::Fixed(address) => mapping.at(index.advertised(address).unwrap_or(address)).to_string(),
            Address::Node => mapping.to_string(),
        };
        let found = |(port, found): &(AutomaticPort, Option<Granted>)| {
            found.as_ref().map_or_else(|| port.to_string(), |found| outside(&found.mapping))
        };
        self.wanted.iter().map(outside).chain(self.automatic.iter().map(found)).collect()
    }

    /// The pod's ports behind the first of that.
    pub fn first_target(&self) -> Option<PortRange> {
        let open = || self.automatic.first().map(|(port, _)| PortRange::single(port.target));
        self.wanted.first().map(Mapping::target).or_else(open)
    }
}

/// How a pod or Pinhole stands; `None` for one that asks for nothing that could be read, has ended, or cannot be judged yet.
pub fn stand(pod: &Object, known: &Known<'_>) -> Option<Standing> {
    let Known { claims, found, waiting, handed_over, index, policy } = *known;
    let namespace = pod.metadata.namespace.as_str();
    let labels = index.namespace_labels(namespace);
    let is_new_namespace = !policy.namespaces.selector.is_empty() && labels.is_none();
    if pod.is_finished() || (is_new_namespace && !policy.namespaces.allows(namespace, labels)) {
        return None;
    }
    let request = Request {
        operation: Operation::Create,
        namespace: namespace.to_owned(),
        object: Some(pod.clone()),
        old_object: None,
    };
    let decision = admission::decide_apart_from_others(&request, &World { policy, index });
    // What is wrong with an annotation of which nothing can be read, its pod's node says; of a Pinhole nobody else does.
    let is_unreadable = pod.pinhole.is_some() && !decision.is_granted();
    if !decision.asks() && !is_unreadable {
        return None;
    }
    let itself = ObjectKey::of(pod, namespace)?;
    let holder = index.holder(&itself, pod.metadata.controller()).ok()?;
    let wanted = decision.mappings;
    let own = OnNode::of(pod, &wanted, index);
    // Between holders the claims decide.
    let violations = decision.violations.into_iter();
    // What is claimed was granted, whatever has become of the pools.
    let (ungranted, violations): (Vec<_>, Vec<_>) =
        violations.partition(|violation| violation.rule == Rule::Pool);
    if !violations.is_empty() {
        let verdict = Verdict::Refused(violation::summary(&violations));
        let automatic = decision.automatic.into_iter().map(|port| (port, None)).collect();
        let serves_for = None;
        let (granted, own_addresses) = (Vec::new(), own.addresses());
        return Some(Standing { holder, serves_for, wanted, automatic, granted, own_addresses, verdict });
    }
    let mut granted = Vec::new();
    let mut taken = Vec::new();
    let mut missing = Vec::new();
    let mut serves_for = None;
    for mapping in &wanted {
        let places = match mapping.address() {
            Address::Fixed(address) => vec![address],
            Address::Node => own.addresses(),
        };
        let keys: Vec<_> = places.iter().flat_map(|place| reservation::keys_at(mapping, *place)).collect();
        let lent = |key: &ClaimKey| lent(claims, key, &holder).filter(|_| !handed_over.contains(key));
        let is_claimed = |key: &ClaimKey| claimed(claims, key, &holder).is_some() || lent(key).is_some();
        let unclaimed: Vec<_> = keys.iter().filter(|key| !is_claimed(key)).copied().collect();
        if unclaimed.is_empty() {
            let pool =
                keys.first().and_then(|key| claims.get(key)).and_then(|found| found.claim.pool.clone());
            let lender = keys.iter().find_map(lent).map(|stored| stored.claim.holder.clone());
            serves_for = serves_for.or(lender);
            let asked = mapping.address();
            let at = |place| Granted { mapping: mapping.at(place), pool: pool.clone(), asked };
            granted.extend(places.into_iter().map(at));
        } else if let Some((key, by)) = others(claims, &unclaimed, &holder) {
            taken.push(if by.claim.is_lent_to(&holder) {
                reservation::handed_over(&request, policy, key, by)
            } else {
                reservation::held(&request, policy, key, by, &holder)
            });
        } else {
            missing.push(mapping.to_string());
        }
    }
    let claimed_for = |port: AutomaticPort| {
        let stored = found.usable(&holder, &automatic::slot(&pod.metadata, &port));
        let found = stored.and_then(|stored| {
            let mapping = automatic::mapping(&port, stored)?;
            Some(Granted { asked: mapping.address(), pool: stored.claim.pool.clone(), mapping })
        });
        (port, found)
    };
    let automatic: Vec<_> = decision.automatic.into_iter().map(claimed_for).collect();
    granted.extend(automatic.iter().filter_map(|(_, found)| found.clone()));
    // What a pod is told at its first start comes before what it hears of on its node.
    granted.sort_by_key(|granted| granted.asked == Address::Node);
    let open = automatic.iter().filter(|(_, found)| found.is_none());
    missing.extend(open.map(|(port, _)| port.to_string()));
    let verdict = if !taken.is_empty() {
        Verdict::Taken(violation::summary(&taken))
    } else if missing.is_empty() {
        own.unknown().map_or(Verdict::Granted, Verdict::Waiting)
    } else if !ungranted.is_empty() {
        Verdict::Refused(violation::summary(&ungranted))
    } else if let Some(reason) = waiting.get(&pod.metadata.uid) {
        Verdict::Full(format!("{}: {reason}", missing.join(", ")))
    } else {
        Verdict::Waiting(format!("{} is about to be claimed", missing.join(", ")))
    };
    let own_addresses = own.addresses();
    Some(Standing { holder, serves_for, wanted, automatic, granted, own_addresses, verdict })
}

/// Where what names no address is served: at the own addresses of the node that a pod is bound to.
enum OnNode {
    /// There is nothing of that kind, or no node yet.
    Nowhere,
    /// The node of this name does not say what its own address is.
    Unknown(String),
    /// At these; none where the node has no address of a family of the pod's.
    At(Vec<ExternalAddress>),
}

impl OnNode {
    fn of(pod: &Object, wanted: &[Mapping], index: &Index) -> Self {
        let node = pod.spec.node_name.as_deref().filter(|node| !node.is_empty());
        let asks = wanted.iter().any(|mapping| mapping.address() == Address::Node);
        let Some(node) = node.filter(|_| asks) else { return Self::Nowhere };
        index.own_addresses(node, pod.families()).map_or_else(|| Self::Unknown(node.to_owned()), Self::At)
    }

    fn addresses(&self) -> Vec<ExternalAddress> {
        match self {
            Self::Nowhere | Self::Unknown(_) => Vec::new(),
            Self::At(addresses) => addresses.clone(),
        }
    }

    /// What is waited for, in words.
    fn unknown(&self) -> Option<String> {
        let Self::Unknown(node) = self else { return None };
        Some(format!("NatNode {node} does not say yet what the own address of its node is"))
    }
}

/// The claim of a holder that it can rely on.
fn claimed<'a>(claims: &'a Claims, key: &ClaimKey, holder: &Holder) -> Option<&'a StoredClaim> {
    claims
        .get(key)
        .filter(|stored| stored.claim.is_relied_on_by(holder) && overlap::rank(stored, claims) == Rank::First)
}

/// The claim that a holder has handed over.
fn lent<'a>(claims: &'a Claims, key: &ClaimKey, holder: &Holder) -> Option<&'a StoredClaim> {
    claims.get(key).filter(|stored| stored.claim.is_lent_to(holder))
}

/// The first of these keys that somebody else has, or a part of it.
fn others<'a>(claims: &'a Claims, keys: &[ClaimKey], holder: &Holder) -> Option<(ClaimKey, &'a StoredClaim)> {
    keys.iter().find_map(|key| Some((*key, overlap::others(claims, *key, holder, None).next()?)))
}
