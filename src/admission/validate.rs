//! One request alone, against what the operator allows: namespaces, restricted and protected ports, and pods that
//! NAT cannot serve.

use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::wanted::Located;
use crate::model::mapping::Address;

/// What the operator's policy has against these entries. `on_node` tells whether an entry's address is one of a
/// node's own.
pub(crate) fn violations(
    subject: &Subject<'_>,
    entries: &[Located],
    policy: &Policy,
    on_node: impl Fn(Address) -> bool,
) -> Vec<Violation> {
    let host_network = subject.spec.host_network.then(|| Violation {
        field: format!("{}spec.hostNetwork", subject.prefix),
        value: "true".to_owned(),
        problem: "the pod already listens on its node's own addresses, where NAT has nothing to forward to; remove the \
                  annotation, or set hostNetwork to false"
            .to_owned(),
        rule: Rule::HostNetwork,
    });
    let ports = entries.iter().filter_map(|entry| {
        restricted(entry, policy)
            .or_else(|| on_node(entry.mapping.address()).then(|| protected(entry, policy))?)
    });
    host_network.into_iter().chain(ports).collect()
}

fn restricted(entry: &Located, policy: &Policy) -> Option<Violation> {
    let mapping = &entry.mapping;
    let (port, item) = policy.restricted_ports.first_match(mapping.protocol(), mapping.external())?;
    let matched = if mapping.external().is_single() { String::new() } else { format!("port {port} ") };
    let by = if item.ports.is_single() { String::new() } else { format!(" as one of {item}") };
    Some(Violation {
        field: entry.port_field.clone(),
        value: mapping.to_string(),
        problem: format!(
            "{matched}is restricted in this cluster{by} (restricted: {}); choose another external port",
            policy.restricted_ports
        ),
        rule: Rule::Restricted,
    })
}

fn protected(entry: &Located, policy: &Policy) -> Option<Violation> {
    let mapping = &entry.mapping;
    let (port, item) = policy.protected_ports.first_match(mapping.protocol(), mapping.external())?;
    let matched = if mapping.external().is_single() { String::new() } else { format!("port {port} ") };
    Some(Violation {
        field: entry.port_field.clone(),
        value: mapping.to_string(),
        problem: format!(
            "{matched}is protected on every node's own address, because the node itself needs it ({item}); choose \
             another external port"
        ),
        rule: Rule::Protected,
    })
}

/// What the operator's policy has against the namespace.
pub(crate) fn namespace(namespace: &str, policy: &Policy) -> Violation {
    Violation {
        field: "metadata.namespace".to_owned(),
        value: namespace.to_owned(),
        problem: format!(
            "may not publish ports; allowed here: {}. Deploy into one of these, or ask the cluster's administrator \
             to allow {namespace}",
            policy.namespaces
        ),
        rule: Rule::Namespace,
    }
}
