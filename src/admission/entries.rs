//! The JSON form: `{"entries":[{"srcPort":25,"dstPort":25,"proto":"tcp"}]}`.
//!
//! The JSON Schema decides on structure and this module words each finding; what a schema cannot say (addresses,
//! ranges, contradictions inside an entry) is judged here, entry by entry.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::LazyLock;

use ipnet::IpNet;
use jsonschema::ValidationError;
use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use serde_json::Value;

use crate::admission::json;
use crate::admission::suggest;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;
use crate::admission::wanted::Located;
use crate::admission::wanted::LocatedPort;
use crate::admission::wanted::Wanted;
use crate::api::annotation;
use crate::api::annotation::Automatic;
use crate::api::annotation::NatEntry;
use crate::api::annotation::SourcePort;
use crate::model::address::ExternalAddress;
use crate::model::address::Family;
use crate::model::automatic::AutomaticPort;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::ordinals::ORDINAL;
use crate::model::ordinals::PortByOrdinal;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

const EXAMPLE: &str = r#"{"entries":[{"srcPort":8080,"dstPort":80}]}"#;

#[expect(clippy::expect_used, reason = "the schema derives from our types and a test compiles it")]
static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    jsonschema::validator_for(&annotation::schema()).expect("our own schema is a JSON Schema")
});

/// Reads the annotation's text; `path` is the annotation's own.
pub(crate) fn read(text: &str, path: &str) -> Wanted {
    let document = match json::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let violation = Violation {
                field: path.to_owned(),
                value: shown(text),
                problem: not_json(text, &error),
                rule: Rule::Syntax,
            };
            return Wanted { violations: vec![violation], ..Wanted::default() };
        }
    };
    let mut violations: Vec<_> = document
        .repeated
        .iter()
        .map(|repeated| Violation {
            field: format!("{path}{repeated}"),
            value: String::new(),
            problem: "is given more than once in the same object; keep one".to_owned(),
            rule: Rule::Syntax,
        })
        .collect();
    let mut broken_entries: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for error in VALIDATOR.iter_errors(&document.value) {
        let place = Place::of(&error);
        if let Some(position) = place.entry {
            broken_entries.entry(position).or_default().extend(place.key.clone());
        }
        violations.extend(structural(&error, &place, &format!("{path}{}", place.path)));
    }
    let items = document.value.get("entries").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut entries = Vec::new();
    let mut automatic = Vec::new();
    for (position, item) in items.iter().enumerate() {
        let path = format!("{path}.entries[{position}]");
        if let Some(broken) = broken_entries.get(&position) {
            let rest = rest(item, broken).map(|rest| judge(&rest, &path));
            violations.extend(rest.and_then(Result::err).unwrap_or_default());
            continue;
        }
        match serde_json::from_value::<NatEntry>(item.clone()) {
            Ok(entry) => match judge(&entry, &path) {
                Ok(Judged::Named(located)) => entries.push(located),
                Ok(Judged::Automatic(located)) => automatic.push(located),
                Err(found) => violations.extend(found),
            },
            Err(error) => violations.push(Violation {
                field: path,
                value: shown(&item.to_string()),
                problem: format!("cannot be read ({error}); write it as in {EXAMPLE}"),
                rule: Rule::Syntax,
            }),
        }
    }
    Wanted { entries, automatic, violations }
}

fn not_json(text: &str, error: &serde_json::Error) -> String {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return format!("is empty; write JSON such as {EXAMPLE}, or remove the annotation");
    }
    if trimmed.starts_with(|first: char| first.is_ascii_digit()) {
        return format!("is not JSON; write it as {EXAMPLE}, or use pinhole.dev/expose for the short form");
    }
    format!("is not JSON ({error}); write it as {EXAMPLE}")
}

/// Where in the annotation the schema found something.
struct Place {
    /// As in `.entries[1].srcPort`.
    path: String,
    /// The entry that it concerns, if it is inside one.
    entry: Option<usize>,
    /// The key of that entry, if it is about one.
    key: Option<String>,
}

impl Place {
    fn of(error: &ValidationError<'_>) -> Self {
        let pointer = error.instance_path().as_str();
        let mut path = String::new();
        let mut entry = None;
        let mut key = None;
        for token in pointer.split('/').skip(1) {
            if let Ok(index) = token.parse::<usize>() {
                entry.get_or_insert(index);
                path = format!("{path}[{index}]");
                continue;
            }
            let name = token.replace("~1", "/").replace("~0", "~");
            path = format!("{path}.{name}");
            if entry.is_some() {
                key.get_or_insert(name);
            }
        }
        Self { path, entry, key }
    }
}

