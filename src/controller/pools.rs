//! The pools: what is said of each in its status, and that none goes before its claims.
//!
//! # Guarantees
//! - A pool that has claims does not go: it keeps our finalizer until the last of them is over.
//! - Nothing that was granted is taken back because a pool shrank: it is counted, and named.
//! - A status is written only when it says something else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::admission::index::Index;
use crate::allocation::claim::Claim;
use crate::allocation::pool::Pool;
use crate::allocation::pool::PoolError;
use crate::allocation::pool::usage::NodePorts;
use crate::allocation::pool::usage::is_covered;
use crate::allocation::pool::usage::usage;
use crate::api::crd::condition::Condition;
use crate::api::crd::condition::Said;
use crate::api::crd::nat_pool::NatPool;
use crate::api::crd::nat_pool::NatPoolStatus;
use crate::api::crd::nat_pool::PoolUsage;
use crate::api::crd::port_claim::ClaimOrigin;
use crate::cluster::claim_store;
use crate::cluster::claim_watch::Claims;
use crate::cluster::nat_pools;
use crate::cluster::nat_pools::NatPools;
use crate::cluster::nat_pools::PoolWriter;
use crate::controller::turns::Turns;
use crate::telemetry::metrics::controller::ControllerMetrics;
use crate::telemetry::startup::Startup;

/// How often pools are looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// How long a pool that is being deleted stays although it has no claims: a webhook may not have heard of its end.
const LINGER: SignedDuration = SignedDuration::from_secs(10);

/// How many claims a message names.
const NAMED: usize = 3;

/// Looks after pools.
pub struct PoolKeeper {
    /// Writes them.
    pub writer: PoolWriter,
    /// The pools as the watch shows them; `None` before its first list.
    pub pools_rx: watch::Receiver<Option<Arc<NatPools>>>,
    /// The claims as their watch shows them.
    pub claims: Arc<RwLock<Claims>>,
    /// Whether these are complete.
    pub claims_known: Arc<AtomicBool>,
    /// Which nodes have which addresses.
    pub index: Arc<RwLock<Index>>,
    /// Whether that is complete.
    pub startup: Arc<Startup>,
    /// Whether this process leads.
    pub leading_rx: watch::Receiver<bool>,
    /// What is counted.
    pub metrics: ControllerMetrics,
}

/// What is to be done with a pool.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// It needs our finalizer.
    Keep,
    /// It may go.
    LetGo,
    /// It is to say this.
    Report(Box<NatPoolStatus>),
}

impl PoolKeeper {
    /// Looks after pools until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut turns = Turns::every(PERIOD, stop);
        while turns.next().await {
            self.turn(claim_store::now()).await;
        }
    }

    async fn turn(&self, now: Timestamp) {
        let leads = *self.leading_rx.borrow();
        let pools = self.pools_rx.borrow().clone();
        let is_known = self.claims_known.load(Ordering::Acquire) && self.startup.is_complete();
        let Some(pools) = pools.filter(|_| leads && is_known) else {
            return self.metrics.forget_pools();
        };
        let node_ports = self.index.read().unwrap_or_else(PoisonError::into_inner).node_ports();
        let steps: Vec<_> = {
            let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
            let by_pool = by_pool(&claims);
            let of = |name: &String| by_pool.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            self.metrics.forget_pools();
            pools.iter().map(|(name, object)| (object, plan(object, of(name), &node_ports, now))).collect()
        };
        for (object, (status, steps)) in steps {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            if let Some(usage) = &status.usage {
                self.metrics.pool(name, counts(usage));
            }
            for step in steps {
                let (done, what) = match &step {
                    Step::Keep => {
                        (self.writer.set_finalizer(object, true).await, "kept until its claims are over")
                    }
                    Step::LetGo => (self.writer.set_finalizer(object, false).await, "let go"),
                    Step::Report(status) => (self.writer.apply_status(name, status).await, ""),
                };
                match done {
                    Ok(()) if what.is_empty() => {}
                    Ok(()) => info!(pool = name, "The NatPool is {what}"),
                    Err(reason) => {
                        self.metrics.failed();
                        warn!(pool = name, reason, "A NatPool cannot be written, trying again");
                    }
                }
            }
        }
    }
}

