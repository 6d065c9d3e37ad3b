//! The way back for connections that came in by one of several links, and the way out for those that pods begin.
//!
//! What a pod answers has its connection's external address, which belongs to one link; the node's own default route
//! may lead out by another, where it would be dropped or never understood. The firewall marks such packets with the
//! number of their link; the kernel's rules and routes here lead a marked packet to the gateway behind it:
//!
//! ```text
//! 500: from all fwmark 0x10/0x70 lookup main suppress_prefixlength 0     what is near goes there directly
//! 501: from all fwmark 0x10/0x70 lookup 1171                             all else by the link
//! table 1171: default via 192.0.2.1 dev eth1 onlink
//! ```
//! A pod that leaves with an address of a link's interface leaves by that link. By which link a packet leaves is decided
//! before its source is rewritten, so the pod's own address tells it:
//!
//! ```text
//! 502: from 10.244.1.9 lookup main suppress_prefixlength 0
//! 503: from 10.244.1.9 lookup 1171
//! ```
//! One that loses its address goes on so until it is gone, for what it began by the link.
//!
//! All of it carries a protocol number of its own, by which it is found again; rules and routes of others are never
//! changed. Without links nothing is made, and what an earlier list of links left is removed.

pub(crate) mod lookout;
mod rtnetlink;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::dataplane::Applied;
use crate::dataplane::DataplaneError;
use crate::dataplane::Transaction;
use crate::dataplane::condition::Condition;
use crate::dataplane::condition::ConditionKind;
use crate::dataplane::links::Link;
use crate::dataplane::links::Links;
use crate::dataplane::links::LinksInUse;
use crate::dataplane::netlink::route;
use crate::dataplane::netlink::route::Socket;
use crate::dataplane::routing::rtnetlink::BY_KERNEL;
use crate::dataplane::routing::rtnetlink::LOCAL;
use crate::dataplane::routing::rtnetlink::PROTOCOL;
use crate::dataplane::routing::rtnetlink::Route;
use crate::dataplane::routing::rtnetlink::Rule;
use crate::dataplane::routing::rtnetlink::UNICAST;
#[doc(hidden)]
pub use crate::dataplane::routing::rtnetlink::fuzzing::read_messages;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::model::interface::InterfaceName;
use crate::ruleset::Ruleset;

/// Before the rules by which CNIs send what pods begin to a table of their own.
const PRIORITY: u32 = 500;
/// Behind those of replies: a connection that came in by another link goes back by that.
const OUTWARD_PRIORITY: u32 = 502;
const MAIN: u32 = 254;
const LOCAL_TABLE: u32 = 255;
/// Where free tables are looked for.
const TABLES: std::ops::Range<u32> = 1171..2048;
/// What the kernel makes of an IPv6 route without a metric, so that one is told.
const METRIC_V6: u32 = 1024;

/// What there is of a family.
#[derive(Clone, Debug, Default)]
struct Found {
    /// Rules of ours.
    rules: Vec<Rule>,
    /// Routes of everybody.
    routes: Vec<Route>,
}

/// What there should be of a family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    rules: Vec<Rule>,
    routes: Vec<Route>,
    /// Links that cannot be used, and why.
    problems: Vec<Problem>,
}

/// Why a link is not used for a family.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    interface: InterfaceName,
    what: String,
    fix: String,
}

/// One change. They are made in this order, so that wherever a change breaks off, a rule of ours leads to each route of ours:
/// by rules, of which a node has few, it is noticed that something is left. A table without a route decides nothing: what is
/// led there goes on as without the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    AddRule(Rule),
    SetRoute(Route),
    RemoveRoute(Route),
    RemoveRule(Rule),
}

/// How many rules and routes were changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Rules.
    pub rules: usize,
    /// Routes.
    pub routes: usize,
}

/// Brings the rules and routes of one family to what its links need.
pub(crate) async fn apply(
    settings: &Settings,
    family: Family,
    desired: &Ruleset,
    applied: &mut Applied,
) -> Result<(), DataplaneError> {
    let (links, bound) = (settings.links.now(), settings.links.bound());
    let leaving = leaving(&links, desired, family);
    let made = blocking(move || {
        let mut socket = Socket::open()?;
        let steps = steps(&mut socket, &links, (&leaving, &bound), family)?;
        make(&mut socket, &steps)?;
        Ok(steps)
    });
    let steps = made.await.map_err(DataplaneError::Routing)?;
    if !steps.is_empty() {
        let told: Vec<_> = steps.iter().map(ToString::to_string).collect();
        let input = told.join("\n") + "\n";
        applied.transactions.push(Transaction { family, input, chains: 0, elements: 0 });
    }
    Ok(())
}

