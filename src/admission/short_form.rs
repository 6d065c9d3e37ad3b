//! The short form, with the grammar of `docker run -p` and the external side first:
//! `[ADDRESS:]EXTERNAL[-END][:POD][/PROTO]`, comma-separated, as in `80,8080:80,53/udp,[2001:db8::1]:443:8443`. The external
//! side can be left to a pool: `auto:POD[/PROTO]`, or `fixed:POD[/PROTO]`. In a StatefulSet it can go by the pod's ordinal:
//! `[ADDRESS:]30000+{ordinal}:POD[/PROTO]`.

use crate::admission::entries;
use crate::admission::suggest;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;
use crate::admission::wanted::Located;
use crate::admission::wanted::LocatedPort;
use crate::admission::wanted::Wanted;
use crate::api::annotation::Automatic;
use crate::api::annotation::MAX_ENTRIES;
use crate::model::automatic::AutomaticPort;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::ordinals::ORDINAL;
use crate::model::ordinals::PortByOrdinal;
use crate::model::ordinals::PortByOrdinalError;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

const EXAMPLE: &str = "8080:80 (external port first), 53/udp, 7000-7010 or [2001:db8::1]:443:8443";

/// Reads the annotation's text; `path` is the annotation's own.
pub(crate) fn read(text: &str, path: &str) -> Wanted {
    let refusal = |value: String, problem: String| {
        let violation = Violation { field: path.to_owned(), value, problem, rule: Rule::Syntax };
        Wanted { violations: vec![violation], ..Wanted::default() }
    };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return refusal(String::new(), format!("is empty; write {EXAMPLE}, or remove the annotation"));
    }
    if trimmed.starts_with('{') {
        return refusal(
            shown(text),
            "is JSON; put it under pinhole.dev/nat, or write the short form 8080:80".to_owned(),
        );
    }
    let items: Vec<_> = text.split(',').map(str::trim).collect();
    if items.len() > MAX_ENTRIES {
        return refusal(
            shown(text),
            format!("has {} items; {MAX_ENTRIES} is the most, so split the pod's ports", items.len()),
        );
    }
    let mut wanted = Wanted::default();
    for (position, item) in items.into_iter().enumerate() {
        let field = format!("{path}[{position}]");
        match parse(item) {
            Ok(Item::Named { mapping, ordinal }) => {
                wanted.entries.push(Located {
                    mapping,
                    port_field: field.clone(),
                    address_field: field,
                    ordinal,
                });
            }
            Ok(Item::Automatic(port)) => wanted.automatic.push(LocatedPort { port, field }),
            Err((rule, problem)) => {
                wanted.violations.push(Violation {
                    field,
                    value: shown(item),
                    problem: about(item, problem),
                    rule,
                });
            }
        }
    }
    wanted
}

/// A problem as it reads after the item: one with the whole item does not name it again.
fn about(item: &str, problem: String) -> String {
    problem.strip_prefix(&format!("{item:?} ")).map(str::to_owned).unwrap_or(problem)
}

/// What an item asks for.
enum Item {
    Named { mapping: Mapping, ordinal: Option<u64> },
    Automatic(AutomaticPort),
}

fn parse(item: &str) -> Result<Item, (Rule, String)> {
    let syntax = |problem: String| (Rule::Syntax, problem);
    if item.is_empty() {
        return Err(syntax("is an empty item; remove the extra comma".to_owned()));
    }
    let (ports, protocol) = match item.rsplit_once('/') {
        Some((ports, name)) => (ports, read_protocol(name.trim()).map_err(syntax)?),
        None => (item, Protocol::Tcp),
    };
    let sides = split(ports.trim()).map_err(syntax)?;
    let address = match sides.address {
        None => Address::Node,
        Some(text) => Address::Fixed(
            entries::external_address(text)
                .map_err(|problem| (Rule::Address, format!("{text} {problem}")))?,
        ),
    };
    let is_written = |word: &Automatic| sides.external.trim().eq_ignore_ascii_case(word.name());
    if let Some(word) = Automatic::ALL.into_iter().find(is_written) {
        return automatic(word, &sides, protocol).map(Item::Automatic).map_err(syntax);
    }
    let (external, target, ordinal) = if ports.contains(ORDINAL) {
        let (port, target) = by_ordinal(&sides).map_err(syntax)?;
        (PortRange::single(port.base), target, Some(0))
    } else {
        let external = read_range(sides.external).map_err(syntax)?;
        let target = match sides.pod {
            None => external.first(),
            Some(text) => read_target(text, external).map_err(syntax)?,
        };
        (external, target, None)
    };
    Mapping::new(address, protocol, external, target)
        .map(|mapping| Item::Named { mapping, ordinal })
        .ok_or_else(|| syntax(entries::past_the_end(external, target)))
}

