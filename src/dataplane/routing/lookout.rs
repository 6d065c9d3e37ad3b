//! Notices that the rules and routes of links may not be what they should, without listing any: a node can have a million
//! routes. The kernel tells of every change; only one that could matter is a reason to look.

use crate::dataplane::links::Links;
use crate::dataplane::netlink::message::Message;
use crate::dataplane::netlink::route::Listener;
use crate::dataplane::routing::LOCAL_TABLE;
use crate::dataplane::routing::MAIN;
use crate::dataplane::routing::TABLES;
use crate::dataplane::routing::rtnetlink::BY_KERNEL;
use crate::dataplane::routing::rtnetlink::News;
use crate::dataplane::routing::rtnetlink::PROTOCOL;
use crate::dataplane::routing::rtnetlink::Route;

/// Hears of changes, and knows whether somebody has looked since.
#[derive(Debug, Default)]
pub(crate) struct Lookout {
    listener: Option<Listener>,
    is_right: bool,
}

impl Lookout {
    /// Whether something that could matter for these links has changed since everything was found right.
    pub(crate) fn is_in_doubt(&mut self, links: &Links) -> bool {
        if self.listener.is_none() {
            // Without it, there is doubt each time.
            self.listener = Listener::open().ok();
            self.is_right = false;
        }
        let heard = self.listener.as_mut().map(|listener| listener.has_news(|news| matters(news, links)));
        self.is_right &= heard == Some(false);
        !self.is_right
    }

    /// Everything was found right, by a look that began after the doubt.
    pub(crate) const fn settle(&mut self) {
        self.is_right = true;
    }
}

fn matters(message: &Message<'_>, links: &Links) -> bool {
    match News::read(message) {
        News::Route(route) => concerns(&route, links),
        News::RuleOfOthers => false,
        // With an interface or address, routes come and go of which nothing else is said.
        News::Rule | News::Other => true,
    }
}

/// Whether what links need depends on the route.
fn concerns(route: &Route, links: &Links) -> bool {
    let Route { table, protocol, destination, .. } = *route;
    protocol == PROTOCOL
        || destination.is_none()
        || table == LOCAL_TABLE
        || table == MAIN && protocol == BY_KERNEL
        || TABLES.contains(&table)
        || links.tables().any(|named| named == table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::links::LinkMask;
    use crate::dataplane::routing::rtnetlink::UNICAST;
    use crate::model::address::Family;

    #[test]
    fn only_routes_by_which_the_ways_of_links_are_decided_are_a_reason_to_look() {
        let links = vec!["interface=eth1,table=101".parse().unwrap()];
        let links = Links::new(LinkMask::default(), links).unwrap();
        let (bgp, net) = (186, Some("198.51.100.0/24"));
        for (table, destination, protocol, expected) in [
            (MAIN, net, bgp, false),
            (MAIN, None, bgp, true),
            (MAIN, net, BY_KERNEL, true),
            (MAIN, net, PROTOCOL, true),
            (LOCAL_TABLE, net, BY_KERNEL, true),
            (77, net, bgp, false),
            (101, net, bgp, true),
            (1171, net, bgp, true),
        ] {
            let destination = destination.map(|net| net.parse().unwrap());
            let (family, kind) = (Family::V4, UNICAST);
            let route =
                Route { family, table, destination, gateway: None, interface: 2, metric: 0, protocol, kind };
            assert_eq!(concerns(&route, &links), expected, "{route} by {protocol}");
        }
    }
}
