//! By which links the node reaches the outside: those of the agent's flags, and those of the NatPools that select it.
//!
//! # Guarantees
//! - Which links are used, and their order, depends on the flags and on what is stored alone: the flags' come first, then those
//!   of the oldest pool, of two of the same second those of the first by name. So a new pool's come last, and the numbers that
//!   open connections carry stay.
//! - A link that cannot stand beside one before it is left out, and told of with what to do. The others are used.
//! - While nobody can say which pools there are, the links stay.
//! - A pod goes on by the link by which it left until it is gone, also when its port is another pod's by now.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tracing::info;

use crate::agent::following::Following;
use crate::api::crd::nat_node::LinkInUse;
use crate::api::crd::nat_pool;
use crate::api::crd::nat_pool::NatPool;
use crate::api::crd::shared::LabelSelector;
use crate::cluster::nat_pools::NatPools;
use crate::cluster::nat_pools::News;
use crate::dataplane::condition::Condition;
use crate::dataplane::condition::ConditionKind;
use crate::dataplane::links;
use crate::dataplane::links::Link;
use crate::dataplane::links::Links;
use crate::dataplane::links::LinksError;
use crate::dataplane::links::LinksInUse;
use crate::dataplane::links::Shared;
use crate::ruleset::Ruleset;
use crate::ruleset::owner::Owner;

/// What a pool says of links.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolLinks {
    created: Option<Timestamp>,
    pool: String,
    nodes: Option<LabelSelector>,
    links: Vec<nat_pool::Link>,
}

/// The pools with links, the oldest first. `None` while nobody has said yet.
pub type Known = Option<Arc<[PoolLinks]>>;

/// Takes in what the watch on pools tells; whether it says anything new of links. Of how full pools are it says much more often.
pub fn hear(known: &mut Known, news: News) -> bool {
    let heard = match news {
        News::Known(pools) => of_pools(&pools),
        // What runs must not wait for a resource that does not exist.
        News::Failed { is_out_of_reach: true, .. } if known.is_none() => Arc::default(),
        News::Failed { .. } => return false,
    };
    let is_new = known.as_ref() != Some(&heard);
    *known = Some(heard);
    is_new
}

fn of_pools(pools: &NatPools) -> Arc<[PoolLinks]> {
    let of_pool = |(name, object): (&String, &Arc<NatPool>)| PoolLinks {
        created: object.metadata.creation_timestamp.as_ref().map(|created| created.0),
        pool: name.clone(),
        nodes: object.spec.nodes.as_ref().map(|nodes| nodes.selector.clone()),
        links: object.spec.links.clone(),
    };
    let mut found: Vec<_> = pools.iter().map(of_pool).filter(|pool| !pool.links.is_empty()).collect();
    found.sort_by(|one, other| (one.created, &one.pool).cmp(&(other.created, &other.pool)));
    found.into()
}

/// The links of this node, and where news of them come from.
#[derive(Debug, Default)]
pub struct Linking {
    flags: Links,
    in_use: LinksInUse,
    followed: Following<Arc<[PoolLinks]>>,
    chosen: Chosen,
    /// The pods that have left by a link, by their addresses.
    bound: BTreeMap<IpAddr, Owner>,
}

/// The links that are used, and those that are not.
#[derive(Clone, Debug, Default, PartialEq)]
struct Chosen {
    links: Links,
    /// Where each of them is from: a pool, or the flags.
    origins: Vec<Option<String>>,
    problems: Vec<Condition>,
}

impl Linking {
    /// By the links that the flags have put in use.
    pub fn by_flags(in_use: LinksInUse) -> Self {
        let flags = in_use.now().as_ref().clone();
        let chosen = choose(&flags, &[], &BTreeMap::new());
        Self { flags, in_use, followed: Following::default(), chosen, bound: BTreeMap::new() }
    }

    /// Also by those of the pools that come from here.
    pub fn with_pools(self, known_rx: watch::Receiver<Known>) -> Self {
        Self { followed: Following::of(known_rx), ..self }
    }

    /// Whether it is known which there are.
    pub fn is_known(&self) -> bool {
        self.followed.is_known()
    }

    /// Waits for news.
    pub async fn changed(&mut self) {
        self.followed.changed().await;
    }

