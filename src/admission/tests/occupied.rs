//! What programs on nodes and Services have, and whom that refuses.

use super::*;
use crate::admission::conflict::Evidence;
use crate::admission::index::occupants::Occupant;
use crate::admission::index::occupants::Occupants;
use crate::admission::index::occupants::Place;
use crate::admission::index::occupants::Source;
use crate::model::holder::ObjectName;
use crate::model::port::Protocol;

fn taken(source: &Source, port: &str, place: Place, by: &'static str) -> Occupant {
    let ports = port.parse().unwrap();
    Occupant { source: source.clone(), protocol: Protocol::Tcp, ports, place, by }
}

/// A node with an own address, another one, and sshd.
fn node(name: &str, own: &str, other: &str) -> Occupants {
    let source = Source::NatNode(name.into());
    let everywhere = |is_v4_only| Place::Node { name: name.into(), is_v4_only };
    let occupants = vec![
        taken(&source, "2222", everywhere(true), "a program"),
        taken(&source, "9000-9010", everywhere(false), "a program"),
        taken(&source, "3000", Place::Address(other.parse().unwrap()), "a program"),
        taken(&source, "4000", Place::Address(own.parse().unwrap()), "a program"),
    ];
    let addresses = vec![(own.parse().unwrap(), true), (other.parse().unwrap(), false)];
    Occupants { source, version: Some(1), taken: occupants, addresses }
}

fn service() -> Occupants {
    let source = Source::Service(ObjectName::new("shop", "web"));
    let external = Place::Address("198.51.100.9".parse().unwrap());
    let occupants = vec![
        taken(&source, "30080", Place::EveryNode, "NodePort"),
        taken(&source, "443", external, "externalIPs"),
    ];
    Occupants { source, version: Some(1), taken: occupants, addresses: Vec::new() }
}

fn member(name: &str) -> Value {
    json!({"kind": "Node", "metadata": {"name": name}})
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new().store(member("node-1")).store(member("node-2"));
    cluster.index.set_occupants(node("node-1", "203.0.113.7", "203.0.113.17"));
    cluster.index.set_occupants(node("node-2", "203.0.113.8", "2001:db8::8"));
    cluster.index.set_occupants(service());
    cluster
}

#[test]
fn what_something_else_has_is_refused_where_it_has_it() {
    let on_node = with(exposing("web", "3000"), &[("/spec/nodeName", json!("node-1"))]);
    assert_granted(&cluster().create(on_node));
    let cases = [
        (
            "203.0.113.7:2222",
            Some("is in use on node node-1 by a program that listens there (NatNode node-1)"),
        ),
        ("203.0.113.17:2222", Some("is in use on node node-1 by")),
        ("[2001:db8::8]:2222", None),
        ("[2001:db8::8]:9005", Some("is in use on node node-2 by")),
        ("203.0.113.7:8995-9000", Some("port 9000 is in use on node node-1 by")),
        ("203.0.113.17:3000", Some("is in use on 203.0.113.17 by a program")),
        ("203.0.113.7:3000", None),
        ("203.0.113.7:30080", Some("is in use on every node by Service shop/web (NodePort)")),
        ("203.0.113.17:30080", Some("is in use on every node by Service shop/web (NodePort)")),
        ("198.51.100.9:443", Some("is in use on 198.51.100.9 by Service shop/web (externalIPs)")),
        ("198.51.100.9:30080", None),
        ("198.51.100.77:2222", None),
        ("30080", Some("is in use on every node by Service shop/web (NodePort)")),
        ("2222", Some("is in use on node node-1 by")),
        ("4000", Some("is in use on 203.0.113.7 by")),
        ("3000", None),
        ("2222/udp", None),
    ];
    for (ports, expected) in cases {
        let decision = cluster().create(exposing("web", ports));
        let said = summary(&decision.violations);
        match expected {
            Some(expected) => assert!(
                said.contains(expected)
                    && said.ends_with("; choose another external port, or free it there first"),
                "{ports}: {said}"
            ),
            None => assert_eq!(said, "0 problems: ", "{ports}"),
        }
        let is_evidence = |evidence: &Evidence| matches!(evidence, Evidence::Occupant(_));
        assert_eq!(
            decision.evidence.iter().filter(|found| is_evidence(found)).count(),
            usize::from(expected.is_some())
        );
    }
}

#[test]
fn a_gateway_outside_of_the_cluster_answers_no_node_port() {
    let mut cluster = cluster();
    cluster.index.set_occupants(node("gateway", "192.0.2.1", "192.0.2.2"));
    assert_granted(&cluster.create(exposing("web", "192.0.2.1:30080")));
    assert!(!cluster.create(exposing("web", "192.0.2.1:2222")).is_granted());
    let cluster = cluster.store(member("gateway"));
    assert!(!cluster.create(exposing("web", "192.0.2.1:30080")).is_granted());
}

#[test]
fn a_pod_that_can_still_come_to_another_node_is_warned_and_not_refused() {
    let mut cluster = cluster();
    let free =
        Occupants { taken: Vec::new(), version: Some(2), ..node("node-2", "203.0.113.8", "2001:db8::8") };
    cluster.index.set_occupants(free);
    let decision = cluster.create(exposing("web", "2222"));
    assert_granted(&decision);
    assert_eq!(decision.warnings, ["2222/tcp is taken on node-1; a pod scheduled there gets no connections"]);
    let pinned = |node: &str| with(exposing("web", "2222"), &[("/spec/nodeName", json!(node))]);
    assert!(!cluster.create(pinned("node-1")).is_granted());
    assert_granted(&cluster.create(pinned("node-2")));
}

