//! What a node masquerades: by the one MasqueradePolicy that counts on it, else by the agent's flags.
//!
//! # Guarantees
//! - Which policy counts depends on what is stored alone: the oldest that selects the node, then the first by name.
//! - A policy that cannot be read changes nothing: what the kernel has stays.
//! - A cluster without policies, or without the custom resource, leaves the flags as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::watch;
use tracing::info;
use tracing::warn;

use crate::admission::masquerade;
use crate::agent::following::Following;
use crate::api::crd::masquerade_policy::MasqueradePolicy;
use crate::api::crd::nat_node::NodeMasquerade;
use crate::api::object::Metadata;
use crate::cluster::every::Known;
use crate::model::masquerade::Policy;
use crate::ruleset::Ruleset;
use crate::ruleset::node::NodeFacts;

/// What is wanted of this node, and where news of it come from.
#[derive(Debug, Default)]
pub struct Masquerading {
    flags: Option<Policy>,
    followed: Following<Arc<BTreeMap<String, MasqueradePolicy>>>,
    /// What counted when it was last asked for; at first, nothing.
    counting: Counting,
}

/// What counts on a node.
#[derive(Clone, Debug)]
struct Counting {
    /// The policy that counts; none when the flags do.
    version: Option<Version>,
    /// Others that select the node.
    passed_over: Vec<String>,
    /// What is wanted, or why that cannot be said.
    wish: Result<Option<Policy>, String>,
    /// The node, where it has no pods that this could be about.
    without_pods: Option<String>,
}

/// A policy as it was at a time.
#[derive(Clone, Debug)]
struct Version {
    name: String,
    uid: String,
    generation: Option<i64>,
}

/// What the node's NatNode says of the kernel beside.
#[derive(Clone, Copy, Debug)]
pub struct Stand<'a> {
    /// Whether the kernel masquerades as it should.
    pub is_programmed: bool,
    /// Whether nothing is changed, because an operator said so.
    pub is_paused: bool,
    /// Why the kernel does not have what it should.
    pub trouble: Option<&'a str>,
}

impl Masquerading {
    /// By flags alone.
    pub fn by_flags(flags: Option<Policy>) -> Self {
        Self { flags, ..Self::default() }
    }

    /// By the policies that come from here, and by the flags where none selects the node.
    pub fn with_policies(self, known_rx: watch::Receiver<Known<MasqueradePolicy>>) -> Self {
        Self { followed: Following::of(known_rx), ..self }
    }

    /// Whether it is known what is wanted.
    pub fn is_known(&self) -> bool {
        self.followed.is_known()
    }

    /// Whether anything can be wanted of a node.
    pub fn may_be_wanted(&self) -> bool {
        self.flags.is_some() || self.followed.known().is_some_and(|policies| !policies.is_empty())
    }

    /// Waits for news.
    pub async fn changed(&mut self) {
        self.followed.changed().await;
    }

    /// What this Node is to masquerade, told when it changes.
    pub fn wanted(&mut self, node: &Metadata, facts: &NodeFacts) -> Option<Policy> {
        let known = self.followed.known().unwrap_or_default();
        let mut counting = count(known.iter(), &node.labels, self.flags.as_ref());
        let names_no_pods = |wish: &Policy| wish.pod_cidrs.is_empty() && facts.pod_cidrs.is_empty();
        if let Ok(Some(wish)) = &counting.wish
            && names_no_pods(wish)
        {
            counting.without_pods = Some(node.name.clone());
        }
        if !counting.reads_like(&self.counting) {
            tell(&counting, facts.inside().next().is_some());
        }
        self.counting = counting;
        self.counting.wish.clone().unwrap_or_default()
    }

    /// What became of the policy that counts, for the node's NatNode.
    pub fn shown(&self, stand: Stand<'_>) -> Option<NodeMasquerade> {
        let Version { name, uid, generation } = self.counting.version.clone()?;
        let Stand { is_programmed, is_paused, trouble } = stand;
        let (programmed, reason, message) = match &self.counting.wish {
            Err(problem) => {
                (false, "Unreadable", format!("{problem}; what is masqueraded on the node stays as it is"))
            }
            Ok(_) if self.counting.without_pods.is_some() => {
                (false, "NoPodNetworks", self.counting.lack().unwrap_or_default())
            }
            Ok(_) if is_programmed => (true, "Programmed", String::new()),
            Ok(_) if is_paused => (
                false,
                "Paused",
                "spec.paused of the NatNode is true: nothing in the kernel is changed".to_owned(),
            ),
            Ok(_) => {
                let trouble = trouble.unwrap_or("the kernel does not masquerade so yet");
                (false, "NotProgrammed", trouble.to_owned())
            }
        };
        Some(NodeMasquerade { policy: name, uid, generation, programmed, reason: reason.to_owned(), message })
    }

