//! What the operator allows: the settings that every decision reads.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;

use crate::admission::ack;
use crate::api::keys;
use crate::api::object::Kind;
use crate::model::label_selector::LabelSelector;
use crate::model::port::PortRange;
use crate::model::port_set::PortSet;

/// The ports that nobody may publish unless the operator says otherwise, as in the predecessor.
pub const DEFAULT_RESTRICTED_PORTS: &str = "22,53,6443";

/// The ports that a node needs to live: etcd, kubelet and the control plane, VXLAN, WireGuard, and our own.
pub const DEFAULT_PROTECTED_PORTS: &str =
    "2379-2380/tcp,10248-10260/tcp,8472/udp,4789/udp,51820-51821/udp,8484-8486/tcp";

/// The ports that API servers give to Services as NodePorts unless they are told otherwise (`--service-node-port-range`).
pub const DEFAULT_NODE_PORT_RANGE: &str = "30000-32767";

/// The operator's settings.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Annotation keys that hold the JSON form beside `pinhole.dev/nat`.
    pub more_annotation_keys: Vec<String>,
    /// Whether the four annotations of ACK's pod-dnat are read, too.
    pub reads_ack: bool,
    /// Kinds of workload beside StatefulSet whose pods keep their names when they are replaced.
    pub stateful_kinds: Vec<String>,
    /// External ports that nobody may have.
    pub restricted_ports: PortSet,
    /// External ports of a node's own address that nobody may have.
    pub protected_ports: PortSet,
    /// The ports that any Service may get as its NodePort. Where pools grant ports, they are kept for that on addresses of nodes.
    pub node_port_range: Option<PortRange>,
    /// The namespaces that may publish ports.
    pub namespaces: NamespacePolicy,
    /// Whether a refusal may name a holder in another namespace.
    pub disclose_holder: bool,
    /// Whether ports can be left to a pool to find: where claims are on, or where nobody knows whether they are.
    pub finds_ports: bool,
}

impl Default for Policy {
    fn default() -> Self {
        let ports = |list: &str| list.parse().unwrap_or_default();
        Self {
            more_annotation_keys: Vec::new(),
            reads_ack: false,
            stateful_kinds: Vec::new(),
            restricted_ports: ports(DEFAULT_RESTRICTED_PORTS),
            protected_ports: ports(DEFAULT_PROTECTED_PORTS),
            node_port_range: DEFAULT_NODE_PORT_RANGE.parse().ok(),
            namespaces: NamespacePolicy::default(),
            disclose_holder: true,
            finds_ports: true,
        }
    }
}

impl Policy {
    /// The keys of which each holds a request by itself: the JSON form, and the short one.
    fn whole_keys(&self) -> impl Iterator<Item = &str> {
        let json = std::iter::once(keys::NAT).chain(self.more_annotation_keys.iter().map(String::as_str));
        json.chain(std::iter::once(keys::EXPOSE))
    }

    /// Every key that a user asks with.
    pub fn input_keys(&self) -> impl Iterator<Item = &str> {
        self.whole_keys().chain(self.ack_keys())
    }

    /// The keys of others that are read here.
    pub fn foreign_keys(&self) -> impl Iterator<Item = &str> {
        self.more_annotation_keys.iter().map(String::as_str).chain(self.ack_keys())
    }

    fn ack_keys(&self) -> impl Iterator<Item = &str> {
        keys::ACK.into_iter().filter(|_| self.reads_ack)
    }

    /// The keys that ask among these annotations: one for each request.
    pub fn asking_keys<'a>(
        &'a self,
        annotations: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a str> {
        let ack = (self.reads_ack && ack::is_on(annotations)).then_some(keys::ACK_ON);
        self.whole_keys().filter(|key| annotations.contains_key(*key)).chain(ack)
    }

    /// The keys of which a change is a new request.
    pub fn request_keys(&self) -> impl Iterator<Item = &str> {
        self.input_keys().chain([keys::HANDOVER, keys::UDP_HANDOVER, keys::SHARING])
    }

    /// Whether pods of this kind of workload keep their names when they are replaced.
    pub fn is_stateful(&self, kind: &str) -> bool {
        kind == Kind::StatefulSet.name() || self.stateful_kinds.iter().any(|known| known == kind)
    }

    /// Whether these annotations ask for ports.
    pub fn asks(&self, annotations: &BTreeMap<String, String>) -> bool {
        self.asking_keys(annotations).next().is_some()
    }
}

/// Which namespaces may publish ports: the named and the selected ones, or all when neither is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespacePolicy {
    /// By name.
    pub names: BTreeSet<String>,
    /// By label.
    pub selector: LabelSelector,
}

impl NamespacePolicy {
    /// Whether a namespace with these labels may publish ports.
    pub fn allows(&self, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.allows_all()
            || self.names.contains(namespace)
            || labels.is_some_and(|labels| self.selector.selects(labels))
    }

    /// Whether every namespace may.
    pub fn allows_all(&self) -> bool {
        self.names.is_empty() && self.selector.is_empty()
    }
}

impl fmt::Display for NamespacePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match (self.names.is_empty(), self.selector.is_empty()) {
            (true, true) => f.write_str("every namespace"),
            (false, true) => f.write_str(&names),
            (true, false) => write!(f, "namespaces labelled {}", self.selector),
            (false, false) => write!(f, "{names}, and namespaces labelled {}", self.selector),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_lists_are_what_they_say() {
        let policy = Policy::default();
        assert_eq!(policy.restricted_ports.to_string(), "22, 53, 6443");
        assert!(policy.protected_ports.to_string().starts_with("2379-2380/tcp, 10248-10260/tcp"));
        assert_eq!(policy.node_port_range.unwrap().to_string(), DEFAULT_NODE_PORT_RANGE);
    }

    #[test]
    fn a_namespace_is_allowed_by_name_or_by_label_or_when_nothing_is_set() {
        let labels = BTreeMap::from([("nat".to_owned(), "yes".to_owned())]);
        assert!(NamespacePolicy::default().allows("any", None));
        let policy =
            NamespacePolicy { names: ["mail".to_owned()].into(), selector: "nat=yes".parse().unwrap() };
        assert!(policy.allows("mail", None));
        assert!(policy.allows("games", Some(&labels)));
        assert!(!policy.allows("games", None));
        assert_eq!(policy.to_string(), "mail, and namespaces labelled nat=yes");
    }
}
