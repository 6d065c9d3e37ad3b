//! ACK's pod-dnat: four annotations that ask for automatic ports, where an operator has them read (`--compat ack`).
//!
//! They mean what `auto:80/tcp,auto:443/tcp` means, and `fixed:` in place of `auto:` where they say so: each listed port of the pod
//! gets an external one, all on one address. ACK decides nothing when a pod is created, so what nobody can understand
//! shows there only in that nothing happens; here it is refused.

use std::collections::BTreeMap;

use crate::admission::suggest;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;
use crate::admission::wanted::LocatedPort;
use crate::admission::wanted::Wanted;
use crate::api::annotation::MAX_ENTRIES;
use crate::api::keys;
use crate::model::automatic::AutomaticPort;
use crate::model::port::Port;
use crate::model::port::Protocol;

/// The protocols of ACK.
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// What can be written in our own words only.
const OURS: &str = "pinhole.dev/expose: \"auto:80/tcp,auto:53/udp\"";

/// Whether a pod asks in ACK's words. `"false"` is as good as nothing, though ACK does not say so; what is neither is for
/// [`read`] to refuse.
pub(crate) fn is_on(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(keys::ACK_ON).is_some_and(|text| switch(text) != Some(false))
}

/// Reads the four annotations of a pod that asks in ACK's words; `path` is that of its annotations.
pub(crate) fn read(annotations: &BTreeMap<String, String>, path: &str) -> Wanted {
    let text = |key: &str| annotations.get(key).map(|text| text.trim());
    let mut violations = Vec::new();
    let mut refuse = |key: &str, value: &str, problem: String| {
        let (field, value) = (format!("{path}[{key}]"), shown(value));
        violations.push(Violation { field, value, problem, rule: Rule::Syntax });
    };
    let on = text(keys::ACK_ON).unwrap_or_default();
    if !on.is_empty() && switch(on).is_none() {
        refuse(keys::ACK_ON, on, "is neither true nor false; write \"true\" to ask for ports".to_owned());
    }
    let name = text(keys::ACK_PROTOCOL).unwrap_or_default();
    let protocol = protocol(name).map_err(|problem| refuse(keys::ACK_PROTOCOL, name, problem)).ok();
    let fixed = text(keys::ACK_FIXED).unwrap_or_default();
    let is_fixed = if fixed.is_empty() { Some(false) } else { switch(fixed) };
    if is_fixed.is_none() {
        let problem = "is neither true nor false; write \"true\" for ports that the next pod of the same name has again";
        refuse(keys::ACK_FIXED, fixed, problem.to_owned());
    }
    let list = text(keys::ACK_PORTS);
    let items: Vec<_> =
        list.filter(|list| !list.is_empty()).into_iter().flat_map(|list| list.split(',')).collect();
    if items.is_empty() {
        let problem = if list.is_none() { "is missing" } else { "is empty" };
        refuse(keys::ACK_PORTS, "", format!("{problem}; list the ports of the pod, as in \"80,443\""));
    }
    if MAX_ENTRIES < items.len() {
        let problem =
            format!("has {} items; {MAX_ENTRIES} is the most, so split the pod's ports", items.len());
        refuse(keys::ACK_PORTS, list.unwrap_or_default(), problem);
        return Wanted { violations, ..Wanted::default() };
    }
    let mut automatic = Vec::new();
    for (position, item) in items.into_iter().map(str::trim).enumerate() {
        let field = format!("{path}[{}][{position}]", keys::ACK_PORTS);
        match (port(item), protocol, is_fixed) {
            (Err(problem), ..) => {
                violations.push(Violation { field, value: shown(item), problem, rule: Rule::Syntax });
            }
            (Ok(target), Some(protocol), Some(is_fixed)) => {
                automatic
                    .push(LocatedPort { port: AutomaticPort::new(protocol, target).fixed(is_fixed), field });
            }
            (Ok(_), ..) => {}
        }
    }
    Wanted { automatic, violations, ..Wanted::default() }
}

fn switch(text: &str) -> Option<bool> {
    let is = |word: &str| text.trim().eq_ignore_ascii_case(word);
    if is("true") { Some(true) } else { is("false").then_some(false) }
}

fn protocol(name: &str) -> Result<Protocol, String> {
    if name.is_empty() {
        return Ok(Protocol::Tcp);
    }
    let named = name.parse().ok().filter(|protocol| PROTOCOLS.contains(protocol));
    named.ok_or_else(|| match suggest::nearest(name, PROTOCOLS.map(Protocol::name)) {
        Some(nearest) => format!("is not a protocol; did you mean {nearest:?}?"),
        None => format!(
            "is not one protocol for all ports; write \"tcp\" or \"udp\", or ask port by port with {OURS}"
        ),
    })
}

fn port(item: &str) -> Result<Port, String> {
    if item.is_empty() {
        return Err("is an empty item; remove the extra comma".to_owned());
    }
    item.parse().map_err(|_| {
        let number = "is not a port; write a number from 1 to 65535";
        match () {
            () if item.contains('/') => {
                format!(
                    "is more than a port; the protocol of all ports is {}, or ask port by port with {OURS}",
                    keys::ACK_PROTOCOL
                )
            }
            () if item.contains(['-', ':', ' ', ';']) => format!("{number}, and commas between several"),
            () => number.to_owned(),
        }
    })
}
