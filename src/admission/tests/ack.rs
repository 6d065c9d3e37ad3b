//! The four annotations of ACK's pod-dnat.

use proptest::prelude::*;

use super::*;

const ON: &str = "k8s.aliyun.com/pod-dnat";

fn policy() -> Policy {
    Policy { reads_ack: true, ..Policy::default() }
}

/// A pod with pod-dnat's annotations, by the ends of their keys.
fn dnat(annotations: &[(&str, &str)]) -> Value {
    let named = annotations.iter().map(|(end, text)| {
        let key = if end.starts_with("pinhole.dev/") { (*end).to_owned() } else { format!("{ON}{end}") };
        (key, json!(text))
    });
    pod("web", Value::Object(named.collect()))
}

fn shown(decision: &Decision) -> String {
    let shown: Vec<_> = decision.automatic.iter().map(ToString::to_string).collect();
    shown.join(",")
}

#[test]
fn they_mean_what_automatic_ports_mean() {
    let cases: [(&[(&str, &str)], &str); 10] = [
        (&[("", "true"), ("-expose-port", "80,443")], "auto:80/tcp,auto:443/tcp"),
        (&[("", ""), ("-expose-port", "80")], "auto:80/tcp"),
        (&[("", " True "), ("-expose-port", " 443 , 80 ")], "auto:443/tcp,auto:80/tcp"),
        (&[("", "true"), ("-expose-port", "53"), ("-expose-protocol", "udp")], "auto:53/udp"),
        (&[("", "true"), ("-expose-port", "53"), ("-expose-protocol", " UDP ")], "auto:53/udp"),
        (&[("", "true"), ("-expose-port", "53"), ("-expose-protocol", "")], "auto:53/tcp"),
        (&[("", "true"), ("-expose-port", "53"), ("-fixed", "true")], "fixed:53/tcp"),
        (&[("", "true"), ("-expose-port", "53"), ("-fixed", "false")], "auto:53/tcp"),
        (&[("", "true"), ("-expose-port", "53"), ("-fixed", "")], "auto:53/tcp"),
        (&[("", "false"), ("pinhole.dev/expose", "auto:9000/udp")], "auto:9000/udp"),
    ];
    for (annotations, expected) in cases {
        let decision = Cluster::with_policy(policy()).create(dnat(annotations));
        assert_granted(&decision);
        assert_eq!(shown(&decision), expected, "{annotations:?}");
    }
}

#[test]
fn who_does_not_ask_gets_nothing_and_is_told_so() {
    let cluster = Cluster::with_policy(policy());
    assert_eq!(cluster.create(dnat(&[("", "False")])), Decision::default());
    for annotations in [
        &[("-expose-port", "80"), ("-fixed", "yes")][..],
        &[("", "false"), ("-expose-port", "80"), ("-fixed", "yes")],
    ] {
        let decision = cluster.create(dnat(annotations));
        assert_granted(&decision);
        assert!(!decision.asks());
        assert_eq!(
            decision.warnings,
            [
                "annotation k8s.aliyun.com/pod-dnat-expose-port asks for nothing without k8s.aliyun.com/pod-dnat: \"true\"",
                "annotation k8s.aliyun.com/pod-dnat-fixed asks for nothing without k8s.aliyun.com/pod-dnat: \"true\"",
            ]
        );
    }
}

#[test]
fn what_cannot_be_understood_is_refused_with_what_to_write() {
    let ports = ("-expose-port", "80");
    let cases: [(&[(&str, &str)], &str); 15] = [
        (&[("", "yes"), ports], ": yes: is neither true nor false; write \"true\" to ask for ports"),
        (&[("", "true")], "-expose-port: is missing; list the ports of the pod, as in \"80,443\""),
        (
            &[("", ""), ("-expose-port", " ")],
            "-expose-port: is empty; list the ports of the pod, as in \"80,443\"",
        ),
        (&[("", ""), ("-expose-port", "80,")], "-expose-port[1]: is an empty item; remove the extra comma"),
        (
            &[("", ""), ("-expose-port", "http")],
            "-expose-port[0]: http: is not a port; write a number from 1 to 65535",
        ),
        (
            &[("", ""), ("-expose-port", "80,0")],
            "-expose-port[1]: 0: is not a port; write a number from 1 to 65535",
        ),
        (
            &[("", ""), ("-expose-port", "8000-8010")],
            "-expose-port[0]: 8000-8010: is not a port; write a number from 1 to 65535, and commas between several",
        ),
        (
            &[("", ""), ("-expose-port", "80 443")],
            "-expose-port[0]: 80 443: is not a port; write a number from 1 to 65535, and commas between several",
        ),
        (
            &[("", ""), ("-expose-port", "53/udp")],
            "-expose-port[0]: 53/udp: is more than a port; the protocol of all ports is \
             k8s.aliyun.com/pod-dnat-expose-protocol, or ask port by port with pinhole.dev/expose: \"auto:80/tcp,auto:53/udp\"",
        ),
        (
            &[("", ""), ("-expose-port", "80,443,80")],
            "-expose-port[2]: auto:80/tcp: is asked for twice by this pod; remove one of the two",
        ),
        (
            &[("", ""), ports, ("-expose-protocol", "tpc")],
            "-expose-protocol: tpc: is not a protocol; did you mean \"tcp\"?",
        ),
        (
            &[("", ""), ports, ("-expose-protocol", "tcp,udp")],
            "-expose-protocol: tcp,udp: is not one protocol for all ports; write \"tcp\" or \"udp\", or ask port by port with \
             pinhole.dev/expose: \"auto:80/tcp,auto:53/udp\"",
        ),
        (
            &[("", ""), ports, ("-expose-protocol", "sctp")],
            "-expose-protocol: sctp: is not one protocol for all ports; write \"tcp\" or \"udp\", or ask port by port with \
             pinhole.dev/expose: \"auto:80/tcp,auto:53/udp\"",
        ),
        (
            &[("", ""), ports, ("-fixed", "yes")],
            "-fixed: yes: is neither true nor false; write \"true\" for ports that the next pod of the same name has again",
        ),
        (
            &[("", "true"), ports, ("pinhole.dev/expose", "8080:80")],
            ": pinhole.dev/expose is given too; a pod asks with one annotation, so remove one of the two",
        ),
    ];
    for (annotations, expected) in cases {
        let (end, problem) = expected.split_once(": ").unwrap();
        let (end, position) =
            end.split_once('[').map_or((end, String::new()), |(end, rest)| (end, format!("[{rest}")));
        let path = format!("metadata.annotations[{ON}{end}]{position}");
        assert_refused(
            &Cluster::with_policy(policy()).create(dnat(annotations)),
            &format!("{path}: {problem}"),
        );
    }
}

