// What each target does with an input. The fuzz targets and the test that replays the corpora include this file.

use std::collections::BTreeMap;

use pinhole::admission::policy::Policy;
use pinhole::admission::subject::Subject;
use pinhole::admission::wanted;
use pinhole::api::object::Metadata;
use pinhole::api::object::Object;
use pinhole::api::object::OwnerReference;
use pinhole::dataplane::iptables::decode::decode;
use pinhole::dataplane::iptables::names::Names;
use pinhole::dataplane::iptables::parse::parse;
use pinhole::dataplane::iptables::parse::parse_listed;
use pinhole::dataplane::iptables::rule;
use pinhole::dataplane::settings::Prefix;
use pinhole::model::address::Family;

/// Elements of nftables as the kernel lists them.
pub(crate) fn netlink(input: &[u8]) {
    pinhole::dataplane::nftables::fuzzing::read_messages(input);
}

/// Routes, rules and addresses as the kernel lists them, or tells of them.
pub(crate) fn rtnetlink(input: &[u8]) {
    pinhole::dataplane::routing::read_messages(input);
    pinhole::agent::addresses::read_messages(input);
}

/// The text of `conntrack -L`.
pub(crate) fn conntrack(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    pinhole::dataplane::conntrack::read_listed(text);
    pinhole::dataplane::seen_flows::read_listed(text);
}

/// The text of `iptables-save -c`, or of `iptables -v -S`. A rule that is understood is written as it was read.
pub(crate) fn iptables_save(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let prefix = Prefix::default();
    parse_listed(text, Names(&prefix));
    let Ok(tables) = parse(text, Names(&prefix)) else { return };
    for table in [&tables.filter, &tables.nat] {
        for saved in table.chains.values().flat_map(|chain| &chain.rules) {
            // Comments of ours need no quotes.
            let is_plain = |comment: &str| !comment.is_empty() && !comment.contains([' ', '"', '\\']);
            let understood = saved.rule.as_ref();
            if let Some(understood) = understood.filter(|rule| rule.comment.as_deref().is_none_or(is_plain)) {
                let written = understood.to_string();
                assert_eq!(rule::parse(written.split(' ')).as_ref(), Some(understood), "{written}");
            }
        }
    }
    for family in [Family::V4, Family::V6] {
        decode(&BTreeMap::from([(family, tables.clone())]), Names(&prefix));
    }
}

/// Either annotation. What is accepted is accepted again as it is shown.
pub(crate) fn annotation(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for key in ["pinhole.dev/nat", "pinhole.dev/expose"] {
        let annotations = BTreeMap::from([(key.to_owned(), text.to_owned())]);
        let set = OwnerReference {
            kind: "StatefulSet".to_owned(),
            name: "lobby".to_owned(),
            ..OwnerReference::default()
        };
        let owner_references = vec![OwnerReference { controller: true, ..set }];
        let metadata =
            Metadata { name: "lobby-3".to_owned(), annotations, owner_references, ..Metadata::default() };
        let pod = Object { kind: "Pod".to_owned(), metadata, ..Object::default() };
        let wanted = Subject::of(&pod).and_then(|subject| wanted::of(&subject, &Policy::default()));
        let Some(wanted) = wanted else { continue };
        for mapping in wanted.mappings() {
            assert_eq!(mapping.external().count(), mapping.target().count());
        }
    }
}
