//! Which network the cluster has, and whether its packets pass netfilter, where Pinhole's rules are.

use serde_json::Value;

use crate::cli::plugin::finding::Finding;
use crate::cli::plugin::finding::Verdict;
use crate::cli::plugin::installation::text;
use crate::cli::plugin::preflight::Ground;

const NETWORK: &str = "network";
const SERVICES: &str = "services";

/// DaemonSets by which a network is known, and what that means.
const KNOWN: [(&str, &str, Kind); 19] = [
    ("anetd", "GKE Dataplane V2", Kind::Bypasses),
    ("antrea-agent", "Antrea (Open vSwitch)", Kind::Bypasses),
    ("ovnkube-node", "OVN-Kubernetes", Kind::Bypasses),
    ("kube-ovn-cni", "Kube-OVN", Kind::Bypasses),
    ("calico-vpp-node", "Calico with VPP", Kind::Bypasses),
    ("sdn-ovs", "OpenShift SDN (Open vSwitch)", Kind::Bypasses),
    ("cilium", "Cilium", Kind::Cilium),
    ("calico-node", "Calico", Kind::Calico),
    ("canal", "Canal", Kind::Netfilter),
    ("kube-flannel-ds", "flannel", Kind::Netfilter),
    ("kube-flannel", "flannel", Kind::Netfilter),
    ("kindnet", "kindnet", Kind::Netfilter),
    ("kube-router", "kube-router", Kind::Netfilter),
    ("weave-net", "Weave Net", Kind::Netfilter),
    ("rke2-canal", "Canal", Kind::Netfilter),
    ("aws-node", "Amazon VPC CNI", Kind::LeavesElsewhere),
    ("azure-cns", "Azure CNI", Kind::Netfilter),
    ("netd", "GKE's VPC-native network", Kind::Untried),
    ("spiderpool-agent", "Spiderpool", Kind::Untried),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Netfilter,
    Bypasses,
    Cilium,
    Calico,
    LeavesElsewhere,
    Untried,
}

const INSTEAD: &str = "Pinhole cannot work here: use the network's own way to publish ports, or a network whose packets pass netfilter (flannel, Calico with iptables or nftables, Canal, kindnet, kube-router)";

pub(crate) fn findings(ground: &Ground) -> Vec<Finding> {
    let network = network(ground);
    let is_refused = network.iter().any(|finding| finding.verdict == Verdict::Problem);
    let mut findings = network;
    findings.extend(kube_proxy(ground, is_refused));
    findings
}

fn network(ground: &Ground) -> Vec<Finding> {
    let workloads = match &ground.workloads {
        Ok(workloads) => workloads,
        Err(reason) => {
            return vec![Finding::unchecked(
                NETWORK,
                format!("which network the cluster has is unknown: {reason}"),
                "get the right to list daemonsets in all namespaces",
            )];
        }
    };
    let mut findings = Vec::new();
    let mut by_themselves = Vec::new();
    for (daemon_set, name, kind) in KNOWN {
        let found = workloads.iter().find(|workload| text(workload, "/metadata/name") == daemon_set);
        if let Some(found) = found {
            by_themselves.extend(matches!(kind, Kind::Calico | Kind::Cilium).then_some(name));
            findings.push(match kind {
                Kind::Netfilter => Finding::fine(NETWORK, format!("{name}: packets to pods pass netfilter")),
                Kind::Bypasses => bypasses(name),
                Kind::Cilium => cilium(ground, found),
                Kind::Calico => calico(ground, found),
                Kind::LeavesElsewhere => Finding::problem(
                    NETWORK,
                    format!("{name}: a pod's answers leave by the network interface that its address belongs to, not by the one that the client came in by"),
                    INSTEAD,
                ),
                Kind::Untried => untried(name),
            });
        }
    }
    for name in by_themselves {
        findings.push(
            Finding::note(NETWORK, format!("{name} can give pods addresses that no Node's podCIDRs name")).advising(
                "set agent.clusterCIDRs to its networks of pods: until then private networks see mapped pods' own addresses",
            ),
        );
    }
    if findings.is_empty() {
        findings.push(embedded(ground).unwrap_or_else(|| {
            Finding::unchecked(
                NETWORK,
                "no known network was found among the DaemonSets",
                "make sure that packets to pods pass the nodes' netfilter (no eBPF, OVS or VPP datapath), then try one pod",
            )
        }));
    }
    findings
}

fn bypasses(name: &str) -> Finding {
    Finding::problem(
        NETWORK,
        format!("{name}: packets to pods bypass netfilter, so no rule of Pinhole would ever see them"),
        INSTEAD,
    )
}

fn untried(name: &str) -> Finding {
    Finding::unchecked(
        NETWORK,
        format!("{name}: Pinhole was not tried with it"),
        "publish one port, and try it with kubectl pinhole test",
    )
}

fn cilium(ground: &Ground, daemon_set: &Value) -> Finding {
    let config = match &ground.cilium {
        Ok(config) => config,
        Err(reason) => {
            return Finding::unchecked(
                NETWORK,
                format!(
                    "Cilium in {}: whether it replaces kube-proxy, and so bypasses netfilter, is unknown: {reason}",
                    text(daemon_set, "/metadata/namespace")
                ),
                "cilium config view | grep -E 'kube-proxy-replacement|enable-bpf-masquerade': both must be false",
            );
        }
    };
    let is_on = |key: &str| {
        let value = config.pointer("/data").and_then(|data| data.get(key)).and_then(Value::as_str);
        value.is_some_and(|value| !["false", "disabled", ""].contains(&value))
    };
    if is_on("kube-proxy-replacement") {
        bypasses("Cilium with kube-proxy replacement")
    } else if is_on("enable-bpf-masquerade") {
        bypasses("Cilium with eBPF masquerading")
    } else if is_on("enable-host-legacy-routing") {
        Finding::fine(
            NETWORK,
            "Cilium beside kube-proxy with the host's routing: packets to pods pass netfilter",
        )
    } else {
        Finding::problem(
            NETWORK,
            "Cilium beside kube-proxy: whether packets to pods pass netfilter is left to Cilium (enable-host-legacy-routing is not true)",
            "set bpf.hostLegacyRouting=true in Cilium's chart",
        )
    }
}

