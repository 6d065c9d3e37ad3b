//! Every object of a kind, by name, kept up to date by a watch: for kinds of which a cluster has no more than nodes.
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
    let mut listing = BTreeMap::new();
    let (resource, mut has_warned) = (T::Object::plural(&()), false);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                has_warned = false;
                known_tx.send_if_modified(|known| take(event, &mut listing, known));
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
                known_tx.send_if_modified(|known| {
                    let is_new = known.is_none() && is_out_of_reach(&error);
                    if is_new {
                        *known = Some(Arc::default());
                    }
                    is_new
                });
            }
        }
    }
}

/// Brings one event into what is known; whether it is news to who waits for some. Only who still looks at what was known
/// before has it copied: there can be as many objects as nodes.
fn take<T: Followed>(
    event: Event<T::Object>,
    listing: &mut BTreeMap<String, T>,
    known: &mut Known<T>,
) -> bool {
    let name = |object: &T::Object| object.meta().name.clone().unwrap_or_default();
    match event {
        Event::Init => {
            listing.clear();
            false
        }
        Event::InitApply(object) => {
            listing.insert(name(&object), T::of(object));
            false
        }
        Event::InitDone => {
            let now = std::mem::take(listing);
            let is_told = |before: &BTreeMap<String, T>| {
                let is_same =
                    |(name, one): (&String, &T)| before.get(name).is_some_and(|other| !one.differs(other));
                before.len() == now.len() && now.iter().all(is_same)
            };
            let is_news = !known.as_deref().is_some_and(is_told);
            *known = Some(Arc::new(now));
            is_news
        }
        Event::Apply(object) => {
            let (name, one) = (name(&object), T::of(object));
            let known = Arc::make_mut(known.get_or_insert_default());
            let is_news = known.get(&name).is_none_or(|other| one.differs(other));
            known.insert(name, one);
            is_news
        }
        Event::Delete(object) => {
            Arc::make_mut(known.get_or_insert_default()).remove(&name(&object)).is_some()
        }
    }
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
        let (mut listing, mut policies) = (BTreeMap::new(), Known::<MasqueradePolicy>::None);
        let mut hear = |event| {
            let is_news = take(event, &mut listing, &mut policies);
            let names = policies.iter().flat_map(|policies| policies.keys().cloned());
            (is_news, names.collect::<Vec<_>>().join(" "))
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
        let (known_tx, mut known_rx) = watch::channel(Known::<MasqueradePolicy>::None);
        let mut listing = BTreeMap::new();
        let mut wakes_by = |events: Vec<Event<MasqueradePolicy>>, policies: &[MasqueradePolicy]| {
            for event in events {
                known_tx.send_if_modified(|known| take(event, &mut listing, known));
            }
            let has_changed = known_rx.has_changed().unwrap();
            let known = known_rx.borrow_and_update().clone().unwrap();
            assert_eq!(known.values().cloned().collect::<Vec<_>>(), policies, "the last word is there");
            has_changed
        };
        let mut wakes = |policies: &[MasqueradePolicy]| {
            let list = policies.iter().cloned().map(Event::InitApply);
            wakes_by([Event::Init].into_iter().chain(list).chain([Event::InitDone]).collect(), policies)
        };
        assert!(wakes(&[]), "that there is none is news at first");
        assert!(!wakes(&[]));
        assert!(wakes(&[policy("a", 1)]));
        let mut reported = policy("a", 1);
        reported.status = Some(MasqueradePolicyStatus::default());
        reported.metadata.resource_version = Some("7".to_owned());
        assert!(!wakes(&[reported.clone()]));
        assert!(wakes(&[policy("a", 2)]));
        let mut anew = policy("a", 2);
        anew.metadata.uid = Some("another".to_owned());
        assert!(wakes(&[anew]), "one of the same name that was made anew");
        assert!(wakes(&[policy("b", 2)]));

        let mut wakes = |event, policies: &[MasqueradePolicy]| wakes_by(vec![event], policies);
        assert!(wakes(Event::Apply(policy("a", 1)), &[policy("a", 1), policy("b", 2)]));
        assert!(!wakes(Event::Apply(reported.clone()), &[reported.clone(), policy("b", 2)]));
        assert!(wakes(Event::Apply(policy("b", 3)), &[reported.clone(), policy("b", 3)]));
        assert!(wakes(Event::Delete(policy("b", 3)), &[reported]));
    }

    #[test]
    fn who_still_looks_at_what_was_known_keeps_it() {
        let mut known = Some(Arc::new(BTreeMap::from([("a".to_owned(), policy("a", 1))])));
        let seen = known.clone().unwrap();
        assert!(take(Event::Apply(policy("a", 2)), &mut BTreeMap::new(), &mut known));
        assert_eq!(seen["a"], policy("a", 1));
        assert_eq!(known.unwrap()["a"], policy("a", 2));
    }
}
