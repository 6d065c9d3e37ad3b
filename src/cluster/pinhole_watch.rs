//! Pinholes, kept up to date by a watch: all of the cluster, or those that one node serves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use kube::Api;
use kube::Client;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::api::crd::pinhole::Pinhole;
use crate::api::keys;
use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;
use crate::cluster::watch::WATCH_SECONDS;
use crate::model::holder::ObjectName;

/// Pinholes by name.
pub type Pinholes = BTreeMap<ObjectName, Pinhole>;

/// What the watch has shown.
#[derive(Debug, Default)]
pub struct KnownPinholes {
    pinholes: RwLock<Pinholes>,
    is_complete: AtomicBool,
}

impl KnownPinholes {
    /// Shows what is known. Nothing is fed meanwhile, so be quick and wait for nothing.
    pub fn read<T>(&self, look: impl FnOnce(&Pinholes) -> T) -> T {
        look(&self.pinholes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a complete list was seen.
    pub fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }

    /// Replaces what is known by a complete list.
    pub fn replace(&self, pinholes: Pinholes) {
        *self.pinholes.write().unwrap_or_else(PoisonError::into_inner) = pinholes;
        self.is_complete.store(true, Ordering::Release);
    }

    /// Follows every Pinhole, or those that the node of this name serves, until it is dropped. What is known stays while
    /// they cannot be watched. `changed` is called after each change.
    pub async fn follow(self: Arc<Self>, client: Client, node_name: Option<&str>, changed: impl Fn()) {
        let mut config = watcher::Config::default().page_size(500).timeout(WATCH_SECONDS);
        if let Some(node_name) = node_name {
            config = config.labels(&keys::node_label(node_name));
        }
        let mut events = watcher(Api::<Pinhole>::all(client), config).default_backoff().boxed();
        let mut listing = Pinholes::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    self.take(event, &mut listing);
                    changed();
                }
                Err(error) if is_expired(&error) => debug!("The watch on Pinholes starts anew"),
                Err(error) => warn!(
                    reason = describe_watch(&error),
                    "Pinholes cannot be watched; what is known stays until they can"
                ),
            }
        }
    }

    /// Brings one piece of news into what is known.
    fn take(&self, event: Event<Pinhole>, listing: &mut Pinholes) {
        match event {
            Event::Init => listing.clear(),
            Event::InitApply(pinhole) => {
                listing.insert(name(&pinhole), slim(pinhole));
            }
            Event::InitDone => {
                info!(pinholes = listing.len(), "Listed the Pinholes");
                self.replace(std::mem::take(listing));
            }
            Event::Apply(pinhole) => {
                let mut pinholes = self.pinholes.write().unwrap_or_else(PoisonError::into_inner);
                pinholes.insert(name(&pinhole), slim(pinhole));
            }
            Event::Delete(pinhole) => {
                let mut pinholes = self.pinholes.write().unwrap_or_else(PoisonError::into_inner);
                pinholes.remove(&name(&pinhole));
            }
        }
    }
}

/// Who wrote which field is of no use here, and most of the object.
fn slim(mut pinhole: Pinhole) -> Pinhole {
    pinhole.metadata.managed_fields = None;
    pinhole
}

/// The same by their names.
pub fn by_name(pinholes: impl IntoIterator<Item = Pinhole>) -> Pinholes {
    pinholes.into_iter().map(|pinhole| (name(&pinhole), slim(pinhole))).collect()
}

fn name(pinhole: &Pinhole) -> ObjectName {
    let metadata = &pinhole.metadata;
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    ObjectName::new(text(&metadata.namespace), text(&metadata.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crd::pinhole::PinholeSpec;

    fn pinhole(name: &str, version: &str) -> Pinhole {
        let spec: PinholeSpec =
            serde_json::from_value(serde_json::json!({"target": {"pod": name}, "ports": []})).unwrap();
        let mut pinhole = Pinhole::new(name, spec);
        pinhole.metadata.resource_version = Some(version.to_owned());
        pinhole
    }

    #[test]
    fn a_list_replaces_what_was_known_once_it_is_complete() {
        let known = KnownPinholes::default();
        let mut listing = Pinholes::new();
        let steps = [
            (Event::Init, "", false),
            (Event::InitApply(pinhole("a", "1")), "", false),
            (Event::InitDone, "1", true),
            (Event::Apply(pinhole("b", "2")), "1 2", true),
            (Event::Delete(pinhole("a", "3")), "2", true),
            (Event::Init, "2", true),
            (Event::InitApply(pinhole("c", "4")), "2", true),
            (Event::InitDone, "4", true),
        ];
        for (event, expected, is_complete) in steps {
            known.take(event, &mut listing);
            let version = |pinhole: &Pinhole| pinhole.metadata.resource_version.clone().unwrap();
            let versions: Vec<_> = known.read(|pinholes| pinholes.values().map(version).collect());
            assert_eq!((versions.join(" ").as_str(), known.is_complete()), (expected, is_complete));
        }
    }
}