    /// Puts the links of a node with these labels in use; whether anything is other than before, so that the kernel must be
    /// looked at.
    pub fn settle(&mut self, labels: &BTreeMap<String, String>) -> bool {
        let Some(known) = self.followed.known() else { return false };
        let chosen = choose(&self.flags, &known, labels);
        if chosen == self.chosen {
            return false;
        }
        if chosen.links != self.chosen.links {
            let names: Vec<_> = chosen.links.all().iter().map(|link| link.interface.to_string()).collect();
            let problems = chosen.problems.len();
            info!(links = names.join(", "), problems, "The links to the outside are others than before");
            self.in_use.replace(chosen.links.clone());
        }
        self.chosen = chosen;
        true
    }

    /// Notes who leaves by a link under these rules, given which pod has each address, and lets those go on so who did before.
    pub fn bind(&mut self, rules: &Ruleset, holders: impl FnOnce() -> BTreeMap<IpAddr, Owner>) {
        if self.chosen.links.is_empty() {
            self.bound.clear();
        } else {
            let holders = holders();
            self.bound.retain(|pod, owner| holders.get(pod) == Some(owner));
            let leaving =
                rules.egress().filter_map(|egress| Some((egress.pod, holders.get(&egress.pod)?.clone())));
            self.bound.extend(leaving);
        }
        self.in_use.bind(self.bound.keys().copied().collect());
    }

    /// The links in use, for whoever asks.
    pub fn shown(&self) -> Vec<LinkInUse> {
        let Chosen { links, origins, .. } = &self.chosen;
        let shown = |((mark, link), origin): ((u32, &Link), &Option<String>)| LinkInUse {
            interface: link.interface.to_string(),
            gateway: link.gateway.map(|gateway| gateway.to_string()),
            table: link.table,
            mark: format!("{mark:#x}/{:#x}", links.mask()),
            pool: origin.clone(),
        };
        links.numbered().zip(origins).map(shown).collect()
    }

    /// The links that are not used.
    pub fn problems(&self) -> &[Condition] {
        &self.chosen.problems
    }
}

/// The links of a node with these labels.
fn choose(flags: &Links, pools: &[PoolLinks], labels: &BTreeMap<String, String>) -> Chosen {
    let mut links = flags.clone();
    let mut origins = vec![None; links.all().len()];
    let mut problems = Vec::new();
    let selects = |pool: &&PoolLinks| pool.nodes.as_ref().is_none_or(|nodes| nodes.selects(labels));
    for PoolLinks { pool, links: wishes, .. } in pools.iter().filter(selects) {
        for wish in wishes {
            let refused = match read(wish) {
                // Several pools may have addresses on one link.
                Ok(link) if links.all().contains(&link) => None,
                Ok(link) => links.push(link).err().map(|error| explain(&error, &origins)),
                Err(problem) => Some(problem),
            };
            match refused {
                None => origins.resize(links.all().len(), Some(pool.clone())),
                Some((what, fix)) => problems.push(Condition {
                    kind: ConditionKind::LinkUnusable,
                    message: format!("the link {} of NatPool {pool} is not used: {what}", wish.interface),
                    fix,
                }),
            }
        }
    }
    Chosen { links, origins, problems }
}

/// What is wrong, and what to do.
type Problem = (String, String);

fn read(wish: &nat_pool::Link) -> Result<Link, Problem> {
    let nat_pool::Link { interface, gateway, table } = wish;
    let wrong = |what, fix: &str| (what, fix.to_owned());
    let interface = interface
        .parse()
        .map_err(|error| wrong(format!("{interface:?} {error}"), "correct it in spec.links of the pool"))?;
    let gateway = gateway
        .as_ref()
        .map(|text| {
            text.parse().map_err(|_| wrong(format!("its gateway {text:?} is no address"), "write one"))
        })
        .transpose()?;
    if let Some(table) = table.filter(|table| !links::is_free_to_use(*table)) {
        return Err(wrong(
            format!("table {table} is the kernel's own"),
            "name another table, or none to have a free one",
        ));
    }
    Ok(Link { interface, gateway, table: *table })
}

