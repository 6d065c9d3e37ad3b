//! What a node masquerades: by the one MasqueradePolicy that counts on it, else by the agent's flags.
//!
//! # Guarantees
//! - Which policy counts depends on what is stored alone: the oldest that selects the node, then the first by name.
//! - A policy that cannot be read changes nothing: what the kernel has stays.
//! - A cluster without policies, or without the custom resource, leaves the flags as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::info;
use tracing::warn;

use crate::agent::following::Following;
use crate::api::crd::masquerade_policy::MasqueradePolicy;
use crate::api::crd::masquerade_policy::MasqueradePolicySpec;
use crate::cluster::masquerade_policies::Known;
use crate::ruleset::Ruleset;
use crate::ruleset::masquerade::Policy;

/// What is wanted of this node, and where news of it come from.
#[derive(Debug, Default)]
pub struct Masquerading {
    flags: Option<Policy>,
    followed: Following<Arc<BTreeMap<String, MasqueradePolicy>>>,
    /// What counted when it was last asked for; at first, nothing.
    counting: Counting,
}

/// What counts on a node.
#[derive(Clone, Debug, PartialEq)]
struct Counting {
    /// The policy that counts; none when the flags do.
    name: Option<String>,
    /// Others that select the node.
    passed_over: Vec<String>,
    /// What is wanted, or why that cannot be said.
    wish: Result<Option<Policy>, String>,
}

impl Masquerading {
    /// By flags alone.
    pub fn by_flags(flags: Option<Policy>) -> Self {
        Self { flags, ..Self::default() }
    }

    /// By the policies that come from here, and by the flags where none selects the node.
    pub fn with_policies(self, known_rx: watch::Receiver<Known>) -> Self {
        Self { followed: Following::of(known_rx), ..self }
    }

    /// Whether it is known what is wanted.
    pub fn is_known(&self) -> bool {
        self.followed.is_known()
    }

    /// Waits for news.
    pub async fn changed(&mut self) {
        self.followed.changed().await;
    }

    /// What a node with these labels is to masquerade, told when it changes.
    pub fn wanted(&mut self, labels: &BTreeMap<String, String>, knows_cluster: bool) -> Option<Policy> {
        let known = self.followed.known();
        let counting = count(known.iter().flat_map(|known| known.iter()), labels, self.flags.as_ref());
        if counting != self.counting {
            tell(&counting, knows_cluster);
        }
        self.counting = counting;
        self.counting.wish.clone().unwrap_or_default()
    }

    /// The rules with what is masqueraded: what is observed stays while nobody can say what is wanted.
    pub fn settle(&self, planned: Ruleset, observed: &Ruleset) -> Ruleset {
        if self.counting.wish.is_err() { planned.masquerading_like(observed) } else { planned }
    }
}

impl Default for Counting {
    fn default() -> Self {
        Self { name: None, passed_over: Vec::new(), wish: Ok(None) }
    }
}

/// The policy that counts on a node with these labels.
fn count<'a>(
    policies: impl Iterator<Item = (&'a String, &'a MasqueradePolicy)>,
    labels: &BTreeMap<String, String>,
    flags: Option<&Policy>,
) -> Counting {
    let selects = |policy: &MasqueradePolicy| {
        policy.spec.node_selector.as_ref().is_none_or(|selector| selector.selects(labels))
    };
    let mut selecting: Vec<_> = policies.filter(|(_, policy)| selects(policy)).collect();
    selecting.sort_by_key(|(name, policy)| {
        (policy.metadata.creation_timestamp.as_ref().map(|created| created.0), *name)
    });
    let mut selecting = selecting.into_iter();
    let Some((name, policy)) = selecting.next() else {
        return Counting { wish: Ok(flags.cloned()), ..Counting::default() };
    };
    Counting {
        name: Some(name.clone()),
        passed_over: selecting.map(|(name, _)| name.clone()).collect(),
        wish: read(&policy.spec).map(Some),
    }
}

/// The spec as values.
fn read(spec: &MasqueradePolicySpec) -> Result<Policy, String> {
    let networks = |field: &str, texts: &[String]| {
        let network = |text: &String| {
            text.parse::<ipnet::IpNet>().map_err(|_| format!("spec.{field}: {text:?} is not a network"))
        };
        texts.iter().map(network).collect::<Result<Vec<_>, _>>()
    };
    let interface =
        |text: &String| text.parse().map_err(|error| format!("spec.excludedInterfaces: {text:?} {error}"));
    let except = networks("nonMasqueradeCIDRs", &spec.non_masquerade_cidrs)?;
    if let Some(all) = except.iter().find(|net| net.prefix_len() == 0) {
        return Err(format!("spec.nonMasqueradeCIDRs: {all} is every destination"));
    }
    Ok(Policy {
        pod_cidrs: networks("podCIDRs", &spec.pod_cidrs)?,
        except,
        excluded_interfaces: spec.excluded_interfaces.iter().map(interface).collect::<Result<_, _>>()?,
        override_existing: spec.override_existing,
    })
}

fn tell(counting: &Counting, knows_cluster: bool) {
    let policy = counting.name.as_deref().unwrap_or("none");
    match &counting.wish {
        Ok(None) => info!("Pods that leave the cluster are not masqueraded here"),
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
        let metadata = json!({"name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")});
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
    fn the_oldest_policy_that_selects_the_node_counts_then_the_first_by_name() {
        let zone = |zone: &str| json!({"nodeSelector": {"matchLabels": {"zone": zone}}});
        let counting = counting(
            vec![
                policy("elsewhere", 1, zone("b")),
                policy("nowhere", 1, json!({"nodeSelector": {}})),
                policy("z", 2, zone("a")),
                policy("b", 3, json!({})),
                policy("c", 2, json!({})),
            ],
            None,
        );
        assert_eq!(counting.name.as_deref(), Some("c"));
        assert_eq!(counting.passed_over, ["z", "b"]);
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
    fn what_cannot_be_read_is_named() {
        for (spec, expected) in [
            (json!({"podCIDRs": ["10.0.0.0/33"]}), "spec.podCIDRs: \"10.0.0.0/33\" is not a network"),
            (json!({"nonMasqueradeCIDRs": ["::/0"]}), "spec.nonMasqueradeCIDRs: ::/0 is every destination"),
            (json!({"excludedInterfaces": [".."]}), "spec.excludedInterfaces: \"..\" is not the name"),
        ] {
            let problem = counting(vec![policy("a", 1, spec)], None).wish.unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn while_the_policy_cannot_be_read_what_the_kernel_has_stays() {
        let (known_tx, known_rx) = watch::channel(None);
        let mut masquerading = Masquerading::by_flags(None).with_policies(known_rx);
        assert!(!masquerading.is_known());
        let mut rules = |spec: Value, observed: &Ruleset| {
            known_tx.send_replace(Some(BTreeMap::from([policy("a", 1, spec)]).into()));
            assert!(masquerading.is_known());
            let wish = masquerading.wanted(&BTreeMap::new(), true);
            masquerading.settle(desired(&[], &NodeFacts { masquerade: wish, ..node() }).ruleset, observed)
        };
        let good = json!({"nonMasqueradeCIDRs": ["172.16.0.0/12"], "overrideExisting": true});
        let before = rules(good, &Ruleset::default());
        assert_ne!(before, desired(&[], &node()).ruleset);
        let after = rules(json!({"nonMasqueradeCIDRs": ["172.16.0.0/99"]}), &before);
        assert_eq!(after, before);
    }
}
