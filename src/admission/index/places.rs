//! On which addresses ports are held that name none: the own ones of the node that they are bound to, by what its NatNode says.

use std::net::IpAddr;
use std::sync::Arc;

use crate::admission::index::Holding;
use crate::admission::index::Index;
use crate::admission::index::Scope;
use crate::model::address::ExternalAddress;
use crate::model::address::Families;
use crate::model::address::Family;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

impl Index {
    /// The own addresses of a node at which a pod of these families is served, by what its NatNode says; `None` while that
    /// names none at all. Of a pod that has no address yet, the node's networks of pods tell the families, where it has any.
    pub fn own_addresses(&self, node_name: &str, families: Families) -> Option<Vec<ExternalAddress>> {
        let own = self.occupants.own_addresses(node_name);
        let families = if families.is_empty() { self.facts.pod_families(node_name) } else { families };
        let serves = |address: &IpAddr| families.admit(Family::of(*address));
        let external = |address| ExternalAddress::new(address).ok();
        (!own.is_empty()).then(|| own.into_iter().filter(serves).filter_map(external).collect())
    }

    /// The addresses on which an object holds ports: one of its choice, or the own ones of its node, as far as they are known.
    pub fn places(&self, held: &Holding) -> Vec<ExternalAddress> {
        match &held.scope {
            Scope::Address(address) => vec![*address],
            Scope::Node(node) => self.own_addresses(node, held.families).unwrap_or_default(),
        }
    }

    /// The ports of an address that overlap `ports`, whoever holds them: by its name, or as the own address of a node.
    pub fn held_at(
        &self,
        address: ExternalAddress,
        protocol: Protocol,
        ports: PortRange,
    ) -> Vec<Arc<Holding>> {
        let mut held = self.held(&Scope::Address(address), protocol, ports);
        for node in self.occupants.owners(address.ip()) {
            let on_node = self.held(&Scope::Node(Arc::clone(node)), protocol, ports);
            held.extend(on_node.into_iter().filter(|held| self.places(held).contains(&address)));
        }
        held
    }
}
