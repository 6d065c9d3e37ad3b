//! `kubectl pinhole explain`: who has a port, why somebody has it not, and what to do next.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use crate::admission;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::index::Index;
use crate::admission::subject::Subject;
use crate::admission::violation::Violation;
use crate::api::keys;
use crate::api::object::Kind;
use crate::api::object::Metadata;
use crate::api::object::Object;
use crate::cli::plugin::installation::text;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::Standing;
use crate::cli::plugin::picture::State;
use crate::cli::plugin::picture::node_of;
use crate::cli::plugin::reference::ObjectReference;
use crate::cli::plugin::reference::PortReference;
use crate::cli::terminal::Palette;
use crate::model::holder::Holder;
use crate::model::mapping::Address;
use crate::model::port::PortRange;
use crate::ruleset::entry::Key;

/// Explains a pod or a workload; `None` when it does not exist.
pub(crate) fn object(
    picture: &Picture,
    namespace: &str,
    wanted: &ObjectReference,
    palette: Palette,
) -> Option<String> {
    let found = picture.object(wanted.kind.name(), namespace, &wanted.name)?;
    let mut lines = vec![palette.bold(&format!("{} {namespace}/{}", wanted.kind.name(), wanted.name))];
    let standings: Vec<_> = picture.standings().into_iter().filter(|one| is_of(one, found)).collect();
    let Some(subject) = Subject::of(found) else { return Some(ended(&lines)) };
    if picture.policy.asks(&subject.metadata.annotations) {
        asked(picture, &subject, palette, &mut lines);
    } else if standings.is_empty() {
        lines.push(field("asks", "for no port: it has none of the annotations", palette));
        let keys: Vec<_> = picture.policy.input_keys().collect();
        let advice = format!("annotate the pod, or the pod template, with one of {}", keys.join(", "));
        lines.push(field("next", &advice, palette));
        return Some(ended(&lines));
    }
    if found.known_kind() == Some(Kind::Pod) {
        let node = node_of(found).unwrap_or("none yet");
        lines.push(field("node", node, palette));
        if let Some(holder) = standings.iter().find_map(|one| one.holder.as_ref()) {
            lines.push(field("holder", &holder.to_string(), palette));
        }
        if found.is_finished() {
            lines.push(field("state", "the pod has ended, and with it every claim to its ports", palette));
        }
    } else {
        template(picture, found, namespace, palette, &mut lines);
        if standings.is_empty() {
            lines.push(field("pods", "none that asks for ports", palette));
        }
    }
    for standing in &standings {
        lines.push(String::new());
        lines.extend(paragraph(standing, palette));
    }
    Some(ended(&lines))
}

/// The requests of a pod, or of the pods of a workload; `None` when it does not exist.
pub(crate) fn standings_of(
    picture: &Picture,
    namespace: &str,
    wanted: &ObjectReference,
) -> Option<Vec<Standing>> {
    let found = picture.object(wanted.kind.name(), namespace, &wanted.name)?;
    Some(picture.standings().into_iter().filter(|one| is_of(one, found)).collect())
}

/// What would become of the workload's template if it were applied now.
fn template(picture: &Picture, found: &Object, namespace: &str, palette: Palette, lines: &mut Vec<String>) {
    let violations = judge(picture, found.clone(), namespace, &picture.index());
    if violations.is_empty() {
        lines.push(field("template", "granted by the rules of admission", palette));
    }
    for violation in violations {
        let (why, next) = split(&violation.to_string());
        lines.push(field("template", &palette.bad(&format!("refused: {why}")), palette));
        lines.extend(next.map(|next| field("next", &next, palette)));
    }
}

fn asked(picture: &Picture, subject: &Subject<'_>, palette: Palette, lines: &mut Vec<String>) {
    for key in picture.policy.input_keys() {
        if let Some(text) = subject.metadata.annotations.get(key) {
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            lines.push(field("asks", &format!("{key}: {words}"), palette));
        }
    }
}

/// Whether a request is one of the object's: the pod itself, or a pod below it.
fn is_of(standing: &Standing, object: &Object) -> bool {
    let metadata = &object.metadata;
    if *standing.pod.namespace != *metadata.namespace {
        return false;
    }
    if object.known_kind() == Some(Kind::Pod) {
        return *standing.pod.name == *metadata.name;
    }
    let is_holder = |holder: &Holder| {
        let below = object.metadata.controller();
        let is_it = |kind: &str, name: &str| *holder.kind == *kind && *holder.object.name == *name;
        is_it(&object.kind, &metadata.name) || below.is_some_and(|owner| is_it(&owner.kind, &owner.name))
    };
    standing.holder.as_ref().is_some_and(is_holder)
}

