//! Installations in every state of health, and what is said of each.

use std::sync::LazyLock;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::certificates::authority::Authority;
use crate::certificates::moment::Moment;
use crate::cli::plugin::finding;
use crate::cli::plugin::finding::problems;
use crate::cli::plugin::installation;
use crate::cli::plugin::installation::Role;
use crate::cli::plugin::testing::golden;
use crate::cli::plugin::testing::pod;
use crate::cli::terminal::Palette;

const NOW: i64 = 1_772_366_400;
const REFUSAL: &str = "admission webhook \"pods.pinhole.dev\" denied the request: metadata.annotations[pinhole.dev/expose][0]: 22/tcp: is restricted";

/// An authority's certificate from now on for a year, in base64.
static BUNDLE: LazyLock<Value> = LazyLock::new(|| {
    let year = Duration::from_hours(365 * 24);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = Authority::mint(&key, &["test".to_owned()], Moment::from_unix(NOW), year).unwrap();
    let pem = authority.certificate().pem().as_bytes().to_vec();
    serde_json::to_value(k8s_openapi::ByteString(pem)).unwrap()
});

fn workload(role: &str, arguments: &[&str], image: &str) -> Value {
    let mut all = vec![role];
    all.extend(arguments);
    json!({
        "metadata": {"namespace": "pinhole-system", "name": format!("pinhole-{role}")},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app.kubernetes.io/component": role}},
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/component": role}},
                "spec": {"containers": [{"name": role, "image": image, "args": all}]},
            },
        },
        "status": {"readyReplicas": 2, "desiredNumberScheduled": 2, "numberReady": 2},
    })
}

fn configuration(webhooks: &[&str], bundle: &Value) -> Value {
    let webhook = |name: &&str| {
        json!({
            "name": name,
            "failurePolicy": "Fail",
            "clientConfig": {
                "service": {"namespace": "pinhole-system", "name": "pinhole-webhook"}, "caBundle": bundle,
            },
            "matchConditions": [{"name": "uses-nat", "expression": "key in ['bln.space/podnat']"}],
        })
    };
    json!({"metadata": {"name": "pinhole"}, "webhooks": webhooks.iter().map(webhook).collect::<Vec<_>>()})
}

fn agent_pod(node: &str, ready: bool, image: &str) -> PartPod {
    PartPod {
        name: format!("pinhole-agent-{node}"),
        node: node.to_owned(),
        ready,
        running: true,
        image: image.to_owned(),
        ..PartPod::default()
    }
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"nodeInfo": {"operatingSystem": "linux"}}})
}

/// What the agent on a node told at this second.
fn nat_node(name: &str, last_report: i64) -> NatNode {
    let told = json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "NatNode", "metadata": {"name": name}, "spec": {},
        "status": {
            "lastReport": Timestamp::from_second(last_report).unwrap().to_string(),
            "programmed": {"entries": 12, "missing": 0},
        },
    });
    serde_json::from_value(told).unwrap()
}

