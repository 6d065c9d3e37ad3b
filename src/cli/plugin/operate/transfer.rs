//! What `transfer` writes, and what it says will happen: pure.

use serde_json::Value;
use serde_json::json;

use crate::allocation::claim::Claim;
use crate::allocation::transfer;
use crate::api::keys;
use crate::api::object::Metadata;
use crate::api::object::Object;
use crate::model::holder::Holder;

/// One of the two holders, and what is stored of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Party<'a> {
    pub(super) holder: &'a Holder,
    pub(super) stored: Option<&'a Object>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Transfer {
    /// What is merged into the object of the old holder; nothing where it says so already.
    pub(super) give: Option<Value>,
    /// What is merged into the object of the new one, which had handed its ports over to the old one.
    pub(super) take_back: Option<Value>,
    /// What is said.
    pub(super) said: String,
}

/// The transfer of what one holder has claimed to another; `Err` says why there is none.
pub(super) fn plan(from: Party<'_>, to: Party<'_>, claims: &[Claim]) -> Result<Transfer, String> {
    let (giver, heir) = (from.holder, to.holder);
    if giver == heir {
        return Err(format!("{giver} has its ports already"));
    }
    let Some(stored) = from.stored else {
        return Err(format!("there is no {giver}; name another namespace with -n"));
    };
    if let Some(owner) = stored.metadata.controller() {
        let (kind, name) = (&owner.kind, &owner.name);
        return Err(format!(
            "{giver} belongs to {kind} {name}, which holds its ports: transfer those of {}/{name}",
            kind.to_lowercase()
        ));
    }
    let held: Vec<_> = claims.iter().filter(|claim| claim.holder == *giver && claim.slot.is_none()).collect();
    let Some(most) = held.first() else {
        return Err(format!(
            "{giver} has claimed no port that could be handed over; those that a pool has found are not"
        ));
    };
    let named = |metadata: &Metadata, namespace: &str| transfer::heir(metadata, namespace);
    let is_named = named(&stored.metadata, &giver.object.namespace).as_ref() == Some(heir);
    let written = transfer::written(heir, &giver.object.namespace);
    let is_return = to
        .stored
        .is_some_and(|stored| named(&stored.metadata, &heir.object.namespace).as_ref() == Some(giver));
    let mut lines = vec![format!("{giver} hands over to {heir}, and to nobody else:")];
    let mut ports: Vec<_> = held.iter().map(|claim| format!("  {}", claim.key.in_words())).collect();
    ports.sort();
    lines.extend(ports);
    if is_return {
        lines.push(format!("{heir} had handed its own over to {giver}; that ends."));
    }
    lines.push(match to.stored {
        None => format!("It gets them when it is applied and asks for them; there is no {heir} yet."),
        Some(_) => {
            "It gets them as soon as it asks for them, and what it asks for already at once.".to_owned()
        }
    });
    lines.push(format!("Until a pod of it is ready, {giver} goes on serving them. It can be deleted then."));
    if heir.object.namespace != giver.object.namespace {
        let pool =
            most.pool.as_ref().map_or_else(|| "a NatPool".to_owned(), |pool| format!("NatPool {pool}"));
        lines.push(format!("{pool} has to admit namespace {}, too.", heir.object.namespace));
    }
    Ok(Transfer {
        give: (!is_named).then(|| noting(&json!(written))),
        take_back: is_return.then(|| noting(&Value::Null)),
        said: lines.join("\n") + "\n",
    })
}

fn noting(value: &Value) -> Value {
    json!({"metadata": {"annotations": {keys::TRANSFER_TO: value}}})
}