/// Explains one external port.
pub(crate) fn port(
    picture: &Picture,
    namespace: &str,
    wanted: &PortReference,
    claims: &[Value],
    palette: Palette,
) -> String {
    let ports = PortRange::single(wanted.port);
    let key = Key { external: wanted.address, protocol: wanted.protocol, ports };
    let mut lines = vec![palette.bold(&wanted.to_string())];
    let nodes = nodes_with(picture, wanted.address);
    let place = if nodes.is_empty() {
        "no node is known to have this address".to_owned()
    } else {
        format!("an address of {}", nodes.iter().cloned().collect::<Vec<_>>().join(", "))
    };
    lines.push(field("address", &place, palette));
    let claims: Vec<_> = claims.iter().filter(|claim| is_claim_of(claim, wanted)).collect();
    for claim in &claims {
        lines.push(field("claim", &claimed(claim), palette));
    }
    let standings = picture.standings();
    let concerned: Vec<_> = standings.iter().filter(|one| concerns(one, &key, &nodes)).collect();
    let holder = concerned.iter().find(|one| {
        matches!(
            one.state,
            State::Programmed | State::Reported | State::Reserved | State::Expected | State::Leftover
        )
    });
    match holder {
        Some(one) => lines.push(field("holder", &who(one), palette)),
        None if !claims.is_empty() => {
            lines.push(field("holder", "whoever the claim names; no node serves it", palette));
        }
        None if concerned.is_empty() => {
            lines.push(field("holder", "nobody, and no pod asks for it", palette));
        }
        None => lines.push(field("holder", "nobody, although it is asked for", palette)),
    }
    for standing in &concerned {
        lines.push(String::new());
        lines.extend(paragraph(standing, palette));
    }
    if holder.is_none() && claims.is_empty() {
        lines.push(String::new());
        lines.extend(for_a_new_pod(picture, namespace, wanted, &nodes, palette));
    }
    ended(&lines)
}

/// Whether a PortClaim, as the API server lists it, is for this port.
fn is_claim_of(claim: &Value, wanted: &PortReference) -> bool {
    let number = |pointer: &str| claim.pointer(pointer).and_then(Value::as_u64);
    let protocol = text(claim, "/spec/protocol").to_lowercase();
    let port = u64::from(wanted.port.get());
    let is_whole_address = protocol.is_empty();
    let first = number("/spec/port").unwrap_or(0);
    let last = number("/spec/portEnd").unwrap_or(first);
    let is_there = text(claim, "/spec/address").parse::<IpAddr>().is_ok_and(|found| found == wanted.address);
    is_there
        && (is_whole_address || protocol == wanted.protocol.to_string() && (first..=last).contains(&port))
}

fn claimed(claim: &Value) -> String {
    let holder = |part: &str| text(claim, &format!("/spec/holder/{part}"));
    format!(
        "{} for {} {}/{}, {} since {}",
        text(claim, "/metadata/name"),
        holder("kind"),
        holder("namespace"),
        holder("name"),
        text(claim, "/spec/state"),
        text(claim, "/spec/since")
    )
}

/// The nodes that have an address, as far as is known.
fn nodes_with(picture: &Picture, address: IpAddr) -> BTreeSet<String> {
    let nodes = picture.objects.iter().filter(|object| object.kind == "Node");
    let has_it = |node: &&Object| {
        let name = &node.metadata.name;
        picture.node_facts(name).addresses.contains(&address)
    };
    nodes.filter(has_it).map(|node| node.metadata.name.clone()).collect()
}

fn concerns(standing: &Standing, key: &Key, nodes: &BTreeSet<String>) -> bool {
    if let Some(found) = standing.key {
        return found.overlaps(key);
    }
    let Some(mapping) = &standing.mapping else { return false };
    let is_there = match mapping.address() {
        Address::Fixed(address) => address.ip() == key.external,
        Address::Node => standing.node.as_ref().is_some_and(|node| nodes.contains(node)),
    };
    is_there && mapping.protocol() == key.protocol && mapping.external().intersection(key.ports).is_some()
}

/// What a new pod that asked for the port would be told.
fn for_a_new_pod(
    picture: &Picture,
    namespace: &str,
    wanted: &PortReference,
    nodes: &BTreeSet<String>,
    palette: Palette,
) -> Vec<String> {
    let request = wanted.to_string();
    let metadata = Metadata {
        namespace: namespace.to_owned(),
        annotations: [(keys::EXPOSE.to_owned(), request.clone())].into(),
        ..Metadata::default()
    };
    let mut pod = Object { kind: "Pod".to_owned(), metadata, ..Object::default() };
    if let [node] = nodes.iter().collect::<Vec<_>>().as_slice() {
        pod.spec.node_name = Some((*node).clone());
    }
    let violations = judge(picture, pod, namespace, &picture.index());
    if violations.is_empty() {
        let granted = format!("granted, as {}: \"{request}\"", keys::EXPOSE);
        return vec![field("a new pod", &format!("in namespace {namespace} would be {granted}"), palette)];
    }
    let mut lines = Vec::new();
    for violation in violations {
        let (why, next) = split(&violation.message());
        lines.push(field("a new pod", &format!("in namespace {namespace} would be refused: {why}"), palette));
        lines.extend(next.map(|next| field("next", &next, palette)));
    }
    lines
}

