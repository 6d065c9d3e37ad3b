//! The flags that say what is allowed: the same for the webhook, the agent's re-check and `pinhole check`.
//!
//! Lists are read strictly: one item that cannot be understood stops the program with the flag's name. The
//! predecessor went on with half a list.

use clap::Args;
use clap::ValueEnum;

use crate::admission::policy::DEFAULT_NODE_PORT_RANGE;
use crate::admission::policy::DEFAULT_PROTECTED_PORTS;
use crate::admission::policy::DEFAULT_RESTRICTED_PORTS;
use crate::admission::policy::NamespacePolicy;
use crate::admission::policy::Policy;
use crate::model::label_selector::LabelSelector;
use crate::model::port::PortRange;
use crate::model::port::PortRangeError;
use crate::model::port_set::PortSet;

/// A range of ports, or none: a value of its own, where clap would take an `Option` for a flag that may be left out.
type RangeOrNone = Option<PortRange>;

/// Programs whose annotations say something else than pinhole.dev/nat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compat {
    /// ACK's pod-dnat.
    Ack,
}

/// What is allowed.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What is allowed")]
pub struct PolicyFlags {
    /// One more annotation key to read as pinhole.dev/nat is read, for example bln.space/podnat. Repeatable;
    /// pinhole.dev/nat and pinhole.dev/expose are always read.
    #[arg(long, value_name = "KEY", value_delimiter = ',', value_parser = annotation_key,
          env = "PINHOLE_ANNOTATION_KEY")]
    annotation_key: Vec<String>,

    /// Read the annotations of another program, too: ack, the four k8s.aliyun.com/pod-dnat annotations of ACK.
    #[arg(long, value_name = "PROGRAM", value_delimiter = ',', env = "PINHOLE_COMPAT")]
    compat: Vec<Compat>,

    /// One more kind of workload whose pods keep their names when they are replaced, as a StatefulSet's do, so that their
    /// automatic ports can be fixed: GameServerSet, for example. Repeatable.
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind, env = "PINHOLE_STATEFUL_KIND")]
    stateful_kind: Vec<String>,

    /// External ports that nobody may have: ports, ranges and single protocols, as in `22,53/udp,9000-9100`.
    #[arg(long, value_name = "LIST", default_value = DEFAULT_RESTRICTED_PORTS, env = "PINHOLE_RESTRICTED_PORTS")]
    restricted_ports: PortSet,

    /// Ports that nobody may have on a node's own address, because the node itself needs them.
    #[arg(long, value_name = "LIST", default_value = DEFAULT_PROTECTED_PORTS, env = "PINHOLE_PROTECTED_PORTS")]
    protected_ports: PortSet,

    /// The ports that Services get as NodePorts, as the API servers' --service-node-port-range says; empty for none. Where pools
    /// grant ports, no other pod gets one of them on an address of a node, unless a range of the pool's ports lies inside of it.
    #[arg(long, value_name = "RANGE", default_value = DEFAULT_NODE_PORT_RANGE, value_parser = range_or_none,
          env = "PINHOLE_NODE_PORT_RANGE")]
    node_port_range: RangeOrNone,

    /// The namespaces that may publish ports, separated by commas. Default: all, unless a selector is given.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = namespace,
          env = "PINHOLE_ALLOWED_NAMESPACES")]
    allowed_namespaces: Vec<String>,

    /// Namespaces with these labels may publish ports too, as in `nat=allowed` or `team in (mail, games)`.
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true,
        env = "PINHOLE_ALLOWED_NAMESPACE_SELECTOR"
    )]
    allowed_namespace_selector: LabelSelector,
}

impl PolicyFlags {
    /// The policy that the flags describe.
    pub fn into_policy(self) -> Policy {
        let Self {
            annotation_key,
            compat,
            stateful_kind,
            restricted_ports,
            protected_ports,
            node_port_range,
            allowed_namespaces,
            allowed_namespace_selector,
        } = self;
        Policy {
            more_annotation_keys: annotation_key,
            reads_ack: compat.contains(&Compat::Ack),
            stateful_kinds: stateful_kind,
            restricted_ports,
            protected_ports,
            node_port_range,
            namespaces: NamespacePolicy {
                names: allowed_namespaces.into_iter().collect(),
                selector: allowed_namespace_selector,
            },
            ..Policy::default()
        }
    }
}

