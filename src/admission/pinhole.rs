//! What a Pinhole that a user wrote asks for: the same mappings that an annotation asks for, read from its `spec`.
//!
//! The API server has checked the object's shape by then; `pinhole check` has not, so that nothing is taken for granted. A
//! port that is left to be found is refused: nothing finds one for a Pinhole yet.

use std::fmt::Display;

use ipnet::IpNet;

use crate::admission::entries;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;
use crate::admission::wanted::Located;
use crate::admission::wanted::Wanted;
use crate::api::crd::pinhole::PinholePort;
use crate::api::crd::pinhole::PinholeSpec;
use crate::api::crd::pinhole::TargetPort;
use crate::model::address::ExternalAddress;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::Port;
use crate::model::port::PortRange;

/// A mapping that a Pinhole asks for, and which of its ports it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// What is asked for. Where the target's port has a name, the port of the target stands for one that is not known yet.
    pub located: Located,
    /// The position in `spec.ports`.
    pub port: usize,
}

/// Whether two versions of a spec ask for the same: to suspend a Pinhole, or to end that, is nobody else's business.
pub(crate) fn asks_the_same(one: &PinholeSpec, other: &PinholeSpec) -> bool {
    let request = |spec: &PinholeSpec| PinholeSpec { suspended: false, ..spec.clone() };
    request(one) == request(other)
}

/// Reads what a Pinhole asks for.
pub(crate) fn read(spec: &PinholeSpec) -> Wanted {
    let (forwards, violations) = forwards(spec);
    let entries = forwards.into_iter().map(|forward| forward.located).collect();
    Wanted { entries, automatic: Vec::new(), violations }
}

/// What a Pinhole asks for, port by port, and what is wrong with the rest.
pub fn forwards(spec: &PinholeSpec) -> (Vec<Forward>, Vec<Violation>) {
    let mut reader = Reader { violations: Vec::new() };
    let addresses: Vec<_> = spec
        .addresses
        .iter()
        .enumerate()
        .filter_map(|(position, text)| reader.address(text, format!("spec.addresses[{position}]")))
        .collect();
    if spec.addresses.is_empty() && spec.ports.iter().any(|port| port.address.is_none()) {
        let problem = "is needed for ports without an address of their own; name an address of a NatPool that this \
                       namespace may use";
        reader.refuse("spec.addresses", "", problem, Rule::Address);
    }
    let sources = reader.sources(&spec.allowed_sources, "spec");
    let mut forwards = Vec::new();
    for (position, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{position}]");
        let own = port.address.as_ref().map(|text| reader.address(text, format!("{path}.address")));
        let own_sources = reader.sources(&port.allowed_sources, &path);
        let Some((external, target)) = reader.ports(spec, port, &path) else { continue };
        let addresses = own.map_or_else(|| addresses.clone(), |own| own.into_iter().collect());
        let sources = if own_sources.is_empty() { &sources } else { &own_sources };
        for (address, address_field) in addresses {
            let mapping = Mapping::new(Address::Fixed(address), port.protocol.into(), external, target);
            forwards.extend(mapping.map(|mapping| {
                Forward {
                    located: Located {
                        mapping: mapping
                            .with_allowed_sources(sources.clone())
                            .terminating_existing(port.terminate_existing),
                        port_field: format!("{path}.port"),
                        address_field,
                        ordinal: None,
                    },
                    port: position,
                }
            }));
        }
    }
    (forwards, reader.violations)
}

struct Reader {
    violations: Vec<Violation>,
}

impl Reader {
    fn refuse(&mut self, field: impl Display, value: &str, problem: impl Into<String>, rule: Rule) {
        self.violations.push(Violation {
            field: field.to_string(),
            value: value.to_owned(),
            problem: problem.into(),
            rule,
        });
    }

    fn address(&mut self, text: &str, field: String) -> Option<(ExternalAddress, String)> {
        match entries::external_address(text) {
            Ok(address) => Some((address, field)),
            Err(problem) => {
                self.refuse(field, &shown(text), problem, Rule::Address);
                None
            }
        }
    }

    /// The networks that can be read. One object can have addresses of both families, and so can its sources.
    fn sources(&mut self, texts: &[String], path: &str) -> Vec<IpNet> {
        let mut sources = Vec::new();
        for (position, text) in texts.iter().enumerate() {
            match entries::source(text, None) {
                Ok(network) => sources.push(network),
                Err(problem) => {
                    let field = format!("{path}.allowedSources[{position}]");
                    self.refuse(field, &shown(text), problem, Rule::Address);
                }
            }
        }
        sources
    }

    /// The external ports, and the first port behind them.
    fn ports(&mut self, spec: &PinholeSpec, port: &PinholePort, path: &str) -> Option<(PortRange, Port)> {
        let Some(first) = port.port else {
            let problem = "is needed; a port is not found for a Pinhole yet, so name one of the pool's";
            self.refuse(format!("{path}.port"), "", problem, Rule::Syntax);
            return None;
        };
        let last = port.port_end.unwrap_or(first);
        let Some(external) =
            Port::new(first).zip(Port::new(last)).and_then(|(first, last)| PortRange::new(first, last))
        else {
            let problem = "are no ports; ports are 1 to 65535, and portEnd does not lie below port";
            self.refuse(format!("{path}.port"), &format!("{first}-{last}"), problem, Rule::Syntax);
            return None;
        };
        let target = match &port.target_port {
            None => Some(external.first()),
            Some(TargetPort::Number(number)) => Port::new(*number),
            Some(TargetPort::Name(_)) if spec.target.service.is_some() && external.is_single() => {
                Some(external.first())
            }
            Some(TargetPort::Name(name)) => {
                let problem = if external.is_single() {
                    "is a name, which only a Service's port can be found by; write the number of the pods' port"
                } else {
                    "is a name, and a range leads to ports by number; write the first of them"
                };
                self.refuse(format!("{path}.targetPort"), &shown(name), problem, Rule::Syntax);
                return None;
            }
        };
        let Some(target) = target else {
            let problem = "is not a port; ports are 1 to 65535";
            self.refuse(format!("{path}.targetPort"), "0", problem, Rule::Syntax);
            return None;
        };
        if target.checked_add(external.span()).is_none() {
            let problem = entries::past_the_end(external, target);
            self.refuse(format!("{path}.targetPort"), &target.to_string(), problem, Rule::Syntax);
            return None;
        }
        Some((external, target))
    }
}

#[cfg(test)]
mod tests;
