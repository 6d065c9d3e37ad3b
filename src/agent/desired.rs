//! What a node should serve, from what is known of it: the pure middle of the agent's loop.
//!
//! Every pod is judged again by the rules that admitted it: admission can have been off, bypassed, or older than the
//! pod (R27). What it asks for then goes through the election, so that each port leads to one pod, and the outcome
//! becomes rules. Whoever is left out is named with the reason, in the words that admission uses.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::admission;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::handover;
use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::suspended;
use crate::admission::violation;
use crate::agent::grants::Grants;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cluster::events::Reason;
use crate::model::handover::UdpHandover;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::ruleset;
use crate::ruleset::Ruleset;
use crate::ruleset::election;
use crate::ruleset::election::Candidate;
use crate::ruleset::election::Loser;
use crate::ruleset::endpoint::Leaving;
use crate::ruleset::entry::Key;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// What a plan is made from.
#[derive(Debug)]
pub struct Known<'a> {
    /// The pods of the node that ask for ports.
    pub pods: &'a BTreeMap<ObjectName, Object>,
    /// Owners, the node and namespaces; no pods.
    pub index: &'a Index,
    /// What is allowed.
    pub policy: &'a Policy,
    /// The node.
    pub node: &'a NodeFacts,
    /// What the kernel holds.
    pub programmed: &'a Ruleset,
    /// What was granted; `None` where claims are off, and whoever asks for a port may have it.
    pub grants: Option<&'a Grants>,
}

/// What a node should serve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The rules.
    pub ruleset: Ruleset,
    /// Every pod that has not ended, by its name in the rules.
    pub pods: BTreeMap<Owner, Pod>,
    /// The UIDs of the Pinholes that users wrote; they stand among the pods, too, as do the pods behind them.
    pub pinholes: BTreeSet<String>,
    /// The UIDs of the pods behind them, each with that of the Pinhole.
    pub behind: BTreeMap<String, String>,
    /// The UIDs of the pods of other nodes; they stand among the pods, too.
    pub remote: BTreeSet<String>,
    /// The UID of the pod that each Pinhole of a pod belongs to; none once it is over.
    pub subjects: BTreeMap<ObjectName, Option<String>>,
    /// The UIDs of the pods of which the controller has yet to decide what they may have on the node's own address.
    pub awaiting: BTreeSet<String>,
    /// The UIDs of the pods whose containers are not ready.
    pub unready: BTreeSet<String>,
    /// The UIDs of the pods whose ports are closed without being given up.
    pub suspended: BTreeSet<String>,
    /// The UIDs of the pods that ask for nothing which this node serves.
    pub idle: BTreeSet<String>,
    /// What was granted to whom and led nowhere, by UID: it does not follow from what is known here of the pod or Pinhole.
    pub unwanted: BTreeMap<String, BTreeSet<Key>>,
    /// Who stays without a port because another pod has it.
    pub losers: Vec<Loser>,
    /// Who stays without ports for any other reason.
    pub unserved: Vec<Unserved>,
    /// Entries whose connections end when their source may no longer connect.
    pub terminating: BTreeSet<Key>,
    /// What becomes of UDP flows when another pod takes over, of the entries that say it.
    pub udp_handover: BTreeMap<Key, UdpHandover>,
}

/// A pod that has not ended, or a Pinhole that a user wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: ObjectName,
    /// Its UID.
    pub uid: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// A pod that cannot be served, or may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// The pod.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: String,
    /// By whom it was refused.
    pub by: RefusedBy,
    /// Why, and what to do.
    pub problem: String,
}

/// Who refuses to serve a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusedBy {
    /// The rules of admission.
    Admission,
    /// The controller, for this reason: as a rule another holder has claimed it.
    Claims(Reason),
    /// The node, which cannot serve what is asked for.
    Node,
    /// The kernel.
    Kernel,
}

impl RefusedBy {
    /// As metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Claims(_) => "claims",
            Self::Node => "node",
            Self::Kernel => "kernel",
        }
    }

    /// What the pod's owner hears of it.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Claims(reason) => reason,
            Self::Admission | Self::Node | Self::Kernel => Reason::NotProgrammed,
        }
    }
}

