//! The links by which a node reaches the outside, and how connections remember the one that they came in by.
//!
//! Each link has a number: its place in the list, counted from 1. A connection to an external address of ours carries
//! it in a part of its connection mark of which nothing else is touched. A link that is put in front of others
//! changes their numbers, so links are added at the end.
//!
//! Links can change while a node is programmed: whoever holds its [`Settings`](crate::dataplane::settings::Settings) has
//! the same [`LinksInUse`]. The next reading of the kernel tells what that changes.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::dataplane::settings::MarkBit;
use crate::model::address::Family;
use crate::model::interface::InterfaceName;

/// The packet marks by which kube-proxy asks for masquerading and for dropping.
const KUBE_PROXY: u32 = 0xc000;
/// Tables with these numbers are the kernel's own.
const KERNEL_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// A link to the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The whole name of its interface.
    pub interface: InterfaceName,
    /// The router behind it. Without, it is the first address of the interface's own network, for each family.
    pub gateway: Option<IpAddr>,
    /// The routing table that is kept for it. Without, one that is free.
    pub table: Option<u32>,
}

/// Why a text is not a link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a link: {problem}; write interface=eth1,gateway=192.0.2.1,table=101")]
pub struct LinkError {
    /// What was read.
    pub text: String,
    /// What is wrong.
    pub problem: &'static str,
}

impl FromStr for Link {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem| LinkError { text: text.to_owned(), problem };
        let (mut interface, mut gateway, mut table) = (None, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| wrong("a part has no '='"))?;
            let is_repeated = match key.trim() {
                "interface" => {
                    let name = value.trim().parse::<InterfaceName>().ok();
                    interface.replace(name.ok_or_else(|| wrong("the interface is no name of one"))?).is_some()
                }
                "gateway" => {
                    let address = value.trim().parse().ok();
                    gateway.replace(address.ok_or_else(|| wrong("the gateway is no address"))?).is_some()
                }
                "table" => {
                    let number = value.trim().parse().ok().filter(|table| is_free_to_use(*table));
                    table
                        .replace(number.ok_or_else(|| wrong("the table is none of 1-252, 256-4294967295"))?)
                        .is_some()
                }
                _ => return Err(wrong("it has interface, gateway and table, and nothing else")),
            };
            if is_repeated {
                return Err(wrong("a part is given twice"));
            }
        }
        let interface = interface.ok_or_else(|| wrong("the interface is missing"))?;
        Ok(Self { interface, gateway, table })
    }
}

/// Whether a link can have a routing table of this number.
pub fn is_free_to_use(table: u32) -> bool {
    table != 0 && !KERNEL_TABLES.contains(&table)
}

/// The part of marks that holds the number of a link: bits that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkMask(u32);

impl LinkMask {
    /// `None` unless the bits follow each other and mean nothing to us or to kube-proxy.
    pub fn new(mask: u32) -> Option<Self> {
        let in_a_row = mask != 0 && (mask >> mask.trailing_zeros()).trailing_ones() == mask.count_ones();
        (in_a_row && mask & (KUBE_PROXY | MarkBit::default().get()) == 0).then_some(Self(mask))
    }

    /// The mask.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// How many links it tells apart.
    pub const fn capacity(self) -> u32 {
        self.0 >> self.0.trailing_zeros()
    }
}

impl Default for LinkMask {
    /// Seven links. Free of what is known on nodes: small marks of hand-made rules below, the AWS CNI's 0x80 above,
    /// Calico's and Cilium's far above.
    fn default() -> Self {
        Self(0x70)
    }
}

impl fmt::Display for LinkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why a text is no mask of links.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot hold the numbers of links: write bits that follow each other and are none of 0xd000, such as 0x70"
)]
pub struct LinkMaskError(pub String);

impl FromStr for LinkMask {
    type Err = LinkMaskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        number.and_then(Self::new).ok_or_else(|| LinkMaskError(text.to_owned()))
    }
}