    /// The rules with what is masqueraded: what is observed stays while nobody can say what is wanted.
    pub fn settle(&self, planned: Ruleset, observed: &Ruleset) -> Ruleset {
        if self.counting.wish.is_err() { planned.masquerading_like(observed) } else { planned }
    }
}

impl Default for Counting {
    fn default() -> Self {
        Self { version: None, passed_over: Vec::new(), wish: Ok(None), without_pods: None }
    }
}

impl Counting {
    fn name(&self) -> Option<&str> {
        self.version.as_ref().map(|version| version.name.as_str())
    }

    /// Whether a person would read the same of both.
    fn reads_like(&self, other: &Self) -> bool {
        self.name() == other.name()
            && self.passed_over == other.passed_over
            && self.wish == other.wish
            && self.without_pods == other.without_pods
    }

    /// Why nothing is masqueraded although it is wanted.
    fn lack(&self) -> Option<String> {
        let node = self.without_pods.as_deref()?;
        Some(format!(
            "Node {node} has no podCIDRs, so nobody knows which addresses its pods have and nothing is masqueraded; write their \
             networks to spec.podCIDRs of the policy, or pass --pod-cidr or --masquerade-pod-cidr to the agent"
        ))
    }
}

/// The policy that counts on a node with these labels.
fn count<'a>(
    policies: impl IntoIterator<Item = (&'a String, &'a MasqueradePolicy)>,
    labels: &BTreeMap<String, String>,
    flags: Option<&Policy>,
) -> Counting {
    let mut selecting = masquerade::selecting(policies, labels).into_iter();
    let Some((name, policy)) = selecting.next() else {
        return Counting { wish: Ok(flags.cloned()), ..Counting::default() };
    };
    let ObjectMeta { uid, generation, .. } = &policy.metadata;
    Counting {
        version: Some(Version {
            name: name.clone(),
            uid: uid.clone().unwrap_or_default(),
            generation: *generation,
        }),
        passed_over: selecting.map(|(name, _)| name.clone()).collect(),
        wish: masquerade::read(&policy.spec).map(Some),
        without_pods: None,
    }
}

