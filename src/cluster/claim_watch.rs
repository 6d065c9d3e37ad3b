//! Every claim of the cluster, kept up to date by a watch.

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

use crate::allocation::claim::StoredClaim;
use crate::allocation::key::ClaimKey;
use crate::api::crd::port_claim::PortClaim;
use crate::cluster::changes::Changes;
use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;
use crate::cluster::watch::WATCH_SECONDS;

/// The claims, as the watch last showed them.
pub type Claims = BTreeMap<ClaimKey, StoredClaim>;

/// Follows every claim until it is dropped. `synced` becomes true with the first complete list, and `changes` are told each time.
pub async fn follow(client: Client, claims: Arc<RwLock<Claims>>, synced: Arc<AtomicBool>, changes: Changes) {
    let config = watcher::Config::default().page_size(500).timeout(WATCH_SECONDS);
    let mut events = watcher(Api::<PortClaim>::all(client), config).default_backoff().boxed();
    let mut listing = Claims::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let is_complete = matches!(event, Event::InitDone);
                let count = {
                    let mut claims = claims.write().unwrap_or_else(PoisonError::into_inner);
                    take(event, &mut listing, &mut claims);
                    claims.len()
                };
                if is_complete {
                    info!(claims = count, "Listed the claims");
                    synced.store(true, Ordering::Release);
                }
                changes.tell();
            }
            Err(error) if is_expired(&error) => debug!("The watch on PortClaims starts anew"),
            Err(error) => warn!(
                reason = describe_watch(&error),
                "PortClaims cannot be watched; what is known stays, and nothing is given back until they can"
            ),
        }
    }
}

/// Brings one piece of news into what is known.
fn take(event: Event<PortClaim>, listing: &mut Claims, claims: &mut Claims) {
    let read = |object: &PortClaim| match StoredClaim::read(object) {
        Ok(stored) => Some(stored),
        Err(error) => {
            warn!("{error}");
            None
        }
    };
    match event {
        Event::Init => listing.clear(),
        Event::InitApply(object) => listing.extend(read(&object).map(|stored| (stored.claim.key, stored))),
        Event::InitDone => *claims = std::mem::take(listing),
        Event::Apply(object) => claims.extend(read(&object).map(|stored| (stored.claim.key, stored))),
        Event::Delete(object) => {
            let key = object.metadata.name.as_deref().and_then(|name| name.parse::<ClaimKey>().ok());
            if let Some(key) = key {
                claims.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::allocation::claim::Claim;
    use crate::model::holder::Holder;
    use crate::model::holder::ObjectName;

    fn object(name: &str, version: &str) -> PortClaim {
        let holder = Holder::new("Pod", ObjectName::new("mail", "mx"));
        let mut object = Claim::reserve(name.parse().unwrap(), holder, Timestamp::UNIX_EPOCH).to_object();
        object.metadata.uid = Some(format!("uid-{name}"));
        object.metadata.resource_version = Some(version.to_owned());
        object
    }

    #[test]
    fn a_list_replaces_what_was_known_once_it_is_complete() {
        let (mut listing, mut claims) = (Claims::new(), Claims::new());
        let mut hear = |event| {
            take(event, &mut listing, &mut claims);
            claims.values().map(|stored| stored.version.revision).collect::<Vec<_>>()
        };
        let (one, other) = ("v4-192-0-2-1-tcp-25", "v4-192-0-2-1-tcp-26");
        assert_eq!(hear(Event::Init), Vec::<u64>::new());
        assert_eq!(hear(Event::InitApply(object(one, "1"))), Vec::<u64>::new());
        assert_eq!(hear(Event::InitDone), [1]);
        assert_eq!(hear(Event::Apply(object(other, "2"))), [1, 2]);
        assert_eq!(hear(Event::Apply(object(one, "3"))), [3, 2]);
        assert_eq!(hear(Event::Delete(object(other, "4"))), [3]);
        assert_eq!(hear(Event::Init), [3]);
        assert_eq!(hear(Event::InitApply(object(other, "5"))), [3]);
        assert_eq!(hear(Event::InitDone), [5]);
    }
}