fn judge(picture: &Picture, object: Object, namespace: &str, index: &Index) -> Vec<Violation> {
    let request = Request {
        operation: Operation::Create,
        namespace: namespace.to_owned(),
        object: Some(object),
        old_object: None,
    };
    admission::decide(&request, &World { policy: &picture.policy, index }).violations
}

fn who(standing: &Standing) -> String {
    let pod = &standing.pod;
    let node = standing.node.as_deref().unwrap_or("no node");
    match &standing.holder {
        Some(holder) if holder.object == *pod => format!("{holder}, on {node}"),
        Some(holder) => format!("{holder}, by pod {} on {node}", pod.name),
        None => format!("pod {pod} on {node}, which does not ask for it any more"),
    }
}

/// One request for a port: its line, why, and what to do next.
fn paragraph(standing: &Standing, palette: Palette) -> Vec<String> {
    let target = match (&standing.target, standing.state) {
        (Some(target), _) => format!(" -> {target}"),
        (None, _) => String::new(),
    };
    let state = standing.state.tone().paint(palette, standing.state.name());
    let mut lines = vec![format!("{}{target}  {state}", palette.name(&standing.external))];
    lines.push(indented("for", &who_asks(standing), palette));
    if let Some(packets) = standing.packets {
        let connections = if packets == 1 { "connection" } else { "connections" };
        lines.push(indented("so far", &format!("{packets} {connections}"), palette));
    }
    let (why, next) = match &standing.problem {
        Some(problem) => split(problem),
        None => (standing.state.meaning().to_owned(), None),
    };
    lines.push(indented("why", &why, palette));
    if let Some(next) = next.or_else(|| standing.state.next_step(standing)) {
        lines.push(indented("next", &next, palette));
    }
    lines
}

fn who_asks(standing: &Standing) -> String {
    let pod = format!("pod {}", standing.pod);
    let pod = match &standing.holder {
        Some(holder) if holder.object != standing.pod => {
            format!("{pod} of {} {}", holder.kind, holder.object.name)
        }
        _ => pod,
    };
    standing.node.as_ref().map_or(pod.clone(), |node| format!("{pod} on {node}"))
}

impl State {
    /// What the state means, where nothing more particular is known.
    const fn meaning(self) -> &'static str {
        match self {
            Self::Programmed => "the node's kernel leads the port to the pod",
            Self::Reported => {
                "the node's agent wrote an Event that the port leads to the pod; the kernel itself was not asked"
            }
            Self::Reserved => {
                "the pod has no address yet; the node drops what comes to the port, so that clients try again"
            }
            Self::Expected => {
                "the rules grant it to this pod; whether the node's kernel has it was not asked"
            }
            Self::Missing => {
                "the rules grant it and the node's kernel does not have it; the log of the node's agent says why"
            }
            Self::Waiting => "another pod of the same holder has it",
            Self::Taken => "somebody else has it",
            Self::Refused => "it is refused",
            Self::Unscheduled => "the pod is on no node yet, and a port is programmed on the node of its pod",
            Self::NoAgent => "no agent of Pinhole runs on the node, so nobody programs it there",
            Self::Leftover => "the node's kernel has it and no pod asks for it any more",
        }
    }

    /// What to do, where something can be done.
    fn next_step(self, standing: &Standing) -> Option<String> {
        let pod = &standing.pod;
        let describe = || format!("kubectl -n {} describe pod {}", pod.namespace, pod.name);
        match self {
            Self::Programmed | Self::Reported => {
                Some(format!("kubectl pinhole test -n {} pod/{}", pod.namespace, pod.name))
            }
            Self::Reserved | Self::Unscheduled => Some(format!("{} says what it waits for", describe())),
            Self::Expected => Some(format!(
                "get the right to pods/portforward in the agent's namespace, or read the pod's Events: {}",
                describe()
            )),
            Self::Missing | Self::Leftover => Some(format!("kubectl pinhole doctor, and {}", describe())),
            Self::NoAgent => Some("kubectl pinhole doctor says on which nodes no agent runs".to_owned()),
            Self::Waiting | Self::Taken | Self::Refused => None,
        }
    }
}

/// A message and the advice after its last semicolon, by which all our messages end.
fn split(message: &str) -> (String, Option<String>) {
    match message.rsplit_once("; ") {
        Some((why, next)) if !why.is_empty() => (why.to_owned(), Some(next.to_owned())),
        _ => (message.to_owned(), None),
    }
}

fn field(name: &str, value: &str, palette: Palette) -> String {
    format!("{}  {value}", palette.name(&format!("{name:<9}")))
}

fn indented(name: &str, value: &str, palette: Palette) -> String {
    format!("  {}  {value}", palette.name(&format!("{name:<7}")))
}

fn ended(lines: &[String]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| line.trim_end()).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests;
