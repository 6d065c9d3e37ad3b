//! A watch on one resource, as complete lists and the changes after them.
//!
//! # Guarantees
//! - [`News::Listed`] is complete, however many pages it came in, and replaces all that was known: what vanished
//!   while nobody looked is simply not in it. There are no records of deletion to misread.
//! - Between two lists, changes come in the order in which they were stored.
//! - One object that cannot be read stops nothing: it is named in a warning and left out.
//! - A watch never ends. It goes on after every failure, waiting longer from one to the next.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::Api;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use tracing::debug;
use tracing::warn;

use crate::api::object::Object;
use crate::cluster::client::Connection;
use crate::cluster::resource::Resource;
use crate::cluster::resource::Seen;
use crate::cluster::resource::Undecodable;
use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;

/// Objects in one page of a list.
const PAGE: u32 = 500;

/// How long the API server keeps one watch request open, in seconds. A connection that died without a word is
/// noticed that much later.
pub(super) const WATCH_SECONDS: u32 = 120;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Everything there is, in place of all that was known.
    Listed(Vec<Object>),
    /// An object as it is now, new or changed.
    Applied(Box<Object>),
    /// An object as it was last, now gone.
    Deleted(Box<Object>),
    /// The API server could not be asked, for this reason. What was known stays; the watch goes on by itself.
    Failed(String),
}

/// Takes from an object what is not needed; `false` leaves it out of a list. A change is told all the same, for it may be the
/// loss of what was needed.
pub type Trim = Box<dyn FnMut(&mut Object) -> bool + Send>;

/// A watch on one resource.
pub struct Watch {
    resource: Resource,
    server: String,
    events: BoxStream<'static, watcher::Result<Event<Seen>>>,
    trim: Trim,
    listing: Vec<Object>,
    pause: Option<Duration>,
    next_pause: Duration,
}

impl Watch {
    /// Watches a resource in all namespaces, or what a field selector such as `spec.nodeName=node-1` leaves of it.
    ///
    /// A list can be as large as the cluster; `trim` is applied to each object as it arrives, so that only what matters is
    /// held until the list is complete, and an object is the same whether it came in a list or as a change.
    pub fn new(connection: &Connection, resource: Resource, fields: Option<&str>, trim: Trim) -> Self {
        let mut config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
        config.field_selector = fields.map(str::to_owned);
        let api = Api::all_with(connection.client.clone(), &resource);
        Self::over(watcher(api, config).boxed(), resource, connection.server.clone(), trim)
    }

    fn over(
        events: BoxStream<'static, watcher::Result<Event<Seen>>>,
        resource: Resource,
        server: String,
        trim: Trim,
    ) -> Self {
        Self { resource, server, events, trim, listing: Vec::new(), pause: None, next_pause: FIRST_PAUSE }
    }

    /// The next thing that is known. May be dropped while it waits without losing anything.
    pub async fn next(&mut self) -> News {
        loop {
            if let Some(pause) = self.pause {
                tokio::time::sleep(pause).await;
                self.pause = None;
            }
            let Some(event) = self.events.next().await else {
                // kube's watcher never ends; whoever waits for more would wait for ever.
                return std::future::pending().await;
            };
            let news = match event {
                Ok(event) => self.take(event),
                Err(error) => self.fail(&error),
            };
            if let Some(news) = news {
                return news;
            }
        }
    }