fn calico(ground: &Ground, daemon_set: &Value) -> Finding {
    let containers = daemon_set.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let variables =
        containers.into_iter().flatten().filter_map(|container| container.get("env")?.as_array()).flatten();
    let by_variable = variables
        .filter(|variable| text(variable, "/name") == "FELIX_BPFENABLED")
        .any(|variable| text(variable, "/value") == "true");
    let by_felix = ground
        .felix
        .as_ref()
        .is_ok_and(|felix| felix.pointer("/spec/bpfEnabled") == Some(&Value::Bool(true)));
    let dataplane = ground
        .tigera
        .as_ref()
        .map(|found| text(found, "/spec/calicoNetwork/linuxDataplane"))
        .unwrap_or_default();
    if by_variable || by_felix || dataplane == "BPF" {
        return bypasses("Calico with eBPF");
    }
    if dataplane == "Nftables" {
        return Finding::note(
            NETWORK,
            "Calico with nftables: packets to pods pass netfilter, and a table of Calico's own drops what no policy allows; the agents report that as ForwardBlocked",
        );
    }
    match &ground.felix {
        Ok(_) => Finding::fine(NETWORK, "Calico without eBPF: packets to pods pass netfilter"),
        Err(_) if !dataplane.is_empty() => {
            Finding::fine(NETWORK, format!("Calico ({dataplane}): packets to pods pass netfilter"))
        }
        Err(reason) => Finding::unchecked(
            NETWORK,
            format!("Calico: whether its eBPF datapath is on is unknown: {reason}"),
            "kubectl get felixconfigurations.crd.projectcalico.org default -o jsonpath={.spec.bpfEnabled} must not say true",
        ),
    }
}

/// Networks without a DaemonSet: k3s runs flannel inside of its own process.
fn embedded(ground: &Ground) -> Option<Finding> {
    let nodes = ground.nodes.as_ref().ok()?;
    let key = "/metadata/annotations/flannel.alpha.coreos.com~1backend-type";
    let has_flannel = nodes.iter().any(|node| node.pointer(key).is_some());
    has_flannel.then(|| Finding::fine(NETWORK, "flannel: packets to pods pass netfilter"))
}

fn kube_proxy(ground: &Ground, is_refused: bool) -> Vec<Finding> {
    let mode = match mode(ground) {
        Some(mode) => mode,
        None if is_refused => return Vec::new(),
        None => {
            let reason = match (&ground.kube_proxy, &ground.workloads) {
                (Err(reason), Err(_)) => format!(": {reason}"),
                _ => " was found".to_owned(),
            };
            return vec![Finding::unchecked(
                SERVICES,
                format!("no kube-proxy{reason}: who does Services, and whether past netfilter, is unknown"),
                "look for an eBPF replacement; with one, Pinhole does not work",
            )];
        }
    };
    let finding = match mode.as_str() {
        "iptables" | "nftables" => Finding::fine(SERVICES, format!("kube-proxy in {mode} mode")),
        "ipvs" => Finding::note(
            SERVICES,
            "kube-proxy in ipvs mode: addresses on kube-ipvs0 belong to Services and are never served by Pinhole",
        ),
        other => Finding::problem(
            SERVICES,
            format!("kube-proxy in {other} mode, which Pinhole does not know"),
            "use the mode iptables or nftables",
        ),
    };
    vec![finding]
}

/// kube-proxy's mode; iptables where it names none, as kube-proxy decides itself.
fn mode(ground: &Ground) -> Option<String> {
    let default = || Some("iptables".to_owned());
    if let Ok(config_map) = &ground.kube_proxy {
        let config = text(config_map, "/data/config.conf");
        let line = config.lines().find_map(|line| line.strip_prefix("mode:"));
        let mode = line.unwrap_or_default().trim().trim_matches('"').to_owned();
        return if mode.is_empty() { default() } else { Some(mode) };
    }
    let workloads = ground.workloads.as_ref().ok()?;
    if let Some(found) = workloads.iter().find(|workload| text(workload, "/metadata/name") == "kube-proxy") {
        let containers = found.pointer("/spec/template/spec/containers").and_then(Value::as_array);
        let words = containers.into_iter().flatten().flat_map(|container| {
            ["command", "args"].into_iter().filter_map(|field| container.get(field)?.as_array()).flatten()
        });
        let flag = words
            .filter_map(Value::as_str)
            .find_map(|word| word.split("--proxy-mode=").nth(1)?.split(' ').next());
        return flag.map(str::to_owned).or_else(default);
    }
    // k3s and rke2 run it inside of their own process.
    let nodes = ground.nodes.as_ref().ok()?;
    let is_embedded = |node: &Value| {
        let version = text(node, "/status/nodeInfo/kubeletVersion");
        version.contains("+k3s") || version.contains("+rke2")
    };
    if nodes.iter().any(is_embedded) { default() } else { None }
}
