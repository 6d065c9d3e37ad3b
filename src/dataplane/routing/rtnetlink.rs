//! Rules and routes of the kernel: listed, changed, and read out of messages.
//!
//! Only what the ways by links need is understood: rules that look at the packet mark or at one source, and routes by one
//! gateway or none. Whatever else a rule or route has is neither read nor written.

pub(super) mod fuzzing;

use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::dataplane::netlink::message::Attributes;
use crate::dataplane::netlink::message::Builder;
use crate::dataplane::netlink::message::CREATE;
use crate::dataplane::netlink::message::Message;
use crate::dataplane::netlink::message::ip;
use crate::dataplane::netlink::message::number;
use crate::dataplane::netlink::route::Socket;
use crate::model::address::Family;

/// Who made a rule or route, in the kernel's words. The numbers of known daemons are in `/etc/iproute2/rt_protos`.
pub(super) const PROTOCOL: u8 = 117;
/// The protocol of what the kernel adds for an address.
pub(super) const BY_KERNEL: u8 = 2;
/// A route to somewhere else.
pub(super) const UNICAST: u8 = 1;
/// A route to the node itself.
pub(super) const LOCAL: u8 = 2;

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// Fails on what is there.
const EXCLUSIVE: u16 = 0x200;
/// Takes the place of what is there.
const REPLACE: u16 = 0x100;

/// The length of `rtmsg`, and of `fib_rule_hdr`.
const HEADER: usize = 12;
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const ROUTE_METRIC: u16 = 6;
const ROUTE_TABLE: u16 = 15;
const RULE_SOURCE: u16 = 2;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_SUPPRESSED_LENGTH: u16 = 14;
const RULE_TABLE: u16 = 15;
const RULE_MASK: u16 = 16;
const RULE_PROTOCOL: u16 = 21;
/// What a rule does: another table decides.
const TO_TABLE: u8 = 1;
/// The gateway is on the interface whatever its networks are.
const ON_LINK: u32 = 4;

/// A rule of ours: packets with a mark, or of one source, are looked up in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) family: Family,
    pub(super) priority: u32,
    pub(super) mark: u32,
    /// None of the bits where the mark does not matter.
    pub(super) mask: u32,
    /// `None` for everybody.
    pub(super) source: Option<IpAddr>,
    pub(super) table: u32,
    /// Whether the default routes of the table do not count.
    pub(super) skips_default: bool,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) family: Family,
    pub(super) table: u32,
    /// `None` for the default route.
    pub(super) destination: Option<IpNet>,
    pub(super) gateway: Option<IpAddr>,
    /// The number of the interface; 0 when there are several or none.
    pub(super) interface: u32,
    pub(super) metric: u32,
    pub(super) protocol: u8,
    pub(super) kind: u8,
}

/// What a message tells of, if the kernel sent it by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A route, new, changed or gone.
    Route(Route),
    /// Likewise a rule that this program made.
    Rule,
    /// Likewise one that it did not.
    RuleOfOthers,
    /// An interface, an address, or what is not understood.
    Other,
}

impl News {
    pub(super) fn read(message: &Message<'_>) -> Self {
        let family = Family::ALL.into_iter().find(|family| message.payload.first() == Some(&number(*family)));
        let Some(family) = family else { return Self::Other };
        match message.kind {
            NEW_ROUTE | DELETE_ROUTE => Route::read(family, message.payload).map_or(Self::Other, Self::Route),
            NEW_RULE | DELETE_RULE if Rule::read(family, message.payload).is_some() => Self::Rule,
            NEW_RULE | DELETE_RULE => Self::RuleOfOthers,
            _ => Self::Other,
        }
    }
}

impl Socket {
    /// The rules of a family that this program made.
    pub(super) fn rules(&mut self, family: Family) -> io::Result<Vec<Rule>> {
        self.list(GET_RULE, &of_family(family), |payload| Rule::read(family, payload))
    }

    /// All routes of a family.
    pub(super) fn routes(&mut self, family: Family) -> io::Result<Vec<Route>> {
        self.list(GET_ROUTE, &of_family(family), |payload| Route::read(family, payload))
    }