#[test]
fn everything_that_is_wrong_with_them_is_said_at_once() {
    let all = dnat(&[("", "on"), ("-expose-port", "80,x"), ("-expose-protocol", "icmp"), ("-fixed", "1")]);
    let decision = Cluster::with_policy(policy()).create(all);
    assert_eq!(decision.violations.len(), 4, "{:?}", decision.violations);
    let many = (1..=257).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    let decision = Cluster::with_policy(policy()).create(dnat(&[("", ""), ("-expose-port", &many)]));
    assert!(decision.violations[0].problem.starts_with("has 257 items; 256 is the most"));
}

#[test]
fn fixed_ports_of_pods_that_get_new_names_are_refused_as_in_our_own_words() {
    let template =
        dnat(&[("", "true"), ("-expose-port", "80"), ("-fixed", "true")])["metadata"]["annotations"].clone();
    let deployment =
        with(workload("Deployment", "web", "80"), &[("/spec/template/metadata/annotations", template)]);
    assert_refused(
        &Cluster::with_policy(policy()).create(deployment),
        "spec.template.metadata.annotations[k8s.aliyun.com/pod-dnat-expose-port][0]: fixed:80/tcp: is kept for the next pod of \
         the same name, and each pod of a Deployment has another one; use a StatefulSet, or a bare pod; a port that is not fixed \
         goes with its pod",
    );
}

#[test]
fn where_nobody_reads_them_they_ask_for_nothing() {
    let asking = dnat(&[("", "true"), ("-expose-port", "80")]);
    let decision = Cluster::new().create(asking.clone());
    assert!(decision.is_granted() && !decision.asks());
    assert_eq!(
        decision.warnings,
        [
            "annotation k8s.aliyun.com/pod-dnat is not read here; write pinhole.dev/expose, or ask the operator for --compat ack",
            "annotation k8s.aliyun.com/pod-dnat-expose-port is not read here; ask for ports with pinhole.dev/expose",
        ]
    );
    assert!(!Policy::default().asks(&slim(asking.clone()).metadata.annotations));
    assert!(policy().asks(&slim(asking).metadata.annotations));
    assert!(!policy().asks(&slim(dnat(&[("", "false"), ("-expose-port", "80")])).metadata.annotations));
}

#[test]
fn a_pod_waits_at_the_gate_and_keeps_its_annotations_as_they_are() {
    let asking = dnat(&[("", "true"), ("-expose-port", "80,443"), ("-fixed", "true")]);
    let once = Cluster::with_policy(policy()).mutated(Operation::Create, &asking);
    assert_eq!(once["spec"]["schedulingGates"], json!([{"name": "pinhole.dev/endpoints"}]));
    let annotations = &once["metadata"]["annotations"];
    assert_eq!(
        annotations["pinhole.dev/effective"],
        r#"{"entries":[{"ifaceAuto":false,"srcPort":"fixed","dstPort":80,"proto":"tcp"},{"ifaceAuto":false,"srcPort":"fixed","dstPort":443,"proto":"tcp"}]}"#
    );
    assert_eq!(annotations["k8s.aliyun.com/pod-dnat-expose-port"], "80,443");
    assert_eq!(Cluster::with_policy(policy()).mutated(Operation::Create, &once), once);
}

#[test]
fn a_change_of_any_of_them_is_judged_and_other_changes_are_not() {
    let cluster = Cluster::with_policy(policy());
    let broken = || dnat(&[("", "true"), ("-expose-port", "http")]);
    assert_granted(&cluster.update(broken(), with(broken(), &[("/metadata/labels", json!({"a": "b"}))])));
    for (end, text) in [("-expose-protocol", "udp"), ("-fixed", "true"), ("-expose-port", "https")] {
        let mut changed = broken();
        changed["metadata"]["annotations"][format!("{ON}{end}")] = json!(text);
        assert!(!cluster.update(broken(), changed).is_granted(), "{end}");
    }
}

proptest! {
    #[test]
    fn whatever_they_say_they_are_granted_or_refused_and_never_ignored(
        on in "(true|false|| ?TRUE ?|yes|.{0,4})",
        ports in "([0-9]{1,5}|[ ,/a-z-]{0,3}){0,4}",
        protocol in "(tcp|UDP||sctp|.{0,5})",
        fixed in "(true|false||.{0,4})",
    ) {
        let words = [("", on.as_str()), ("-expose-port", &ports), ("-expose-protocol", &protocol), ("-fixed", &fixed)];
        let decision = Cluster::with_policy(policy()).create(dnat(&words));
        let is_off = on.trim().eq_ignore_ascii_case("false");
        prop_assert_eq!(decision.is_granted() && !decision.asks(), is_off, "{:?}", words);
    }
}
