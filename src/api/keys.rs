//! The annotation keys and labels of Pinhole, and those of the tools that it replaces.

use crate::model::digest::fnv1a;

/// What every key of ours starts with.
pub const PREFIX: &str = "pinhole.dev/";

/// Input: the ports a pod asks for, as JSON (the predecessor's contract, extended).
pub const NAT: &str = "pinhole.dev/nat";

/// Input: the ports a pod asks for, in the short form of `docker run -p`.
pub const EXPOSE: &str = "pinhole.dev/expose";

/// Input: whether pods that want the same port of their node's own address are kept on different nodes.
pub const SPREAD: &str = "pinhole.dev/spread";

/// Input, on a holder's own object: who may take over the ports that it holds.
pub const TRANSFER_TO: &str = "pinhole.dev/transfer-to";

/// Input: the NatPool that finds automatic ports for a pod.
pub const POOL: &str = "pinhole.dev/pool";

/// Input: when ports pass from an older pod of the same holder to this one.
pub const HANDOVER: &str = "pinhole.dev/handover";

/// Input: what becomes of UDP flows of an older pod of the same holder when this one takes over.
pub const UDP_HANDOVER: &str = "pinhole.dev/udp-handover";

/// Input: whether further pods of a holder are meant to stand by behind its ports.
pub const SHARING: &str = "pinhole.dev/sharing";

/// Input: whether the pod's ports are closed without being given up.
pub const SUSPENDED: &str = "pinhole.dev/suspended";

/// The scheduling gate of a pod whose automatic ports have yet to be found.
pub const ENDPOINTS_GATE: &str = "pinhole.dev/endpoints";

/// Output: the request as it was understood, with every default written out. Never read back.
pub const EFFECTIVE: &str = "pinhole.dev/effective";

/// Output: the external addresses and ports that a pod was given. Never read back.
pub const ENDPOINTS: &str = "pinhole.dev/endpoints";

/// The readiness gate of a pod that is ready only when the kernel of its node answers for its ports: the type of its condition.
pub const PROGRAMMED_GATE: &str = "pinhole.dev/programmed";

/// Output: when a workload whose pods could not be made was last woken to try again. Never read back.
pub const WOKEN: &str = "pinhole.dev/woken";

/// Output: the label of every pod that asks for ports, for selectors. Never read back.
pub const ENABLED_LABEL: &str = "pinhole.dev/enabled";

/// Output: what the labels start with that tell which ports of its node a pod asks for, and whose they are there.
/// Never read back.
pub const PORT_LABEL_PREFIX: &str = "pinhole.dev/port-";

/// Output: what the label of each node starts with that serves a Pinhole; the node's agent selects by it.
pub const NODE_LABEL_PREFIX: &str = "node.pinhole.dev/";

/// The finalizer of a Pinhole that the controller wrote: it stays until no node has anything of it in its kernel.
pub const RELEASE_FINALIZER: &str = "pinhole.dev/release";

/// The label that the ReplicaSets of a Deployment and their pods have, whose value the ReplicaSet's name ends with.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// podnat-controller's annotation: the same JSON as [`NAT`], read where an operator adds the key by flag.
pub const PODNAT: &str = "bln.space/podnat";

/// ACK's pod-dnat: whether a pod asks for ports at all.
pub const ACK_ON: &str = "k8s.aliyun.com/pod-dnat";

/// ACK's pod-dnat: the pod's ports.
pub const ACK_PORTS: &str = "k8s.aliyun.com/pod-dnat-expose-port";

/// ACK's pod-dnat: the protocol of all of them.
pub const ACK_PROTOCOL: &str = "k8s.aliyun.com/pod-dnat-expose-protocol";

/// ACK's pod-dnat: whether the next pod of the same name has them again.
pub const ACK_FIXED: &str = "k8s.aliyun.com/pod-dnat-fixed";

/// The annotations of ACK's pod-dnat, read where an operator turns them on by flag.
pub const ACK: [&str; 4] = [ACK_ON, ACK_PORTS, ACK_PROTOCOL, ACK_FIXED];

/// The annotation that the kubelet puts on the API server's copy of a static pod.
pub const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// The label that names a node in selectors.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// The annotation keys with a prefix of ours that mean something.
pub const OURS: [&str; 11] = [
    NAT,
    EXPOSE,
    SPREAD,
    POOL,
    HANDOVER,
    UDP_HANDOVER,
    SHARING,
    SUSPENDED,
    TRANSFER_TO,
    EFFECTIVE,
    ENDPOINTS,
];

/// The longest name of a label, without its prefix.
const LONGEST_LABEL: usize = 63;

/// The label, of everybody's, that tells who looks after an object, and what it says on what our controller wrote.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "pinhole-controller");

/// The label of a Pinhole that the node of this name serves.
pub fn node_label(node_name: &str) -> String {
    if node_name.len() <= LONGEST_LABEL {
        return format!("{NODE_LABEL_PREFIX}{node_name}");
    }
    let digest = format!("{:016x}", fnv1a(node_name.as_bytes()));
    let kept: String = node_name.chars().take(LONGEST_LABEL - 1 - digest.len()).collect();
    format!("{NODE_LABEL_PREFIX}{kept}-{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_any_name_has_a_label_of_its_own() {
        assert_eq!(node_label("worker-1.example.com"), "node.pinhole.dev/worker-1.example.com");
        let long = |last: &str| node_label(&format!("{}{last}", "n".repeat(252)));
        assert_ne!(long("a"), long("b"));
        assert_eq!(long("a").len(), NODE_LABEL_PREFIX.len() + 63);
    }
}