/// What is said of a plan once it is carried out, or was only looked at.
pub(super) fn outcome(plan: &Transfer, giver: &Holder, is_dry_run: bool) -> String {
    let Holder { kind, object } = giver;
    let key = keys::TRANSFER_TO;
    match (&plan.give, is_dry_run) {
        (None, _) => "This has been said before; nothing was changed.\n".to_owned(),
        (Some(_), true) => format!("{giver} would be annotated with {key}; nothing was changed.\n"),
        (Some(_), false) => format!(
            "Annotated. To take that back before they have changed hands: kubectl annotate -n {} {} {} {key}-\n",
            object.namespace,
            kind.to_lowercase(),
            object.name
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crd::port_claim::ClaimState;
    use crate::cli::plugin::testing::golden;
    use crate::cli::plugin::testing::object;
    use crate::model::holder::ObjectName;

    fn holder(namespace: &str, name: &str) -> Holder {
        Holder::new("Deployment", ObjectName::new(namespace, name))
    }

    fn claim(name: &str, holder: Holder) -> Claim {
        let claim = Claim::reserve(name.parse().unwrap(), holder, "2026-03-01T10:00:00Z".parse().unwrap());
        Claim { pool: Some("edge".to_owned()), state: ClaimState::Bound, ..claim }
    }

    fn stored(holder: &Holder, heir: Option<&str>) -> Object {
        let annotations = json!({"pinhole.dev/transfer-to": heir});
        let annotations = heir.map(|_| annotations);
        object(json!({"kind": "Deployment", "metadata": {
            "namespace": &*holder.object.namespace, "name": &*holder.object.name, "annotations": annotations}}))
    }

    #[test]
    fn what_will_happen_is_said_before_it_does_and_a_mistake_changes_nothing() {
        let (blue, green, away) =
            (holder("shop", "blue"), holder("shop", "green"), holder("market", "green"));
        let claims = [
            claim("v4-203-0-113-7-udp-7008-7023", blue.clone()),
            claim("v4-203-0-113-7-tcp-443", blue.clone()),
            claim("v4-203-0-113-7-tcp-25", green.clone()),
            Claim { slot: Some("1/TCP/80".to_owned()), ..claim("v4-203-0-113-7-tcp-3000", away.clone()) },
        ];
        let (silent, told) = (stored(&blue, None), stored(&blue, Some("deployment/green")));
        let (other, back) = (stored(&green, None), stored(&green, Some("Deployment/blue")));
        let owned = {
            let mut owned = stored(&green, None);
            owned.metadata.owner_references =
                serde_json::from_value(json!([{"kind": "Rollout", "name": "shop", "controller": true}]))
                    .unwrap();
            owned
        };
        let foreign = stored(&away, None);
        let cases = [
            ("to one that is not there yet", (&blue, Some(&silent)), (&green, None)),
            ("to one that is there", (&blue, Some(&silent)), (&green, Some(&other))),
            ("into another namespace", (&blue, Some(&silent)), (&away, None)),
            ("said before", (&blue, Some(&told)), (&green, Some(&other))),
            ("and back", (&blue, Some(&silent)), (&green, Some(&back))),
            ("to itself", (&blue, Some(&silent)), (&blue, Some(&silent))),
            ("of nobody", (&blue, None), (&green, None)),
            ("of what somebody owns", (&green, Some(&owned)), (&blue, None)),
            ("of one that has only found ports", (&away, Some(&foreign)), (&blue, None)),
        ];
        let mut said = Vec::new();
        for (name, (from, stored), (to, there)) in cases {
            let plan = plan(Party { holder: from, stored }, Party { holder: to, stored: there }, &claims);
            let text = plan.map_or_else(
                |refusal| format!("refused: {refusal}\n"),
                |plan| {
                    let patches = [("give", &plan.give), ("take back", &plan.take_back)];
                    let patches = patches
                        .into_iter()
                        .filter_map(|(name, patch)| Some(format!("{name}: {}\n", patch.as_ref()?)));
                    format!("{}{}{}", plan.said, outcome(&plan, from, false), patches.collect::<String>())
                },
            );
            said.push(format!("== {name}\n{text}\n"));
        }
        golden("transfer.txt", &said.concat());
    }
}