/// The links of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    mask: LinkMask,
    links: Vec<Link>,
}

/// Why links cannot be used together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinksError {
    /// There are more than the mask has numbers for.
    #[error("{links} links do not fit the mask {mask}, which tells {} apart; widen it", mask.capacity())]
    TooMany {
        /// How many there are.
        links: usize,
        /// The mask.
        mask: LinkMask,
    },
    /// An interface or a table is used twice.
    #[error(
        "{shared} is given to two links; an interface is one link, or one for each family, each with its gateway"
    )]
    Twice {
        /// What it is.
        shared: Shared,
        /// The place in the list of the one that has it.
        place: usize,
    },
}

impl Links {
    /// Links in the order of their numbers.
    pub fn new(mask: LinkMask, links: Vec<Link>) -> Result<Self, LinksError> {
        if u32::try_from(links.len()).is_ok_and(|count| mask.capacity() < count) {
            return Err(LinksError::TooMany { links: links.len(), mask });
        }
        let mut all = Self { mask, links: Vec::with_capacity(links.len()) };
        links.into_iter().try_for_each(|link| all.push(link))?;
        Ok(all)
    }

    /// Adds a link behind the others, unless it cannot stand beside them.
    pub fn push(&mut self, link: Link) -> Result<(), LinksError> {
        let Self { mask, links } = self;
        if u32::try_from(links.len()).is_ok_and(|count| mask.capacity() <= count) {
            return Err(LinksError::TooMany { links: links.len() + 1, mask: *mask });
        }
        for (place, other) in links.iter().enumerate() {
            if let Some(shared) = other.shares(&link) {
                return Err(LinksError::Twice { shared, place });
            }
        }
        links.push(link);
        Ok(())
    }

    /// The links in the order of their numbers.
    pub fn all(&self) -> &[Link] {
        &self.links
    }

    /// The part of marks that holds their numbers.
    pub const fn mask(&self) -> u32 {
        self.mask.get()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The links, each with its number as a mark.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &Link)> {
        let lowest = self.mask.get().trailing_zeros();
        (1_u32..).map(move |number| number << lowest).zip(&self.links)
    }

    /// The links that may serve a family, each with its number as a mark.
    pub fn marked(&self, family: Family) -> impl Iterator<Item = (u32, &Link)> {
        self.numbered().filter(move |(_, link)| link.serves(family))
    }

    /// The tables that are kept for links by name.
    pub fn tables(&self) -> impl Iterator<Item = u32> {
        self.links.iter().filter_map(|link| link.table)
    }
}

impl Link {
    /// Whether it can serve a family.
    fn serves(&self, family: Family) -> bool {
        self.gateway.is_none_or(|gateway| Family::of(gateway) == family)
    }

    /// What both have that only one can have.
    fn shares(&self, other: &Self) -> Option<Shared> {
        let mut families = Family::ALL.into_iter();
        if self.interface == other.interface
            && families.any(|family| self.serves(family) && other.serves(family))
        {
            return Some(Shared::Interface(self.interface));
        }
        self.table.filter(|table| other.table == Some(*table)).map(Shared::Table)
    }
}

/// What two links cannot both have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// An interface, for a family.
    Interface(InterfaceName),
    /// A routing table.
    Table(u32),
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(interface) => write!(f, "interface {interface}"),
            Self::Table(table) => write!(f, "table {table}"),
        }
    }
}

/// The links of a node as they are now, and who goes on by them. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct LinksInUse(Arc<InUse>);

#[derive(Debug, Default)]
struct InUse {
    links: ArcSwap<Links>,
    bound: ArcSwap<BTreeSet<IpAddr>>,
}

impl LinksInUse {
    /// The links.
    pub fn now(&self) -> Arc<Links> {
        self.0.links.load_full()
    }

