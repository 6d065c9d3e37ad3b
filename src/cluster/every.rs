//! Every object of a kind, by name, kept up to date by a watch: for kinds of which a cluster has few.
//!
//! # Guarantees
//! - A list counts once it is complete. What was known stays while the objects cannot be watched.
//! - A cluster without the custom resource, or one that lets nobody see it, has none: nothing waits for it.
//! - Who waits for news is woken by news alone, not by what others write beside it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use kube::Api;
use kube::Client;
use kube::Resource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::debug;
use tracing::warn;

use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;
use crate::cluster::trouble::is_out_of_reach;
use crate::cluster::watch::WATCH_SECONDS;

/// What is known of every object by its name, as the watch last showed it. `None` while nobody has said yet.
pub type Known<T> = Option<Arc<BTreeMap<String, T>>>;

/// What is kept of each object of a kind.
pub trait Followed: Clone + Send + Sync + 'static {
    /// The kind.
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;

    /// What to do when they cannot be watched.
    const ADVICE: &'static str;

    /// What is kept of an object.
    fn of(object: Self::Object) -> Self;

    /// Whether this is news to whom the other was told.
    fn differs(&self, other: &Self) -> bool;
}

/// Follows them until dropped.
pub async fn follow<T: Followed>(client: Client, known_tx: watch::Sender<Known<T>>) {
    let config = watcher::Config::default().page_size(500).timeout(WATCH_SECONDS);
    let mut events = watcher(Api::<T::Object>::all(client), config).default_backoff().boxed();
    let (mut listing, mut known) = (BTreeMap::new(), BTreeMap::new());
    let (resource, mut has_warned) = (T::Object::plural(&()), false);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                has_warned = false;
                if take::<T>(event, &mut listing, &mut known) {
                    tell(&known_tx, known.clone());
                }
            }
            Err(error) if is_expired(&error) => {
                debug!(%resource, "The watch starts anew");
            }
            Err(error) => {
                if !std::mem::replace(&mut has_warned, true) {
                    let reason = describe_watch(&error);
                    warn!(%resource, reason, "Cannot list or watch, so what is known stays; {}", T::ADVICE);
                }
                // What runs must not wait for a resource that does not exist.
                if is_out_of_reach(&error) && known_tx.borrow().is_none() {
                    tell(&known_tx, BTreeMap::new());
                }
            }
        }
    }
}

/// Brings one piece of news into what is known; whether that is complete.
fn take<T: Followed>(
    event: Event<T::Object>,
    listing: &mut BTreeMap<String, T>,
    known: &mut BTreeMap<String, T>,
) -> bool {
    let name = |object: &T::Object| object.meta().name.clone().unwrap_or_default();
    match event {
        Event::Init => {
            listing.clear();
            return false;
        }
        Event::InitApply(object) => {
            listing.insert(name(&object), T::of(object));
            return false;
        }
        Event::InitDone => *known = std::mem::take(listing),
        Event::Apply(object) => {
            known.insert(name(&object), T::of(object));
        }
        Event::Delete(object) => {
            known.remove(&name(&object));
        }
    }
    true
}

/// Leaves what is known, and wakes who waits if it is news.
fn tell<T: Followed>(known_tx: &watch::Sender<Known<T>>, now: BTreeMap<String, T>) {
    known_tx.send_if_modified(|known| {
        let is_news = known.as_ref().is_none_or(|before| {
            let is_told =
                |(name, one): (&String, &T)| before.get(name).is_some_and(|other| !one.differs(other));
            before.len() != now.len() || !now.iter().all(is_told)
        });
        *known = Some(Arc::new(now));
        is_news
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crd::masquerade_policy::MasqueradePolicy;
    use crate::api::crd::masquerade_policy::MasqueradePolicySpec;
    use crate::api::crd::masquerade_policy::MasqueradePolicyStatus;

    fn policy(name: &str, generation: i64) -> MasqueradePolicy {
        let mut policy = MasqueradePolicy::new(name, MasqueradePolicySpec::default());
        policy.metadata.generation = Some(generation);
        policy
    }

    #[test]
    fn a_list_replaces_what_was_known_once_it_is_complete() {
        let (mut listing, mut policies) = (BTreeMap::new(), BTreeMap::new());
        let mut hear = |event| {
            let is_complete = take::<MasqueradePolicy>(event, &mut listing, &mut policies);
            (is_complete, policies.keys().cloned().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(
            hear(Event::Init),
            (false, String::new()),
            "an empty list that is only beginning says nothing"
        );
        assert_eq!(hear(Event::InitApply(policy("a", 1))), (false, String::new()));
        assert_eq!(hear(Event::InitDone), (true, "a".to_owned()));
        assert_eq!(hear(Event::Apply(policy("b", 1))), (true, "a b".to_owned()));
        assert_eq!(hear(Event::Delete(policy("a", 1))), (true, "b".to_owned()));
        assert_eq!(hear(Event::Init), (false, "b".to_owned()));
        assert_eq!(hear(Event::InitDone), (true, String::new()));
    }

    #[test]
    fn a_status_wakes_nobody_and_is_there_for_who_looks() {
        let (known_tx, mut known_rx) = watch::channel(None);
        let mut wakes = |policies: &[MasqueradePolicy]| {
            let named = policies.iter().map(|policy| (policy.metadata.name.clone().unwrap(), policy.clone()));
            tell(&known_tx, named.collect());
            let has_changed = known_rx.has_changed().unwrap();
            let known = known_rx.borrow_and_update().clone().unwrap();
            assert_eq!(known.values().cloned().collect::<Vec<_>>(), policies, "the last word is there");
            has_changed
        };
        assert!(wakes(&[]), "that there is none is news at first");
        assert!(!wakes(&[]));
        assert!(wakes(&[policy("a", 1)]));
        let mut reported = policy("a", 1);
        reported.status = Some(MasqueradePolicyStatus::default());
        reported.metadata.resource_version = Some("7".to_owned());
        assert!(!wakes(&[reported]));
        assert!(wakes(&[policy("a", 2)]));
        let mut anew = policy("a", 2);
        anew.metadata.uid = Some("another".to_owned());
        assert!(wakes(&[anew]), "one of the same name that was made anew");
        assert!(wakes(&[policy("b", 2)]));
    }
}
