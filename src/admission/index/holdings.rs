//! The ports that are held, findable by scope and port. Single ports stand in an ordered map; ranges, which are
//! rare, in a list for each scope.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use crate::admission::index::Holding;
use crate::admission::index::Scope;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// Single ports and who holds each; more than one only where admission was bypassed.
type Singles = BTreeMap<(Protocol, Port), Vec<Arc<Holding>>>;

/// The ports that are held.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    singles: HashMap<Scope, Singles>,
    ranges: HashMap<Scope, Vec<Arc<Holding>>>,
    node_singles: Singles,
    node_ranges: Vec<Arc<Holding>>,
    count: usize,
}

impl Holdings {
    pub(super) fn add(&mut self, holding: &Arc<Holding>) {
        self.count += 1;
        let on_node = matches!(holding.scope, Scope::Node(_));
        if holding.ports.is_single() {
            let port = (holding.protocol, holding.ports.first());
            self.singles
                .entry(holding.scope.clone())
                .or_default()
                .entry(port)
                .or_default()
                .push(holding.clone());
            if on_node {
                self.node_singles.entry(port).or_default().push(holding.clone());
            }
        } else {
            self.ranges.entry(holding.scope.clone()).or_default().push(holding.clone());
            if on_node {
                self.node_ranges.push(holding.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, holding: &Arc<Holding>) {
        self.count -= 1;
        let is_other = |found: &Arc<Holding>| !Arc::ptr_eq(found, holding);
        let port = (holding.protocol, holding.ports.first());
        if let Some(ports) = self.singles.get_mut(&holding.scope) {
            if let Some(found) = ports.get_mut(&port) {
                found.retain(is_other);
                if found.is_empty() {
                    ports.remove(&port);
                }
            }
            if ports.is_empty() {
                self.singles.remove(&holding.scope);
            }
        }
        if let Some(found) = self.ranges.get_mut(&holding.scope) {
            found.retain(is_other);
            if found.is_empty() {
                self.ranges.remove(&holding.scope);
            }
        }
        if let Some(found) = self.node_singles.get_mut(&port) {
            found.retain(is_other);
            if found.is_empty() {
                self.node_singles.remove(&port);
            }
        }
        self.node_ranges.retain(is_other);
    }

    pub(super) fn overlapping(
        &self,
        scope: &Scope,
        protocol: Protocol,
        ports: PortRange,
    ) -> Vec<Arc<Holding>> {
        let singles = self.singles.get(scope).into_iter().flat_map(|found| within(found, protocol, ports));
        let ranges =
            self.ranges.get(scope).into_iter().flatten().filter(|held| overlaps(held, protocol, ports));
        singles.chain(ranges).cloned().collect()
    }

    pub(super) fn on_nodes(&self, protocol: Protocol, ports: PortRange) -> Vec<Arc<Holding>> {
        let ranges = self.node_ranges.iter().filter(|held| overlaps(held, protocol, ports));
        within(&self.node_singles, protocol, ports).chain(ranges).cloned().collect()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }
}

fn within(singles: &Singles, protocol: Protocol, ports: PortRange) -> impl Iterator<Item = &Arc<Holding>> {
    singles.range((protocol, ports.first())..=(protocol, ports.last())).flat_map(|(_, found)| found)
}

fn overlaps(holding: &Holding, protocol: Protocol, ports: PortRange) -> bool {
    holding.protocol == protocol && holding.ports.intersection(ports).is_some()
}
