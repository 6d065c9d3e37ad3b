//! Who held which external port when: what is left of claims after their end, for whoever has to answer for an address.
//!
//! A stretch is the time for which one holder's pod had a claim. Stretches are kept in pages of bounded size, each the data of
//! one ConfigMap; a claim is always on the same page.
//!
//! # Guarantees
//! - What goes to make room, or for its age, is what ended first. A stretch that goes on is never dropped; where those alone fill a
//!   page, no more are begun on it, and they are counted.
//! - A page that changed is named, and no other: nothing is written for what is as it was.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::allocation::key::ClaimKey;
use crate::model::digest::fnv1a;
use crate::model::holder::Holder;

/// How many pages there are. The chart makes as many ConfigMaps.
pub const PAGES: usize = 16;

/// The most that a page holds, as text: a ConfigMap takes 1 MiB.
const MOST_BYTES: usize = 900_000;

/// What a ConfigMap adds to a stretch: keys, commas, quotes that are escaped once more.
const OVERHEAD: usize = 64;

/// The time for which one pod of a holder had a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stretch {
    /// The holder's kind.
    pub kind: String,
    /// The holder's namespace.
    pub namespace: String,
    /// The holder's name.
    pub name: String,
    /// The pod that the claim named; empty where none did, as for a template without pods.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// The pod's node; empty where it was not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// When it was seen first.
    pub from: Timestamp,
    /// When it was seen no more; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Who has a port now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Who holds it.
    pub holder: Holder,
    /// The pod, where one has it.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Since when, as the claim says.
    pub since: Timestamp,
}

/// One page: the stretches of claims, each claim's in order.
pub type Page = BTreeMap<ClaimKey, Vec<Stretch>>;

/// Every page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pages: Vec<Page>,
}

/// What became of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// The pages that changed.
    pub changed: BTreeSet<usize>,
    /// How many claims have no room on their page.
    pub left_out: usize,
}

impl Stretch {
    fn begin(tenure: &Tenure, from: Timestamp) -> Self {
        Self {
            kind: tenure.holder.kind.to_string(),
            namespace: tenure.holder.object.namespace.to_string(),
            name: tenure.holder.object.name.to_string(),
            pod: tenure.pod.clone(),
            node: tenure.node.clone(),
            from,
            until: None,
        }
    }

    /// Whether it goes on in what is so now. A node that is not known any more is no news.
    fn is_of(&self, tenure: &Tenure) -> bool {
        let holder = &tenure.holder;
        *self.kind == *holder.kind
            && *self.namespace == *holder.object.namespace
            && *self.name == *holder.object.name
            && self.pod == tenure.pod
            && (self.node == tenure.node || tenure.node.is_empty())
    }

    fn size(&self) -> usize {
        serde_json::to_string(self).map_or(0, |text| text.len()) + OVERHEAD
    }
}

/// The page of a claim.
pub fn page_of(key: ClaimKey) -> usize {
    let digest = fnv1a(key.to_string().as_bytes());
    usize::try_from(digest % PAGES as u64).unwrap_or(0)
}

impl Default for History {
    fn default() -> Self {
        Self { pages: vec![Page::new(); PAGES] }
    }
}

impl History {
    /// A history of these pages, in their order.
    pub fn of(pages: Vec<Page>) -> Self {
        let mut history = Self { pages };
        history.pages.resize(PAGES, Page::new());
        history
    }

    /// One page; empty for a number that there is none of.
    pub fn page(&self, number: usize) -> Page {
        self.pages.get(number).cloned().unwrap_or_default()
    }

    /// How much a page takes as text, in bytes.
    pub fn size(&self, number: usize) -> usize {
        self.pages.get(number).map_or(0, |page| size(page.values().flatten()))
    }

    /// Brings it up to what is so now, and forgets what ended longer ago than `keep`.
    pub fn advance(
        &mut self,
        held: &BTreeMap<ClaimKey, Tenure>,
        now: Timestamp,
        keep: SignedDuration,
    ) -> Advance {
        self.advance_within(MOST_BYTES, held, now, keep)
    }