fn range_or_none(text: &str) -> Result<RangeOrNone, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    text.trim().parse().map(Some).map_err(|error: PortRangeError| error.to_string())
}

fn annotation_key(text: &str) -> Result<String, String> {
    let (prefix, name) = text.split_once('/').unwrap_or(("", text));
    let is_written_with = |part: &str, punctuation: &[u8]| {
        part.bytes().all(|byte| byte.is_ascii_alphanumeric() || punctuation.contains(&byte))
    };
    let is_key = (1..=63).contains(&name.len())
        && (prefix.is_empty() != text.contains('/'))
        && is_written_with(name, b"-_.")
        && is_written_with(prefix, b"-.");
    if is_key {
        Ok(text.to_owned())
    } else {
        Err("an annotation key is a name with an optional domain before it: write bln.space/podnat"
            .to_owned())
    }
}

fn kind(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_name = (1..=63).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_uppercase())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_name {
        Ok(text.to_owned())
    } else {
        Err("a kind is written as in a manifest: write GameServerSet".to_owned())
    }
}

fn namespace(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_name = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_name {
        Ok(text.to_owned())
    } else {
        Err("a namespace has lower-case letters, digits and hyphens: write mail,games".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    fn policy(arguments: &[&str]) -> Result<Policy, String> {
        testing::parse::<PolicyFlags>(arguments).map(PolicyFlags::into_policy)
    }

    #[test]
    fn without_flags_it_is_the_default_policy() {
        let policy = policy(&[]).unwrap();
        let default = Policy::default();
        assert_eq!(policy.restricted_ports, default.restricted_ports);
        assert_eq!(policy.protected_ports, default.protected_ports);
        assert_eq!(policy.node_port_range, default.node_port_range);
        assert_eq!(policy.namespaces, default.namespaces);
        assert!(policy.more_annotation_keys.is_empty() && !policy.reads_ack);
    }

    #[test]
    fn lists_may_be_repeated_separated_and_emptied() {
        let policy = policy(&[
            "--annotation-key",
            "bln.space/podnat",
            "--annotation-key=example.org/nat",
            "--restricted-ports=",
            "--node-port-range=",
            "--stateful-kind=GameServerSet, CloneSet",
            "--compat=ack",
            "--allowed-namespaces=mail, games",
            "--allowed-namespace-selector=team in (a, b)",
        ])
        .unwrap();
        assert_eq!(policy.more_annotation_keys, ["bln.space/podnat", "example.org/nat"]);
        assert_eq!(policy.stateful_kinds, ["GameServerSet", "CloneSet"]);
        assert!(policy.reads_ack);
        assert_eq!(policy.restricted_ports, PortSet::default());
        assert_eq!(policy.node_port_range, None);
        assert_eq!(policy.namespaces.to_string(), "games, mail, and namespaces labelled team in (a, b)");
    }

    #[test]
    fn r30_a_list_that_is_half_understood_stops_the_program_and_names_the_flag() {
        let cases = [
            ("--restricted-ports=22,,53", "item 2 of the list is empty"),
            ("--protected-ports=22,70000", "\"70000\" is not a port"),
            ("--node-port-range=30000-", "\"\" is not a port"),
            ("--node-port-range=32767-30000", "runs backwards; write \"30000-32767\""),
            ("--allowed-namespaces=mail,,games", "a namespace has"),
            ("--allowed-namespaces=Mail", "a namespace has"),
            ("--allowed-namespace-selector=a b", "is not a label requirement"),
            ("--stateful-kind=gameserversets", "a kind is written as in a manifest"),
            ("--compat=smartnat", "possible values: ack"),
            ("--annotation-key=/podnat", "an annotation key is"),
            ("--annotation-key=a b", "an annotation key is"),
        ];
        for (argument, expected) in cases {
            let error = policy(&[argument]).unwrap_err();
            let flag = argument.split('=').next().unwrap();
            assert!(error.contains(flag) && error.contains(expected), "{argument}: {error}");
        }
    }
}
