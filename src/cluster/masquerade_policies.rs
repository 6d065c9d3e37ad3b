//! Every MasqueradePolicy of the cluster, kept up to date by a watch.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use kube::Api;
use kube::Client;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use tokio::sync::watch;
use tracing::debug;
use tracing::warn;

use crate::api::crd::masquerade_policy::MasqueradePolicy;
use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;
use crate::cluster::trouble::is_out_of_reach;
use crate::cluster::watch::WATCH_SECONDS;

/// The policies by name, as the watch last showed them. `None` while nobody has said yet.
pub type Known = Option<Arc<BTreeMap<String, MasqueradePolicy>>>;

/// Follows them until dropped. A cluster without the custom resources has none.
pub async fn follow(client: Client, known_tx: watch::Sender<Known>) {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let mut events = watcher(Api::<MasqueradePolicy>::all(client), config).default_backoff().boxed();
    let (mut listing, mut policies) = (BTreeMap::new(), BTreeMap::new());
    let mut has_warned = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                has_warned = false;
                if take(event, &mut listing, &mut policies) {
                    known_tx.send_replace(Some(Arc::new(policies.clone())));
                }
            }
            Err(error) if is_expired(&error) => debug!("The watch on MasqueradePolicies starts anew"),
            Err(error) => {
                let is_absent = is_out_of_reach(&error);
                if !std::mem::replace(&mut has_warned, true) {
                    warn!(
                        reason = describe_watch(&error),
                        "MasqueradePolicies cannot be watched, so what is known stays; install the custom resources (pinhole crd \
                         | kubectl apply -f -) and the rights of the agent, or leave --masquerade-policies out"
                    );
                }
                // What runs must not wait for a resource that does not exist.
                known_tx.send_if_modified(|known| {
                    let is_new = known.is_none() && is_absent;
                    if is_new {
                        *known = Some(Arc::default());
                    }
                    is_new
                });
            }
        }
    }
}

type Policies = BTreeMap<String, MasqueradePolicy>;

/// Brings one piece of news into what is known; whether that is complete.
fn take(event: Event<MasqueradePolicy>, listing: &mut Policies, policies: &mut Policies) -> bool {
    let named = |object: MasqueradePolicy| Some((object.metadata.name.clone()?, object));
    match event {
        Event::Init => {
            listing.clear();
            return false;
        }
        Event::InitApply(object) => {
            listing.extend(named(object));
            return false;
        }
        Event::InitDone => *policies = std::mem::take(listing),
        Event::Apply(object) => policies.extend(named(object)),
        Event::Delete(object) => {
            policies.remove(object.metadata.name.as_deref().unwrap_or_default());
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crd::masquerade_policy::MasqueradePolicySpec;

    #[test]
    fn a_list_replaces_what_was_known_once_it_is_complete() {
        let (mut listing, mut policies) = (Policies::new(), Policies::new());
        let mut hear = |event| {
            let is_complete = take(event, &mut listing, &mut policies);
            (is_complete, policies.keys().cloned().collect::<Vec<_>>().join(" "))
        };
        let policy = |name| MasqueradePolicy::new(name, MasqueradePolicySpec::default());
        assert_eq!(
            hear(Event::Init),
            (false, String::new()),
            "an empty list that is only beginning says nothing"
        );
        assert_eq!(hear(Event::InitApply(policy("a"))), (false, String::new()));
        assert_eq!(hear(Event::InitDone), (true, "a".to_owned()));
        assert_eq!(hear(Event::Apply(policy("b"))), (true, "a b".to_owned()));
        assert_eq!(hear(Event::Delete(policy("a"))), (true, "b".to_owned()));
        assert_eq!(hear(Event::Init), (false, "b".to_owned()));
        assert_eq!(hear(Event::InitDone), (true, String::new()));
    }
}