/// What is counted of a pool, as metrics name it.
fn counts(usage: &PoolUsage) -> [(&'static str, u64); 6] {
    let PoolUsage { addresses: _, capacity, used, free, reserved, cooling, out_of_range } = *usage;
    [
        ("capacity", capacity),
        ("used", used),
        ("free", free),
        ("reserved", reserved),
        ("cooling", cooling),
        ("out-of-range", out_of_range),
    ]
}

/// The claims of each pool that are counted: those of nodes' own addresses hold no pool up.
fn by_pool(claims: &Claims) -> BTreeMap<&str, Vec<&Claim>> {
    let mut found: BTreeMap<&str, Vec<&Claim>> = BTreeMap::new();
    for claim in claims.values().map(|stored| &stored.claim).filter(|claim| claim.origin != ClaimOrigin::Node)
    {
        if let Some(pool) = &claim.pool {
            found.entry(pool).or_default().push(claim);
        }
    }
    found
}

/// How a pool stands, and what is to be done with it.
fn plan(
    object: &NatPool,
    claims: &[&Claim],
    node_ports: &NodePorts,
    now: Timestamp,
) -> (NatPoolStatus, Vec<Step>) {
    let before = object.status.clone().unwrap_or_default();
    let status = status(object, claims, node_ports, &before, now);
    let mut steps = Vec::new();
    let has_finalizer = nat_pools::is_held(object);
    match &object.metadata.deletion_timestamp {
        None if !has_finalizer => steps.push(Step::Keep),
        Some(since) if has_finalizer && claims.is_empty() => {
            if since.0.checked_add(LINGER).is_ok_and(|end| end <= now) {
                return (status, vec![Step::LetGo]);
            }
        }
        None | Some(_) => {}
    }
    if status != before {
        steps.push(Step::Report(Box::new(status.clone())));
    }
    (status, steps)
}

fn status(
    object: &NatPool,
    claims: &[&Claim],
    node_ports: &NodePorts,
    before: &NatPoolStatus,
    now: Timestamp,
) -> NatPoolStatus {
    let generation = object.metadata.generation;
    let read = nat_pools::read(object);
    let usage = read.as_ref().ok().map(|pool| usage(pool, node_ports, claims.iter().copied()));
    let is_full = usage.as_ref().is_some_and(|usage| 0 < usage.capacity && usage.free == 0);
    let said = [
        ready(&read, is_full),
        out_of_range(read.as_ref().ok(), claims, node_ports),
        deleting(object.metadata.deletion_timestamp.is_some(), claims),
    ];
    let conditions = Condition::all(said, &before.conditions, generation, now);
    NatPoolStatus { observed_generation: generation, usage, conditions }
}

fn ready(read: &Result<Pool, PoolError>, is_full: bool) -> Said<'static> {
    match read {
        Err(error) => ("Ready", false, "Unreadable", format!("grants nothing: {error}")),
        Ok(pool) if pool.is_deleting => {
            ("Ready", false, "Deleting", "grants nothing any more: it is being deleted".to_owned())
        }
        Ok(_) if is_full => ("Ready", false, "Full", "every port is claimed".to_owned()),
        Ok(_) => ("Ready", true, "Granting", String::new()),
    }
}