/// Words one finding of the schema; one for each unknown key where it found several.
fn structural(error: &ValidationError<'_>, place: &Place, field: &str) -> Vec<Violation> {
    let value = error.instance();
    let violation = |field: String, value: String, problem: String| Violation {
        field,
        value,
        problem,
        rule: Rule::Syntax,
    };
    if let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
        let known: &[&str] = if place.entry.is_some() { &annotation::ENTRY_KEYS } else { &["entries"] };
        return unexpected
            .iter()
            .map(|key| {
                let hint = match suggest::nearest(key, known.iter().copied()) {
                    Some(nearest) => format!("did you mean {nearest:?}?"),
                    None => format!("the keys are {}", known.join(", ")),
                };
                violation(
                    format!("{field}.{}", shown(key)),
                    String::new(),
                    format!("is not a key of this object; {hint}"),
                )
            })
            .collect();
    }
    let (field, problem) = match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            let problem = if name == "entries" {
                format!("is missing; write {EXAMPLE}")
            } else {
                "is missing; every entry needs srcPort (outside) and dstPort (the pod's)".to_owned()
            };
            return vec![violation(format!("{field}.{name}"), String::new(), problem)];
        }
        kind => (field.to_owned(), structural_problem(kind, value, field)),
    };
    vec![violation(field, shown(&value.to_string()), problem)]
}

fn structural_problem(kind: &ValidationErrorKind, value: &Value, field: &str) -> String {
    let name = field.rsplit('.').next().unwrap_or_default();
    match kind {
        ValidationErrorKind::Type { .. } => wrong_type(name, value),
        ValidationErrorKind::Minimum { .. } | ValidationErrorKind::Maximum { .. } => {
            "is not a port; ports are 1 to 65535".to_owned()
        }
        ValidationErrorKind::MinItems { .. } if name == "allowedSources" => {
            "would let nobody connect; list networks such as \"192.0.2.0/24\", or leave the key out for everybody".to_owned()
        }
        ValidationErrorKind::MinItems { .. } => {
            format!("asks for nothing; add an entry as in {EXAMPLE}, or remove the annotation")
        }
        ValidationErrorKind::MaxItems { limit } => format!("has too many items; {limit} is the most, so split the pod's ports"),
        ValidationErrorKind::Pattern { .. } if name == "srcPort" => wrong_type(name, value),
        ValidationErrorKind::Pattern { .. } => {
            let hint = value
                .as_str()
                .and_then(|text| suggest::nearest(text, Protocol::ALL.map(Protocol::name)))
                .map_or_else(String::new, |nearest| format!("; did you mean {nearest:?}?"));
            format!("is not a protocol; write tcp, udp or sctp{hint}")
        }
        other => format!("does not fit the annotation's schema ({}); write it as in {EXAMPLE}", other.keyword()),
    }
}

fn wrong_type(name: &str, value: &Value) -> String {
    if value.is_null() {
        return "is null; give a value, or leave the key out".to_owned();
    }
    match name {
        "srcPort" | "srcPortEnd" | "dstPort" => match value.as_str().map(str::trim).map(str::parse::<Port>) {
            Some(Ok(port)) => format!("is text; write the number without quotes: {port}"),
            _ if name == "srcPort" => match value.as_str().filter(|text| text.contains(ORDINAL)) {
                Some(_) => {
                    "is not a port by ordinal; write a number from 1 to 65535 and the ordinal after it, as in \"30000+{ordinal}\""
                        .to_owned()
                }
                None => {
                    "is not a port; write a whole number from 1 to 65535, or \"auto\" or \"fixed\" for one that a pool finds"
                        .to_owned()
                }
            },
            _ => "is not a port; write a whole number from 1 to 65535".to_owned(),
        },
        "ifaceAuto" | "terminateExisting" => {
            "is neither true nor false; write one of them without quotes".to_owned()
        }
        "srcIP" => "is not text; write the address in quotes, as in \"203.0.113.7\"".to_owned(),
        "proto" => "is not text; write \"tcp\", \"udp\" or \"sctp\"".to_owned(),
        "allowedSources" => "is not a list; write [\"192.0.2.0/24\"]".to_owned(),
        name if name.starts_with("allowedSources[") => {
            "is not text; write the network in quotes, as in \"192.0.2.0/24\"".to_owned()
        }
        "entries" => format!("is not a list; write {EXAMPLE}"),
        name if name.starts_with("entries[") => format!("is not an object; write it as in {EXAMPLE}"),
        _ => format!("is not an object; write {EXAMPLE}"),
    }
}