/// Whether anything of it differs from what the links need, as after a link went down and up again.
pub(crate) async fn differs(links: &LinksInUse, served: &Ruleset) -> io::Result<bool> {
    let (links, bound) = (links.now(), links.bound());
    if links.is_empty() {
        return Ok(false);
    }
    let leaving = Family::ALL.map(|family| (family, leaving(&links, served, family)));
    blocking(move || {
        let mut socket = Socket::open()?;
        let mut families =
            leaving.iter().map(|(family, leaving)| steps(&mut socket, &links, (leaving, &bound), *family));
        families.try_fold(false, |differs, steps| Ok(differs || !steps?.is_empty()))
    })
    .await
}

/// Removes everything of ours.
pub(crate) async fn remove() -> io::Result<Changed> {
    blocking(|| {
        let mut socket = Socket::open()?;
        let mut removed = Changed::default();
        for family in Family::ALL {
            let rules = match socket.rules(family) {
                Err(error) if is_without(&error) => continue,
                rules => rules?,
            };
            let found = Found { rules, routes: socket.routes(family)? };
            let changed = make(&mut socket, &plan(&found, &Wanted::default()))?;
            removed.rules += changed.rules;
            removed.routes += changed.routes;
        }
        Ok(removed)
    })
    .await
}

/// What keeps replies from leaving by their link.
pub(crate) async fn conditions(links: &Links, families: &BTreeSet<Family>) -> Vec<Condition> {
    if links.is_empty() {
        return Vec::new();
    }
    let (links, families) = (links.clone(), families.clone());
    let looked = blocking(move || {
        let mut socket = Socket::open()?;
        let mut conditions = Vec::new();
        for family in families {
            let routes = socket.routes(family)?;
            let numbered = numbered(&links, family)?;
            let wanted = wanted(&links, &numbered, &[], family, &routes);
            conditions.extend(wanted.problems.into_iter().map(Problem::into_condition));
            if family == Family::V4 {
                let filtered = numbered.iter().filter_map(|(_, link, number)| Some((link, (*number)?)));
                conditions.extend(filtered.filter_map(|(link, number)| filter(link, number, &routes)));
            }
        }
        Ok(conditions)
    });
    // What cannot be read is told by the next turn, which reads it to change it.
    looked.await.unwrap_or_default()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// A pod's address and the address that it leaves with.
type Leaving = (IpAddr, IpAddr);

/// The pods that leave with a fixed address, where it matters.
fn leaving(links: &Links, ruleset: &Ruleset, family: Family) -> Vec<Leaving> {
    let leaving = ruleset.egress().filter(|egress| !links.is_empty() && Family::of(egress.pod) == family);
    leaving.map(|egress| (egress.pod, egress.external)).collect()
}

fn steps(
    socket: &mut Socket,
    links: &Links,
    (leaving, bound): (&[Leaving], &BTreeSet<IpAddr>),
    family: Family,
) -> io::Result<Vec<Step>> {
    let rules = match socket.rules(family) {
        Ok(rules) => rules,
        Err(error) if is_without(&error) && (links.is_empty() || family == Family::V6) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    if links.is_empty() && rules.is_empty() {
        return Ok(Vec::new());
    }
    let found = Found { rules, routes: socket.routes(family)? };
    let mut wanted = wanted(links, &numbered(links, family)?, leaving, family, &found.routes);
    wanted.keep(&found, leaving, bound);
    Ok(plan(&found, &wanted))
}

impl Wanted {
    /// Leaves the rules as they are of pods that no longer leave with a fixed address and are still there.
    fn keep(&mut self, found: &Found, leaving: &[Leaving], bound: &BTreeSet<IpAddr>) {
        let is_kept = |rule: &&Rule| {
            let has_way = rule.table == MAIN || self.routes.iter().any(|route| route.table == rule.table);
            let stays = |pod: &IpAddr| bound.contains(pod) && !leaving.iter().any(|(other, _)| other == pod);
            has_way && rule.source.as_ref().is_some_and(stays)
        };
        let kept: Vec<Rule> = found.rules.iter().filter(is_kept).copied().collect();
        self.rules.extend(kept);
    }
}

/// Whether the kernel has no policy routing of the family, so that nothing of ours can be there.
fn is_without(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
}

/// The links that may serve a family, each with its mark and the number of its interface, if there is one.
fn numbered(links: &Links, family: Family) -> io::Result<Vec<(u32, &Link, Option<u32>)>> {
    let marked = links.marked(family);
    marked.map(|(mark, link)| Ok((mark, link, route::interface(link.interface.as_str())?))).collect()
}

fn wanted(
    links: &Links,
    numbered: &[(u32, &Link, Option<u32>)],
    leaving: &[Leaving],
    family: Family,
    routes: &[Route],
) -> Wanted {
    let mut wanted = Wanted::default();
    // Tables that others use are not free, and neither are those that other links name.
    let foreign = routes.iter().filter(|route| route.protocol != PROTOCOL).map(|route| route.table);
    let mut taken: BTreeSet<u32> = foreign.chain(links.tables()).collect();
    for (mark, link, interface) in numbered {
        let problem = |what, fix| Problem { interface: link.interface, what, fix };
        let Some(interface) = *interface else {
            let fix =
                "let --link, or `links` of the NatPool, name an interface that `ip link` shows".to_owned();
            wanted.problems.push(problem("does not exist".to_owned(), fix));
            continue;
        };
        let gateway = match gateway(link, interface, family, routes) {
            Ok(Some(gateway)) => gateway,
            Ok(None) => continue,
            Err((what, fix)) => {
                wanted.problems.push(problem(what, fix));
                continue;
            }
        };
        let Some(table) = link.table.or_else(|| TABLES.into_iter().find(|table| !taken.contains(table)))
        else {
            continue;
        };
        taken.insert(table);
        let default = |route: &&Route| route.table == table && route.destination.is_none();
        if let Some(other) = routes.iter().filter(default).find(|route| route.protocol != PROTOCOL) {
            let what =
                format!("cannot use the routing table {}, which has a default route of others", other.table);
            let fix = "name another table for the link, or none to have a free one".to_owned();
            wanted.problems.push(problem(what, fix));
            continue;
        }
        let rule = |priority, table, skips_default| Rule {
            family,
            priority,
            mark: *mark,
            mask: links.mask(),
            source: None,
            table,
            skips_default,
        };
        wanted.rules.extend([rule(PRIORITY, MAIN, true), rule(PRIORITY + 1, table, false)]);
        let is_of_link = |address: IpAddr| {
            let net = IpNet::from(address);
            let mut local = routes.iter().filter(|route| route.table == LOCAL_TABLE && route.kind == LOCAL);
            local.any(|route| route.interface == interface && route.destination == Some(net))
        };
        for (pod, _) in leaving.iter().filter(|(_, external)| is_of_link(*external)) {
            let of_pod = |rule| Rule { mark: 0, mask: 0, source: Some(*pod), ..rule };
            wanted.rules.extend([
                of_pod(rule(OUTWARD_PRIORITY, MAIN, true)),
                of_pod(rule(OUTWARD_PRIORITY + 1, table, false)),
            ]);
        }
        wanted.routes.push(Route {
            family,
            table,
            destination: None,
            gateway: Some(gateway),
            interface,
            metric: if family == Family::V6 { METRIC_V6 } else { 0 },
            protocol: PROTOCOL,
            kind: UNICAST,
        });
    }
    wanted
}

/// The router behind a link; none for a family that the link does not have.
fn gateway(
    link: &Link,
    interface: u32,
    family: Family,
    routes: &[Route],
) -> Result<Option<IpAddr>, (String, String)> {
    let mut here = routes.iter().filter(|route| route.interface == interface && route.protocol != PROTOCOL);
    if let Some(gateway) = link.gateway {
        let name = &link.interface;
        // The kernel takes all routes of an interface away when it goes down.
        return match here.next() {
            Some(_) => Ok(Some(gateway)),
            None => Err((
                format!("is down, or has no {family} address"),
                format!("bring it up (`ip link set {name} up`) and give it an address"),
            )),
        };
    }
    let networks = here.filter(|route| route.protocol == BY_KERNEL && route.table == MAIN);
    let network = networks.filter_map(|route| route.destination).find(|net| is_shared(*net));
    let Some(network) = network else {
        // A link of one family is nothing to complain of, unless it is of none.
        return match family {
            Family::V6 => Ok(None),
            Family::V4 => Err((
                "has no network, so its gateway is not known".to_owned(),
                format!("bring it up, or write --link interface={},gateway=ADDRESS", link.interface),
            )),
        };
    };
    let own = |address: &IpAddr| {
        let net = IpNet::from(*address);
        let mut local = routes.iter().filter(|route| route.table == LOCAL_TABLE && route.kind == LOCAL);
        local.any(|route| route.destination == Some(net))
    };
    match network.hosts().next().filter(|address| !own(address)) {
        Some(first) => Ok(Some(first)),
        None => Err((
            format!("has no known gateway: the first address of {network} is the node's own"),
            format!("write --link interface={},gateway=ADDRESS", link.interface),
        )),
    }
}

/// Whether a router can be in a network.
fn is_shared(net: IpNet) -> bool {
    let is_for_link_only = match net {
        IpNet::V4(_) => false,
        IpNet::V6(net) => net.addr().is_unicast_link_local() || net.addr().is_multicast(),
    };
    net.prefix_len() < net.max_prefix_len() && !is_for_link_only
}

fn plan(found: &Found, wanted: &Wanted) -> Vec<Step> {
    let ours: Vec<_> = found.routes.iter().filter(|route| route.protocol == PROTOCOL).collect();
    let mut steps: Vec<_> = Vec::new();
    steps.extend(
        wanted.rules.iter().filter(|rule| !found.rules.contains(rule)).map(|rule| Step::AddRule(*rule)),
    );
    steps.extend(
        wanted.routes.iter().filter(|route| !ours.contains(route)).map(|route| Step::SetRoute(*route)),
    );
    let stale = ours.into_iter().filter(|route| !wanted.routes.contains(route));
    steps.extend(stale.map(|route| Step::RemoveRoute(*route)));
    steps.extend(
        found.rules.iter().filter(|rule| !wanted.rules.contains(rule)).map(|rule| Step::RemoveRule(*rule)),
    );
    steps
}

fn make(socket: &mut Socket, steps: &[Step]) -> io::Result<Changed> {
    let mut changed = Changed::default();
    for step in steps {
        let made = match step {
            Step::SetRoute(route) => socket.set_route(route),
            Step::AddRule(rule) => socket.add_rule(rule),
            Step::RemoveRule(rule) => socket.remove_rule(rule),
            Step::RemoveRoute(route) => socket.remove_route(route),
        };
        made.map_err(|error| io::Error::new(error.kind(), format!("{step}: {error}")))?;
        match step {
            Step::SetRoute(_) | Step::RemoveRoute(_) => changed.routes += 1,
            Step::AddRule(_) | Step::RemoveRule(_) => changed.rules += 1,
        }
    }
    Ok(changed)
}

impl fmt::Display for Step {
    /// As `ip` would be told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetRoute(route) => write!(f, "route replace {route}"),
            Self::RemoveRoute(route) => write!(f, "route del {route}"),
            Self::AddRule(rule) => write!(f, "rule add {rule}"),
            Self::RemoveRule(rule) => write!(f, "rule del {rule}"),
        }
    }
}

impl Problem {
    fn into_condition(self) -> Condition {
        let Self { interface, what, fix } = self;
        let message = format!("the link {interface} {what}, so replies leave by the node's default route");
        Condition { kind: ConditionKind::LinkUnusable, message, fix }
    }
}

/// A link on which the kernel drops what comes from where another link leads. It is read, never set.
fn filter(link: &Link, interface: u32, routes: &[Route]) -> Option<Condition> {
    let defaults = routes.iter().filter(|route| route.table == MAIN && route.destination.is_none());
    if defaults.min_by_key(|route| route.metric).is_some_and(|route| route.interface == interface) {
        return None;
    }
    let name = link.interface.as_str();
    let value = |name: &str| -> Option<u8> {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    // The stricter of the two would be lower, yet the higher one counts.
    (value("all").max(value(name)) == Some(1)).then(|| Condition {
        kind: ConditionKind::ReversePathFilter,
        message: format!("rp_filter is 1 on {name}, so the kernel drops connections that come in by it from where the node's default route does not lead"),
        fix: format!("run `sysctl -w net.ipv4.conf.{name}.rp_filter=2`"),
    })
}

#[cfg(test)]
mod tests;
