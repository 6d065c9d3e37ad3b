//! Clusters as the API server shows them, and what is said of each.

use serde_json::json;

use super::*;
use crate::cli::plugin::finding;
use crate::cli::plugin::finding::Verdict;
use crate::cli::plugin::finding::problems;
use crate::cli::plugin::testing::golden;
use crate::cli::terminal::Palette;

#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
fn daemon_set(name: &str, container: Value) -> Value {
    json!({
        "metadata": {"namespace": "kube-system", "name": name},
        "spec": {"template": {"spec": {"containers": [container]}}},
        "status": {"desiredNumberScheduled": 2},
    })
}

fn node(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "nodeInfo": {"operatingSystem": "linux", "kubeletVersion": "v1.36.0"},
        },
    })
}

#[expect(clippy::unnecessary_wraps, reason = "as it is observed")]
fn kube_proxy(mode: &str) -> Result<Value, String> {
    Ok(json!({"data": {"config.conf": format!("kind: KubeProxyConfiguration\nmode: \"{mode}\"\n")}}))
}

fn absent() -> Result<Value, String> {
    Err("there is none".to_owned())
}

/// kubeadm's cluster with flannel, and changes to it.
fn ground(workloads: Vec<Value>) -> Ground {
    Ground {
        version: Ok(json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"})),
        nodes: Ok(vec![node("node-1", "203.0.113.7"), node("node-2", "10.0.0.8")]),
        workloads: Ok(workloads),
        kube_proxy: kube_proxy(""),
        cilium: absent(),
        felix: absent(),
        tigera: absent(),
        reports: None,
    }
}

fn network_of(ground: &Ground) -> (Verdict, String) {
    let finding = findings(ground).into_iter().find(|finding| finding.area == "network").unwrap();
    (finding.verdict, finding.seen)
}

#[test]
fn datapaths_that_bypass_netfilter_are_named_and_refused() {
    let cilium = |data: Value| Ground {
        cilium: Ok(json!({"data": data})),
        ..ground(vec![daemon_set("cilium", json!({"name": "cilium-agent"}))])
    };
    let calico = |container: Value| ground(vec![daemon_set("calico-node", container)]);
    let felix = |bpf: bool| Ground {
        felix: Ok(json!({"spec": {"bpfEnabled": bpf}})),
        ..calico(json!({"name": "calico-node"}))
    };
    let tigera = |dataplane: &str| Ground {
        tigera: Ok(json!({"spec": {"calicoNetwork": {"linuxDataplane": dataplane}}})),
        ..calico(json!({"name": "calico-node"}))
    };
    let by_name = |name: &str| ground(vec![daemon_set(name, json!({}))]);
    let bpf = json!({"name": "calico-node", "env": [{"name": "FELIX_BPFENABLED", "value": "true"}]});
    for (ground, verdict, says) in [
        (by_name("anetd"), Verdict::Problem, "GKE Dataplane V2"),
        (by_name("antrea-agent"), Verdict::Problem, "Antrea"),
        (by_name("ovnkube-node"), Verdict::Problem, "OVN-Kubernetes"),
        (by_name("kube-ovn-cni"), Verdict::Problem, "Kube-OVN"),
        (by_name("calico-vpp-node"), Verdict::Problem, "VPP"),
        (
            cilium(json!({"kube-proxy-replacement": "true"})),
            Verdict::Problem,
            "Cilium with kube-proxy replacement",
        ),
        (
            cilium(json!({"kube-proxy-replacement": "strict"})),
            Verdict::Problem,
            "Cilium with kube-proxy replacement",
        ),
        (cilium(json!({"enable-bpf-masquerade": "true"})), Verdict::Problem, "eBPF masquerading"),
        (cilium(json!({"kube-proxy-replacement": "false"})), Verdict::Problem, "is left to Cilium"),
        (
            cilium(json!({"kube-proxy-replacement": "false", "enable-host-legacy-routing": "true"})),
            Verdict::Fine,
            "with the host's routing",
        ),
        (by_name("aws-node"), Verdict::Problem, "leave by the network interface"),
        (by_name("cilium"), Verdict::Unchecked, "is unknown: there is none"),
        (felix(true), Verdict::Problem, "Calico with eBPF"),
        (felix(false), Verdict::Fine, "Calico without eBPF"),
        (tigera("BPF"), Verdict::Problem, "Calico with eBPF"),
        (tigera("Nftables"), Verdict::Note, "ForwardBlocked"),
        (tigera("Iptables"), Verdict::Fine, "Calico (Iptables)"),
        (calico(bpf), Verdict::Problem, "Calico with eBPF"),
        (calico(json!({"name": "calico-node"})), Verdict::Unchecked, "eBPF datapath is on is unknown"),
        (by_name("kube-flannel-ds"), Verdict::Fine, "flannel"),
        (by_name("kindnet"), Verdict::Fine, "kindnet"),
        (by_name("netd"), Verdict::Unchecked, "was not tried"),
        (by_name("something-else"), Verdict::Unchecked, "no known network"),
    ] {
        let (found, said) = network_of(&ground);
        assert_eq!(found, verdict, "{said}");
        assert!(said.contains(says), "{says}: {said}");
        assert_eq!(problems(&findings(&ground)), usize::from(verdict == Verdict::Problem), "{said}");
    }
}

#[test]
fn k3s_is_known_by_its_nodes() {
    let mut k3s = node("node-1", "203.0.113.7");
    k3s["metadata"]["annotations"] = json!({"flannel.alpha.coreos.com/backend-type": "vxlan"});
    k3s["status"]["nodeInfo"]["kubeletVersion"] = json!("v1.36.0+k3s1");
    let ground = Ground { nodes: Ok(vec![k3s]), kube_proxy: absent(), ..ground(Vec::new()) };
    assert_eq!(network_of(&ground).0, Verdict::Fine);
    assert!(findings(&ground).iter().any(|finding| finding.seen == "kube-proxy in iptables mode"));
}

#[test]
fn kube_proxy_s_mode_is_read_as_kube_proxy_reads_it() {
    let flannel = || vec![daemon_set("kube-flannel-ds", json!({}))];
    let said = |ground: &Ground| {
        let finding = findings(ground).into_iter().find(|finding| finding.area == "services").unwrap();
        (finding.verdict, finding.seen)
    };
    for (mode, verdict) in [
        ("", Verdict::Fine),
        ("nftables", Verdict::Fine),
        ("ipvs", Verdict::Note),
        ("userspace", Verdict::Problem),
    ] {
        let ground = Ground { kube_proxy: kube_proxy(mode), ..ground(flannel()) };
        assert_eq!(said(&ground).0, verdict, "{mode}");
    }
    let mut managed = flannel();
    let command = ["/bin/sh", "-c", "kube-proxy --proxy-mode=nftables --v=2"];
    managed.push(daemon_set("kube-proxy", json!({"command": command})));
    let managed = Ground { kube_proxy: absent(), ..ground(managed) };
    assert_eq!(said(&managed), (Verdict::Fine, "kube-proxy in nftables mode".to_owned()));
    let nobody = Ground { kube_proxy: absent(), ..ground(flannel()) };
    assert_eq!(said(&nobody).0, Verdict::Unchecked);
}

#[test]
fn the_report_tells_what_was_seen_and_what_was_not() {
    let plain = |ground: &Ground| finding::text(&findings(ground), Palette { is_colourful: false });
    let flannel = daemon_set("kube-flannel-ds", json!({}));
    golden("preflight.txt", &plain(&ground(vec![flannel.clone()])));

    let fine = NodeReport {
        iptables: "iptables v1.8.9 (nf_tables): the kubelet's chains are in nf_tables".to_owned(),
        own_addresses: vec!["203.0.113.7".to_owned()],
        sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
        ..NodeReport::default()
    };
    let blocker = Blocker {
        kind: "ForwardBlocked".to_owned(),
        found: "the nft table inet firewalld has the policy drop".to_owned(),
        fix: "let it accept what was DNATed".to_owned(),
    };
    let bad = NodeReport {
        conditions: vec![blocker],
        leftovers: vec!["PODNAT_PRE (iptables-nft)".to_owned()],
        own_addresses: Vec::new(),
        ..fine.clone()
    };
    let podnat = json!({
        "metadata": {"namespace": "nat", "name": "podnat"},
        "spec": {"template": {"spec": {"containers": [{"image": "bln.space/podnat-controller:1"}]}}},
        "status": {"desiredNumberScheduled": 3},
    });
    let reports = [
        ("node-1".to_owned(), Ok(fine)),
        ("node-2".to_owned(), Ok(bad)),
        ("node-3".to_owned(), Err("its pod gave no answer within 90 s: ImagePullBackOff".to_owned())),
    ];
    let looked = Ground { reports: Some(reports.into()), ..ground(vec![flannel, podnat]) };
    golden("preflight-with-nodes.txt", &plain(&looked));

    let denied = || Err("forbidden".to_owned());
    let nothing = || Err("forbidden".to_owned());
    let blind = Ground {
        version: denied(),
        nodes: nothing(),
        workloads: nothing(),
        kube_proxy: denied(),
        ..ground(Vec::new())
    };
    golden("preflight-without-rights.txt", &plain(&blind));
    assert_eq!(problems(&findings(&blind)), 0, "what was not seen is no problem, and not fine either");
}
