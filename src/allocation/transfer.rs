//! Handing ports over: who may take what a holder has, by the word of whoever may change that holder's object.
//!
//! A holder's object names its heir in an annotation. The heir takes over what the holder has claimed by asking for it, in one
//! conditional write, and nobody else can. The claim keeps whom it came from: that one goes on serving the port while no pod of the
//! heir is ready, and gets it back if the heir gives it up first.
//!
//! # Guarantees
//! - The holder alone gives. To name somebody who holds a port gives no right to it.
//! - Two that name each other, directly or through others, have named nobody: their ports do not go round in circles.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::iter;

use crate::api::keys;
use crate::api::object::Kind;
use crate::api::object::Metadata;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;

/// How many holders ports can be given on through.
const LONGEST: usize = 8;

/// Which holder names which heir.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heirs {
    by_holder: BTreeMap<Holder, Holder>,
}

impl Heirs {
    /// Takes what a holder says now.
    pub fn set(&mut self, holder: Holder, heir: Option<Holder>) {
        match heir {
            Some(heir) => drop(self.by_holder.insert(holder, heir)),
            None => drop(self.by_holder.remove(&holder)),
        }
    }

    /// The heir that a holder names.
    pub fn of(&self, holder: &Holder) -> Option<&Holder> {
        self.by_holder.get(holder)
    }

    /// Whether what `from` holds may be taken over by `to`.
    pub fn passes(&self, from: &Holder, to: &Holder) -> bool {
        self.leads(from, to) && !self.leads(to, from)
    }

    /// Everybody whose ports may be taken over by this holder.
    pub fn givers_to(&self, heir: &Holder) -> BTreeSet<Holder> {
        self.by_holder.keys().filter(|from| self.passes(from, heir)).cloned().collect()
    }

    fn leads(&self, from: &Holder, to: &Holder) -> bool {
        iter::successors(self.of(from), |heir| self.of(heir)).take(LONGEST).any(|heir| heir == to)
    }
}

/// The heir that an object in this namespace names; `None` also where the annotation names nothing.
pub fn heir(metadata: &Metadata, namespace: &str) -> Option<Holder> {
    parse(metadata.annotations.get(keys::TRANSFER_TO)?, namespace)
}

/// The heir as the annotation of an object in this namespace writes it.
pub fn written(heir: &Holder, namespace: &str) -> String {
    let Holder { kind, object } = heir;
    if *object.namespace == *namespace {
        format!("{kind}/{}", object.name)
    } else {
        format!("{kind}/{object}")
    }
}

/// Reads `KIND/NAME` in this namespace, or `KIND/NAMESPACE/NAME`.
fn parse(text: &str, namespace: &str) -> Option<Holder> {
    let parts: Vec<_> = text.trim().split('/').collect();
    let (kind, namespace, name) = match parts.as_slice() {
        [kind, name] => (*kind, namespace, *name),
        [kind, namespace, name] => (*kind, *namespace, *name),
        _ => return None,
    };
    let is_complete = ![kind, namespace, name].contains(&"");
    // As kubectl takes kinds: in any case. Of one that is not ours the case is its owner's.
    let known = Kind::ALL.iter().find(|known| known.name().eq_ignore_ascii_case(kind));
    let kind = known.map_or(kind, |known| known.name());
    is_complete.then(|| Holder::new(kind, ObjectName::new(namespace, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder::new("Deployment", ObjectName::new("shop", name))
    }

    fn heirs(pairs: &[(&str, &str)]) -> Heirs {
        let mut heirs = Heirs::default();
        for (from, to) in pairs {
            heirs.set(holder(from), Some(holder(to)));
        }
        heirs
    }

    #[test]
    fn only_the_holder_gives_and_what_it_gives_can_be_given_on() {
        let mut heirs = heirs(&[("blue", "green"), ("green", "red"), ("other", "blue")]);
        let passes = |heirs: &Heirs, from: &str, to: &str| heirs.passes(&holder(from), &holder(to));
        assert!(passes(&heirs, "blue", "green") && passes(&heirs, "blue", "red"));
        assert!(!passes(&heirs, "green", "blue"), "whoever is named has given nothing");
        assert!(!passes(&heirs, "blue", "blue"));
        assert_eq!(
            heirs.givers_to(&holder("red")),
            [holder("blue"), holder("green"), holder("other")].into()
        );
        heirs.set(holder("green"), None);
        assert!(!passes(&heirs, "blue", "red"));
    }

    #[test]
    fn those_who_name_each_other_have_named_nobody() {
        let heirs = heirs(&[("blue", "green"), ("green", "red"), ("red", "blue"), ("own", "own")]);
        for (from, to) in
            [("blue", "green"), ("green", "red"), ("red", "blue"), ("blue", "red"), ("own", "own")]
        {
            assert!(!heirs.passes(&holder(from), &holder(to)), "{from} to {to}");
        }
    }

    #[test]
    fn an_heir_is_named_by_kind_and_name_and_a_namespace_where_it_is_another() {
        let named = |text: &str| {
            let annotations = [(keys::TRANSFER_TO.to_owned(), text.to_owned())].into();
            heir(&Metadata { annotations, ..Metadata::default() }, "shop").map(|heir| heir.to_string())
        };
        let cases = [
            ("Deployment/green", Some("Deployment shop/green")),
            ("statefulset/green", Some("StatefulSet shop/green")),
            ("CloneSet/green", Some("CloneSet shop/green")),
            ("Pod/market/green", Some("Pod market/green")),
            ("green", None),
            ("", None),
            ("Deployment/", None),
            ("/green", None),
            ("a/b/c/d", None),
        ];
        for (text, expected) in cases {
            assert_eq!(named(text).as_deref(), expected, "{text}");
        }
        for heir in [holder("green"), Holder::new("Pod", ObjectName::new("market", "green"))] {
            assert_eq!(parse(&written(&heir, "shop"), "shop"), Some(heir));
        }
    }
}