    /// Uses others from now on.
    pub fn replace(&self, links: Links) {
        self.0.links.store(Arc::new(links));
    }

    /// The addresses of pods that go on by the link by which they leave, also without a fixed address.
    pub fn bound(&self) -> Arc<BTreeSet<IpAddr>> {
        self.0.bound.load_full()
    }

    /// Lets these pods go on by the link by which they leave: what they began by it would not be understood elsewhere.
    pub fn bind(&self, pods: BTreeSet<IpAddr>) {
        self.0.bound.store(Arc::new(pods));
    }
}

impl From<Links> for LinksInUse {
    fn from(links: Links) -> Self {
        Self(Arc::new(InUse { links: ArcSwap::from_pointee(links), ..InUse::default() }))
    }
}

impl PartialEq for LinksInUse {
    fn eq(&self, other: &Self) -> bool {
        self.now() == other.now()
    }
}

impl Eq for LinksInUse {}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(text: &str) -> Link {
        text.parse().unwrap()
    }

    #[test]
    fn r54_a_link_is_read_with_its_gateway_and_table_or_without() {
        let full = link("interface=eth1,gateway=192.0.2.1,table=101");
        assert_eq!(full.gateway, Some("192.0.2.1".parse().unwrap()));
        assert_eq!((full.interface.as_str(), full.table), ("eth1", Some(101)));
        assert_eq!(
            link("interface=bond0.7"),
            Link { interface: "bond0.7".parse().unwrap(), gateway: None, table: None }
        );
        for (bad, problem) in [
            ("eth1", "no '='"),
            ("gateway=192.0.2.1", "interface is missing"),
            ("interface=eth*", "no name"),
            ("interface=much-too-long-name", "no name"),
            ("interface=eth1,gateway=router", "no address"),
            ("interface=eth1,table=254", "1-252"),
            ("interface=eth1,table=0", "1-252"),
            ("interface=eth1,interface=eth2", "twice"),
            ("interface=eth1,metric=5", "nothing else"),
        ] {
            let error = bad.parse::<Link>().unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn r54_a_mask_is_bits_in_a_row_that_mean_nothing_else() {
        assert_eq!("0x70".parse(), Ok(LinkMask::default()));
        assert_eq!("0xf000000".parse::<LinkMask>().map(LinkMask::capacity), Ok(15));
        for bad in ["0", "0x50", "0x1000", "0x4000", "0xf000", "0x3000", "", "bits"] {
            assert!(bad.parse::<LinkMask>().is_err(), "{bad}");
        }
    }

    #[test]
    fn r54_links_are_numbered_in_their_order_within_the_mask() {
        let texts = ["interface=a", "interface=b,gateway=2001:db8::1", "interface=c"];
        let links = Links::new(LinkMask::default(), texts.map(link).to_vec()).unwrap();
        let numbers = |family| {
            links.marked(family).map(|(mark, link)| (mark, link.interface.as_str())).collect::<Vec<_>>()
        };
        assert_eq!(numbers(Family::V6), [(0x10, "a"), (0x20, "b"), (0x30, "c")]);
        assert_eq!(numbers(Family::V4), [(0x10, "a"), (0x30, "c")]);
    }

    #[test]
    fn r54_links_that_cannot_be_told_apart_are_refused() {
        let links = |texts: &[&str]| {
            Links::new("0x30".parse().unwrap(), texts.iter().map(|text| link(text)).collect())
        };
        assert!(links(&["interface=a", "interface=b", "interface=c"]).is_ok());
        assert!(links(&["interface=a", "interface=b", "interface=c", "interface=d"]).is_err());
        assert!(links(&["interface=a", "interface=a,gateway=192.0.2.1"]).is_err());
        assert!(links(&["interface=a,gateway=2001:db8::1", "interface=a,gateway=192.0.2.1"]).is_ok());
        assert!(links(&["interface=a,table=7", "interface=b,table=7"]).is_err());
    }
}
