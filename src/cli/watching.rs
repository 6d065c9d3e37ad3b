//! What the watches on the cluster tell, as metrics and readiness: the same for every process that keeps lists.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockWriteGuard;

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::admission::index::Index;
use crate::admission::index::occupants::Source;
use crate::api::crd::nat_node::NatNode;
use crate::cluster::changes::Changes;
use crate::cluster::informers::Informers;
use crate::cluster::informers::Observer;
use crate::cluster::informers::Sign;
use crate::cluster::nat_pools;
use crate::cluster::nat_pools::NatPools;
use crate::cluster::nat_pools::News;
use crate::cluster::occupants;
use crate::cluster::occupants::Speaks;
use crate::telemetry::metrics::watch::WatchMetrics;
use crate::telemetry::readiness::Condition;
use crate::telemetry::startup::Startup;

/// The name of pools in metrics and reasons.
const NAT_POOLS: &str = "natpools";

/// What is missing at first.
pub(crate) const FIRST_LISTS: &str = "waiting for the first lists from the API server";

/// Counts every sign of the watches. `startup` is complete, and `caches` met, once every resource was listed for the first
/// time; until then both say which lists are missing, or why one fails. A watch that fails later is repeated and no reason
/// to be unready: a refusal is confirmed by live reads, and what is programmed stays right for the known pods.
pub(crate) fn observer(caches: Condition, startup: Arc<Startup>, metrics: WatchMetrics) -> Observer {
    Arc::new(move |resource, sign| {
        let missing = match sign {
            Sign::Changed => return metrics.changed(resource.plural()),
            Sign::Listed { waiting } => {
                metrics.listed(resource.plural());
                if waiting.is_empty() {
                    startup.finish();
                    return caches.met();
                }
                let waiting: Vec<_> = waiting.iter().map(|resource| resource.plural()).collect();
                format!("waiting for the first list of {}", waiting.join(", "))
            }
            Sign::Failed(reason) => {
                metrics.failed(resource.plural());
                format!("listing {} fails: {reason}", resource.plural())
            }
        };
        if !startup.is_complete() {
            startup.waits_for(missing.clone());
            caches.missing(missing);
        }
    })
}

/// What comes before everything else where pools are looked at.
pub(crate) struct Pools {
    /// Whom to ask.
    pub(crate) client: Client,
    /// Hears which pools there are, each time they change.
    pub(crate) tell: Box<dyn FnMut(Arc<NatPools>) + Send>,
    /// Whether it also matters what programs on nodes and Services have.
    pub(crate) with_occupants: bool,
}

/// What watches keep up to date, and where they say how that goes.
#[derive(Clone)]
pub(crate) struct Kept {
    /// What is known of the cluster.
    pub(crate) index: Arc<RwLock<Index>>,
    /// Met once everything was listed.
    pub(crate) caches: Condition,
    /// Complete once everything was listed.
    pub(crate) startup: Arc<Startup>,
    /// What is counted.
    pub(crate) metrics: WatchMetrics,
    /// Told of every change of pools, and of what others have.
    pub(crate) changes: Changes,
}

/// Keeps the index up to date by watches, and its pools where pools are looked at. Those are known first: a decision
/// that was made without them would grant nothing.
pub(crate) async fn keep(informers: Informers, pools: Option<Pools>, kept: Kept) {
    let Some(Pools { client, mut tell, with_occupants }) = pools else { return informers.run().await };
    let known = [CancellationToken::new(), CancellationToken::new(), CancellationToken::new()];
    let [pools_known, nodes_known, services_known] = known.clone();
    let mut warned = BTreeMap::new();
    let keeping = kept.clone();
    let following = nat_pools::follow(client.clone(), move |news| match news {
        News::Known(pools) => {
            keeping.metrics.listed(NAT_POOLS);
            let readable = nat_pools::readable(&pools, &mut warned);
            keeping.write().set_pools(Some(readable));
            tell(pools);
            keeping.changes.tell();
            pools_known.cancel();
        }
        News::Failed { reason, .. } => keeping.fail(NAT_POOLS, &reason, &pools_known),
    });
    let occupying = async {
        if with_occupants {
            tokio::join!(
                follow_occupants::<NatNode>(client.clone(), &kept, nodes_known),
                follow_occupants::<Service>(client.clone(), &kept, services_known),
            );
        } else {
            nodes_known.cancel();
            services_known.cancel();
            std::future::pending::<()>().await;
        }
    };
    let informing = async {
        for known in known {
            known.cancelled().await;
        }
        informers.run().await;
    };
    tokio::select! {
        () = following => {}
        () = occupying => {}
        () = informing => {}
    }
}

/// Keeps in the index what the objects of one kind say of the ports that they have.
async fn follow_occupants<K: Speaks>(client: Client, kept: &Kept, known: CancellationToken) {
    let is_of = |source: &Source| match source {
        Source::NatNode(_) => K::PLURAL == NatNode::PLURAL,
        Source::Service(_) => K::PLURAL == Service::PLURAL,
        // The index has them from the pods themselves.
        Source::Pod(_) => false,
    };
    let tell = |news| match news {
        occupants::News::Listed(all) => {
            kept.metrics.listed(K::PLURAL);
            let listed: BTreeSet<_> = all.iter().map(|said| said.source.clone()).collect();
            let mut index = kept.write();
            index.retain_occupants(|source| !is_of(source) || listed.contains(source));
            for said in all {
                index.set_occupants(said);
            }
            drop(index);
            kept.changes.tell();
            known.cancel();
        }
        occupants::News::Set(said) => {
            kept.metrics.changed(K::PLURAL);
            kept.write().set_occupants(said);
            kept.changes.tell();
        }
        occupants::News::Gone(source) => {
            kept.metrics.changed(K::PLURAL);
            kept.write().forget_occupants(&source);
            kept.changes.tell();
        }
        occupants::News::Failed(reason) => kept.fail(K::PLURAL, &reason, &known),
    };
    occupants::follow::<K>(client, tell).await;
}

impl Kept {
    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A list or a watch has failed; that keeps nothing from being decided once there was a first list.
    fn fail(&self, resource: &'static str, reason: &str, known: &CancellationToken) {
        self.metrics.failed(resource);
        if !known.is_cancelled() {
            let missing = format!("listing {resource} fails: {reason}");
            self.startup.waits_for(missing.clone());
            self.caches.missing(missing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::resource::Resource;
    use crate::telemetry::readiness::Readiness;

    #[test]
    fn readiness_names_what_is_missing_until_all_lists_are_there_and_keeps_what_was_reached() {
        let readiness = Readiness::new();
        let startup = Arc::new(Startup::missing("starting"));
        let caches = readiness.require("caches", "starting");
        let observer = observer(caches, Arc::clone(&startup), WatchMetrics::default());
        let missing = || readiness.report().remove(0).missing;

        observer(Resource::Namespace, Sign::Listed { waiting: &BTreeSet::from([Resource::Node]) });
        assert_eq!(missing().unwrap(), "waiting for the first list of nodes");
        observer(Resource::Node, Sign::Failed("forbidden"));
        assert_eq!(missing().unwrap(), "listing nodes fails: forbidden");
        assert!(!startup.is_complete());

        observer(Resource::Node, Sign::Listed { waiting: &BTreeSet::new() });
        assert_eq!(missing(), None);
        assert!(startup.is_complete());
        observer(Resource::Node, Sign::Failed("connection refused"));
        assert_eq!(missing(), None, "a watch that fails later is repeated");
    }
}