/// What can be judged of an entry in spite of its broken keys, so that a user hears of everything at once. Keys that
/// are needed and cannot be read get a value that nobody has anything against.
fn rest(item: &Value, broken: &BTreeSet<String>) -> Option<NatEntry> {
    let mut keys = item.as_object()?.clone();
    let has_unknown = keys.keys().any(|key| !annotation::ENTRY_KEYS.contains(&key.as_str()));
    keys.retain(|key, _| annotation::ENTRY_KEYS.contains(&key.as_str()) && !broken.contains(key));
    if !keys.contains_key("srcIP") && (has_unknown || broken.contains("srcIP")) {
        // Whether an address is missing shows once the one that was meant can be read.
        keys.remove("ifaceAuto");
    }
    if !keys.contains_key("srcPort") {
        keys.remove("srcPortEnd");
        keys.insert("srcPort".to_owned(), Value::from(1));
    }
    keys.entry("dstPort").or_insert(Value::from(1));
    serde_json::from_value(Value::Object(keys)).ok()
}

/// What an entry asks for.
enum Judged {
    Named(Located),
    Automatic(LocatedPort),
}

/// Judges one well-formed entry alone.
fn judge(entry: &NatEntry, path: &str) -> Result<Judged, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut refuse = |key: &str, value: String, problem: String, rule: Rule| {
        violations.push(Violation { field: format!("{path}.{key}"), value, problem, rule });
    };
    let address =
        address(entry).map_err(|(key, value, problem)| refuse(key, value, problem, Rule::Address)).ok();
    let ports = ports(entry).map_err(|(key, value, problem)| refuse(key, value, problem, Rule::Syntax)).ok();
    let family = match address {
        Some(Address::Fixed(address)) => Some(address.family()),
        _ => None,
    };
    let mut sources = Vec::new();
    for (position, text) in entry.allowed_sources.iter().flatten().enumerate() {
        match source(text, family) {
            Ok(network) => sources.push(network),
            Err(problem) => {
                refuse(&format!("allowedSources[{position}]"), shown(text), problem, Rule::Address);
            }
        }
    }
    let protocol = entry.proto.as_deref().map_or(Ok(Protocol::Tcp), str::parse).ok();
    let (Some(address), Some(ports), Some(protocol), true) =
        (address, ports, protocol, violations.is_empty())
    else {
        return Err(violations);
    };
    let terminates = entry.terminate_existing.unwrap_or_default();
    let (external, target, ordinal) = match ports {
        Ports::Named(external, target) => (external, target, None),
        Ports::ByOrdinal(port, target) => (PortRange::single(port.base), target, Some(0)),
        Ports::Automatic(word, target) => {
            let port = AutomaticPort::new(protocol, target)
                .with_allowed_sources(sources)
                .terminating_existing(terminates)
                .fixed(word.is_fixed());
            return Ok(Judged::Automatic(LocatedPort { port, field: format!("{path}.srcPort") }));
        }
    };
    match Mapping::new(address, protocol, external, target) {
        Some(mapping) => {
            let address_key = if entry.src_ip.is_some() { "srcIP" } else { "ifaceAuto" };
            Ok(Judged::Named(Located {
                mapping: mapping.with_allowed_sources(sources).terminating_existing(terminates),
                port_field: format!("{path}.srcPort"),
                address_field: format!("{path}.{address_key}"),
                ordinal,
            }))
        }
        None => Err(violations),
    }
}

