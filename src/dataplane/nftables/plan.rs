//! From the elements that are there to those that should be: the shortest transaction that leads there.
//!
//! # Guarantees
//! - Equal tables give no transaction at all.
//! - An element that is as wanted is not mentioned, so its counter and the packets that look for it are not disturbed.
//! - A table whose chains or rules are not ours any more is made anew, with the counters of elements that stay.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::dataplane::counters::Counters;
use crate::dataplane::nftables::element::Addition;
use crate::dataplane::nftables::element::Collection;
use crate::dataplane::nftables::element::ElementKey;
use crate::dataplane::nftables::element::Elements;
use crate::dataplane::nftables::element::Held;
use crate::dataplane::nftables::element::Value;
use crate::dataplane::nftables::element::Wanted;
use crate::dataplane::nftables::lists;
use crate::dataplane::nftables::skeleton::Skeleton;

/// Our table as it was found, or made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its chains and rules.
    pub state: State,
    /// What its sets and maps hold, as far as it can be read; `None` when that is the layout of what the node serves and
    /// nothing else.
    pub elements: Option<Elements>,
}

impl Table {
    /// A table as we made it.
    pub fn made(wanted: Wanted) -> Self {
        let hold = |value| Held { value, counters: Counters::default() };
        let hold_all = |(collection, elements): (_, BTreeMap<_, _>)| {
            (collection, elements.into_iter().map(|(key, value)| (key, hold(value))).collect())
        };
        Self { state: State::Intact, elements: Some(wanted.into_iter().map(hold_all).collect()) }
    }

    /// Whether it works, and holds the layout of what the node serves and nothing else.
    pub(crate) fn is_as_served(&self) -> bool {
        self.state == State::Intact && self.elements.is_none()
    }

    /// Whether it works, and holds these elements and no others.
    pub(crate) fn holds(&self, wanted: &Wanted) -> bool {
        self.state == State::Intact && plan(self, wanted).is_none()
    }

    /// Whether both do the same, however often.
    pub(crate) fn serves_like(&self, other: &Self) -> bool {
        let values = |table: &Self| {
            let collections = table.elements.iter().flatten();
            let held = collections.flat_map(|(collection, held)| held.iter().map(|held| (*collection, held)));
            held.map(|(collection, (key, held))| (collection, *key, held.value.clone())).collect::<Vec<_>>()
        };
        self.state == other.state && values(self) == values(other)
    }
}

/// Whether a table works as we made it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// There is no table.
    #[default]
    Missing,
    /// Chains or rules are others than ours, and what is different first.
    Damaged(String),
    /// Everything is as we made it.
    Intact,
}

/// One change of one element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The set or map.
    pub collection: Collection,
    /// The element.
    pub key: ElementKey,
    /// What it should be, with the counter to go on from; `None` removes it.
    pub add: Option<(Value, Counters)>,
}

/// A change of one family's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whether the whole table is made anew.
    pub rebuilds: bool,
    /// The changes of elements: new lists first, then removals, and last the lists to which nothing leads any more.
    pub steps: Vec<Step>,
}

/// How to get from `observed` to `wanted`; `None` when nothing is to be done.
pub fn plan(observed: &Table, wanted: &Wanted) -> Option<Plan> {
    let rebuilds = observed.state != State::Intact;
    let (nothing_held, nothing_wanted) = (BTreeMap::new(), BTreeMap::new());
    let (mut removals, mut additions) = (Vec::new(), Vec::new());
    for collection in Collection::ALL {
        let elements = observed.elements.as_ref();
        let held = elements.and_then(|elements| elements.get(&collection)).unwrap_or(&nothing_held);
        let wanted = wanted.get(&collection).unwrap_or(&nothing_wanted);
        let stays = |key: &ElementKey, held: &Held| wanted.get(key) == Some(&held.value);
        if !rebuilds {
            let gone = held.iter().filter(|(key, held)| !stays(key, held));
            removals.extend(gone.map(|(key, _)| Step { collection, key: *key, add: None }));
        }
        for (key, value) in wanted {
            let kept = held.get(key).filter(|held| held.value == *value);
            if rebuilds || kept.is_none() {
                let counters = kept.map(|held| held.counters).unwrap_or_default();
                additions.push(Step { collection, key: *key, add: Some((value.clone(), counters)) });
            }
        }
    }
    let (made, unused) = lists(observed, wanted);
    let steps = [made, removals, additions, unused].concat();
    (rebuilds || !steps.is_empty()).then_some(Plan { rebuilds, steps })
}