#[test]
fn a_host_port_of_a_pod_is_taken_on_its_node_as_long_as_the_pod_is_there() {
    let mut cluster = cluster();
    cluster.index.set_pools(Some(Arc::default()));
    let ports = json!([{"ports": [
        {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8081, "hostIP": "203.0.113.17"},
        {"containerPort": 53, "hostPort": 53, "protocol": "UDP"}, {"containerPort": 9}]}]);
    let sidecars = json!([
        {"restartPolicy": "Always", "ports": [{"containerPort": 82, "hostPort": 8082}]},
        {"ports": [{"containerPort": 83, "hostPort": 8083}]}]);
    let holder = with(
        pod("ingress", json!({})),
        &[
            ("/spec/containers", ports),
            ("/spec/initContainers", sidecars),
            ("/spec/nodeName", json!("node-1")),
        ],
    );
    let mut cluster = cluster.store(holder.clone());
    cluster.index.set_pools(None);
    let refuses = |cluster: &Cluster, ports: &str| !cluster.create(exposing("web", ports)).is_granted();
    let cases = [
        ("203.0.113.7:8080", true),
        ("203.0.113.17:8080", true),
        ("203.0.113.8:8080", false),
        ("203.0.113.17:8081", true),
        ("203.0.113.7:8081", false),
        ("203.0.113.7:8082", true),
        ("203.0.113.7:8083", false),
        ("203.0.113.7:9", false),
        ("203.0.113.7:80", false),
    ];
    for (ports, expected) in cases {
        assert_eq!(refuses(&cluster, ports), expected, "{ports}");
    }
    let decision = cluster.create(exposing("web", "203.0.113.7:8080"));
    assert!(
        summary(&decision.violations)
            .contains("is in use on node node-1 by Pod default/ingress (hostPort); choose"),
        "{decision:?}"
    );
    assert!(matches!(decision.evidence.as_slice(), [Evidence::Object(_)]));

    cluster.index.set_pools(Some(Arc::default()));
    let mut cluster = cluster.store(with(holder, &[("/status/phase", json!("Succeeded"))]));
    cluster.index.set_pools(None);
    assert!(!refuses(&cluster, "203.0.113.7:8080"));
}

#[test]
fn a_host_ip_takes_nothing_of_an_address_that_the_pod_s_node_does_not_have() {
    let on = |node: &str, host_ip: &str| {
        let ports = json!([{"ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": host_ip}]}]);
        let squatter =
            with(pod("squatter", json!({})), &[("/spec/containers", ports), ("/spec/nodeName", json!(node))]);
        let mut cluster = cluster();
        cluster.index.set_pools(Some(Arc::default()));
        let mut cluster = cluster.store(squatter);
        cluster.index.set_pools(None);
        cluster
    };
    let cases = [
        ("its node's own", "node-2", "203.0.113.8", true),
        ("another node's own", "node-2", "203.0.113.7", false),
        ("another one of another node", "node-2", "203.0.113.17", false),
        ("nobody's, as far as NatNodes know", "node-2", "198.51.100.9", false),
        ("another node's, of a node without NatNode", "node-3", "203.0.113.7", false),
        ("nobody's, of a node without NatNode", "node-3", "198.51.100.9", true),
    ];
    for (what, node, address, is_taken) in cases {
        let decision = on(node, address).create(exposing("web", &format!("{address}:8080")));
        assert_eq!(!decision.is_granted(), is_taken, "{what}: {}", summary(&decision.violations));
    }
    let pinned = with(exposing("web", "8080"), &[("/spec/nodeName", json!("node-1"))]);
    assert_granted(&on("node-2", "203.0.113.7").create(pinned.clone()));
    assert_eq!(on("node-2", "203.0.113.7").create(exposing("web", "8080")).warnings, Vec::<String>::new());
    let own = on("node-1", "203.0.113.7").create(pinned);
    assert!(
        summary(&own.violations).contains("is in use on 203.0.113.7 by Pod default/squatter (hostPort)"),
        "{own:?}"
    );
}

#[test]
fn whoever_had_the_port_first_keeps_it() {
    let cluster = cluster().store(workload("StatefulSet", "db", "203.0.113.7:2222"));
    let pod = owned_by(exposing("db-0", "203.0.113.7:2222"), "StatefulSet", "db");
    assert_granted(&cluster.create(pod));
    assert!(!cluster.create(exposing("other", "203.0.113.7:9000")).is_granted());
}

#[test]
fn what_is_gone_or_was_said_before_stands_in_nobody_s_way() {
    let mut cluster = cluster();
    cluster.index.forget_occupants(&Source::Service(ObjectName::new("shop", "web")));
    assert_granted(&cluster.create(exposing("web", "30080")));
    let newer =
        Occupants { taken: Vec::new(), version: Some(5), ..node("node-1", "203.0.113.7", "203.0.113.17") };
    cluster.index.set_occupants(newer);
    cluster.index.set_occupants(node("node-1", "203.0.113.7", "203.0.113.17"));
    assert_granted(&cluster.create(exposing("web", "203.0.113.7:2222")));
    cluster.index.retain_occupants(|source| *source == Source::NatNode("node-1".into()));
    assert_granted(&cluster.create(exposing("web", "203.0.113.8:2222")));
}

#[test]
fn a_service_of_another_namespace_is_named_only_where_it_may_be() {
    let mut cluster = Cluster::with_policy(Policy { disclose_holder: false, ..Policy::default() });
    cluster.index.set_occupants(service());
    let said = summary(&cluster.create(exposing("web", "30080")).violations);
    assert!(
        said.contains("by a Service in another namespace (NodePort)") && !said.contains("shop"),
        "{said}"
    );
}
