//! What the sets and maps of our nft tables hold, as values, and the one place that knows how nft spells them.
//!
//! A mapping is an element, never a rule, so the number of rules that a packet passes does not depend on how many
//! mappings there are.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::dataplane::counters::Counters;
use crate::dataplane::nftables::lists;
use crate::model::address::Family;
use crate::model::interface::InterfaceName;
use crate::ruleset::entry::Key;
use crate::ruleset::entry::Target;
use crate::ruleset::sources::ListId;
use crate::ruleset::sources::Sources;

/// The sets and maps of a table, in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// Single external ports and the pods behind them.
    Ports,
    /// Port ranges that keep their ports, and the pods behind them.
    Ranges,
    /// Ports that are reserved and lead nowhere.
    Closed,
    /// Port ranges that are reserved and lead nowhere.
    ClosedRanges,
    /// Ports that only some sources may connect to.
    Restricted,
    /// Port ranges that only some sources may connect to.
    RestrictedRanges,
    /// Lists of who may connect, which entries share: not one set, but a set and a chain for each.
    Lists,
    /// Which list restricted ports have.
    Listed,
    /// Which list restricted port ranges have.
    ListedRanges,
    /// Pods that only some sources may connect to by TCP.
    RestrictedPods,
    /// The external addresses in use.
    Addresses,
    /// Which address a pod leaves with.
    Egress,
    /// Pods that ports lead to and that leave with no address of those.
    Mapped,
    /// The addresses of this node's pods.
    Pods,
    /// Other destinations inside the cluster.
    Cluster,
    /// Further destinations that see no fixed address.
    Sheltered,
    /// Pods that leave the cluster with the node's address.
    Masqueraded,
    /// Sources whose traffic keeps its address, where it does, whatever others have rules for.
    Kept,
    /// Interfaces by which pods leave with their own address.
    ExcludedInterfaces,
}

/// A part of an element's key or data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An address of the table's family.
    Address,
    /// A transport protocol.
    Protocol,
    /// A port.
    Port,
    /// The name of an interface.
    Interface,
    /// A chain to go through.
    Chain,
}

const PORT: &[Field] = &[Field::Address, Field::Protocol, Field::Port];

impl Collection {
    /// All sets and maps that every table has.
    pub const ALL: [Self; 18] = [
        Self::Ports,
        Self::Ranges,
        Self::Closed,
        Self::ClosedRanges,
        Self::Restricted,
        Self::RestrictedRanges,
        Self::Listed,
        Self::ListedRanges,
        Self::RestrictedPods,
        Self::Addresses,
        Self::Egress,
        Self::Mapped,
        Self::Pods,
        Self::Cluster,
        Self::Sheltered,
        Self::Masqueraded,
        Self::Kept,
        Self::ExcludedInterfaces,
    ];