/// The lists that are to be made, and those that are to go. One that was altered is made again, and does not go.
fn lists(observed: &Table, wanted: &Wanted) -> (Vec<Step>, Vec<Step>) {
    let collection = Collection::Lists;
    let rebuilds = observed.state != State::Intact;
    let held = observed.elements.as_ref().and_then(|elements| elements.get(&collection));
    let wanted = wanted.get(&collection);
    let is_held = |key: &ElementKey, value: &Value| {
        held.and_then(|held| held.get(key)).is_some_and(|held| held.value == *value)
    };
    let made = wanted.into_iter().flatten().filter(|(key, value)| rebuilds || !is_held(key, value));
    let is_wanted = |key: &ElementKey| wanted.is_some_and(|wanted| wanted.contains_key(key));
    let unused = held.into_iter().flatten().filter(|(key, _)| !rebuilds && !is_wanted(key));
    (
        made.map(|(key, value)| Step {
            collection,
            key: *key,
            add: Some((value.clone(), Counters::default())),
        })
        .collect(),
        unused.map(|(key, _)| Step { collection, key: *key, add: None }).collect(),
    )
}

impl Plan {
    /// The change in transactions that each must be made before the next: nothing leads to a list before all of it is there, and
    /// it goes when nothing leads there any more. A packet that the change meets under way sees a chain as it was before, and a
    /// set as it is now, so what is made and referred to by one transaction is empty for it.
    pub fn staged(self) -> Vec<Self> {
        if self.rebuilds {
            return vec![self];
        }
        let (lists, rest): (Vec<_>, Vec<_>) =
            self.steps.into_iter().partition(|step| step.collection == Collection::Lists);
        let (made, unused) = lists.into_iter().partition(|step| step.add.is_some());
        let stages = [made, rest, unused].into_iter().filter(|steps: &Vec<Step>| !steps.is_empty());
        stages.map(|steps| Self { rebuilds: false, steps }).collect()
    }

    /// The transaction as `nft -f` takes it.
    pub fn text(&self, skeleton: &Skeleton) -> String {
        let mut text = if self.rebuilds { skeleton.text() } else { String::new() };
        let table = skeleton.table_name();
        let same = |a: &Step, b: &Step| a.collection == b.collection && a.add.is_some() == b.add.is_some();
        for steps in self.steps.chunk_by(same) {
            let Some(Step { collection, add, .. }) = steps.first() else { continue };
            if *collection == Collection::Lists {
                for step in steps {
                    write_list(&mut text, skeleton, &table, step);
                }
                continue;
            }
            let verb = if add.is_some() { "add" } else { "delete" };
            // Writing to a String cannot fail.
            let _ = write!(text, "{verb} element {table} {} {{", collection.name());
            for (index, Step { key, add, .. }) in steps.iter().enumerate() {
                text.push_str(if index == 0 { " " } else { ",\n\t" });
                let _ = match add {
                    None => write!(text, "{key}"),
                    Some((value, counters)) => {
                        write!(text, "{}", Addition { key, value, counters: *counters })
                    }
                };
            }
            text.push_str(" }\n");
        }
        text
    }

    #[cfg(test)]
    /// Does to a table in memory what the transaction does to the kernel's.
    pub fn make(self, table: &mut Table) {
        if self.rebuilds {
            *table = Table { state: State::Intact, elements: None };
        }
        let elements = table.elements.get_or_insert_default();
        for Step { collection, key, add } in self.steps {
            let held = elements.entry(collection).or_default();
            match add {
                Some((value, counters)) => drop(held.insert(key, Held { value, counters })),
                None => drop(held.remove(&key)),
            }
        }
        elements.retain(|_, held| !held.is_empty());
    }
}

