//! The custom resources of `pinhole.dev/v1alpha1`: what users, the controller and the agents tell each other through the API
//! server.
//!
//! The types are the contract, and the YAML in `chart/files/crds` is generated from them (`pinhole crd`). What the API
//! server can judge by itself stands in the schema or as a CEL rule with a message of its own. CEL rules keep to what
//! Kubernetes 1.30 knows, so addresses are matched as text; whoever reads one parses it again.

#![expect(
    clippy::duplicated_attributes,
    reason = "columns, fields and rules repeat the keys of the derive macro"
)]
#![expect(unreachable_pub, reason = "the derive macro repeats each struct inside a block of its own")]

pub mod condition;
pub mod masquerade_policy;
pub mod nat_node;
pub mod nat_pool;
pub mod pinhole;
pub mod port_claim;
mod rules;
pub mod shared;

use kube::CustomResourceExt;
use serde_json::Value;
use serde_json::json;

use crate::api::crd::masquerade_policy::MasqueradePolicy;
use crate::api::crd::nat_node::NatNode;
use crate::api::crd::nat_pool::NatPool;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::port_claim::PortClaim;

/// The API group of every kind.
pub const GROUP: &str = "pinhole.dev";

/// The version of every kind.
pub const VERSION: &str = "v1alpha1";

/// The longest name of a claim: `v6-`, 32 digits, `-sctp-61440-65535`.
pub const LONGEST_CLAIM_NAME: usize = 52;

/// The definitions as they are published, in the order in which they are installed.
pub fn definitions() -> Result<Vec<Value>, serde_json::Error> {
    let definitions =
        [PortClaim::crd(), NatPool::crd(), Pinhole::crd(), NatNode::crd(), MasqueradePolicy::crd()];
    definitions
        .iter()
        .map(|definition| {
            let mut definition = serde_json::to_value(definition)?;
            tidy(&mut definition);
            limit_name(&mut definition);
            Ok(definition)
        })
        .collect()
}

/// Says in a claim's schema how long its name can be: without it the API server takes the rule on the name for too expensive.
fn limit_name(definition: &mut Value) {
    if definition["spec"]["names"]["kind"] == "PortClaim" {
        let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["metadata"] = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": LONGEST_CLAIM_NAME}}});
    }
}

/// Takes from a definition what the derive macros say in Rust's words: formats that the API server warns of, limits as
/// floating point, lines broken in the source. What is absent is absent and never null, as elsewhere in Kubernetes; so
/// `has()` means what it says.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.remove("nullable");
            if let Some(Value::String(format)) = members.get_mut("format")
                && format.starts_with("uint")
            {
                "int64".clone_into(format);
            }
            if let Some(Value::String(text)) = members.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            for (key, member) in members {
                match member.as_f64() {
                    Some(limit) if ["minimum", "maximum"].contains(&key.as_str()) => *member = whole(limit),
                    _ => tidy(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// A limit as the whole number that it is. All of ours are exact as floating point.
fn whole(limit: f64) -> Value {
    format!("{limit:.0}").parse().map_or_else(|_| limit.into(), |whole: i64| whole.into())
}

#[cfg(test)]
mod tests;