fn tell(counting: &Counting, knows_cluster: bool) {
    let policy = counting.name().unwrap_or("none");
    match &counting.wish {
        Ok(None) => info!("Pods that leave the cluster are not masqueraded here"),
        Ok(Some(_)) if let Some(lack) = counting.lack() => warn!(policy, "{lack}"),
        Ok(Some(wish)) => {
            info!(
                policy,
                override_existing = wish.override_existing,
                "Masquerading pods that leave the cluster"
            );
            if !knows_cluster && wish.except.is_empty() {
                warn!(
                    policy,
                    "No network of the cluster is known beside the node's own pods, so pods of other nodes see this node's \
                     address; name the networks of pods and Services in spec.nonMasqueradeCIDRs, or by --cluster-cidr"
                );
            }
        }
        Err(problem) => warn!(
            policy,
            problem,
            "The MasqueradePolicy that counts on this node cannot be read, so what is masqueraded stays as it is; correct it"
        ),
    }
    if !counting.passed_over.is_empty() {
        warn!(
            policy,
            passed_over = counting.passed_over.join(", "),
            "More than one MasqueradePolicy selects this node, and the oldest counts; let their spec.nodeSelector select \
             different nodes"
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::ruleset::desired::desired;
    use crate::ruleset::fixtures::node;
    use crate::ruleset::node::NodeFacts;

    #[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
    fn policy(name: &str, second: u32, spec: Value) -> (String, MasqueradePolicy) {
        let metadata = json!({
            "name": name, "uid": format!("uid-{name}"), "generation": 3,
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        });
        let object = json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "MasqueradePolicy", "metadata": metadata, "spec": spec,
        });
        (name.to_owned(), serde_json::from_value(object).unwrap())
    }

    fn counting(policies: Vec<(String, MasqueradePolicy)>, flags: Option<&Policy>) -> Counting {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        count(BTreeMap::from_iter(policies).iter(), &labels, flags)
    }

    #[test]
    fn the_policies_that_are_passed_over_are_known_by_name() {
        let found = counting(vec![policy("z", 1, json!({})), policy("b", 2, json!({}))], None);
        assert_eq!((found.name(), found.passed_over.as_slice()), (Some("z"), &["b".to_owned()][..]));
    }

    #[test]
    fn a_policy_replaces_the_flags_whole_and_without_one_they_count() {
        let flags = Policy { override_existing: true, ..Policy::default() };
        let by_policy =
            counting(vec![policy("a", 1, json!({"nonMasqueradeCIDRs": ["10.0.0.0/8"]}))], Some(&flags));
        let wish = by_policy.wish.unwrap().unwrap();
        assert_eq!((wish.except.len(), wish.override_existing), (1, false));
        assert_eq!(counting(Vec::new(), Some(&flags)).wish, Ok(Some(flags)));
        assert_eq!(counting(Vec::new(), None).wish, Ok(None));
    }

    #[test]
    fn the_nat_node_says_what_became_of_the_policy_that_counts() {
        let (known_tx, known_rx) = watch::channel(Some(Arc::default()));
        let mut masquerading = Masquerading::by_flags(Some(Policy::default())).with_policies(known_rx);
        let fine = Stand { is_programmed: true, is_paused: false, trouble: None };
        masquerading.wanted(&Metadata::default(), &node());
        assert_eq!(masquerading.shown(fine), None, "the flags count");
        let mut says = |spec: Value, stand: Stand<'_>| {
            known_tx.send_replace(Some(BTreeMap::from([policy("a", 1, spec)]).into()));
            masquerading.wanted(&Metadata::default(), &node());
            let shown = masquerading.shown(stand).unwrap();
            assert_eq!(
                (shown.policy.as_str(), shown.uid.as_str(), shown.generation),
                ("a", "uid-a", Some(3))
            );
            (shown.programmed, shown.reason, shown.message)
        };
        let unreadable = (json!({"excludedInterfaces": [".."]}), fine);
        let behind = Stand { is_programmed: false, ..fine };
        let failing = Stand { trouble: Some("no iptables"), ..behind };
        let paused = Stand { is_paused: true, ..behind };
        for ((spec, stand), expected) in [
            ((json!({}), fine), (true, "Programmed", "")),
            (unreadable, (false, "Unreadable", "spec.excludedInterfaces: \"..\" is not the name")),
            ((json!({}), behind), (false, "NotProgrammed", "the kernel does not masquerade so yet")),
            ((json!({}), failing), (false, "NotProgrammed", "no iptables")),
            ((json!({}), paused), (false, "Paused", "spec.paused of the NatNode is true")),
        ] {
            let (programmed, reason, message) = says(spec, stand);
            assert_eq!((programmed, reason.as_str()), (expected.0, expected.1));
            assert!(message.starts_with(expected.2), "{message}");
        }
    }

    #[test]
    fn a_policy_that_is_about_no_pods_is_not_programmed_and_says_what_to_name() {
        let (known_tx, known_rx) = watch::channel(Some(Arc::default()));
        let mut masquerading = Masquerading::by_flags(None).with_policies(known_rx);
        let fine = Stand { is_programmed: true, is_paused: false, trouble: None };
        let mut says = |spec: Value, facts: &NodeFacts| {
            known_tx.send_replace(Some(BTreeMap::from([policy("a", 1, spec)]).into()));
            let metadata = Metadata { name: "node-7".to_owned(), ..Metadata::default() };
            let wish = masquerading.wanted(&metadata, facts);
            let rules = desired(&[], &NodeFacts { masquerade: wish, ..facts.clone() }).ruleset;
            let shown = masquerading.shown(fine).unwrap();
            let is_masquerading = *rules.masquerade() != crate::ruleset::masquerade::Masquerade::default();
            assert_eq!(shown.programmed, is_masquerading, "{shown:?}");
            (shown.reason, shown.message)
        };
        let bare = NodeFacts { pod_cidrs: Vec::new(), ..node() };
        let (reason, message) = says(json!({}), &bare);
        assert_eq!(reason, "NoPodNetworks");
        let expected = "Node node-7 has no podCIDRs, so nobody knows which addresses its pods have and nothing is \
                        masqueraded; write their networks to spec.podCIDRs of the policy, ";
        assert!(message.starts_with(expected), "{message}");
        assert_eq!(says(json!({"podCIDRs": ["10.99.0.0/16"]}), &bare).0, "Programmed");
        assert_eq!(says(json!({}), &node()).0, "Programmed");
    }

    #[test]
    fn while_the_policy_cannot_be_read_what_the_kernel_has_stays() {
        let (known_tx, known_rx) = watch::channel(None);
        let mut masquerading = Masquerading::by_flags(None).with_policies(known_rx);
        assert!(!masquerading.is_known());
        let mut rules = |spec: Value, observed: &Ruleset| {
            known_tx.send_replace(Some(BTreeMap::from([policy("a", 1, spec)]).into()));
            assert!(masquerading.is_known());
            let wish = masquerading.wanted(&Metadata::default(), &node());
            masquerading.settle(desired(&[], &NodeFacts { masquerade: wish, ..node() }).ruleset, observed)
        };
        let good = json!({"nonMasqueradeCIDRs": ["172.16.0.0/12"], "overrideExisting": true});
        let before = rules(good, &Ruleset::default());
        assert_ne!(before, desired(&[], &node()).ruleset);
        let after = rules(json!({"nonMasqueradeCIDRs": ["172.16.0.0/99"]}), &before);
        assert_eq!(after, before);
    }
}