    fn take(&mut self, event: Event<Seen>) -> Option<News> {
        // An attempt begins with `Init`; only what follows is an answer.
        if !matches!(event, Event::Init) {
            self.next_pause = FIRST_PAUSE;
        }
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(seen) => {
                if let Some(mut object) = self.read(seen)
                    && (self.trim)(&mut object)
                {
                    self.listing.push(*object);
                }
            }
            Event::InitDone => return Some(News::Listed(std::mem::take(&mut self.listing))),
            Event::Apply(seen) => {
                return self.read(seen).map(|mut object| {
                    (self.trim)(&mut object);
                    News::Applied(object)
                });
            }
            Event::Delete(seen) => {
                let object = seen.into_object(self.resource);
                return Some(News::Deleted(object.unwrap_or_else(|undecodable| undecodable.object)));
            }
        }
        None
    }

    fn read(&self, seen: Seen) -> Option<Box<Object>> {
        let Undecodable { object, reason } = match seen.into_object(self.resource) {
            Ok(object) => return Some(object),
            Err(undecodable) => undecodable,
        };
        warn!(
            kind = %object.kind,
            namespace = %object.metadata.namespace,
            name = %object.metadata.name,
            reason,
            "Skipping an object that cannot be read; the ports that it asks for are not known"
        );
        None
    }

    fn fail(&mut self, error: &watcher::Error) -> Option<News> {
        let pause = self.next_pause;
        self.pause = Some(pause);
        self.next_pause = LONGEST_PAUSE.min(pause * 2);
        let resource = self.resource.plural();
        let reason = describe_watch(error);
        if is_expired(error) {
            debug!(resource, reason, "The watch fell behind; listing again");
            return None;
        }
        warn!(resource, server = %self.server, reason, retry_in = ?pause, "Cannot list or watch; trying again");
        Some(News::Failed(reason))
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use kube::core::Status;
    use serde_json::Value;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::api::object::Kind;

    fn pod(name: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "web", "uid": format!("uid-{name}"), "resourceVersion": "1",
            "labels": {"app": name}}})
    }

    fn seen(object: &Value) -> Seen {
        serde_json::from_str(&object.to_string()).unwrap()
    }

    fn watch(events: Vec<watcher::Result<Event<Seen>>>) -> Watch {
        let keep = Box::new(|object: &mut Object| {
            object.metadata.labels.clear();
            object.metadata.name != "dropped"
        });
        let events = stream::iter(events).boxed();
        Watch::over(events, Resource::Holder(Kind::Pod), "https://api.test".to_owned(), keep)
    }

    fn names(news: &News) -> Vec<&str> {
        match news {
            News::Listed(objects) => objects.iter().map(|object| object.metadata.name.as_str()).collect(),
            News::Applied(object) | News::Deleted(object) => vec![object.metadata.name.as_str()],
            News::Failed(reason) => panic!("{reason}"),
        }
    }

    fn refused(code: u16, message: &str) -> watcher::Error {
        let status = Status { code, ..Status::failure(message, "") };
        watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
    }

    #[tokio::test]
    async fn a_list_arrives_whole_and_changes_follow_it_trimmed_alike() {
        let mut watch = watch(vec![
            Ok(Event::Init),
            Ok(Event::InitApply(seen(&pod("a")))),
            Ok(Event::InitApply(seen(&pod("dropped")))),
            Ok(Event::InitApply(seen(&pod("b")))),
            Ok(Event::InitDone),
            Ok(Event::Apply(seen(&pod("dropped")))),
            Ok(Event::Delete(seen(&pod("a")))),
        ]);
        let listed = watch.next().await;
        let News::Listed(objects) = &listed else { panic!("expected a list: {listed:?}") };
        assert!(objects.iter().all(|object| object.metadata.labels.is_empty()), "{listed:?}");
        assert_eq!(names(&listed), ["a", "b"]);
        let applied = watch.next().await;
        let News::Applied(object) = &applied else {
            panic!("a change may be the loss of what was kept: {applied:?}")
        };
        assert!(object.metadata.labels.is_empty(), "{applied:?}");
        assert_eq!(names(&applied), ["dropped"]);
        let deleted = watch.next().await;
        assert!(matches!(deleted, News::Deleted(_)));
        assert_eq!(names(&deleted), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_breaks_off_leaves_nothing_behind_in_the_next_one() {
        let mut watch = watch(vec![
            Ok(Event::Init),
            Ok(Event::InitApply(seen(&pod("gone-meanwhile")))),
            Err(refused(410, "the continue token has expired")),
            Ok(Event::Init),
            Ok(Event::InitApply(seen(&pod("b")))),
            Ok(Event::InitDone),
        ]);
        assert_eq!(names(&watch.next().await), ["b"]);
    }

    #[tokio::test]
    async fn r12_an_object_that_cannot_be_read_is_left_out_and_its_deletion_still_counts() {
        let odd = || {
            let mut odd = pod("odd");
            odd["spec"] = json!("not a spec");
            seen(&odd)
        };
        let mut watch = watch(vec![
            Ok(Event::Init),
            Ok(Event::InitApply(odd())),
            Ok(Event::InitApply(seen(&pod("a")))),
            Ok(Event::InitDone),
            Ok(Event::Apply(odd())),
            Ok(Event::Delete(odd())),
        ]);
        assert_eq!(names(&watch.next().await), ["a"]);
        let News::Deleted(object) = watch.next().await else {
            panic!("the change that cannot be read is skipped")
        };
        assert_eq!(object.known_kind(), Some(Kind::Pod));
        assert_eq!((object.metadata.name.as_str(), object.metadata.uid.as_str()), ("odd", "uid-odd"));
    }

    #[tokio::test(start_paused = true)]
    async fn every_failure_is_told_with_what_to_do_and_the_pauses_grow_until_something_arrives() {
        let forbidden =
            || Err(refused(403, "pods is forbidden: User \"pinhole\" cannot list resource \"pods\""));
        let mut watch = watch(vec![
            forbidden(),
            Ok(Event::Init),
            forbidden(),
            Ok(Event::Init),
            forbidden(),
            Ok(Event::Init),
            Ok(Event::InitDone),
            forbidden(),
            forbidden(),
        ]);
        let News::Failed(reason) = watch.next().await else { panic!("a failure is told") };
        assert_eq!(
            reason,
            "HTTP 403: pods is forbidden: User \"pinhole\" cannot list resource \"pods\"; grant it as \
             webhook-config/self.yaml does"
        );
        let mut pauses = Vec::new();
        for _ in 0..5 {
            let before = Instant::now();
            watch.next().await;
            pauses.push(before.elapsed().as_millis());
        }
        assert_eq!(pauses, [200, 400, 800, 0, 200]);
    }
}