    fn advance_within(
        &mut self,
        most: usize,
        held: &BTreeMap<ClaimKey, Tenure>,
        now: Timestamp,
        keep: SignedDuration,
    ) -> Advance {
        let Advance { mut changed, mut left_out } = Advance::default();
        for (number, page) in self.pages.iter_mut().enumerate() {
            let is_forgotten = |stretch: &Stretch| {
                stretch.until.is_some_and(|until| until.checked_add(keep).is_ok_and(|end| end <= now))
            };
            for (key, stretches) in page.iter_mut() {
                let count = stretches.len();
                stretches.retain(|stretch| !is_forgotten(stretch));
                let current = held.get(key);
                for stretch in stretches.iter_mut().filter(|stretch| stretch.until.is_none()) {
                    if !current.is_some_and(|tenure| stretch.is_of(tenure)) {
                        stretch.until = Some(now);
                        changed.insert(number);
                    }
                }
                if stretches.len() != count {
                    changed.insert(number);
                }
            }
            page.retain(|_, stretches| !stretches.is_empty());
        }
        // What goes on takes this much of each page to which something is added.
        let mut going_on: BTreeMap<usize, usize> = BTreeMap::new();
        for (key, tenure) in held {
            let number = page_of(*key);
            let Some(page) = self.pages.get_mut(number) else { continue };
            let known = page.get(key).map_or(&[][..], Vec::as_slice);
            if known.iter().any(|stretch| stretch.until.is_none()) {
                continue;
            }
            // What nobody has seen before began when the claim says, and what follows on another when it is seen.
            let from = known.last().and_then(|last| last.until);
            let from = from.map_or(tenure.since, |ended| ended.max(tenure.since)).min(now);
            let stretch = Stretch::begin(tenure, from);
            let going_on = going_on
                .entry(number)
                .or_insert_with(|| size(page.values().flatten().filter(|stretch| stretch.until.is_none())));
            if most < *going_on + stretch.size() {
                left_out += 1;
                continue;
            }
            *going_on += stretch.size();
            page.entry(*key).or_default().push(stretch);
            changed.insert(number);
        }
        for number in &changed {
            if let Some(page) = self.pages.get_mut(*number) {
                shrink(page, most);
            }
        }
        Advance { changed, left_out }
    }
}

fn size<'a>(stretches: impl Iterator<Item = &'a Stretch>) -> usize {
    stretches.map(Stretch::size).sum()
}

/// The stretches of a page that are about a port, the last one first.
pub fn about(page: &Page, key: ClaimKey) -> Vec<(ClaimKey, Stretch)> {
    let overlapping = page.iter().filter(|(known, _)| known.overlaps(key));
    let mut found: Vec<_> = overlapping
        .flat_map(|(known, stretches)| stretches.iter().map(|stretch| (*known, stretch.clone())))
        .collect();
    found.sort_by_key(|(_, stretch)| Reverse(stretch.from));
    found
}