fn out_of_range(pool: Option<&Pool>, claims: &[&Claim], node_ports: &NodePorts) -> Said<'static> {
    let covers =
        |claim: &Claim, node_ports: &NodePorts| pool.is_none_or(|pool| is_covered(pool, node_ports, claim));
    let outside = claims.iter().copied().filter(|claim| !covers(claim, node_ports));
    let (kept, gone): (Vec<_>, Vec<_>) = outside.partition(|claim| covers(claim, &NodePorts::default()));
    let range = node_ports.range.map(|range| range.to_string()).unwrap_or_default();
    let groups = [
        (gone, "that the spec no longer has".to_owned(), "widen spec.addresses or spec.ports again"),
        (
            kept,
            format!("of the NodePort range ({range})"),
            "open these by a range of spec.ports that lies inside of it",
        ),
    ];
    let said = groups.iter().filter(|(claims, ..)| !claims.is_empty()).map(|(claims, which, cure)| {
        let named = named(claims, which);
        format!("{named}; they stay until their holders give them up: give these other ports, or {cure}")
    });
    let message = said.collect::<Vec<_>>().join(". ");
    if message.is_empty() {
        return ("OutOfRange", false, "AllInside", message);
    }
    ("OutOfRange", true, "ClaimsOutside", message)
}

fn deleting(is_deleting: bool, claims: &[&Claim]) -> Said<'static> {
    match (is_deleting, claims.is_empty()) {
        (false, _) => ("Deleting", false, "NotRequested", String::new()),
        (true, true) => {
            ("Deleting", true, "Ending", "has no claims any more and goes in a moment".to_owned())
        }
        (true, false) => {
            let message =
                format!("waits for {}; remove these ports from their holders", named(claims, "of it"));
            ("Deleting", true, "WaitsForClaims", message)
        }
    }
}

