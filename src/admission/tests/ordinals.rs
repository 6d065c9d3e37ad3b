//! External ports by the ordinal of a StatefulSet's pods.

use super::*;
use crate::admission::reservation;
use crate::admission::tests::mutation::mutated;
use crate::allocation::pool::Pool;
use k8s_openapi::jiff::Timestamp;

const PORTS: &str = "203.0.113.7:30000+{ordinal}:25565";

/// A StatefulSet with so many replicas from this ordinal on.
fn set(name: &str, ports: &str, start: i64, replicas: i64) -> Value {
    let changes = [("/spec/replicas", json!(replicas)), ("/spec/ordinals", json!({"start": start}))];
    with(workload("StatefulSet", name, ports), &changes)
}

/// A pod of a StatefulSet.
fn pod_of(set: &str, ordinal: u64, ports: &str) -> Value {
    owned_by(exposing(&format!("{set}-{ordinal}"), ports), "StatefulSet", set)
}

fn shown(decision: &Decision) -> Vec<String> {
    decision.mappings.iter().map(|mapping| format!("{mapping} -> {}", mapping.target())).collect()
}

#[test]
fn a_template_asks_for_the_port_of_each_of_its_pods_and_a_pod_for_its_own() {
    let cases = [
        (set("game", PORTS, 0, 3), vec!["30000", "30001", "30002"]),
        (set("game", PORTS, 5, 2), vec!["30005", "30006"]),
        (set("game", PORTS, 0, 0), vec![]),
        (workload("StatefulSet", "game", PORTS), vec!["30000"]),
        (pod_of("game", 3, PORTS), vec!["30003"]),
        (pod_of("game", 12, PORTS), vec!["30012"]),
    ];
    for (object, numbers) in cases {
        let expected: Vec<_> =
            numbers.iter().map(|number| format!("203.0.113.7:{number}/tcp -> 25565")).collect();
        let decision = Cluster::new().create(object);
        assert_granted(&decision);
        assert_eq!(shown(&decision), expected);
        assert_eq!(decision.warnings, [""; 0], "each replica has a port, and none is shared");
    }
}

