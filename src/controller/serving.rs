//! Which nodes serve what: one rule for the Pinholes of annotated pods and those that users write. Pure.
//!
//! A fixed address is served by every node that has it, by what NatNodes say; that is one node, unless the operator has arranged
//! for several. The pod can be on another. Where no node has it, that of the pod is asked: it may serve an address that is on no
//! interface (`--include-net`), and says what is wrong if it does not. The node's own address is that of the pod's node.

use std::collections::BTreeSet;

use crate::admission::index::Index;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;

/// The nodes that serve an address for a pod on the node `own`, or for whatever a user's Pinhole leads to.
pub fn at(address: Address, own: Option<&str>, index: &Index) -> BTreeSet<String> {
    let having: BTreeSet<_> = match address {
        Address::Node => BTreeSet::new(),
        Address::Fixed(address) => index.nodes_of_address(address).map(ToString::to_string).collect(),
    };
    if having.is_empty() { own.map(str::to_owned).into_iter().collect() } else { having }
}

/// The nodes that serve some of these for a pod on the node `own`.
pub fn of<'a>(mappings: impl Iterator<Item = &'a Mapping>, own: &str, index: &Index) -> BTreeSet<String> {
    mappings.flat_map(|mapping| at(mapping.address(), Some(own), index)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admission::index::occupants::Occupants;
    use crate::admission::index::occupants::Source;
    use crate::admission::policy::Policy;
    use crate::model::address::ExternalAddress;

    #[test]
    fn the_nodes_that_have_an_address_serve_it_and_that_of_the_pod_where_none_has() {
        let mut index = Index::new(Arc::new(Policy::default()));
        let mut says = |node: &str, addresses: &[&str]| {
            index.set_occupants(Occupants {
                source: Source::NatNode(node.into()),
                version: None,
                taken: Vec::new(),
                addresses: addresses.iter().map(|address| (address.parse().unwrap(), false)).collect(),
            });
        };
        says("node-1", &["203.0.113.1", "203.0.113.3"]);
        says("node-2", &["203.0.113.2", "203.0.113.3", "203.0.113.4"]);
        // It has lost one since.
        says("node-2", &["203.0.113.2", "203.0.113.3"]);
        let fixed = |text: &str| Address::Fixed(ExternalAddress::new(text.parse().unwrap()).unwrap());
        for (what, address, own, expected) in [
            ("the pod's node has it", fixed("203.0.113.1"), Some("node-1"), "node-1"),
            ("another node has it", fixed("203.0.113.2"), Some("node-1"), "node-2"),
            ("both have it", fixed("203.0.113.3"), Some("node-1"), "node-1 node-2"),
            ("nobody has it", fixed("203.0.113.4"), Some("node-1"), "node-1"),
            ("nobody has it, of a user's Pinhole", fixed("203.0.113.4"), None, ""),
            ("the node's own address", Address::Node, Some("node-1"), "node-1"),
        ] {
            let nodes: Vec<_> = at(address, own, &index).into_iter().collect();
            assert_eq!(nodes.join(" "), expected, "{what}");
        }
    }
}