fn write_list(text: &mut String, skeleton: &Skeleton, table: &str, step: &Step) {
    let ElementKey::List(id) = step.key else { return };
    match &step.add {
        Some((value, _)) => lists::write(text, skeleton.family, table, id, &value.data),
        None => lists::remove(text, table, id),
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::dataplane::nftables::layout::layout;
    use crate::dataplane::settings::Settings;
    use crate::model::address::Family;
    use crate::model::masquerade::Policy;
    use crate::ruleset::endpoint::Endpoint;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;
    use crate::ruleset::node::NodeFacts;
    use crate::ruleset::sources::Sources;

    fn bring(table: &mut Table, endpoints: &[Endpoint]) -> String {
        let wanted = layout(&ruleset(endpoints, &v4_node()), Family::V4);
        let Some(plan) = plan(table, &wanted) else { return String::new() };
        let text = plan.text(&Skeleton::new(Family::V4, &Settings::default()));
        plan.make(table);
        text
    }

    fn change(before: &[Endpoint], after: &[Endpoint]) -> String {
        let mut table = Table::default();
        bring(&mut table, before);
        bring(&mut table, after)
    }

    #[test]
    fn r41_one_more_port_is_one_more_element() {
        let web = endpoint("80/tcp", "web", &["10.244.1.9"]);
        let more = endpoint("82/tcp", "web", &["10.244.1.9"]).at(8082);
        assert_eq!(
            change(std::slice::from_ref(&web), &[web.clone(), more]),
            "add element ip PINHOLE m_ports { 203.0.113.7 . tcp . 82 comment \"default/web:3c8afc1a\" : 10.244.1.9 . 8082 }\n"
        );
        assert_eq!(change(std::slice::from_ref(&web), std::slice::from_ref(&web)), "");
    }

    #[test]
    fn another_pod_replaces_the_element_in_one_transaction() {
        let (old, new) =
            (endpoint("80/tcp", "a", &["10.244.1.9"]), endpoint("80/tcp", "b", &["10.244.1.10"]));
        assert_eq!(
            change(&[old], &[new]),
            "delete element ip PINHOLE m_ports { 203.0.113.7 . tcp . 80 }\n\
             delete element ip PINHOLE m_egress { 10.244.1.9 }\n\
             add element ip PINHOLE m_ports { 203.0.113.7 . tcp . 80 comment \"default/b:d9933f8e\" : 10.244.1.10 . 80 }\n\
             add element ip PINHOLE m_egress { 10.244.1.10 comment \"default/b:d9933f8e\" : 203.0.113.7 }\n"
        );
    }

    #[test]
    fn every_kind_of_entry_has_its_collection() {
        let endpoints = [
            endpoint("81/tcp", "web", &["10.244.1.9"]).from(&["198.51.100.0/24", "192.0.2.1/32"]),
            endpoint("90/tcp", "later", &[]),
            endpoint("100-101/tcp", "later", &[]),
            endpoint("7000-7002/udp", "rtp", &["10.244.1.70"]).at(8000),
            endpoint("9000-9009/udp", "rtp", &["10.244.1.70"]).from(&["198.51.100.0/24"]),
        ];
        let text = change(&[], &endpoints);
        let (_, elements) = text.split_once("add element ip PINHOLE m_ports").unwrap();
        let named = |nets: &[&str], name: &str, text: String| {
            let list: Sources = nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect();
            text.replace(&list.id().to_string(), name)
        };
        let elements = named(&["192.0.2.1/32", "198.51.100.0/24"], "TWO", elements.to_owned());
        assert_eq!(
            "add element ip PINHOLE m_ports".to_owned() + &named(&["198.51.100.0/24"], "ONE", elements),
            "\
add element ip PINHOLE m_ports { 203.0.113.7 . tcp . 81 comment \"default/web:3c8afc1a\" : 10.244.1.9 . 81,
\t203.0.113.7 . udp . 7000 comment \"default/rtp:55e7811a\" : 10.244.1.70 . 8000,
\t203.0.113.7 . udp . 7001 comment \"+\" : 10.244.1.70 . 8001,
\t203.0.113.7 . udp . 7002 comment \"+\" : 10.244.1.70 . 8002 }
add element ip PINHOLE m_ranges { 203.0.113.7 . udp . 9000-9009 comment \"default/rtp:55e7811a\" : 10.244.1.70 }
add element ip PINHOLE s_closed { 203.0.113.7 . tcp . 90 comment \"default/later:b9004143\" }
add element ip PINHOLE s_closed_ranges { 203.0.113.7 . tcp . 100-101 comment \"default/later:b9004143\" }
add element ip PINHOLE s_restricted { 203.0.113.7 . tcp . 81 }
add element ip PINHOLE s_restricted_ranges { 203.0.113.7 . udp . 9000-9009 }
add element ip PINHOLE m_listed { 203.0.113.7 . tcp . 81 : goto c_list_TWO }
add element ip PINHOLE m_listed_ranges { 203.0.113.7 . udp . 9000-9009 : goto c_list_ONE }
add element ip PINHOLE s_restricted_pods { 10.244.1.9 }
add element ip PINHOLE s_addresses { 203.0.113.7 }
add element ip PINHOLE m_egress { 10.244.1.9 comment \"default/web:3c8afc1a\" : 203.0.113.7,
\t10.244.1.70 comment \"default/rtp:55e7811a\" : 203.0.113.7 }
"
        );
    }

    #[test]
    fn a_long_list_is_made_once_and_goes_with_the_last_entry_that_refers_to_it() {
        let nets = |last: u8| (0..=last).map(|n| format!("192.0.2.{}/32", 2 * n)).collect::<Vec<_>>();
        let from = |port: u16, last| {
            let nets = nets(last);
            let web = endpoint(&format!("{port}/tcp"), "web", &["10.244.1.9"]);
            web.from(&nets.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let mut table = Table::default();
        bring(&mut table, &[]);
        let text = bring(&mut table, &[from(80, 16), from(81, 16)]);
        let (list, rest) = text.split_once("add element ip PINHOLE m_ports").unwrap();
        let (before, listed) = list.split_once("{ 192.0.2.0").unwrap();
        let (_, after) = listed.split_once(" }\n").unwrap();
        let id = before.rsplit_once("s_list_").unwrap().1.trim().to_owned();
        let named = |text: &str| text.replace(&id, "ID");
        assert_eq!(listed.split(',').count(), 17);
        assert_eq!(
            named(before),
            "add set ip PINHOLE s_list_ID { type ipv4_addr; flags interval; }\n\
             flush set ip PINHOLE s_list_ID\n\
             add element ip PINHOLE s_list_ID "
        );
        assert_eq!(
            named(after),
            "add chain ip PINHOLE c_list_ID\n\
             flush chain ip PINHOLE c_list_ID\n\
             add rule ip PINHOLE c_list_ID ip saddr @s_list_ID return comment \"pinhole:list:0\"\n\
             add rule ip PINHOLE c_list_ID drop comment \"pinhole:list:1\"\n"
        );
        assert!(named(rest).contains(
            "add element ip PINHOLE m_listed { 203.0.113.7 . tcp . 80 : goto c_list_ID,\n\
             \t203.0.113.7 . tcp . 81 : goto c_list_ID }\n"
        ));

        let text = bring(&mut table, &[from(80, 17), from(81, 16)]);
        assert_eq!((text.matches("add set").count(), text.matches("delete set").count()), (1, 0), "{text}");
        let text = bring(&mut table, &[from(80, 17)]);
        assert!(
            named(&text).ends_with(
                "add chain ip PINHOLE c_list_ID\ndelete chain ip PINHOLE c_list_ID\ndelete set ip PINHOLE s_list_ID\n"
            ),
            "{text}"
        );
        assert_eq!(text.matches("delete set").count(), 1);
    }

    #[test]
    fn a_masquerade_policy_is_a_few_elements() {
        let policy = Policy {
            except: vec!["172.16.0.0/12".parse().unwrap()],
            excluded_interfaces: ["wg0".parse().unwrap()].into(),
            override_existing: true,
            ..Policy::default()
        };
        let mut table = Table::default();
        bring(&mut table, &[]);
        let masquerading = ruleset(&[], &NodeFacts { masquerade: Some(policy), ..v4_node() });
        let plan = plan(&table, &layout(&masquerading, Family::V4)).unwrap();
        assert_eq!(
            plan.text(&Skeleton::new(Family::V4, &Settings::default())),
            "\
add element ip PINHOLE s_cluster { 169.254.0.0/16,
\t172.16.0.0/12 }
add element ip PINHOLE s_masqueraded { 10.244.1.0/24 }
add element ip PINHOLE s_kept { 10.244.0.0/16,
\t172.16.0.0/12 }
add element ip PINHOLE s_excluded_interfaces { \"wg0\" }
"
        );
    }

    #[test]
    fn r26_r51_a_damaged_table_is_made_anew_with_its_counters() {
        let web = [endpoint("80/tcp", "web", &["10.244.1.9"])];
        let mut table = Table::default();
        bring(&mut table, &web);
        for held in table.elements.as_mut().unwrap().get_mut(&Collection::Ports).unwrap().values_mut() {
            held.counters = Counters { packets: 12, bytes: 720 };
        }
        let intact = table.clone();
        table.state = State::Damaged("the chain c_ingress".into());
        let text = bring(&mut table, &web);
        assert!(
            text.starts_with("add table ip PINHOLE\ndelete table ip PINHOLE\ntable ip PINHOLE {\n"),
            "{text}"
        );
        assert!(text.contains("203.0.113.7 . tcp . 80 counter packets 12 bytes 720 comment"), "{text}");
        assert_eq!(table, intact);
    }
}