/// Takes out what ended first until the rest is small enough.
fn shrink(page: &mut Page, most: usize) {
    let mut size = size(page.values().flatten());
    if size <= most {
        return;
    }
    let ends = page.iter().flat_map(|(key, stretches)| {
        stretches.iter().filter_map(|stretch| Some((stretch.until?, *key, stretch.from, stretch.size())))
    });
    let mut ends: Vec<_> = ends.collect();
    ends.sort();
    for (_, key, from, bytes) in ends {
        if size <= most {
            break;
        }
        if let Some(stretches) = page.get_mut(&key) {
            stretches.retain(|stretch| stretch.from != from);
        }
        size -= bytes;
    }
    page.retain(|_, stretches| !stretches.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::holder::ObjectName;

    const KEEP: SignedDuration = SignedDuration::from_hours(24);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn key(name: &str) -> ClaimKey {
        name.parse().unwrap()
    }

    fn held(name: &str, holder: &str, pod: &str, since: i64) -> BTreeMap<ClaimKey, Tenure> {
        let holder = Holder::new("Deployment", ObjectName::new("mail", holder));
        let node = if pod.is_empty() { "" } else { "node-1" };
        let tenure = Tenure { holder, pod: pod.to_owned(), node: node.to_owned(), since: at(since) };
        BTreeMap::from([(key(name), tenure)])
    }

    fn told(history: &History, name: &str) -> Vec<(String, String, i64, Option<i64>)> {
        let second = |at: Timestamp| at.as_second() - 1_700_000_000;
        let found = about(&history.page(page_of(key(name))), key(name));
        let told =
            |stretch: Stretch| (stretch.name, stretch.pod, second(stretch.from), stretch.until.map(second));
        found.into_iter().map(|(_, stretch)| told(stretch)).collect()
    }

    #[test]
    fn a_stretch_begins_with_its_claim_and_ends_when_somebody_else_has_the_port_or_nobody() {
        const NAME: &str = "v4-203-0-113-7-tcp-25";
        let mut history = History::default();
        let page = BTreeSet::from([page_of(key(NAME))]);
        assert_eq!(history.advance(&held(NAME, "mx", "mx-1", 3), at(5), KEEP).changed, page);
        assert_eq!(history.advance(&held(NAME, "mx", "mx-1", 3), at(6), KEEP), Advance::default());
        assert_eq!(history.advance(&held(NAME, "mx", "mx-2", 3), at(10), KEEP).changed, page);
        history.advance(&held(NAME, "mx", "", 3), at(20), KEEP);
        history.advance(&BTreeMap::new(), at(30), KEEP);
        history.advance(&held(NAME, "relay", "r", 35), at(40), KEEP);
        let text = |name: &str, pod: &str, from, until| (name.to_owned(), pod.to_owned(), from, until);
        assert_eq!(
            told(&history, NAME),
            [
                text("relay", "r", 35, None),
                text("mx", "", 20, Some(30)),
                text("mx", "mx-2", 10, Some(20)),
                text("mx", "mx-1", 3, Some(10)),
            ]
        );
        assert_eq!(history.advance(&held(NAME, "relay", "r", 35), at(10 + 86_400), KEEP).changed, page);
        assert_eq!(told(&history, NAME).len(), 3, "what ended a day ago is forgotten");
    }

    #[test]
    fn a_pod_whose_node_is_not_known_any_more_is_the_same() {
        const NAME: &str = "v4-203-0-113-7-tcp-25";
        let mut history = History::default();
        history.advance(&held(NAME, "mx", "mx-1", 3), at(5), KEEP);
        let mut later = held(NAME, "mx", "mx-1", 3);
        later.insert(key(NAME), Tenure { node: String::new(), ..later[&key(NAME)].clone() });
        assert_eq!(history.advance(&later, at(6), KEEP), Advance::default());
    }

    #[test]
    fn a_block_that_had_the_port_is_a_part_of_its_history() {
        let mut page = Page::new();
        let all = held("v4-203-0-113-7-udp-7008-7023", "lobby", "l", 0);
        let tenure = all.values().next().unwrap();
        page.insert(key("v4-203-0-113-7-udp-7008-7023"), vec![Stretch::begin(tenure, at(0))]);
        assert_eq!(about(&page, key("v4-203-0-113-7-udp-7010")).len(), 1);
        assert_eq!(about(&page, key("v4-203-0-113-7-tcp-7010")).len(), 0);
        assert_eq!(about(&page, key("v4-203-0-113-7-udp-7024")).len(), 0);
    }

    #[test]
    fn a_page_full_of_what_goes_on_takes_no_more_and_is_not_written_again() {
        // One page, so that each has its turn.
        let names = (1..u16::MAX).map(|port| format!("v4-203-0-113-7-tcp-{port}"));
        let names: Vec<_> = names.filter(|name| page_of(key(name)) == 0).take(3).collect();
        let all: BTreeMap<_, _> = names.iter().flat_map(|name| held(name, "mx", "mx-1", 0)).collect();
        let one = Stretch::begin(&all[&key(&names[0])], at(0)).size();
        let mut history = History::default();
        let mut advance = |held: &BTreeMap<ClaimKey, Tenure>, second| {
            let Advance { changed, left_out } = history.advance_within(2 * one, held, at(second), KEEP);
            (changed.len(), left_out, history.page(0).values().flatten().count())
        };
        assert_eq!(advance(&all, 1), (1, 1, 2));
        assert_eq!(advance(&all, 2), (0, 1, 2), "nothing is written for what has no room");
        let mut fewer = all.clone();
        let (gone, _) = fewer.pop_first().unwrap();
        assert_eq!(advance(&fewer, 3), (1, 0, 2), "what ended makes room");
        assert!(!history.page(0).contains_key(&gone));
    }

    #[test]
    fn a_full_page_loses_what_ended_first_and_never_what_goes_on() {
        let stretch = |from: i64, until: Option<i64>| Stretch {
            until: until.map(at),
            ..Stretch::begin(held("v4-203-0-113-7-tcp-25", "mx", "p", 0).values().next().unwrap(), at(from))
        };
        let mut page = Page::new();
        page.insert(key("v4-203-0-113-7-tcp-25"), vec![stretch(0, Some(9)), stretch(9, None)]);
        page.insert(key("v4-203-0-113-7-tcp-26"), vec![stretch(1, Some(5)), stretch(5, Some(8))]);
        let one = stretch(0, Some(9)).size();
        shrink(&mut page, 3 * one);
        let left = |page: &Page| page.values().flatten().map(|s| s.from).collect::<Vec<_>>();
        assert_eq!(left(&page), [at(0), at(9), at(5)]);
        shrink(&mut page, one);
        assert_eq!(left(&page), [at(9)]);
        shrink(&mut page, 0);
        assert_eq!(left(&page), [at(9)]);
    }

    #[test]
    fn a_stretch_is_written_without_what_is_not_known_and_read_again() {
        let stretch =
            Stretch::begin(held("v4-203-0-113-7-tcp-25", "mx", "", 0).values().next().unwrap(), at(0));
        let text = serde_json::to_string(&stretch).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"Deployment","namespace":"mail","name":"mx","from":"2023-11-14T22:13:20Z"}"#
        );
        assert_eq!(serde_json::from_str::<Stretch>(&text).unwrap(), stretch);
    }
}