/// `2 claims of it, such as v4-203-0-113-7-tcp-25 of Deployment mail/postfix`.
fn named(claims: &[&Claim], which: &str) -> String {
    let shown = claims.iter().take(NAMED).map(|claim| format!("{} of {}", claim.key, claim.holder));
    let noun = if claims.len() == 1 { "claim" } else { "claims" };
    format!("{} {noun} {which}, such as {}", claims.len(), shown.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::api::crd::condition::ConditionStatus;
    use crate::cluster::nat_pools::FINALIZER;
    use crate::model::address::ExternalAddress;
    use crate::model::holder::Holder;
    use crate::model::holder::ObjectName;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn claim(name: &str) -> Claim {
        let holder = Holder::new("Deployment", ObjectName::new("mail", "postfix"));
        Claim { pool: Some("edge".to_owned()), ..Claim::reserve(name.parse().unwrap(), holder, at(0)) }
    }

    fn object(spec: Value) -> NatPool {
        let mut object = NatPool::new("edge", serde_json::from_value(spec).unwrap());
        object.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        object.metadata.generation = Some(1);
        object
    }

    fn edge() -> NatPool {
        object(
            json!({"addresses": ["203.0.113.7"], "protocols": ["TCP"], "ports": [{"first": 25, "last": 26}]}),
        )
    }

    fn condition<'s>(status: &'s NatPoolStatus, type_: &str) -> (bool, &'s str, &'s str) {
        let found = Condition::find(&status.conditions, type_).unwrap();
        (found.status == ConditionStatus::True, &found.reason, &found.message)
    }

    #[test]
    fn a_new_pool_is_kept_and_reported_and_nothing_is_written_again() {
        let mut pool = edge();
        pool.metadata.finalizers = None;
        let (status, steps) = plan(&pool, &[], &NodePorts::default(), at(0));
        assert_eq!(steps, [Step::Keep, Step::Report(Box::new(status.clone()))]);
        assert_eq!(condition(&status, "Ready"), (true, "Granting", ""));
        let mut stored = edge();
        stored.status = Some(status);
        assert_eq!(plan(&stored, &[], &NodePorts::default(), at(100)).1, []);
    }

    #[test]
    fn a_full_pool_and_one_that_cannot_be_read_say_so() {
        let (one, other) = (claim("v4-203-0-113-7-tcp-25"), claim("v4-203-0-113-7-tcp-26"));
        let (status, _) = plan(&edge(), &[&one, &other], &NodePorts::default(), at(0));
        assert_eq!(condition(&status, "Ready"), (false, "Full", "every port is claimed"));
        let (status, _) =
            plan(&object(json!({"addresses": ["203.0.113"]})), &[&one], &NodePorts::default(), at(0));
        let (is_ready, reason, message) = condition(&status, "Ready");
        assert_eq!((is_ready, reason), (false, "Unreadable"));
        assert!(message.starts_with("grants nothing: spec.addresses[0]"), "{message}");
    }

    #[test]
    fn a_pool_that_shrank_names_what_it_no_longer_has_and_takes_nothing_back() {
        let outside = claim("v4-203-0-113-7-tcp-80");
        let (status, steps) = plan(&edge(), &[&outside], &NodePorts::default(), at(0));
        assert_eq!(status.usage.as_ref().unwrap().out_of_range, 1);
        let (holds, reason, message) = condition(&status, "OutOfRange");
        assert_eq!((holds, reason), (true, "ClaimsOutside"));
        assert!(
            message.starts_with(
                "1 claim that the spec no longer has, such as v4-203-0-113-7-tcp-80 of Deployment mail/postfix; they stay"
            ),
            "{message}"
        );
        assert_eq!(steps.len(), 1, "only the report");
    }

    #[test]
    fn claims_of_the_node_port_range_are_named_and_stay() {
        let pool = object(json!({"addresses": ["203.0.113.7"], "protocols": ["TCP"]}));
        let node_ports = NodePorts {
            range: "30000-32767".parse().ok(),
            addresses: ["203.0.113.7".parse().ok().and_then(|ip| ExternalAddress::new(ip).ok()).unwrap()]
                .into(),
        };
        let held = [claim("v4-203-0-113-7-tcp-30001"), claim("v4-203-0-113-7-tcp-80")];
        let (status, steps) = plan(&pool, &held.each_ref(), &node_ports, at(0));
        let usage = status.usage.as_ref().unwrap();
        assert_eq!((usage.capacity, usage.reserved, usage.out_of_range), (64512 - 2768, 2768, 2));
        let (holds, reason, message) = condition(&status, "OutOfRange");
        assert_eq!((holds, reason), (true, "ClaimsOutside"));
        let (gone, kept) = message.split_once(". ").unwrap();
        assert!(
            gone.starts_with("1 claim that the spec no longer has, such as v4-203-0-113-7-tcp-80 of"),
            "{gone}"
        );
        assert_eq!(
            kept,
            "1 claim of the NodePort range (30000-32767), such as v4-203-0-113-7-tcp-30001 of Deployment mail/postfix; they \
             stay until their holders give them up: give these other ports, or open these by a range of spec.ports that lies \
             inside of it"
        );
        assert_eq!(steps.len(), 1, "only the report");
        let (status, _) = plan(&pool, &[&held[0]], &NodePorts::default(), at(0));
        assert_eq!(condition(&status, "OutOfRange").1, "AllInside");
    }

    #[test]
    fn a_pool_that_is_deleted_goes_when_its_last_claim_has_gone_and_not_before() {
        let mut pool = edge();
        pool.metadata.deletion_timestamp = Some(Time(at(0)));
        let held = claim("v4-203-0-113-7-tcp-25");
        let (status, steps) = plan(&pool, &[&held], &NodePorts::default(), at(500));
        assert!(!steps.contains(&Step::LetGo));
        let (holds, reason, message) = condition(&status, "Deleting");
        assert_eq!((holds, reason), (true, "WaitsForClaims"));
        assert!(message.starts_with("waits for 1 claim of it, such as v4-203-0-113-7-tcp-25"), "{message}");
        assert_eq!(condition(&status, "Ready").1, "Deleting");
        assert!(
            !plan(&pool, &[], &NodePorts::default(), at(9)).1.contains(&Step::LetGo),
            "a webhook may not have heard of it"
        );
        assert_eq!(plan(&pool, &[], &NodePorts::default(), at(10)).1, [Step::LetGo]);
        pool.metadata.finalizers = None;
        assert!(!plan(&pool, &[], &NodePorts::default(), at(10)).1.contains(&Step::LetGo));
    }
}
