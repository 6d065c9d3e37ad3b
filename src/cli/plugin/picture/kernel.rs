//! What is known of a node's kernel and of the node itself: from its agent, from its agent's Events, from its Node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::admission::subject::Subject;
use crate::admission::wanted;
use crate::agent::addresses;
use crate::agent::addresses::Addresses;
use crate::agent::entries::Line;
use crate::agent::grants;
use crate::api::object::Object;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::granted;
use crate::cli::plugin::picture::is_for;
use crate::cli::plugin::picture::name_of;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::address::Family;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::port::Port;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;
use crate::ruleset::entry::Target;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;
use crate::ruleset::sources::Sources;

/// What is known of a node's kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Whether an agent runs on the node.
    pub(crate) has_agent: bool,
    /// What the kernel holds, as its agent reads it now; `None` where the agent could not be asked.
    pub(crate) read: Option<Vec<Line>>,
    /// What the agent wrote in Events that it programmed.
    pub(crate) told: Vec<Line>,
}

impl Kernel {
    /// The best that is known.
    pub(crate) fn lines(&self) -> &[Line] {
        self.read.as_ref().unwrap_or(&self.told)
    }
}

/// The external side of a line.
pub(crate) fn key_of(line: &Line) -> Option<Key> {
    Some(Key {
        external: line.address.parse().ok()?,
        protocol: line.protocol.parse().ok()?,
        ports: line.ports.parse().ok()?,
    })
}

/// The entries that an agent's Event says it programmed: `203.0.113.7:25/tcp -> 10.244.1.9:25, ... on node-1`.
pub(crate) fn lines_of_note(text: &str, node: &str, pod: &ObjectName) -> Vec<Line> {
    let Some(entries) = text.strip_suffix(&format!(" on {node}")) else { return Vec::new() };
    let line = |entry: &str| {
        let (external, target) = entry.split_once(" -> ")?;
        let (external, protocol) = external.rsplit_once('/')?;
        let (address, ports) = external.rsplit_once(':')?;
        let (ip, target_ports) = target.rsplit_once(':')?;
        let bare = |ip: &str| ip.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Line {
            address: bare(address),
            ports: ports.to_owned(),
            protocol: protocol.to_owned(),
            target: Some(bare(ip)),
            target_ports: Some(target_ports.to_owned()),
            pod: pod.to_string(),
            allowed_sources: Vec::new(),
            packets: 0,
            bytes: 0,
            problem: None,
        })
    };
    entries.split(", ").filter_map(line).collect()
}

/// An entry as its line tells it. The pod is the one of that name on the node, if its address is the entry's; else it is the
/// Pinhole that a user wrote under that name.
pub(crate) fn entry_of(
    line: &Line,
    pods: &BTreeMap<ObjectName, Object>,
    pinholes: Option<&Pinholes>,
) -> Option<Entry> {
    let target = match (&line.target, &line.target_ports) {
        (Some(ip), Some(ports)) => {
            let first: Port = ports.split('-').next()?.parse().ok()?;
            Some(Target { ip: ip.parse().ok()?, first })
        }
        _ => None,
    };
    let (namespace, name) = line.pod.split_once('/')?;
    let name = ObjectName::new(namespace, name);
    let has_it = |pod: &&Object| {
        line.target.as_ref().is_none_or(|ip| pod.status.pod_ips.iter().any(|found| found.ip == *ip))
    };
    // Of another node's pod its Pinhole tells.
    let by_pinhole = || {
        let found = pinholes?.get(&name)?;
        let is_it = granted::is_written(found) || !pods.contains_key(&name);
        grants::subject_uid(found).filter(|_| is_it)
    };
    let uid = pods.get(&name).filter(has_it).map(|pod| pod.metadata.uid.as_str());
    let uid = uid.or_else(by_pinhole).unwrap_or_default();
    Some(Entry {
        key: key_of(line)?,
        target,
        allowed_sources: Sources::default(),
        owner: Owner::new(&name, uid),
    })
}

/// What the API server and the kernel's entries tell of a node: its own address is the one that entries without an
/// address are served on; without such entries, the one that the agent would choose among those of its Node.
pub(crate) fn facts(node: Option<&Object>, lines: &[Line], pods: &[&Object], picture: &Picture) -> NodeFacts {
    let listed = node.iter().flat_map(|node| &node.status.addresses);
    let mut found = Addresses::default();
    for address in listed.filter_map(|address| address.address.parse::<IpAddr>().ok()) {
        match address {
            IpAddr::V4(v4) if found.default_v4.is_none() => found.default_v4 = Some(v4),
            IpAddr::V6(v6) if found.default_v6.is_none() => found.default_v6 = Some(v6),
            _ => {}
        }
        found.lasting.insert(address);
    }
    let said = node.and_then(|node| picture.node_addresses.get(&node.metadata.name));
    let mut own = addresses::choose(&found, &picture.filter);
    found.lasting.extend(said.into_iter().flatten());
    for (line, key) in lines.iter().filter_map(|line| Some((line, key_of(line)?))) {
        found.lasting.insert(key.external);
        let asks_for_the_node_s = |pod: &&&Object| {
            let asked = Subject::of(pod).and_then(|pod| wanted::of(&pod, &picture.policy));
            name_of(pod).to_string() == line.pod
                && asked
                    .iter()
                    .flat_map(wanted::Wanted::mappings)
                    .any(|mapping| mapping.address() == Address::Node && is_for(&key, mapping))
        };
        if pods.iter().any(|pod| asks_for_the_node_s(&pod)) {
            match key.external {
                IpAddr::V4(v4) => own.v4 = Some(v4),
                IpAddr::V6(v6) => own.v6 = Some(v6),
            }
        }
    }
    // An agent without an address of a family serves none of it; a Node of one family lists one.
    let has = |family| found.lasting.iter().any(|address| Family::of(*address) == family);
    NodeFacts {
        node_v4: own.v4.filter(|_| has(Family::V4)),
        node_v6: own.v6.filter(|_| has(Family::V6)),
        addresses: found.lasting,
        include: picture.filter.include.clone(),
        exclude: picture.filter.exclude.clone(),
        ..NodeFacts::default()
    }
}