/// Plans what the node should serve.
pub fn plan(known: &Known<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    // A pod that ended never receives a packet again, and its address may be somebody else's by now (R14).
    for pod in known.pods.values().filter(|pod| !pod.is_finished()) {
        let present = Pod { name: name(pod), uid: pod.metadata.uid.clone(), ips: ips(pod) };
        plan.pods.insert(Owner::new(&present.name, &present.uid), present);
        match judge(pod, known) {
            Judgement::AsksForNothing => {}
            Judgement::Refused(problem) => {
                plan.refuse((&name(pod), &pod.metadata.uid), RefusedBy::Admission, problem);
            }
            Judgement::Candidate(candidate) => candidates.push(plan.limit(*candidate, known)),
        }
    }
    if let Some(grants) = known.grants {
        plan.subjects.clone_from(grants.subjects());
        candidates.extend(plan.remote(grants, known));
        candidates.extend(plan.written(grants, known));
    }
    let elected = election::elect(&candidates, known.node, known.programmed);
    let desired = ruleset::desired::desired(&elected.endpoints, known.node);
    plan.ruleset = desired.ruleset;
    plan.terminating = desired.terminating;
    plan.udp_handover = desired.udp_handover;
    plan.losers = elected.losers;
    plan.unserved.extend(desired.refused.into_iter().map(|refused| Unserved {
        problem: format!("{}: {}", refused.mapping, refused.reason),
        pod: refused.pod,
        uid: refused.uid,
        by: RefusedBy::Node,
    }));
    plan
}

impl Plan {
    fn refuse(&mut self, (pod, uid): (&ObjectName, &str), by: RefusedBy, problem: String) {
        self.unserved.push(Unserved { pod: pod.clone(), uid: uid.to_owned(), by, problem });
    }

    /// A candidate with nothing but what it was granted on this node.
    fn limit(&mut self, mut candidate: Candidate, known: &Known<'_>) -> Candidate {
        if known.grants.is_some_and(|grants| grants.are_awaited(&candidate, known.node)) {
            self.awaiting.insert(candidate.uid.clone());
        }
        let limit = |grants: &Grants| grants.limit(&mut candidate, known.node, known.programmed);
        if let Some((reason, problem)) = known.grants.and_then(limit) {
            self.refuse((&candidate.pod, &candidate.uid), RefusedBy::Claims(reason), problem);
        }
        let unwanted = known.grants.map(|grants| grants.unwanted(&candidate, known.node)).unwrap_or_default();
        if !unwanted.is_empty() {
            self.unwanted.insert(candidate.uid.clone(), unwanted);
        }
        if !candidate.ready {
            self.unready.insert(candidate.uid.clone());
        }
        if candidate.suspended {
            self.suspended.insert(candidate.uid.clone());
        }
        if candidate.mappings.is_empty() {
            self.idle.insert(candidate.uid.clone());
        }
        candidate
    }

    /// The candidates of other nodes.
    fn remote(&mut self, grants: &Grants, known: &Known<'_>) -> Vec<Candidate> {
        // Of a pod of this node the pod itself is believed.
        let here: BTreeSet<_> = known.pods.values().map(|pod| pod.metadata.uid.as_str()).collect();
        let mut candidates = Vec::new();
        for remote in grants.remote().iter().filter(|remote| !here.contains(remote.uid.as_str())) {
            self.remote.insert(remote.uid.clone());
            let ips = match remote.candidate(grants, known.node, known.programmed) {
                Ok(candidate) => {
                    let ips = candidate.ips.clone();
                    candidates.push(self.limit(candidate, known));
                    ips
                }
                Err(problem) => {
                    self.refuse((&remote.name, &remote.uid), RefusedBy::Node, problem);
                    Vec::new()
                }
            };
            let pod = Pod { name: remote.name.clone(), uid: remote.uid.clone(), ips };
            self.pods.insert(Owner::new(&pod.name, &pod.uid), pod);
        }
        candidates
    }

