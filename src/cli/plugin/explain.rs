//! `kubectl pinhole explain`: who has a port, why somebody has it not, and what to do next.

pub(crate) mod port;

use std::iter;

use crate::admission;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::index::Index;
use crate::admission::subject::Subject;
use crate::admission::violation::Violation;
use crate::api::keys;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::node_of;
use crate::cli::plugin::picture::standing::Asker;
use crate::cli::plugin::picture::standing::Standing;
use crate::cli::plugin::picture::standing::State;
use crate::cli::plugin::reference::ObjectReference;
use crate::cli::terminal::Palette;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;

/// Explains a pod or a workload; `None` when it does not exist.
pub(crate) fn object(
    picture: &Picture,
    namespace: &str,
    wanted: &ObjectReference,
    palette: Palette,
) -> Option<String> {
    if wanted.kind == Kind::Pinhole {
        return pinhole(picture, &ObjectName::new(namespace, wanted.name.as_str()), palette);
    }
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
    lines.extend(paragraphs(&standings, palette));
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
    let Asker::Pod(pod) = &standing.asker else { return false };
    if *pod.namespace != *metadata.namespace {
        return false;
    }
    if object.known_kind() == Some(Kind::Pod) {
        return *pod.name == *metadata.name;
    }
    let is_holder = |holder: &Holder| {
        let below = object.metadata.controller();
        let is_it = |kind: &str, name: &str| *holder.kind == *kind && *holder.object.name == *name;
        is_it(&object.kind, &metadata.name) || below.is_some_and(|owner| is_it(&owner.kind, &owner.name))
    };
    standing.holder.as_ref().is_some_and(is_holder)
}

/// Explains a Pinhole; `None` when it does not exist. One that the controller wrote is its pod's.
fn pinhole(picture: &Picture, name: &ObjectName, palette: Palette) -> Option<String> {
    let found = picture.pinhole(name)?;
    let pod = found.spec.target.pod.as_ref();
    let mut lines = vec![palette.bold(&format!("Pinhole {name}"))];
    let leads_to =
        pod.map_or_else(|| found.spec.target.in_short(), |pod| format!("pod {}/{pod}", name.namespace));
    lines.push(field("leads to", &leads_to, palette));
    let is_its = |one: &Standing| match (&one.asker, pod) {
        (Asker::Pinhole(asker), None) | (Asker::Pod(asker), Some(_)) => asker == name,
        _ => false,
    };
    let standings: Vec<_> = picture.standings().into_iter().filter(is_its).collect();
    if standings.is_empty() {
        lines.push(field("ports", "none that anybody serves or is to serve", palette));
    }
    lines.extend(paragraphs(&standings, palette));
    Some(ended(&lines))
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

/// Every request for a port, below an empty line.
fn paragraphs<'s>(standings: impl IntoIterator<Item = &'s Standing>, palette: Palette) -> Vec<String> {
    let told = |standing| iter::once(String::new()).chain(paragraph(standing, palette));
    standings.into_iter().flat_map(told).collect()
}

/// One request for a port: its line, why, and what to do next.
fn paragraph(standing: &Standing, palette: Palette) -> Vec<String> {
    let target = standing.target.as_ref().map_or_else(String::new, |target| format!(" -> {target}"));
    let state = standing.state.tone().paint(palette, standing.state.name());
    let mut lines = vec![format!("{}{target}  {state}", palette.name(&standing.external))];
    lines.push(indented("for", &who_asks(standing), palette));
    if let (Asker::Pinhole(_), Some(pod)) = (&standing.asker, &standing.pod) {
        lines.push(indented("pod", &pod.to_string(), palette));
    }
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
    let asker = standing.asker.to_string();
    let asker = match &standing.holder {
        Some(holder) if holder.object != *standing.asker.name() => {
            format!("{asker} of {}", holder.in_short())
        }
        _ => asker,
    };
    standing.node.as_ref().map_or(asker.clone(), |node| format!("{asker} on {node}"))
}

impl State {
    /// What the state means, where nothing more particular is known.
    const fn meaning(self) -> &'static str {
        match self {
            Self::Programmed => "the node's kernel leads the port to the pod",
            Self::Reported => {
                "the node's agent said in an Event or a Pinhole that the port leads there; the kernel itself was not asked"
            }
            Self::Reserved => {
                "the pod has no address yet; the node drops what comes to the port, so that clients try again"
            }
            Self::Suspended => "it is suspended: it stays whose it is, and what comes to it is dropped",
            Self::Expected => {
                "the rules grant it to this pod; whether the node's kernel has it was not asked"
            }
            Self::Missing => {
                "the rules grant it and the node's kernel does not have it; the log of the node's agent says why"
            }
            Self::Waiting => "another pod of the same holder has it",
            Self::Pending => "the controller has not granted it yet",
            Self::Full => "no pool has a port for it",
            Self::Taken => "somebody else has it",
            Self::Refused => "it is refused",
            Self::Unserved => "it is granted, and leads nowhere",
            Self::Releasing => {
                "nobody is granted it any more, and the node has yet to say that it is gone from its kernel"
            }
            Self::Unscheduled => "the pod is on no node yet, and a port is programmed on the node of its pod",
            Self::NoAgent => "no agent of Pinhole runs on the node, so nobody programs it there",
            Self::Leftover => "the node's kernel has it and no pod asks for it any more",
        }
    }

    /// What to do, where something can be done.
    fn next_step(self, standing: &Standing) -> Option<String> {
        let ObjectName { namespace, name } = standing.asker.name();
        let reference = standing.asker.reference();
        let describe = || format!("kubectl -n {namespace} describe {}", reference.replace('/', " "));
        match (self, &standing.asker) {
            (Self::Programmed | Self::Reported, Asker::Pod(_)) => {
                Some(format!("kubectl pinhole test -n {namespace} pod/{name}"))
            }
            (Self::Reserved | Self::Unscheduled | Self::Pending | Self::Full | Self::Unserved, _) => {
                Some(format!("{} says what it waits for", describe()))
            }
            (Self::Suspended, Asker::Pod(_)) => Some(format!(
                "kubectl -n {namespace} annotate pod {name} {}- opens it again",
                keys::SUSPENDED
            )),
            (Self::Suspended, Asker::Pinhole(_)) => Some(format!(
                "kubectl -n {namespace} patch pinholes {name} --type=merge -p '{{\"spec\":{{\"suspended\":false}}}}' opens it again"
            )),
            (Self::Expected, _) => Some(format!(
                "get the right to pods/portforward in the agent's namespace, or read its Events: {}",
                describe()
            )),
            (Self::Missing | Self::Leftover, _) => {
                Some(format!("kubectl pinhole doctor, and {}", describe()))
            }
            (Self::NoAgent, _) => Some("kubectl pinhole doctor says on which nodes no agent runs".to_owned()),
            (Self::Programmed | Self::Reported, Asker::Pinhole(_))
            | (Self::Waiting | Self::Taken | Self::Refused | Self::Releasing, _) => None,
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