    /// Adds a rule, unless it is there.
    pub(super) fn add_rule(&mut self, rule: &Rule) -> io::Result<()> {
        let added = self.ask(NEW_RULE, CREATE | EXCLUSIVE, &rule.header(), |message| rule.write(message));
        ignoring(added, &[libc::EEXIST])
    }

    /// Removes a rule, unless it is gone.
    pub(super) fn remove_rule(&mut self, rule: &Rule) -> io::Result<()> {
        let removed = self.ask(DELETE_RULE, 0, &rule.header(), |message| rule.write(message));
        ignoring(removed, &[libc::ENOENT])
    }

    /// Adds a route in the place of the one that its table has for the destination.
    pub(super) fn set_route(&mut self, route: &Route) -> io::Result<()> {
        self.ask(NEW_ROUTE, CREATE | REPLACE, &route.header(ON_LINK), |message| route.write(message))
    }

    /// Removes a route, unless it is gone.
    pub(super) fn remove_route(&mut self, route: &Route) -> io::Result<()> {
        let removed = self.ask(DELETE_ROUTE, 0, &route.header(0), |message| route.write(message));
        // A route also goes with its interface.
        ignoring(removed, &[libc::ESRCH, libc::ENODEV])
    }
}

/// Asks for everything of a family.
fn of_family(family: Family) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = number(family);
    header
}

fn ignoring(outcome: io::Result<()>, codes: &[i32]) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error().is_some_and(|code| codes.contains(&code)) => Ok(()),
        outcome => outcome,
    }
}

impl Rule {
    /// `None` for the rules of others.
    fn read(family: Family, payload: &[u8]) -> Option<Self> {
        let attributes = Attributes(payload.get(HEADER..)?);
        if attributes.find(RULE_PROTOCOL) != Some(&[PROTOCOL][..]) {
            return None;
        }
        let int = |kind| attributes.native(kind);
        Some(Self {
            family,
            priority: int(RULE_PRIORITY).unwrap_or_default(),
            mark: int(RULE_MARK).unwrap_or_default(),
            mask: int(RULE_MASK).unwrap_or_default(),
            source: attributes.ip(RULE_SOURCE),
            table: int(RULE_TABLE).unwrap_or_default(),
            skips_default: int(RULE_SUPPRESSED_LENGTH) == Some(0),
        })
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = number(self.family);
        header[2] = self.source.map_or(0, |source| IpNet::from(source).prefix_len());
        header[7] = TO_TABLE;
        header
    }

    fn write(&self, message: &mut Builder<'_>) {
        message.bytes(RULE_PROTOCOL, &[PROTOCOL]);
        match self.source {
            Some(IpAddr::V4(v4)) => drop(message.bytes(RULE_SOURCE, &v4.octets())),
            Some(IpAddr::V6(v6)) => drop(message.bytes(RULE_SOURCE, &v6.octets())),
            None => {}
        }
        for (kind, value) in [
            (RULE_PRIORITY, self.priority),
            (RULE_MARK, self.mark),
            (RULE_MASK, self.mask),
            (RULE_TABLE, self.table),
        ] {
            message.bytes(kind, &value.to_ne_bytes());
        }
        if self.skips_default {
            message.bytes(RULE_SUPPRESSED_LENGTH, &0_u32.to_ne_bytes());
        }
    }
}

impl Route {
    fn read(family: Family, payload: &[u8]) -> Option<Self> {
        let [_, length, _, _, table, protocol, _, kind] = *payload.first_chunk()?;
        let attributes = Attributes(payload.get(HEADER..)?);
        let int = |kind| attributes.native(kind);
        let destination = match attributes.find(ROUTE_DESTINATION) {
            Some(address) => Some(IpNet::new(ip(address)?, length).ok()?),
            None => None,
        };
        Some(Self {
            family,
            table: int(ROUTE_TABLE).unwrap_or(u32::from(table)),
            destination,
            gateway: attributes.ip(ROUTE_GATEWAY),
            interface: int(ROUTE_INTERFACE).unwrap_or_default(),
            metric: int(ROUTE_METRIC).unwrap_or_default(),
            protocol,
            kind,
        })
    }