/// Everything is as it should be.
fn healthy() -> Observed {
    let version = env!("CARGO_PKG_VERSION");
    let image = format!("ghcr.io/pinhole-dev/pinhole-agent:{version}");
    let webhook = workload("webhook", &[], &format!("ghcr.io/pinhole-dev/pinhole-webhook:{version}"));
    let agent = workload("agent", &["--annotation-key=bln.space/podnat"], &image);
    let webhook = {
        let mut webhook = webhook;
        webhook["spec"]["template"]["spec"]["containers"][0]["args"] =
            json!(["webhook", "--annotation-key=bln.space/podnat"]);
        webhook
    };
    let part = installation::parts(std::slice::from_ref(&agent), Role::Agent).remove(0);
    let shape = part.agent_shape().unwrap();
    let pods = vec![agent_pod("node-1", true, &image), agent_pod("node-2", true, &image)];
    let metrics = |node: &str| {
        let text = "pinhole_agent_in_sync 1\npinhole_agent_condition{kind=\"ForwardBlocked\"} 0\npinhole_agent_withheld_removals 0\n";
        (node.to_owned(), Ok(text.to_owned()))
    };
    let granted = json!({"metadata": {"annotations": {"pinhole.dev/effective": "{}"}}});
    let controller = workload("controller", &[], &format!("ghcr.io/pinhole-dev/pinhole-webhook:{version}"));
    let tells = |name: &str, leads: u8| {
        let text =
            format!("pinhole_controller_leading {leads}\npinhole_controller_self_test_passed {leads}\n");
        (name.to_owned(), Ok(text))
    };
    Observed {
        version: Ok(json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"})),
        nodes: Ok(vec![node("node-1"), node("node-2")]),
        nat_nodes: vec![nat_node("node-1", NOW - 60), nat_node("node-2", NOW - 300)],
        webhook: installation::parts(std::slice::from_ref(&webhook), Role::Webhook).into_iter().next(),
        webhook_pods: Vec::new(),
        controller: installation::parts(&[controller], Role::Controller).into_iter().next(),
        controller_metrics: [tells("pinhole-controller-a", 0), tells("pinhole-controller-b", 1)].into(),
        workloads: Ok(vec![webhook, agent]),
        agents: Agents { part: Some(part), shape: Some(shape), pods },
        mutating: Ok(vec![configuration(&["pods.pinhole.dev"], &BUNDLE)]),
        validating: Ok(vec![configuration(&["pods.pinhole.dev", "workloads.pinhole.dev"], &BUNDLE)]),
        proof: Proof {
            namespace: "default".to_owned(),
            refused_request: "22".to_owned(),
            refused: Creation::Refused { code: 422, message: REFUSAL.to_owned() },
            granted: Some(Creation::Accepted(granted)),
        },
        certificates: vec![("pinhole-webhook-a".to_owned(), Ok(NOW + 6 * 86_400))],
        metrics: [metrics("node-1"), metrics("node-2")].into(),
        conditions: BTreeMap::new(),
        pods: Vec::new(),
        now: NOW,
    }
}

fn report(observed: &Observed) -> String {
    finding::text(&findings(observed), Palette { is_colourful: false })
}

#[test]
fn a_healthy_installation_has_no_problem() {
    let healthy = healthy();
    golden("doctor-healthy.txt", &report(&healthy));
    assert_eq!(problems(&findings(&healthy)), 0);
}

#[test]
fn nothing_installed_is_told_part_by_part() {
    let empty = Observed {
        webhook: None,
        workloads: Ok(Vec::new()),
        controller: None,
        agents: Agents::default(),
        mutating: Ok(Vec::new()),
        validating: Ok(Vec::new()),
        proof: Proof { refused: Creation::Accepted(Value::Null), granted: None, ..healthy().proof },
        certificates: Vec::new(),
        metrics: BTreeMap::new(),
        ..healthy()
    };
    golden("doctor-nothing-installed.txt", &report(&empty));
}

#[test]
fn what_may_not_be_read_is_unchecked_and_never_fine() {
    let denied = || "forbidden".to_owned();
    let blind = Observed {
        version: Err(denied()),
        nodes: Err(denied()),
        workloads: Err(denied()),
        webhook: None,
        controller: None,
        agents: Agents::default(),
        mutating: Err(denied()),
        validating: Err(denied()),
        proof: Proof {
            refused: Creation::Refused { code: 403, message: "pods is forbidden".to_owned() },
            granted: None,
            ..healthy().proof
        },
        certificates: Vec::new(),
        metrics: BTreeMap::new(),
        ..healthy()
    };
    let said = findings(&blind);
    assert!(said.iter().all(|finding| finding.verdict == finding::Verdict::Unchecked), "{said:#?}");
    golden("doctor-without-rights.txt", &report(&blind));
}

/// What is wrong, how it came to be, and a part of what must be said of it.
type Case<'a> = (&'a str, &'a dyn Fn(&mut Observed), &'a str);

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn each_trouble_is_found_with_its_fix() {
    let failed_call = |reason: &str| Creation::Refused {
        code: 500,
        message: format!(
            "Internal error occurred: failed calling webhook \"pods.pinhole.dev\": failed to call webhook: {reason}"
        ),
    };
    let proof = |refused| Proof { refused, granted: None, ..healthy().proof };
    let set = |observed: &mut Observed,
               field: fn(&mut Observed) -> &mut Result<Vec<Value>, String>,
               pointer: &str,
               value: Value| {
        *field(observed).as_mut().unwrap()[0].pointer_mut(pointer).unwrap() = value;
    };
    let validating = |observed: &mut Observed, pointer: &str, value: Value| {
        set(observed, |observed| &mut observed.validating, pointer, value);
    };
    let metrics = |text: &str| [("node-1".to_owned(), Ok(text.to_owned()))].into();
    let cases: &[Case<'_>] = &[
        (
            "old cluster",
            &|o| o.version = Ok(json!({"major": "1", "minor": "29+", "gitVersion": "v1.29.9-eks"})),
            "older than 1.30",
        ),
        ("no replica", &|o| o.webhook.as_mut().unwrap().ready = 0, "0 of 2 replicas"),
        ("no configuration", &|o| o.validating = Ok(Vec::new()), "nothing is refused at kubectl apply"),
        (
            "no caBundle",
            &|o| validating(o, "/webhooks/0/clientConfig/caBundle", Value::Null),
            "has no caBundle",
        ),
        (
            "a broken caBundle",
            &|o| validating(o, "/webhooks/1/clientConfig/caBundle", json!("AAAA")),
            "holds no certificate",
        ),
        ("an expired caBundle", &|o| o.now += 400 * 86_400, "has expired on 2027-03-01"),
        (
            "another installation",
            &|o| validating(o, "/webhooks/0/clientConfig/service/namespace", json!("old")),
            "calls a Service in namespace old",
        ),
        (
            "an unlisted key",
            &|o| validating(o, "/webhooks/0/matchConditions", json!([{"expression": "true"}])),
            "is not called for the annotation bln.space/podnat",
        ),
        (
            "annotations of ACK that the webhook is not called for",
            &|o| o.agents.shape.as_mut().unwrap().policy.reads_ack = true,
            "is not called for the annotation k8s.aliyun.com/pod-dnat-fixed",
        ),
        (
            "other flags",
            &|o| {
                let odd = workload("webhook", &["--restricted-ports=22"], "x:1");
                o.webhook = installation::parts(&[odd], Role::Webhook).into_iter().next();
            },
            "--restricted-ports is 22 for the webhook and its default for the agents",
        ),
        ("no controller", &|o| o.controller.as_mut().unwrap().ready = 0, "ports are not given back"),
        (
            "no leader",
            &|o| {
                let text = "pinhole_controller_leading 0";
                o.controller_metrics = [("a".to_owned(), Ok(text.to_owned()))].into();
            },
            "no replica leads",
        ),
        (
            "a failing self-test",
            &|o| {
                let text = "pinhole_controller_leading 1\npinhole_controller_self_test_passed 0";
                o.controller_metrics = [("a".to_owned(), Ok(text.to_owned()))].into();
            },
            "did not show that the webhook decides",
        ),
        ("not called", &|o| o.proof = proof(Creation::Accepted(json!({}))), "would be accepted"),
        (
            "no endpoints",
            &|o| o.proof = proof(failed_call("no endpoints available for service \"pinhole-webhook\"")),
            "no replica is ready",
        ),
        (
            "not trusted",
            &|o| {
                o.proof = proof(failed_call(
                    "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                ));
            },
            "the caBundle does not trust",
        ),
        (
            "not reached",
            &|o| o.proof = proof(failed_call("context deadline exceeded")),
            "does not reach the pods",
        ),
        (
            "no defaults",
            &|o| o.proof.granted = Some(Creation::Accepted(json!({}))),
            "the mutating webhook is not called",
        ),
        ("an expiring leaf", &|o| o.certificates[0].1 = Ok(NOW + 3600), "expires on 2026-03-01"),
        (
            "a foreign leaf",
            &|o| o.certificates[0].1 = Err("invalid peer certificate: UnknownIssuer".to_owned()),
            "do not take the certificate",
        ),
        (
            "a node without agent",
            &|o| {
                o.agents.pods.pop();
            },
            "no agent runs on node-2, so nothing is programmed for its pods; what an agent last told of it 5 minutes ago, 12 entries, is still in its kernel",
        ),
        (
            "a node that never had one",
            &|o| {
                o.agents.pods.pop();
                o.nat_nodes.pop();
            },
            "no agent runs on node-2, so nothing is programmed for its pods\n",
        ),
        (
            "an agent that says nothing",
            &|o| o.nat_nodes[0] = nat_node("node-1", NOW - 3600),
            "the agent on node-1 has told nothing in its NatNode for 60 minutes",
        ),
        (
            "an agent that is not ready",
            &|o| o.agents.pods[0].ready = false,
            "the agent on node-1 is not ready",
        ),
        (
            "half an upgrade",
            &|o| o.agents.pods[0].image = "ghcr.io/pinhole-dev/pinhole-agent:0.0.9".to_owned(),
            "an upgrade stands half-way",
        ),
        (
            "a firewall",
            &|o| {
                o.metrics = metrics("pinhole_agent_condition{kind=\"ForwardBlocked\"} 1\n");
                let said = ("ufw drops".to_owned(), "ufw default allow routed".to_owned());
                o.conditions = [(("node-1".to_owned(), "ForwardBlocked".to_owned()), said)].into();
            },
            "node-1: ForwardBlocked: ufw drops",
        ),
        (
            "the brake",
            &|o| o.metrics = metrics("pinhole_agent_withheld_removals 25\n"),
            "holds back the removal of 25 entries",
        ),
        (
            "out of sync",
            &|o| o.metrics = metrics("pinhole_agent_in_sync 0\n"),
            "does not have exactly what it should",
        ),
        (
            "podnat-controller",
            &|o| {
                let mut podnat = workload("x", &[], "bln.space/podnat-controller:1.2");
                podnat["metadata"] = json!({"namespace": "nat", "name": "podnat"});
                o.workloads.as_mut().unwrap().push(podnat);
            },
            "podnat-controller runs (daemonset/podnat in nat)",
        ),
        (
            "a pod that nobody reads",
            &|o| {
                let ack = json!({"metadata": {"annotations": {"pinhole.dev/expose": null, "bln.space/podnat": "{}"}}});
                o.pods = vec![pod("web", "a", "node-1", "10.244.1.9", "80", ack)];
                o.agents.shape.as_mut().unwrap().policy.more_annotation_keys.clear();
            },
            "1 pod asks by the annotation bln.space/podnat",
        ),
    ];
    for (what, change, says) in cases {
        let mut observed = healthy();
        change(&mut observed);
        let found = findings(&observed);
        let all = finding::text(&found, Palette { is_colourful: false });
        assert!(all.contains(*says), "{what}: {says:?} is not in\n{all}");
        assert!(0 < problems(&found), "{what}:\n{all}");
        let without_fix: Vec<_> = found
            .iter()
            .filter(|one| one.verdict == finding::Verdict::Problem && one.fix.is_none())
            .collect();
        assert!(without_fix.is_empty(), "{what}: {without_fix:?}");
    }
}

#[test]
fn an_image_s_tag_is_told_from_a_registry_s_port() {
    for (image, expected) in [
        ("ghcr.io/a/b:1.2", Some("1.2")),
        ("registry:5000/a/b", None),
        ("a/b@sha256:abc", None),
        ("a/b:1@sha256:abc", Some("1")),
    ] {
        assert_eq!(tag(image), expected, "{image}");
    }
}

#[test]
fn an_agent_that_does_not_know_the_cluster_is_a_note_with_what_to_set() {
    let mut observed = healthy();
    let metrics = "pinhole_agent_in_sync 1\npinhole_agent_unknown_cluster 1\n";
    observed.metrics = [("node-1".to_owned(), Ok(metrics.to_owned()))].into();
    let found = findings(&observed);
    assert_eq!(problems(&found), 0);
    let told = found.iter().find(|one| one.seen.contains("which networks the pods of other nodes have"));
    assert!(told.unwrap().fix.as_ref().unwrap().contains("agent.clusterCIDRs"), "{found:?}");
}