fn explain(error: &LinksError, origins: &[Option<String>]) -> Problem {
    match error {
        LinksError::TooMany { mask, .. } => (
            format!("the mask {mask} tells no more than {} links apart", mask.capacity()),
            "widen it by --link-mark-mask, or take links out of the pools of this node".to_owned(),
        ),
        LinksError::Twice { shared, place } => {
            let other = match origins.get(*place) {
                Some(Some(pool)) => format!("NatPool {pool}"),
                Some(None) | None => "the agent's --link".to_owned(),
            };
            let fix = match shared {
                Shared::Interface(_) => {
                    "let one of them alone name it, or each the gateway of another family"
                }
                Shared::Table(_) => "let one of them name another table, or none to have a free one",
            };
            (format!("{other}, which counts first, has {shared}"), fix.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::model::holder::ObjectName;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;
    use crate::ruleset::node::NodeFacts;

    fn pools<const N: usize>(pools: [(&str, u32, Value); N]) -> NatPools {
        let pool = |(name, second, spec): (&str, u32, Value)| {
            let created = format!("2026-01-01T00:00:{second:02}Z");
            let object = json!({
                "apiVersion": "pinhole.dev/v1alpha1", "kind": "NatPool", "spec": spec,
                "metadata": {"name": name, "creationTimestamp": created},
            });
            (name.to_owned(), Arc::new(serde_json::from_value(object).unwrap()))
        };
        pools.map(pool).into()
    }

    fn flags(links: &[&str]) -> Links {
        let links = links.iter().map(|link| link.parse().unwrap()).collect();
        Links::new("0x30".parse().unwrap(), links).unwrap()
    }

    fn chosen<const N: usize>(flags: &Links, stored: [(&str, u32, Value); N]) -> (Vec<String>, Vec<String>) {
        let labels = BTreeMap::from([("uplinks".to_owned(), "two".to_owned())]);
        let chosen = choose(flags, &of_pools(&pools(stored)), &labels);
        let names = |(link, origin): (&Link, &Option<String>)| {
            format!("{} of {}", link.interface, origin.as_deref().unwrap_or("flags"))
        };
        let links = chosen.links.all().iter().zip(&chosen.origins).map(names).collect();
        (links, chosen.problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn links_of_flags_come_first_then_those_of_the_oldest_pool_that_selects_the_node() {
        let on = |nodes: &str, interface: &str| json!({"addresses": [], "links": [{"interface": interface}], "nodes": {"selector": {"matchLabels": {"uplinks": nodes}}}});
        let (links, problems) = chosen(
            &flags(&["interface=eth9"]),
            [
                ("a-new", 3, on("two", "eth3")),
                ("elsewhere", 1, on("one", "eth1")),
                ("old", 2, json!({"addresses": [], "links": [{"interface": "eth2"}]})),
                ("without", 1, json!({"addresses": []})),
            ],
        );
        assert_eq!(links, ["eth9 of flags", "eth2 of old", "eth3 of a-new"]);
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn a_link_that_several_name_alike_is_one() {
        let same =
            json!({"addresses": [], "links": [{"interface": "eth1", "gateway": "192.0.2.1", "table": 101}]});
        let flags = flags(&["interface=eth1,gateway=192.0.2.1,table=101"]);
        let (links, problems) = chosen(&flags, [("a", 1, same.clone()), ("b", 2, same)]);
        assert_eq!(links, ["eth1 of flags"]);
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn a_link_that_contradicts_one_before_it_is_told_with_what_to_do_and_the_others_are_used() {
        let pool = |links: Value| json!({"addresses": [], "links": links});
        let (links, problems) = chosen(
            &flags(&["interface=eth1,gateway=192.0.2.1,table=101"]),
            [
                (
                    "a",
                    1,
                    pool(
                        json!([{"interface": "eth1", "gateway": "192.0.2.9"}, {"interface": "eth2", "table": 101}]),
                    ),
                ),
                ("b", 2, pool(json!([{"interface": "eth1", "gateway": "2001:db8::1", "table": 7}]))),
                (
                    "c",
                    3,
                    pool(json!([{"interface": "eth4", "table": 7}, {"interface": "eth5", "table": 254}])),
                ),
                ("d", 4, pool(json!([{"interface": "eth*"}, {"interface": "eth6"}, {"interface": "eth7"}]))),
            ],
        );
        assert_eq!(links, ["eth1 of flags", "eth1 of b", "eth6 of d"]);
        let expected = [
            "eth1 of NatPool a is not used: the agent's --link, which counts first, has interface eth1; let one of them alone",
            "eth2 of NatPool a is not used: the agent's --link, which counts first, has table 101; let one of them name another",
            "eth4 of NatPool c is not used: NatPool b, which counts first, has table 7; let one",
            "eth5 of NatPool c is not used: table 254 is the kernel's own; name another table",
            "eth* of NatPool d is not used: \"eth*\" is not the name of a network interface",
            "eth7 of NatPool d is not used: the mask 0x30 tells no more than 3 links apart; widen it by --link-mark-mask",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(&format!("LinkUnusable: the link {expected}")), "{problem}");
        }
    }

    #[test]
    fn a_pod_stays_bound_to_its_link_until_it_is_gone_and_who_gets_its_address_is_not() {
        let web = || endpoint("203.0.113.8:80/tcp", "web", &["10.244.1.9"]);
        let served =
            ruleset(&[web()], &NodeFacts { addresses: ["203.0.113.8".parse().unwrap()].into(), ..v4_node() });
        let nothing = ruleset(&[], &v4_node());
        let ip: IpAddr = "10.244.1.9".parse().unwrap();
        let owner = |name: &str| Owner::new(&ObjectName::new("default", name), &format!("uid-of-{name}"));
        let linking = || Linking::by_flags(LinksInUse::from(flags(&["interface=eth1"])));
        let has = |name: &'static str| move || BTreeMap::from([(ip, owner(name))]);
        let bound = |linking: &Linking| linking.in_use.bound().contains(&ip);

        let mut it = linking();
        it.bind(&nothing, has("web"));
        assert!(!bound(&it), "it has not left by any");
        it.bind(&served, has("web"));
        it.bind(&nothing, has("web"));
        assert!(bound(&it), "its port is another's");
        it.bind(&nothing, has("next"));
        assert!(!bound(&it), "another pod has its address");
        it.bind(&nothing, has("web"));
        assert!(!bound(&it));
        it.bind(&served, has("web"));
        it.bind(&nothing, BTreeMap::new);
        assert!(!bound(&it), "it is gone");

        let mut without_links = Linking::by_flags(LinksInUse::default());
        without_links.bind(&served, || panic!("nobody is looked for"));
        assert!(!bound(&without_links));
    }

    #[test]
    fn links_are_put_in_use_when_pools_change_and_stay_while_nobody_says() {
        let in_use = LinksInUse::from(flags(&["interface=eth9"]));
        let (known_tx, known_rx) = watch::channel(None);
        let mut linking = Linking::by_flags(in_use.clone()).with_pools(known_rx);
        let labels = BTreeMap::new();
        let names = || in_use.now().all().iter().map(|link| link.interface.to_string()).collect::<Vec<_>>();
        assert!(!linking.is_known() && !linking.settle(&labels));
        let say = |news: News| known_tx.send_if_modified(|known| hear(known, news));
        let with = |interface: &str, free: u32| {
            let links = json!({"addresses": [], "links": [{"interface": interface}], "priority": free});
            News::Known(Arc::new(pools([("a", 1, links)])))
        };
        assert!(say(with("eth1", 1)) && linking.is_known());
        assert!(linking.settle(&labels) && !linking.settle(&labels), "once");
        assert_eq!(names(), ["eth9", "eth1"]);
        let shown = linking.shown();
        assert_eq!((shown[1].mark.as_str(), shown[1].pool.as_deref()), ("0x20/0x30", Some("a")));
        assert_eq!(shown[0].pool, None);

        assert!(!say(with("eth1", 2)), "nothing that concerns links");
        let failed = News::Failed { reason: "HTTP 403".to_owned(), is_out_of_reach: true };
        assert!(!say(failed.clone()) && !linking.settle(&labels), "what was known stays");
        assert!(say(with("eth2", 2)) && linking.settle(&labels));
        assert_eq!(names(), ["eth9", "eth2"]);
        assert!(say(News::Known(Arc::default())) && linking.settle(&labels));
        assert_eq!(names(), ["eth9"]);

        let mut known = None;
        assert!(hear(&mut known, failed), "a cluster without pools has none with links");
        assert!(!hear(&mut None, News::Failed { reason: String::new(), is_out_of_reach: false }));
    }
}