    /// The candidates that users' Pinholes are.
    fn written(&mut self, grants: &Grants, known: &Known<'_>) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for written in grants.written() {
            let itself = &written.itself;
            for pod in written.targets.iter().chain([itself]) {
                self.pods.entry(Owner::new(&pod.name, &pod.uid)).or_insert_with(|| pod.clone());
            }
            let pair = |target: &Pod| (target.uid.clone(), itself.uid.clone());
            self.behind.extend(written.targets.iter().map(pair));
            self.pinholes.insert(itself.uid.clone());
            match written.candidate(known.node, known.programmed) {
                Ok(candidate) => candidates.push(self.limit(candidate, known)),
                Err(problem) => self.refuse((&itself.name, &itself.uid), RefusedBy::Node, problem),
            }
        }
        candidates
    }
}

enum Judgement {
    AsksForNothing,
    Refused(String),
    Candidate(Box<Candidate>),
}

fn judge(pod: &Object, known: &Known<'_>) -> Judgement {
    let Known { index, policy, .. } = *known;
    let namespace = &pod.metadata.namespace;
    let namespaces = &policy.namespaces;
    let labels = index.namespace_labels(namespace);
    if !namespaces.selector.is_empty() && !namespaces.allows(namespace, labels) && labels.is_none() {
        // The namespace is new; its labels are on their way, and this is judged again when they arrive.
        return Judgement::AsksForNothing;
    }
    let request = Request {
        operation: Operation::Create,
        namespace: namespace.clone(),
        object: Some(pod.clone()),
        old_object: None,
    };
    let mut decision = admission::decide(&request, &World { policy, index });
    if !decision.is_granted() {
        return Judgement::Refused(violation::summary(&decision.violations));
    }
    if let Some(grants) = known.grants {
        let owner = Owner::new(&name(pod), &pod.metadata.uid);
        let asked = (&decision.mappings[..], &decision.automatic[..]);
        let found = grants.found(&pod.metadata.uid, &owner, asked, known.node, known.programmed);
        decision.mappings.extend(found);
    }
    if decision.mappings.is_empty() {
        return Judgement::AsksForNothing;
    }
    Judgement::Candidate(Box::new(Candidate {
        pod: name(pod),
        uid: pod.metadata.uid.clone(),
        holder: known.grants.and_then(|grants| grants.holder(pod)).unwrap_or_else(|| holder(pod, index)),
        created: pod.metadata.creation_timestamp.clone(),
        ready: pod.are_containers_ready(),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ips: ips(pod),
        suspended: suspended::is(&pod.metadata.annotations),
        mappings: decision.mappings,
        handover: handover::of(&pod.metadata.annotations),
        udp_handover: handover::of_udp(&pod.metadata.annotations),
        leaving: Leaving::WithItsPorts,
    }))
}

/// The holder; while the owner's own owner is not known, the owner that the pod names.
fn holder(pod: &Object, index: &Index) -> Holder {
    let key = ObjectKey { kind: Kind::Pod, name: name(pod) };
    index
        .holder(&key, pod.metadata.controller())
        .unwrap_or_else(|owner| Holder::new(owner.kind.name(), owner.name))
}

fn name(pod: &Object) -> ObjectName {
    ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str())
}

/// The addresses of pods.
pub fn addresses<'a>(pods: impl Iterator<Item = &'a Object>) -> BTreeSet<IpAddr> {
    pods.filter(|pod| !pod.is_finished()).flat_map(ips).collect()
}

/// Which pod has each address; pods on the node's own network have none of their own.
pub fn holders<'a>(pods: impl Iterator<Item = &'a Object>) -> BTreeMap<IpAddr, (Owner, String)> {
    let own = pods.filter(|pod| !pod.spec.host_network);
    let each = own.flat_map(|pod| {
        let holder = (Owner::new(&name(pod), &pod.metadata.uid), pod.metadata.uid.clone());
        ips(pod).into_iter().map(move |ip| (ip, holder.clone()))
    });
    each.collect()
}