#[test]
fn both_forms_say_it_and_on_the_node_s_own_address_too() {
    let short = pod_of("game", 3, "30000+{ordinal}:25565/udp,[2001:db8::1]:100+{ordinal}:80, 8080:80");
    assert_eq!(
        shown(&Cluster::new().create(short)),
        ["30003/udp -> 25565", "[2001:db8::1]:103/tcp -> 80", "8080/tcp -> 80"]
    );
    let entry = r#"{"srcIP":"203.0.113.7","srcPort":"30000+{ordinal}","dstPort":25565,"allowedSources":["192.0.2.0/24"]}"#;
    let json = json!({"pinhole.dev/nat": format!(r#"{{"entries":[{entry}]}}"#)});
    let decision = Cluster::new().create(owned_by(pod("game-65535", json.clone()), "StatefulSet", "game"));
    assert_refused(
        &decision,
        "metadata.annotations[pinhole.dev/nat].entries[0].srcPort: 203.0.113.7:30000+{ordinal}/tcp: passes 65535 for \
         game-65535; no port is left for ordinals as high as that",
    );
    let decision = Cluster::new().create(owned_by(pod("game-7", json), "StatefulSet", "game"));
    assert_eq!(shown(&decision), ["203.0.113.7:30007/tcp -> 25565"]);
    assert_eq!(decision.mappings[0].allowed_sources().len(), 1);
}

#[test]
fn what_is_written_for_the_pod_shows_its_own_number() {
    let effective = &mutated(Operation::Create, &pod_of("game", 3, PORTS))["metadata"]["annotations"]["pinhole.dev/effective"];
    assert_eq!(
        effective,
        r#"{"entries":[{"ifaceAuto":false,"srcIP":"203.0.113.7","srcPort":30003,"dstPort":25565,"proto":"tcp"}]}"#
    );
}

#[test]
fn whose_pods_have_no_ordinal_is_refused_and_told_what_to_do() {
    let custom = |name: &str| owned_by(exposing(name, PORTS), "GameServerSet", "game");
    let cases = [
        (exposing("game-3", PORTS), "and a pod without a StatefulSet has none; name the port by its number"),
        (
            owned_by(exposing("game-3", PORTS), "ReplicaSet", "game"),
            "and the pods of a ReplicaSet have none; use a StatefulSet, or name the port by its number",
        ),
        (
            custom("game-3"),
            "and whether the pods of a GameServerSet have one is not known here; use a StatefulSet, or ask whoever runs the \
             cluster to name the kind (--stateful-kind)",
        ),
        (
            owned_by(exposing("other-3", PORTS), "StatefulSet", "game"),
            "and other-3 has none: it would be named game-0, game-1 and so on; name the port by its number",
        ),
        (
            owned_by(exposing("", PORTS), "StatefulSet", "game"),
            "and a generated name has none: it would be named game-0, game-1 and so on; name the port by its number",
        ),
    ];
    for (object, problem) in cases {
        assert_refused(
            &Cluster::new().create(object),
            &format!(
                "metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:30000+{{ordinal}}/tcp: goes by the pod's ordinal, {problem}"
            ),
        );
    }
    for kind in ["Deployment", "DaemonSet", "Job"] {
        assert_refused(
            &Cluster::new().create(workload(kind, "game", PORTS)),
            &format!(
                "spec.template.metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:30000+{{ordinal}}/tcp: goes by the pod's \
                 ordinal, and the pods of a {kind} have none; use a StatefulSet, or name the port by its number"
            ),
        );
    }
    let policy = Policy { stateful_kinds: vec!["GameServerSet".to_owned()], ..Policy::default() };
    assert_eq!(
        shown(&Cluster::with_policy(policy).create(custom("game-3"))),
        ["203.0.113.7:30003/tcp -> 25565"]
    );
}

#[test]
fn what_cannot_be_read_as_a_port_by_ordinal_is_told_how_to_write_it() {
    let cases = [
        ("30000+{ordinal}", "leaves open which port of the pod is meant; write 30000+{ordinal}:9000"),
        (
            "30000+{ordinal}:25565-25570",
            "\"25565-25570\" is not one port; behind 30000+{ordinal} every pod has the same one, as in 30000+{ordinal}:9000",
        ),
        (
            "30000-30010+{ordinal}:80",
            "\"30000-30010+{ordinal}\" is not a port by ordinal; write a number from 1 to 65535 and the ordinal after it, as \
             in 30000+{ordinal}",
        ),
        (
            "auto+{ordinal}:80",
            "\"auto+{ordinal}\" is not a port by ordinal; write a number from 1 to 65535 and the ordinal after it, as in \
             30000+{ordinal}",
        ),
    ];
    for (ports, problem) in cases {
        let refusal = Cluster::new().create(set("game", ports, 0, 3));
        assert_refused(
            &refusal,
            &format!("spec.template.metadata.annotations[pinhole.dev/expose][0]: {ports}: {problem}"),
        );
    }
    let json = |keys: &str| nat(&format!(r#"{{{keys},"dstPort":80}}"#));
    assert_refused(
        &Cluster::new().create(json(r#""srcPort":"65536+{ordinal}""#)),
        "metadata.annotations[pinhole.dev/nat].entries[0].srcPort: \"65536+{ordinal}\": is not a port by ordinal; write a \
         number from 1 to 65535 and the ordinal after it, as in \"30000+{ordinal}\"",
    );
    assert_refused(
        &Cluster::new().create(json(r#""srcPort":"30000+{ordinal}","srcPortEnd":30010"#)),
        "metadata.annotations[pinhole.dev/nat].entries[0].srcPortEnd: 30010: goes with a number in srcPort; by \
         30000+{ordinal} each pod has one port, so write one entry for each",
    );
}

#[test]
fn replicas_for_which_there_is_no_port_are_named() {
    let place = "spec.template.metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:";
    let cases = [
        ("65530", 0, 6, None),
        ("65530", 0, 7, Some("passes 65535 for game-6; the highest that fits is 65529+{ordinal}")),
        ("65530", 0, 9, Some("passes 65535 for game-6 to game-8; the highest that fits is 65527+{ordinal}")),
        ("65530", 8, 2, Some("passes 65535 for game-8 to game-9; the highest that fits is 65526+{ordinal}")),
        (
            "1024",
            0,
            1025,
            Some(
                "is asked for by 1025 replicas, which makes 1025 ports by ordinal; 1024 are the most, so use fewer replicas, or \
                 several sets",
            ),
        ),
        ("1024", i64::MAX, i64::MAX, Some("is asked for by 9223372036854775807 replicas, which makes")),
    ];
    for (base, start, replicas, problem) in cases {
        let ports = format!("203.0.113.7:{base}+{{ordinal}}:80");
        let decision = Cluster::new().create(set("game", &ports, start, replicas));
        let said = summary(&decision.violations);
        let expected = problem.map(|problem| format!("{place}{base}+{{ordinal}}/tcp: {problem}"));
        assert!(said.starts_with(&expected.clone().unwrap_or_default()), "{said}");
        assert_eq!(decision.is_granted(), expected.is_none());
    }
    assert_refused(
        &Cluster::new().create(pod_of("game", 6, "203.0.113.7:65530+{ordinal}:80")),
        "metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:65530+{ordinal}/tcp: passes 65535 for game-6; the highest \
         that fits is 65529+{ordinal}",
    );
}

#[test]
fn pods_of_one_set_never_get_one_port() {
    let field = "spec.template.metadata.annotations[pinhole.dev/expose]";
    let cases = [
        (
            "1000+{ordinal}:80,1000+{ordinal}:81",
            format!(
                "{field}[1]: 1000+{{ordinal}}/tcp: is asked for twice by this pod; remove one of the two"
            ),
        ),
        (
            "1000+{ordinal}:80,1002+{ordinal}:81",
            format!(
                "{field}[1]: 1002+{{ordinal}}/tcp: 1002/tcp is asked for by {field}[0] too (1000+{{ordinal}}/tcp); make the \
                 ranges disjoint"
            ),
        ),
        (
            "1000+{ordinal}:80,1001:81",
            format!(
                "{field}[1]: 1001/tcp: 1001/tcp is asked for by {field}[0] too (1000+{{ordinal}}/tcp); make the ranges disjoint"
            ),
        ),
    ];
    for (ports, expected) in cases {
        assert_refused(&Cluster::new().create(set("game", ports, 0, 3)), &expected);
    }
    for (start, replicas) in [(0, 0), (2, 3)] {
        assert_granted(&Cluster::new().create(set("game", "1000+{ordinal}:80,1001:81", start, replicas)));
    }
    let disjoint = "1000+{ordinal}:80,1003+{ordinal}:81,1000+{ordinal}:80/udp,1006:82";
    assert_granted(&Cluster::new().create(set("game", disjoint, 0, 3)));
}

#[test]
fn a_number_that_somebody_has_is_refused_on_the_template_and_each_is_told_once() {
    let cluster = Cluster::new().store(workload("Deployment", "web", "203.0.113.7:30001:80"));
    let held = "is held by Deployment default/web (since 2026-11-22T09:00:00Z); choose another external port, or remove it \
                there first";
    let place = "spec.template.metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:30001/tcp";
    assert_granted(&cluster.create(set("game", PORTS, 0, 1)));
    assert_refused(&cluster.create(set("game", PORTS, 0, 3)), &format!("{place}: {held}"));
    assert_granted(&cluster.create(set("game", PORTS, 2, 3)));
    let restricted = Policy { restricted_ports: "30000-30005".parse().unwrap(), ..Policy::default() };
    assert_refused(
        &Cluster::with_policy(restricted).create(set("game", PORTS, 2, 10)),
        "spec.template.metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:30002/tcp, ..., 203.0.113.7:30005/tcp (4 in \
         all): is restricted in this cluster as one of 30000-30005 (restricted: 30000-30005); choose another external port",
    );
}

#[test]
fn a_template_keeps_the_ports_of_all_its_pods_and_gives_up_those_of_no_pod() {
    let taken = |replicas, port: u16| {
        let cluster = Cluster::new().store(set("game", PORTS, 0, replicas));
        !cluster.create(exposing("web", &format!("203.0.113.7:{port}:80"))).is_granted()
    };
    assert!(taken(3, 30002) && !taken(3, 30003) && !taken(0, 30000));
}

#[test]
fn a_set_is_asked_again_when_it_gets_more_pods_and_not_when_it_gets_fewer() {
    let cluster = Cluster::new().store(workload("Deployment", "web", "203.0.113.7:30002:80"));
    let scaled =
        |start, replicas| cluster.update(set("game", PORTS, 1, 1), set("game", PORTS, start, replicas));
    for (start, replicas, is_granted) in
        [(1, 1, true), (1, 0, true), (0, 2, true), (1, 2, false), (2, 1, false)]
    {
        assert_eq!(scaled(start, replicas).is_granted(), is_granted, "{start} {replicas}");
    }
    // What is written by number is as it was, however many pods share it.
    let set = |replicas| set("game", "203.0.113.7:30002:80", 0, replicas);
    assert_granted(&cluster.update(set(1), set(9)));
    let grown =
        with(set(1), &[("/spec/template/metadata/annotations", json!({"pinhole.dev/expose": PORTS}))]);
    assert!(!cluster.update(set(1), with(grown, &[("/spec/replicas", json!(3))])).is_granted());
}

#[test]
fn a_set_that_was_scaled_past_a_taken_number_loses_its_own_pod_and_nobody_else_s() {
    // Scaled by the subresource, of which nobody was asked.
    let cluster = Cluster::new()
        .store(workload("Deployment", "web", "203.0.113.7:30002:80"))
        .store(set("game", PORTS, 0, 5));
    assert_granted(&cluster.create(owned_by(exposing("web-1", "203.0.113.7:30002:80"), "Deployment", "web")));
    assert!(!cluster.create(pod_of("game", 2, PORTS)).is_granted());
    assert_granted(&cluster.create(pod_of("game", 3, PORTS)));
    // Of two that were scaled into each other, who is served keeps it, and either may come back.
    let cluster = cluster.store(set("arena", "203.0.113.7:30004+{ordinal}:80", 0, 1));
    assert_granted(&cluster.create(pod_of("arena", 0, "203.0.113.7:30004+{ordinal}:80")));
    let cluster = cluster.store(pod_of("arena", 0, "203.0.113.7:30004+{ordinal}:80"));
    assert!(!cluster.create(pod_of("game", 4, PORTS)).is_granted());
    assert_granted(&cluster.create(pod_of("arena", 0, "203.0.113.7:30004+{ordinal}:80")));
}

#[test]
fn each_port_is_claimed_by_itself_so_that_a_set_can_grow_by_one() {
    let object = set("game", "203.0.113.7:30000+{ordinal}:80", 0, 16);
    let cluster = Cluster::new();
    let request = request(Operation::Create, Some(object), None);
    let claims =
        reservation::claims(&request, &cluster.decide(&request), &cluster.index, Timestamp::UNIX_EPOCH)
            .unwrap();
    assert_eq!(claims.len(), 16);
    assert_eq!(claims[15].key.to_string(), "v4-203-0-113-7-tcp-30015");
    assert!(claims.iter().all(|claim| claim.holder.to_string() == "StatefulSet default/game"));
}

#[test]
fn scaling_brings_no_port_that_no_pool_grants() {
    let pool = json!({"addresses": ["203.0.113.7"], "ports": [{"first": 30000, "last": 30002}], "namespaces": {"all": true}});
    let pool = Pool::read("games", &serde_json::from_value(pool).unwrap()).unwrap();
    let mut cluster = Cluster::new();
    cluster.index.set_pools(Some(Arc::from([pool])));
    let cluster = cluster.store(set("game", PORTS, 0, 9)).store(pod_of("game", 7, PORTS));
    assert_granted(&cluster.create(pod_of("game", 2, PORTS)));
    let refusal = cluster.create(pod_of("game", 3, PORTS));
    assert!(summary(&refusal.violations).contains("30003/tcp: is outside NatPool games"), "{refusal:?}");
    // One that runs was granted its port at some time.
    assert_granted(&cluster.create(pod_of("game", 7, PORTS)));
    let refusal = cluster.create(set("game", PORTS, 0, 5));
    let said = summary(&refusal.violations);
    assert!(
        said.contains("[0]: 203.0.113.7:30003/tcp, 203.0.113.7:30004/tcp: is outside NatPool games"),
        "{said}"
    );
}

#[test]
fn with_claims_it_is_these_that_say_whose_a_kept_port_is() {
    let pool = json!({"addresses": ["203.0.113.7"], "namespaces": {"all": true}});
    let pool = Pool::read("games", &serde_json::from_value(pool).unwrap()).unwrap();
    let mut cluster = Cluster::new();
    cluster.index.set_pools(Some(Arc::from([pool])));
    let cluster = cluster.store(set("game", PORTS, 0, 9)).store(pod_of("game", 1, PORTS));
    assert_granted(&cluster.create(exposing("web", "203.0.113.7:30005:80")));
    assert!(!cluster.create(exposing("web", "203.0.113.7:30001:80")).is_granted(), "a pod has it");
}

#[test]
fn spreading_counts_the_ports_of_one_pod() {
    let spread = |ports: &str| {
        let annotations = json!({"pinhole.dev/expose": ports, "pinhole.dev/spread": "true"});
        with(set("game", ports, 0, 100), &[("/spec/template/metadata/annotations", annotations)])
    };
    assert_granted(&Cluster::new().create(spread("30000+{ordinal}:80,31000+{ordinal}:81")));
    let refusal = Cluster::new().create(spread("30000+{ordinal}:80,1000-1063:81"));
    assert!(summary(&refusal.violations).contains("and 65 are asked for"), "{refusal:?}");
}
