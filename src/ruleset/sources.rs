//! Who may connect to an entry, and how a list that is too long to stand at each entry is shared between entries.
//!
//! # Guarantees
//! - Lists of the same networks are the same list, with the same name, whoever wrote them and on every node.
//! - A list that changes is another list with another name, and is never seen half changed.
//! - Two different lists never share a name. As long as the name of a chain may be, a digest has so few bits that somebody who
//!   writes both lists can look for two with one name: the later of the two is refused. To find one to the list of somebody
//!   else is out of reach.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;
use ring::digest;

use crate::model::address::Family;

/// Up to this many networks stand at each entry.
pub const INLINE: usize = 16;

/// The networks that may connect, in the shortest form and in order; empty means everybody. Clones share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sources(Arc<[IpNet]>);

impl Sources {
    /// Whether entries refer to the list instead of having it.
    pub fn is_shared(&self) -> bool {
        INLINE < self.len()
    }

    /// Whether an address is of one of the networks.
    pub fn have(&self, address: IpAddr) -> bool {
        // They are in order and do not overlap, so only the last one that begins at or before the address can have it.
        let behind = self.partition_point(|net| net.network() <= address);
        behind.checked_sub(1).and_then(|last| self.get(last)).is_some_and(|net| net.contains(&address))
    }

    /// The name of the list.
    pub fn id(&self) -> ListId {
        let mut bytes = String::new();
        for net in self.iter() {
            bytes.extend([&net.to_string(), "\n"]);
        }
        let digest = digest::digest(&digest::SHA256, bytes.as_bytes());
        let mut name = [b'A'; ListId::LENGTH];
        let (mut held, mut bits) = (0_u32, 0);
        let mut bytes = digest.as_ref().iter();
        for letter in &mut name {
            if bits < 5 {
                held = held << 8 | u32::from(*bytes.next().unwrap_or(&0));
                bits += 8;
            }
            bits -= 5;
            *letter = ListId::LETTERS[(held >> bits & 31) as usize];
        }
        ListId(name)
    }

    /// The same and one more.
    pub(crate) fn with(&self, net: IpNet) -> Self {
        self.iter().copied().chain([net]).collect()
    }
}

impl Deref for Sources {
    type Target = [IpNet];

    fn deref(&self) -> &[IpNet] {
        &self.0
    }
}

impl From<Vec<IpNet>> for Sources {
    fn from(nets: Vec<IpNet>) -> Self {
        Self(nets.into())
    }
}

impl FromIterator<IpNet> for Sources {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Self {
        Self(nets.into_iter().collect())
    }
}

/// The name of a shared list: the first 65 bits of its SHA-256 digest, in letters that every firewall takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListId([u8; Self::LENGTH]);

impl ListId {
    /// As many letters as the name of a chain has room for.
    pub const LENGTH: usize = 13;
    const LETTERS: &'static [u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        let name: [u8; Self::LENGTH] = text.as_bytes().try_into().ok()?;
        name.iter().all(|letter| Self::LETTERS.contains(letter)).then_some(Self(name))
    }
}

impl fmt::Display for ListId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| write!(f, "{}", char::from(*letter)))
    }
}

/// The lists of sources that were brought into their shortest form. Entries with the same one share it.
pub(super) struct Lists<'a> {
    name: fn(&Sources) -> ListId,
    known: BTreeMap<(Family, &'a [IpNet]), Listed>,
    named: BTreeMap<(Family, ListId), Sources>,
}

/// A list in its shortest form, `None` for nobody; or that it cannot be told from another one.
type Listed = Result<Option<Sources>, SameName>;

/// Another list of the family came first and has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another list of sources on the node has the same digest, {0}")]
pub struct SameName(pub ListId);

impl<'a> Lists<'a> {
    /// No lists yet; what they will be called is usually [`Sources::id`].
    pub(super) fn named_by(name: fn(&Sources) -> ListId) -> Self {
        Self { name, known: BTreeMap::new(), named: BTreeMap::new() }
    }

    /// The list for one family; `None` lets nobody in.
    pub(super) fn sources(&mut self, family: Family, allowed: &'a [IpNet]) -> Listed {
        let Self { name, known, named } = self;
        let sources = known.entry((family, allowed)).or_insert_with(|| {
            let sources = match sources_in(family, allowed) {
                Some(sources) if !sources.is_empty() => sources,
                unlisted => return Ok(unlisted),
            };
            let id = name(&sources);
            let first = named.entry((family, id)).or_insert_with(|| sources.clone());
            if *first == sources { Ok(Some(sources)) } else { Err(SameName(id)) }
        });
        sources.clone()
    }
}

/// The sources of one family in the shortest form, empty for everybody, `None` for nobody: a list that names only
/// addresses of the other family lets nobody in.
fn sources_in(family: Family, allowed: &[IpNet]) -> Option<Sources> {
    if allowed.is_empty() {
        return Some(Sources::default());
    }
    let nets: Vec<_> =
        allowed.iter().filter(|net| Family::of(net.addr()) == family).map(IpNet::trunc).collect();
    let mut nets = IpNet::aggregate(&nets);
    nets.sort();
    match nets.as_slice() {
        [] => None,
        // iptables does not keep a match on every address.
        [only] if only.prefix_len() == 0 => Some(Sources::default()),
        _ => Some(nets.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(nets: &[&str]) -> Sources {
        nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn the_name_of_a_list_is_its_digest() {
        // printf '192.0.2.0/24\n' | sha256sum | xxd -r -p | base32 | cut -c1-13
        assert_eq!(list(&["192.0.2.0/24"]).id().to_string(), "PQC7I5SILNDM5");
        assert_eq!(list(&["192.0.2.0/24"]).id(), list(&["192.0.2.0/24"]).id());
        assert_ne!(list(&["192.0.2.0/24"]).id(), list(&["192.0.2.0/25"]).id());
    }

    #[test]
    fn a_list_has_the_addresses_of_its_networks() {
        let list = list(&["192.0.2.0/25", "198.51.100.7/32", "203.0.113.0/24"]);
        for (address, expected) in [
            ("192.0.1.255", false),
            ("192.0.2.0", true),
            ("192.0.2.128", false),
            ("198.51.100.7", true),
            ("198.51.100.8", false),
            ("203.0.113.255", true),
            ("203.0.114.0", false),
        ] {
            assert_eq!(list.have(address.parse().unwrap()), expected, "{address}");
        }
        assert!(!Sources::default().have("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn a_name_is_read_as_it_is_written_and_nothing_else_is() {
        let id = list(&["192.0.2.0/24"]).id();
        assert_eq!(ListId::parse(&id.to_string()), Some(id));
        for other in ["", "NAME", "ABCDEFGHIJKL1", "abcdefghijklm", "ABCDEFGHIJKLMN"] {
            assert_eq!(ListId::parse(other), None, "{other}");
        }
    }
}