/// The key, the value and the problem of a field.
type Problem = (&'static str, String, String);

fn address(entry: &NatEntry) -> Result<Address, Problem> {
    // Programs that marshal an empty field write `"srcIP":""`, and the predecessor took that for none.
    let given = entry.src_ip.as_deref().map(str::trim).filter(|text| !text.is_empty());
    if let SourcePort::Word(word) = entry.src_port {
        let contradicts =
            |rest: &str| format!("contradicts srcPort {:?}, {rest}, or name the port", word.name());
        return match (entry.iface_auto, given) {
            (Some(true), _) => {
                let problem = contradicts("whose address is one of a pool's; remove ifaceAuto");
                Err(("ifaceAuto", "true".to_owned(), problem))
            }
            (_, Some(text)) => {
                let problem = contradicts("whose address a pool chooses; remove srcIP");
                Err(("srcIP", shown(text), problem))
            }
            // What address it is does not matter: a pool chooses it.
            (Some(false) | None, None) => Ok(Address::Node),
        };
    }
    match (entry.iface_auto, given) {
        (Some(false), None) => {
            let problem = "leaves the entry without an address; give srcIP, or set ifaceAuto to true for the node's own";
            Err(("ifaceAuto", "false".to_owned(), problem.to_owned()))
        }
        (Some(true), Some(_)) => {
            let problem =
                "contradicts srcIP; remove srcIP to use the node's own address, or ifaceAuto to use srcIP";
            Err(("ifaceAuto", "true".to_owned(), problem.to_owned()))
        }
        (_, None) => Ok(Address::Node),
        (_, Some(text)) => {
            external_address(text).map(Address::Fixed).map_err(|problem| ("srcIP", shown(text), problem))
        }
    }
}

/// Reads an external address, or says what is wrong with it.
pub(crate) fn external_address(text: &str) -> Result<ExternalAddress, String> {
    let address = IpAddr::from_str(text).map_err(|_| {
        let hint = if text.contains('/') { "leave out the prefix length" } else { "names are not looked up" };
        format!("is not an IP address; write one such as 203.0.113.7 or 2001:db8::7 ({hint})")
    })?;
    ExternalAddress::new(address).map_err(|error| error.to_string())
}

/// The ports of an entry.
enum Ports {
    Named(PortRange, Port),
    Automatic(Automatic, Port),
    ByOrdinal(PortByOrdinal, Port),
}

fn ports(entry: &NatEntry) -> Result<Ports, Problem> {
    let port = |key, number: u16| {
        Port::new(number)
            .ok_or_else(|| (key, number.to_string(), "is not a port; ports are 1 to 65535".to_owned()))
    };
    let target = port("dstPort", entry.dst_port)?;
    let number = match (entry.src_port, entry.src_port_end) {
        (SourcePort::Number(number), _) => number,
        (SourcePort::Word(word), None) => return Ok(Ports::Automatic(word, target)),
        (SourcePort::ByOrdinal(port), None) => return Ok(Ports::ByOrdinal(port, target)),
        (SourcePort::ByOrdinal(port), Some(last)) => {
            let problem = format!(
                "goes with a number in srcPort; by {port} each pod has one port, so write one entry for each"
            );
            return Err(("srcPortEnd", last.to_string(), problem));
        }
        (SourcePort::Word(_), Some(last)) => {
            let problem =
                "goes with a number in srcPort; write one entry for each port that a pool is to find";
            return Err(("srcPortEnd", last.to_string(), problem.to_owned()));
        }
    };
    let first = port("srcPort", number)?;
    let last = port("srcPortEnd", entry.src_port_end.unwrap_or(number))?;
    let external = PortRange::new(first, last).ok_or_else(|| {
        ("srcPortEnd", last.to_string(), format!("lies below srcPort {first}; swap the two"))
    })?;
    if target.checked_add(external.span()).is_none() {
        return Err(("dstPort", target.to_string(), past_the_end(external, target)));
    }
    Ok(Ports::Named(external, target))
}

/// Says that a range does not fit at the pod's side.
pub(crate) fn past_the_end(external: PortRange, target: Port) -> String {
    let highest = u32::from(Port::MAX.get()) - u32::from(external.span());
    format!(
        "the {} ports of {external} would pass 65535 at the pod from {target} on; {highest} is the highest first port",
        external.count()
    )
}

/// Reads a network that may connect, or says what is wrong with it.
pub(crate) fn source(text: &str, address_family: Option<Family>) -> Result<IpNet, String> {
    let network = IpNet::from_str(text.trim()).map_err(|_| match IpAddr::from_str(text.trim()) {
        Ok(host) => format!("is one address, not a network; write {}", IpNet::from(host)),
        Err(_) => "is not a network; write one such as 192.0.2.0/24 or 2001:db8::/32".to_owned(),
    })?;
    if network.trunc() != network {
        return Err(format!("has bits beyond its prefix length; did you mean {}?", network.trunc()));
    }
    match address_family {
        Some(family) if family != Family::of(network.addr()) => {
            Err(format!("is of the other family than srcIP; list {family} networks here"))
        }
        _ => Ok(network),
    }
}