/// The sides of an item whose external port goes by the pod's ordinal.
fn by_ordinal(sides: &Sides<'_>) -> Result<(PortByOrdinal, Port), String> {
    let port: PortByOrdinal =
        sides.external.trim().parse().map_err(|error: PortByOrdinalError| error.to_string())?;
    let Some(pod) = sides.pod else {
        return Err(format!("leaves open which port of the pod is meant; write {port}:9000"));
    };
    let target = pod.trim().parse::<Port>().map_err(|_| {
        format!(
            "{:?} is not one port; behind {port} every pod has the same one, as in {port}:9000",
            pod.trim()
        )
    })?;
    Ok((port, target))
}

/// An item whose external port a pool finds.
fn automatic(word: Automatic, sides: &Sides<'_>, protocol: Protocol) -> Result<AutomaticPort, String> {
    let example = format!("{}:9000", word.name());
    if let Some(address) = sides.address {
        return Err(format!(
            "leaves the port to a pool and names the address {address}; leave the address to it too, or name the port"
        ));
    }
    let Some(pod) = sides.pod else {
        return Err(format!("leaves open which port of the pod is meant; write {example}"));
    };
    let target = pod.trim().parse::<Port>().map_err(|error| format!("{error}, as in {example}"))?;
    Ok(AutomaticPort::new(protocol, target).fixed(word.is_fixed()))
}

fn read_protocol(name: &str) -> Result<Protocol, String> {
    name.parse().map_err(|_| {
        let hint = suggest::nearest(name, Protocol::ALL.map(Protocol::name))
            .map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"));
        format!("{name:?} is not a protocol; write /tcp, /udp or /sctp{hint}")
    })
}

fn read_range(text: &str) -> Result<PortRange, String> {
    text.trim().parse::<PortRange>().map_err(|error| error.to_string())
}

/// The pod's side: its first port, or a range as long as the external one.
fn read_target(text: &str, external: PortRange) -> Result<Port, String> {
    let target = read_range(text)?;
    if target.is_single() || target.count() == external.count() {
        return Ok(target.first());
    }
    Err(format!(
        "{external} has {} ports and {target} has {}; both sides must be equally long, so write {external}:{}",
        external.count(),
        target.count(),
        target.first()
    ))
}

/// The parts between the colons.
struct Sides<'a> {
    address: Option<&'a str>,
    external: &'a str,
    pod: Option<&'a str>,
}

fn split(text: &str) -> Result<Sides<'_>, String> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, ports) = bracketed.split_once("]:").ok_or_else(|| {
            "has no ports after its address; write [2001:db8::1]:443 or [2001:db8::1]:443:8443".to_owned()
        })?;
        return match ports.split_once(':') {
            None => Ok(Sides { address: Some(address), external: ports, pod: None }),
            Some((external, pod)) => Ok(Sides { address: Some(address), external, pod: Some(pod) }),
        };
    }
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [external] => Ok(Sides { address: None, external, pod: None }),
        [address, external] if address.contains('.') => {
            Ok(Sides { address: Some(address), external, pod: None })
        }
        [external, pod] => Ok(Sides { address: None, external, pod: Some(pod) }),
        [address, external, pod] => Ok(Sides { address: Some(address), external, pod: Some(pod) }),
        _ => Err("has too many colons; put an IPv6 address in brackets, as in [2001:db8::1]:443".to_owned()),
    }
}
