//! What the watches on the cluster tell, as metrics and readiness: the same for every process that keeps lists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::admission::index::Index;
use crate::cluster::informers::Informers;
use crate::cluster::informers::Observer;
use crate::cluster::informers::Sign;
use crate::cluster::nat_pools;
use crate::cluster::nat_pools::NatPools;
use crate::cluster::nat_pools::News;
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

/// The pools of the cluster, which come before everything else.
pub(crate) struct Pools {
    /// Whom to ask.
    pub(crate) client: Client,
    /// Hears which pools there are, each time they change.
    pub(crate) tell: Box<dyn FnMut(Arc<NatPools>) + Send>,
}

/// Keeps the index up to date by watches, and its pools where pools are looked at. Those are known first: a decision
/// that was made without them would grant nothing.
pub(crate) async fn keep(
    informers: Informers,
    pools: Option<Pools>,
    index: Arc<RwLock<Index>>,
    caches: Condition,
    startup: Arc<Startup>,
    metrics: WatchMetrics,
) {
    let Some(Pools { client, mut tell }) = pools else { return informers.run().await };
    let known = CancellationToken::new();
    let is_known = known.clone();
    let mut warned = BTreeMap::new();
    let following = nat_pools::follow(client, move |news| match news {
        News::Known(pools) => {
            metrics.listed(NAT_POOLS);
            let readable = nat_pools::readable(&pools, &mut warned);
            index.write().unwrap_or_else(PoisonError::into_inner).set_pools(Some(readable));
            tell(pools);
            known.cancel();
        }
        News::Failed(reason) => {
            metrics.failed(NAT_POOLS);
            if !known.is_cancelled() {
                let missing = format!("listing {NAT_POOLS} fails: {reason}");
                startup.waits_for(missing.clone());
                caches.missing(missing);
            }
        }
    });
    let informing = async {
        is_known.cancelled().await;
        informers.run().await;
    };
    tokio::select! {
        () = following => {}
        () = informing => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