    fn header(&self, flags: u32) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = number(self.family);
        header[1] = self.destination.map_or(0, |net| net.prefix_len());
        header[5] = self.protocol;
        header[7] = self.kind;
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        header
    }

    fn write(&self, message: &mut Builder<'_>) {
        for (kind, address) in
            [(ROUTE_DESTINATION, self.destination.map(|net| net.addr())), (ROUTE_GATEWAY, self.gateway)]
        {
            match address {
                Some(IpAddr::V4(v4)) => drop(message.bytes(kind, &v4.octets())),
                Some(IpAddr::V6(v6)) => drop(message.bytes(kind, &v6.octets())),
                None => {}
            }
        }
        for (kind, value) in
            [(ROUTE_TABLE, self.table), (ROUTE_INTERFACE, self.interface), (ROUTE_METRIC, self.metric)]
        {
            message.bytes(kind, &value.to_ne_bytes());
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { priority, mark, mask, source, table, skips_default, .. } = self;
        write!(f, "priority {priority} ")?;
        match source {
            Some(source) => write!(f, "from {source} ")?,
            None => write!(f, "fwmark {mark:#x}/{mask:#x} ")?,
        }
        write!(f, "lookup {table}")?;
        if *skips_default { f.write_str(" suppress_prefixlength 0") } else { Ok(()) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination {
            Some(net) => write!(f, "{net}")?,
            None => f.write_str("default")?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " interface {} table {}", self.interface, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r54_what_is_written_is_read() {
        let rule = Rule {
            family: Family::V4,
            priority: 500,
            mark: 0x20,
            mask: 0x70,
            source: None,
            table: 101,
            skips_default: true,
        };
        let route = Route {
            family: Family::V6,
            table: 1171,
            destination: None,
            gateway: Some("2001:db8::1".parse().unwrap()),
            interface: 3,
            metric: 1024,
            protocol: PROTOCOL,
            kind: UNICAST,
        };
        let payload = |header: &[u8], write: &dyn Fn(&mut Builder<'_>)| {
            let mut bytes = Vec::new();
            let mut message = Builder::new(&mut bytes, 0, 0, 0, header);
            write(&mut message);
            message.end();
            Message::take(&mut bytes.as_slice()).unwrap().payload.to_vec()
        };
        let written = payload(&rule.header(), &|message| rule.write(message));
        assert_eq!(Rule::read(Family::V4, &written), Some(rule));
        let of_pod = Rule { mark: 0, mask: 0, source: Some("10.244.1.9".parse().unwrap()), ..rule };
        let written = payload(&of_pod.header(), &|message| of_pod.write(message));
        assert_eq!(Rule::read(Family::V4, &written), Some(of_pod));
        let written = payload(&route.header(0), &|message| route.write(message));
        assert_eq!(Route::read(Family::V6, &written), Some(route));
    }

    #[test]
    fn r54_what_the_kernel_says_by_itself_is_told_apart() {
        let message = |kind, payload| Message { kind, flags: 0, sequence: 0, payload };
        let rule = [&[2; 1][..], &[0; HEADER - 1]].concat();
        let ours =
            [&rule[..], &5_u16.to_ne_bytes(), &RULE_PROTOCOL.to_ne_bytes(), &[PROTOCOL, 0, 0, 0]].concat();
        let route = [&[2, 24, 0, 0, 254, BY_KERNEL, 0, UNICAST][..], &[0; 4]].concat();
        assert_eq!(News::read(&message(NEW_RULE, &rule)), News::RuleOfOthers);
        assert_eq!(News::read(&message(DELETE_RULE, &ours)), News::Rule);
        assert!(matches!(News::read(&message(DELETE_ROUTE, &route)), News::Route(Route { table: 254, .. })));
        assert_eq!(News::read(&message(DELETE_ROUTE, &route[..6])), News::Other, "a cut one");
        assert_eq!(News::read(&message(16, &[0; 16])), News::Other, "an interface");
        assert_eq!(News::read(&message(21, &route)), News::Other, "an address");
    }

    #[test]
    fn r54_rules_of_others_and_cut_messages_are_left_alone() {
        assert_eq!(Rule::read(Family::V4, &[0; HEADER]), None);
        assert_eq!(Rule::read(Family::V4, &[2, 0, 0]), None);
        assert_eq!(Route::read(Family::V4, &[2, 24, 0]), None);
    }
}
