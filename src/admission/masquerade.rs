//! Which MasqueradePolicy counts on a node, and what one says: by the same rules for the agents, which follow it, and for the
//! controller, which tells its operator.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::api::crd::masquerade_policy::MasqueradePolicy;
use crate::api::crd::masquerade_policy::MasqueradePolicySpec;
use crate::model::masquerade::Policy;

/// The policies that select a node with these labels. The first of them counts: the oldest, and of two of the same second the
/// first by name.
pub fn selecting<'a>(
    policies: impl IntoIterator<Item = (&'a String, &'a MasqueradePolicy)>,
    labels: &BTreeMap<String, String>,
) -> Vec<(&'a String, &'a MasqueradePolicy)> {
    let selects = |policy: &MasqueradePolicy| {
        policy.spec.node_selector.as_ref().is_none_or(|selector| selector.selects(labels))
    };
    let mut selecting: Vec<_> = policies.into_iter().filter(|(_, policy)| selects(policy)).collect();
    selecting.sort_by_key(|(name, policy)| {
        (policy.metadata.creation_timestamp.as_ref().map(|created| created.0), *name)
    });
    selecting
}

/// What a policy says, as values.
///
/// # Errors
/// The field and the value that cannot be understood.
pub fn read(spec: &MasqueradePolicySpec) -> Result<Policy, String> {
    let networks = |field: &str, texts: &[String]| {
        let network = |text: &String| {
            text.parse::<IpNet>().map_err(|_| format!("spec.{field}: {text:?} is not a network"))
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

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
    fn policy(name: &str, second: u32, spec: Value) -> (String, MasqueradePolicy) {
        let metadata = json!({"name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")});
        let object = json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "MasqueradePolicy", "metadata": metadata, "spec": spec,
        });
        (name.to_owned(), serde_json::from_value(object).unwrap())
    }

    #[test]
    fn the_oldest_policy_that_selects_the_node_counts_then_the_first_by_name() {
        let zone = |zone: &str| json!({"nodeSelector": {"matchLabels": {"zone": zone}}});
        let policies = BTreeMap::from([
            policy("elsewhere", 1, zone("b")),
            policy("nowhere", 1, json!({"nodeSelector": {}})),
            policy("z", 2, zone("a")),
            policy("b", 3, json!({})),
            policy("c", 2, json!({})),
        ]);
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let names: Vec<_> =
            selecting(&policies, &labels).into_iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["c", "z", "b"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (spec, expected) in [
            (json!({"podCIDRs": ["10.0.0.0/33"]}), "spec.podCIDRs: \"10.0.0.0/33\" is not a network"),
            (json!({"nonMasqueradeCIDRs": ["::/0"]}), "spec.nonMasqueradeCIDRs: ::/0 is every destination"),
            (json!({"excludedInterfaces": [".."]}), "spec.excludedInterfaces: \"..\" is not the name"),
        ] {
            let problem = read(&policy("a", 1, spec).1.spec).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