    /// The name in the kernel. The prefixes keep it apart from nft's own words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ports => "m_ports",
            Self::Ranges => "m_ranges",
            Self::Closed => "s_closed",
            Self::ClosedRanges => "s_closed_ranges",
            Self::Restricted => "s_restricted",
            Self::RestrictedRanges => "s_restricted_ranges",
            Self::Lists => "s_list",
            Self::Listed => "m_listed",
            Self::ListedRanges => "m_listed_ranges",
            Self::RestrictedPods => "s_restricted_pods",
            Self::Addresses => "s_addresses",
            Self::Egress => "m_egress",
            Self::Mapped => "s_mapped",
            Self::Pods => "s_pods",
            Self::Cluster => "s_cluster",
            Self::Sheltered => "s_sheltered",
            Self::Masqueraded => "s_masqueraded",
            Self::Kept => "s_kept",
            Self::ExcludedInterfaces => "s_excluded_interfaces",
        }
    }

    /// What a key consists of.
    pub const fn key(self) -> &'static [Field] {
        match self {
            Self::Ports
            | Self::Ranges
            | Self::Closed
            | Self::ClosedRanges
            | Self::Restricted
            | Self::RestrictedRanges
            | Self::Listed
            | Self::ListedRanges => PORT,
            Self::RestrictedPods
            | Self::Addresses
            | Self::Egress
            | Self::Mapped
            | Self::Pods
            | Self::Cluster
            | Self::Sheltered
            | Self::Masqueraded
            | Self::Kept
            | Self::Lists => &[Field::Address],
            Self::ExcludedInterfaces => &[Field::Interface],
        }
    }

    /// What an element leads to; nothing for a set.
    pub const fn data(self) -> &'static [Field] {
        match self {
            Self::Ports => &[Field::Address, Field::Port],
            Self::Ranges | Self::Egress => &[Field::Address],
            Self::Listed | Self::ListedRanges => &[Field::Chain],
            _ => &[],
        }
    }

    /// Whether keys are intervals. Those of several fields cost time with every element (a lookup compares all of
    /// them), so single ports are never kept in such a set (R50).
    pub const fn is_interval(self) -> bool {
        self.is_networks()
            || matches!(self, Self::Ranges | Self::ClosedRanges | Self::RestrictedRanges | Self::ListedRanges)
    }

    /// Whether keys are networks. The kernel has two elements for each of them.
    pub const fn is_networks(self) -> bool {
        matches!(
            self,
            Self::Pods | Self::Cluster | Self::Sheltered | Self::Masqueraded | Self::Kept | Self::Lists
        )
    }

    /// Whether the kernel counts what matches an element.
    pub const fn is_counted(self) -> bool {
        matches!(self, Self::Ports | Self::Ranges)
    }

    /// The declaration of the set or map.
    pub(crate) fn declaration(self, family: Family) -> String {
        let named = |fields: &[Field]| {
            let name = |field: &Field| match (field, family) {
                (Field::Address, Family::V4) => "ipv4_addr",
                (Field::Address, Family::V6) => "ipv6_addr",
                (Field::Protocol, _) => "inet_proto",
                (Field::Port, _) => "inet_service",
                (Field::Interface, _) => "ifname",
                (Field::Chain, _) => "verdict",
            };
            fields.iter().map(name).collect::<Vec<_>>().join(" . ")
        };
        let (noun, data) = match self.data() {
            [] => ("set", String::new()),
            data => ("map", format!(" : {}", named(data))),
        };
        let interval = if self.is_interval() { " flags interval;" } else { "" };
        let counter = if self.is_counted() { " counter;" } else { "" };
        format!("{noun} {} {{ type {}{data};{interval}{counter} }}", self.name(), named(self.key()))
    }
}

/// What identifies an element within its collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementKey {
    /// External ports.
    Ports(Key),
    /// An address.
    Address(IpAddr),
    /// A network.
    Net(IpNet),
    /// An interface.
    Interface(InterfaceName),
    /// A list of sources.
    List(ListId),
}

/// What an element leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// A set's elements lead nowhere.
    None,
    /// A pod's address and port.
    Target(Target),
    /// An address.
    Address(IpAddr),
    /// The list of who may go on.
    List(ListId),
    /// The networks of a list.
    Networks(Sources),
}

/// An element without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// What it leads to.
    pub data: Data,
    /// Whose it is.
    pub comment: Option<Arc<str>>,
}

/// An element that the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The element.
    pub value: Value,
    /// How often it was used.
    pub counters: Counters,
}

/// Elements that a node should have.
pub type Wanted = BTreeMap<Collection, BTreeMap<ElementKey, Value>>;
/// Elements that a node has.
pub type Elements = BTreeMap<Collection, BTreeMap<ElementKey, Held>>;

fn net(f: &mut fmt::Formatter<'_>, net: IpNet) -> fmt::Result {
    // nft itself writes a network of one address so.
    if net.prefix_len() == net.max_prefix_len() { write!(f, "{}", net.addr()) } else { write!(f, "{net}") }
}

impl fmt::Display for ElementKey {
    /// `203.0.113.7 . tcp . 80`, `203.0.113.7 . udp . 7000-7010`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(Key { external, protocol, ports }) => write!(f, "{external} . {protocol} . {ports}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Net(network) => net(f, *network),
            Self::Interface(interface) => write!(f, "\"{interface}\""),
            Self::List(id) => id.fmt(f),
        }
    }
}

impl fmt::Display for Data {
    /// `10.244.1.9 . 8080`; nothing for a set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Target(Target { ip, first }) => write!(f, "{ip} . {first}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::List(id) => write!(f, "goto {}", lists::chain_name(*id)),
            Self::Networks(nets) => {
                for (index, network) in nets.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ",\n\t" })?;
                    net(f, *network)?;
                }
                Ok(())
            }
        }
    }
}

/// An element as `add element` takes it.
pub(crate) struct Addition<'a> {
    pub(crate) key: &'a ElementKey,
    pub(crate) value: &'a Value,
    pub(crate) counters: Counters,
}

impl fmt::Display for Addition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        let Counters { packets, bytes } = self.counters;
        if packets != 0 {
            write!(f, " counter packets {packets} bytes {bytes}")?;
        }
        if let Some(comment) = &self.value.comment {
            write!(f, " comment \"{comment}\"")?;
        }
        match &self.value.data {
            Data::None => Ok(()),
            data => write!(f, " : {data}"),
        }
    }
}