fn ips(pod: &Object) -> Vec<IpAddr> {
    pod.status.pod_ips.iter().filter_map(|found| found.ip.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::ruleset::diff::Change;
    use crate::ruleset::diff::diff;

    fn node() -> NodeFacts {
        NodeFacts {
            addresses: ["203.0.113.7".parse().unwrap(), "203.0.113.8".parse().unwrap()].into(),
            node_v4: Some("203.0.113.7".parse().unwrap()),
            ..NodeFacts::default()
        }
    }

    /// A ready pod on node-1; `changes` is merged into it.
    #[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
    fn pod(name: &str, expose: &str, ip: &str, changes: Value) -> Object {
        let mut pod = json!({
            "kind": "Pod",
            "metadata": {
                "namespace": "mail", "name": name, "uid": format!("uid-{name}"),
                "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {"pinhole.dev/expose": expose},
            },
            "spec": {"nodeName": "node-1"},
            "status": {
                "phase": "Running", "podIPs": [{"ip": ip}],
                "conditions": [{"type": "ContainersReady", "status": "True"}],
            },
        });
        json_patch::merge(&mut pod, &changes);
        serde_json::from_value(pod).unwrap()
    }

    fn plan_under(policy: Policy, pods: Vec<Object>, programmed: &Ruleset) -> Plan {
        let policy = Arc::new(policy);
        let mut index = Index::new(Arc::clone(&policy));
        let own = json!({
            "kind": "Node", "metadata": {"name": "node-1"},
            "status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.7"}]},
        });
        index.apply(&serde_json::from_value(own).unwrap());
        let pods = pods.into_iter().map(|pod| (name(&pod), pod)).collect();
        plan(&Known { pods: &pods, index: &index, policy: &policy, node: &node(), programmed, grants: None })
    }

    fn plan_of(pods: Vec<Object>) -> Plan {
        plan_under(Policy::default(), pods, &Ruleset::default())
    }

    fn entries(plan: &Plan) -> Vec<String> {
        plan.ruleset.entries().map(ToString::to_string).collect()
    }

    fn problems(plan: &Plan) -> Vec<&str> {
        plan.unserved.iter().map(|unserved| unserved.problem.as_str()).collect()
    }

    #[test]
    fn r01_tcp_and_udp_of_one_port_are_two_entries() {
        let plan = plan_of(vec![pod("dns", "5353:53/tcp,5353:54/udp", "10.244.1.9", json!({}))]);
        assert_eq!(
            entries(&plan),
            ["203.0.113.7:5353/tcp -> 10.244.1.9:53", "203.0.113.7:5353/udp -> 10.244.1.9:54"]
        );
    }

    #[test]
    fn r27_what_admission_would_refuse_is_not_programmed_and_told_in_its_words() {
        let annotation = |expose: &str| json!({"metadata": {"annotations": {"pinhole.dev/expose": expose}}});
        let cases = [
            (
                annotation("22"),
                "metadata.annotations[pinhole.dev/expose][0]: 22/tcp: is restricted in this cluster \
                 (restricted: 22, 53, 6443); choose another external port",
            ),
            (annotation("203.0.113.7:10250"), "is protected on every node's own address"),
            (annotation("127.0.0.1:80"), "is a loopback address"),
            (annotation("localhost:80"), "metadata.annotations[pinhole.dev/expose]"),
            (json!({"spec": {"hostNetwork": true}}), "the pod already listens on its node's own addresses"),
        ];
        for (changes, expected) in cases {
            let plan = plan_of(vec![pod("mx", "80", "10.244.1.9", changes)]);
            assert!(plan.ruleset.is_empty(), "{expected}");
            let problems = problems(&plan);
            assert!(problems.len() == 1 && problems[0].contains(expected), "{expected}: {problems:?}");
            assert_eq!(plan.unserved[0].by, RefusedBy::Admission);
        }
    }

    #[test]
    fn r27_an_address_that_the_node_does_not_have_is_not_programmed() {
        for foreign in ["8.8.8.8:443", "10.96.0.10:5353/udp"] {
            let plan = plan_of(vec![pod("mx", foreign, "10.244.1.9", json!({}))]);
            assert!(plan.ruleset.is_empty(), "{foreign}");
            let problem = problems(&plan).join("");
            assert!(problem.starts_with(foreign.split('/').next().unwrap()), "{problem}");
            assert!(problem.contains("is not an address of this node"), "{problem}");
        }
    }

    #[test]
    fn r21_a_pod_with_the_node_s_address_is_refused_whatever_its_spec_says() {
        let plan = plan_of(vec![pod("mx", "80", "203.0.113.7", json!({}))]);
        assert!(plan.ruleset.is_empty());
        assert!(problems(&plan)[0].contains("the pod uses the node's own address 203.0.113.7"), "{plan:?}");
    }

    #[test]
    fn r28_a_pod_of_the_other_family_blocks_nobody() {
        let six = pod("six", "80", "fd00::9", json!({}));
        let four = pod("four", "80", "10.244.1.9", json!({"metadata": {"uid": "younger"}}));
        let plan = plan_of(vec![six, four]);
        assert_eq!(entries(&plan), ["203.0.113.7:80/tcp -> 10.244.1.9:80"]);
        assert!(problems(&plan)[0].contains("of different IP families"), "{plan:?}");
    }

    #[test]
    fn r14_a_pod_that_ended_is_not_served_and_one_that_is_not_ready_is() {
        for phase in ["Succeeded", "Failed"] {
            let plan = plan_of(vec![pod("job", "80", "10.244.1.9", json!({"status": {"phase": phase}}))]);
            assert!(plan.ruleset.is_empty() && plan.pods.is_empty(), "{phase}");
        }
        let not_ready = json!({"status": {"conditions": [{"type": "ContainersReady", "status": "False"}]}});
        let plan = plan_of(vec![pod("slow", "80", "10.244.1.9", not_ready)]);
        assert_eq!(entries(&plan), ["203.0.113.7:80/tcp -> 10.244.1.9:80"]);
    }

    #[test]
    fn each_pod_of_a_set_is_served_at_the_port_of_its_ordinal() {
        let owner = json!([{"kind": "StatefulSet", "name": "game", "uid": "uid-game", "controller": true}]);
        let pod = |name: &str, ip: &str| {
            pod(name, "30000+{ordinal}:25565", ip, json!({"metadata": {"ownerReferences": owner}}))
        };
        let plan = plan_of(vec![pod("game-0", "10.244.1.9"), pod("game-12", "10.244.1.10")]);
        assert_eq!(
            entries(&plan),
            ["203.0.113.7:30000/tcp -> 10.244.1.9:25565", "203.0.113.7:30012/tcp -> 10.244.1.10:25565"]
        );
    }

    #[test]
    fn a_standby_takes_over_when_the_served_pod_is_gone_ends_or_is_no_longer_ready() {
        let owner = json!([{"kind": "StatefulSet", "name": "db", "uid": "uid-db", "controller": true}]);
        let member = |name: &str, ip: &str, status: Value| {
            pod(name, "5432", ip, json!({"metadata": {"ownerReferences": owner}, "status": status}))
        };
        let standby = || member("db-0", "10.244.1.9", json!({}));
        let served = |status: Value| member("db-1", "10.244.1.10", status);
        let both = plan_of(vec![standby(), served(json!({}))]);
        assert_eq!(entries(&both), ["203.0.113.7:5432/tcp -> 10.244.1.10:5432"]);
        let unready = json!({"conditions": [{"type": "ContainersReady", "status": "False"}]});
        let cases = [
            ("it is gone", None),
            ("it failed, as an evicted one does", Some(json!({"phase": "Failed"}))),
            ("it succeeded", Some(json!({"phase": "Succeeded"}))),
            ("it is not ready", Some(unready)),
        ];
        for (what, status) in cases {
            let pods = [Some(standby()), status.map(served)];
            let after = plan_under(Policy::default(), pods.into_iter().flatten().collect(), &both.ruleset);
            assert_eq!(entries(&after), ["203.0.113.7:5432/tcp -> 10.244.1.9:5432"], "{what}");
        }
    }

    #[test]
    fn ports_of_a_pod_without_an_address_are_reserved() {
        let starting = json!({"status": {"phase": "Pending", "podIPs": [], "conditions": []}});
        assert_eq!(
            entries(&plan_of(vec![pod("mx", "25", "", starting)])),
            ["203.0.113.7:25/tcp -> reserved"]
        );
    }

    #[test]
    fn r10_an_edited_port_and_a_removed_annotation_close_the_old_port() {
        let before = plan_of(vec![pod("mx", "25", "10.244.1.9", json!({}))]).ruleset;
        let edited = pod("mx", "2525:25", "10.244.1.9", json!({}));
        let edited = plan_under(Policy::default(), vec![edited], &before);
        assert_eq!(entries(&edited), ["203.0.113.7:2525/tcp -> 10.244.1.9:25"]);
        let removed = pod("mx", "", "10.244.1.9", json!({"metadata": {"annotations": null}}));
        let removed = plan_under(Policy::default(), vec![removed], &before);
        assert!(removed.ruleset.is_empty());
        assert_eq!(removed.pods.len(), 1, "the pod is still there, so its connections stay");
    }

    #[test]
    fn r09_a_new_pod_with_the_address_of_an_old_one_is_another_pod() {
        let before = plan_of(vec![pod("mx", "25", "10.244.1.9", json!({}))]).ruleset;
        let new = pod("mx", "25", "10.244.1.9", json!({"metadata": {"uid": "another"}}));
        let after = plan_under(Policy::default(), vec![new], &before).ruleset;
        assert!(matches!(diff(&before, &after).as_slice(), [Change::Replaced { .. }, ..]), "{after:?}");
    }

    #[test]
    fn namespaces_are_judged_by_their_labels_once_those_are_known() {
        let mut policy = Policy::default();
        policy.namespaces.selector = "nat=yes".parse().unwrap();
        let unknown =
            plan_under(policy.clone(), vec![pod("mx", "25", "10.244.1.9", json!({}))], &Ruleset::default());
        assert!(unknown.ruleset.is_empty() && unknown.unserved.is_empty(), "nothing is said too early");
        policy.namespaces.selector = "".parse().unwrap();
        policy.namespaces.names = ["games".to_owned()].into();
        let refused = plan_under(policy, vec![pod("mx", "25", "10.244.1.9", json!({}))], &Ruleset::default());
        assert!(
            problems(&refused)[0].contains("mail: may not publish ports; allowed here: games"),
            "{refused:?}"
        );
    }

    #[test]
    fn two_replica_sets_of_one_deployment_are_one_holder() {
        let policy = Arc::new(Policy::default());
        let mut index = Index::new(Arc::clone(&policy));
        let mut pods = BTreeMap::new();
        for (set, created) in [("web-1", "2026-01-01T00:00:01Z"), ("web-2", "2026-01-01T00:00:02Z")] {
            let owner = |kind: &str, name: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": format!("uid-{name}"), "controller": true}]);
            let replica_set = json!({
                "kind": "ReplicaSet",
                "metadata": {"namespace": "mail", "name": set, "uid": format!("uid-{set}"), "ownerReferences": owner("Deployment", "web")},
            });
            index.apply(&serde_json::from_value(replica_set).unwrap());
            let metadata = json!({"creationTimestamp": created, "ownerReferences": owner("ReplicaSet", set)});
            let pod = pod(&format!("{set}-x"), "80", "10.244.1.9", json!({"metadata": metadata}));
            pods.insert(name(&pod), pod);
        }
        let known = Known {
            pods: &pods,
            index: &index,
            policy: &policy,
            node: &node(),
            programmed: &Ruleset::default(),
            grants: None,
        };
        let plan = plan(&known);
        assert!(plan.losers.is_empty(), "{:?}", plan.losers);
        let served: Vec<_> = plan.ruleset.entries().map(|entry| entry.owner.to_string()).collect();
        assert_eq!(served, ["mail/web-2-x"], "the newest");
    }
}
