//! Every pool of the cluster, kept up to date by a watch.
//!
//! A pool that cannot be read grants nothing; it is named in a warning. One that is being deleted is known as such, and
//! grants nothing either.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use kube::Api;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use serde_json::Value;
use serde_json::json;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::allocation::pool::Pool;
use crate::allocation::pool::PoolError;
use crate::api::crd::nat_pool::NatPool;
use crate::api::crd::nat_pool::NatPoolStatus;
use crate::cluster::trouble::describe;
use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;
use crate::cluster::trouble::is_out_of_reach;
use crate::cluster::watch::WATCH_SECONDS;

/// What keeps a pool from going before its claims.
pub const FINALIZER: &str = "pinhole.dev/claims";

/// Who we are in a pool's managed fields.
const FIELD_MANAGER: &str = "pinhole-controller";

/// The pools as they are stored, by name.
pub type NatPools = BTreeMap<String, Arc<NatPool>>;

/// What the watch tells.
#[derive(Clone, Debug)]
pub enum News {
    /// The pools are these now.
    Known(Arc<NatPools>),
    /// They cannot be watched; what was known stays.
    Failed {
        /// Why.
        reason: String,
        /// Whether the cluster has none at all, or lets nobody see them.
        is_out_of_reach: bool,
    },
}

/// Follows every pool until it is dropped. Each change is told as all that there is then: pools are few.
pub async fn follow(client: Client, mut tell: impl FnMut(News)) {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let mut events = watcher(Api::<NatPool>::all(client), config).default_backoff().boxed();
    let (mut listing, mut pools) = (NatPools::new(), NatPools::new());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if take(event, &mut listing, &mut pools) {
                    tell(News::Known(Arc::new(pools.clone())));
                }
            }
            Err(error) if is_expired(&error) => debug!("The watch on NatPools starts anew"),
            Err(error) => {
                let reason = describe_watch(&error);
                warn!(reason, "NatPools cannot be watched; those that are known stay");
                tell(News::Failed { reason, is_out_of_reach: is_out_of_reach(&error) });
            }
        }
    }
}

/// Brings one piece of news into what is known; tells whether that may have changed.
fn take(event: Event<NatPool>, listing: &mut NatPools, pools: &mut NatPools) -> bool {
    let named = |object: NatPool| (object.metadata.name.clone().unwrap_or_default(), Arc::new(object));
    match event {
        Event::Init => listing.clear(),
        Event::InitApply(object) => listing.extend([named(object)]),
        Event::InitDone => {
            *pools = std::mem::take(listing);
            info!(pools = pools.len(), "Listed the pools");
            return true;
        }
        Event::Apply(object) => {
            pools.extend([named(object)]);
            return true;
        }
        Event::Delete(object) => {
            pools.remove(&named(object).0);
            return true;
        }
    }
    false
}

/// Writes what is ours of a pool: its status, and our finalizer.
#[derive(Clone)]
pub struct PoolWriter {
    api: Api<NatPool>,
}

impl PoolWriter {
    /// Writes through this client.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client) }
    }

    /// Sets a pool's status.
    pub async fn apply_status(&self, name: &str, status: &NatPoolStatus) -> Result<(), String> {
        let object = json!({"apiVersion": "pinhole.dev/v1alpha1", "kind": "NatPool", "status": status});
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self.api.patch_status(name, &parameters, &Patch::Apply(object)).await;
        applied.map(drop).map_err(|error| describe(&error))
    }

    /// Adds our finalizer to this version of a pool, or removes it; a pool that has changed meanwhile, or is gone, is left for the
    /// next look.
    pub async fn set_finalizer(&self, object: &NatPool, is_set: bool) -> Result<(), String> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(finalizer_patch(object, is_set));
        match self.api.patch(name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(describe(&error)),
        }
    }
}

/// Whether a pool has our finalizer.
pub(crate) fn is_held(object: &NatPool) -> bool {
    object.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// What makes this version of a pool have our finalizer, or not.
pub(super) fn finalizer_patch(object: &NatPool, is_set: bool) -> Value {
    let present = object.metadata.finalizers.iter().flatten();
    let mut finalizers: Vec<_> = present.filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    finalizers.extend(is_set.then(|| FINALIZER.to_owned()));
    json!({"metadata": {"resourceVersion": object.metadata.resource_version, "finalizers": finalizers}})
}

/// The pools that can be read. `warned` remembers which version of which others was told of.
pub fn readable(pools: &NatPools, warned: &mut BTreeMap<String, Option<i64>>) -> Arc<[Pool]> {
    let read_one = |(name, object): (&String, &Arc<NatPool>)| match read(object) {
        Ok(pool) => Some(pool),
        Err(error) => {
            let version = object.metadata.generation;
            if warned.insert(name.clone(), version) != Some(version) {
                warn!(pool = name, "The NatPool {name} grants nothing: {error}");
            }
            None
        }
    };
    pools.iter().filter_map(read_one).collect()
}

/// A pool of the API server.
pub fn read(object: &NatPool) -> Result<Pool, PoolError> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let pool = Pool::read(name, &object.spec)?;
    Ok(pool.deleting(object.metadata.deletion_timestamp.is_some()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn object(name: &str, address: &str) -> NatPool {
        NatPool::new(name, serde_json::from_value(json!({"addresses": [address]})).unwrap())
    }

    #[test]
    fn a_list_replaces_what_was_known_once_it_is_complete() {
        let (mut listing, mut pools) = (NatPools::new(), NatPools::new());
        let mut hear = |event| {
            let has_changed = take(event, &mut listing, &mut pools);
            (has_changed, pools.keys().cloned().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(hear(Event::InitApply(object("a", "192.0.2.1"))), (false, String::new()));
        assert_eq!(hear(Event::InitDone), (true, "a".to_owned()));
        assert_eq!(hear(Event::Apply(object("b", "192.0.2.1"))), (true, "a b".to_owned()));
        assert_eq!(hear(Event::Delete(object("a", "192.0.2.1"))), (true, "b".to_owned()));
        assert_eq!(hear(Event::Init), (false, "b".to_owned()));
        assert_eq!(hear(Event::InitDone), (true, String::new()));
    }

    #[test]
    fn a_pool_that_cannot_be_read_is_left_out_and_one_that_is_being_deleted_is_known_as_such() {
        let mut leaving = object("leaving", "192.0.2.1");
        leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let named = [object("good", "192.0.2.1"), object("bad", "192.0.2"), leaving];
        let pools: NatPools =
            named.map(|object| (object.metadata.name.clone().unwrap(), Arc::new(object))).into();
        let read = readable(&pools, &mut BTreeMap::new());
        let said: Vec<_> = read.iter().map(|pool| (pool.name.as_str(), pool.is_deleting)).collect();
        assert_eq!(said, [("good", false), ("leaving", true)]);
    }
}
