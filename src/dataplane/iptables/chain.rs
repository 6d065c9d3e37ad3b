//! Changes single rules of a chain of ours, so that the others stay as they are: their counters go on without being read, and
//! the kernel is told no more than what is new.
//!
//! Rules are taken out by what they say, not by where they stand: when somebody else changed the chain meanwhile, the kernel
//! refuses the change instead of taking out another rule. They are put in by position, which nothing can guard: in a chain that
//! somebody else changed they may come to stand elsewhere. So this is done only where that lets no packet through that should
//! not be: every other chain is written anew.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::position::Edit;
use crate::dataplane::iptables::rule::Action;
use crate::dataplane::iptables::rule::Rule;
use crate::dataplane::iptables::table::SavedRule;

/// Up to this many comparisons of rules: iptables-nft finds a rule that is taken out by reading the whole chain, 0.2 s in one of
/// 10 000 rules.
const MOST_COMPARISONS: usize = 20_000;

/// The changes that lead from the rules that are there to those that should be; `None` when writing the chain anew is no
/// longer or quicker, when places matter, or when a rule is there that tells no place: one of others, or one that is there
/// twice.
pub(crate) fn edits(
    chain: &str,
    saved: &[SavedRule],
    wanted: &[Rule],
    names: Names<'_>,
) -> Option<Vec<Edit>> {
    let places: BTreeMap<&Rule, usize> = wanted.iter().zip(0..).collect();
    let mut seen = BTreeSet::new();
    let mut kept = BTreeSet::new();
    let mut deleted = Vec::new();
    for rule in saved {
        let rule = rule.rule.as_ref()?;
        if !seen.insert(rule) {
            return None;
        }
        // Two layouts have the rules that they share in the same order, so what comes too early is what does not belong there.
        match places.get(rule) {
            Some(place) if kept.last().is_none_or(|last| last < place) => drop(kept.insert(*place)),
            _ => deleted.push(rule),
        }
    }
    // As many edits as deleted and missing rules; anew, as many lines as wanted ones.
    let is_short = deleted.len() < kept.len() && deleted.len() * saved.len() <= MOST_COMPARISONS;
    if !is_short || (kept.len() < wanted.len() && wanted.iter().any(|rule| !works_anywhere(rule, names))) {
        return None;
    }
    let out =
        deleted.into_iter().map(|rule| Edit::Delete { chain: chain.to_owned(), rule: rule.to_string() });
    let missing = wanted.iter().enumerate().filter(|(place, _)| !kept.contains(place));
    let put_in = missing.map(|(place, rule)| Edit::Insert {
        chain: chain.to_owned(),
        position: place + 1,
        rule: rule.to_string(),
    });
    Some(out.chain(put_in).collect())
}

/// Whether a rule concerns some external ports or one pod only, and lets nobody through that another rule of its chain stops.
/// A mark behind its rewriting leaves a connection unmarked, which is then not let through. A list must stand in front of what
/// it restricts, and what stays in the cluster in front of what leaves it.
fn works_anywhere(rule: &Rule, names: Names<'_>) -> bool {
    match &rule.action {
        Action::Dnat { .. } | Action::Snat(_) | Action::SetConnmark(_) => true,
        Action::Jump(chain) => rule.destination.is_some() || rule.ports.is_some() && !names.is_list(chain),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::counters::Counters;
    use crate::dataplane::iptables::parse::saved_rule;
    use crate::dataplane::settings::Settings;

    fn rules(ports: &[u16]) -> Vec<SavedRule> {
        let rule = |port: &u16| {
            let text = format!("-p tcp -m tcp --dport {port} -j CONNMARK --set-xmark 0x1000/0x1000");
            saved_rule(Counters::default(), &text, true)
        };
        ports.iter().map(rule).collect()
    }

    /// `-80` for what is taken out, `+81@2` for what is put in and where.
    fn told(saved: &[SavedRule], wanted: &[u16]) -> Option<String> {
        let wanted: Vec<_> = rules(wanted).into_iter().filter_map(|saved| saved.rule).collect();
        let port = |rule: &str| rule.split(' ').nth(5).unwrap_or_default().to_owned();
        let settings = Settings::default();
        let words = edits("C", saved, &wanted, Names(&settings.prefix))?.into_iter().map(|edit| match edit {
            Edit::Delete { rule, .. } => format!("-{}", port(&rule)),
            Edit::Insert { position, rule, .. } => format!("+{}@{position}", port(&rule)),
            Edit::Append { .. } => "nothing is appended".to_owned(),
        });
        Some(words.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn only_what_differs_is_taken_out_or_put_in() {
        for (saved, wanted, expected) in [
            (&[80, 81][..], &[80, 81][..], Some("")),
            (&[80, 81], &[80, 81, 82], Some("+82@3")),
            (&[81, 82], &[80, 81, 82], Some("+80@1")),
            (&[80, 81, 83], &[80, 82, 83], Some("-81 +82@2")),
            (&[80, 81, 82, 83], &[80, 82, 83, 84, 85], Some("-81 +84@4 +85@5")),
            (&[82, 80, 81, 83, 84], &[80, 81, 82, 83, 84], Some("-80 -81 +80@1 +81@2")),
            (&[80, 81, 82, 83], &[80, 83, 84, 85], None),
            (&[80, 81, 82], &[80], None),
            (&[], &[80], None),
        ] {
            assert_eq!(told(&rules(saved), wanted).as_deref(), expected, "{saved:?} to {wanted:?}");
        }
    }

    #[test]
    fn a_chain_with_a_rule_that_tells_no_place_is_written_anew() {
        let foreign = saved_rule(Counters::default(), "-p tcp -m string --string x --algo bm -j DROP", true);
        assert_eq!(foreign.rule, None);
        let wanted = [80, 81, 82, 83];
        assert_eq!(told(&[rules(&[80, 81, 82]), vec![foreign]].concat(), &wanted), None);
        assert_eq!(told(&rules(&[80, 81, 80, 82]), &wanted), None);
    }

    #[test]
    fn many_rules_of_a_long_chain_are_not_looked_for_one_by_one() {
        let ports = |count: u16| (1..=count).collect::<Vec<_>>();
        for (present, gone, is_edited) in
            [(1000, 20, true), (1000, 21, false), (3000, 6, true), (3000, 7, false)]
        {
            let told = told(&rules(&ports(present)), &ports(present)[gone..]);
            assert_eq!(told.is_some(), is_edited, "{gone} of {present}");
        }
    }

    #[test]
    fn a_chain_in_which_places_matter_is_written_anew() {
        let settings = Settings::default();
        let names = Names(&settings.prefix);
        let list = "-p tcp -m tcp --dport 80 -j PINHOLE-L-PQC7I5SILNDM5";
        let bucket = "-p tcp -m tcp --dport 64:127 -j PINHOLE-T-CB007107-001";
        for (first, is_edited) in [
            (list, false),
            ("-d 10.244.1.0/24 -j RETURN", false),
            (bucket, true),
            ("-d 203.0.113.7/32 -p tcp -j PINHOLE-T-CB007107", true),
        ] {
            let first = saved_rule(Counters::default(), first, true);
            let wanted: Vec<_> = [vec![first.clone()], rules(&[81, 82])]
                .concat()
                .into_iter()
                .filter_map(|saved| saved.rule)
                .collect();
            assert_eq!(wanted.len(), 3, "{first:?}");
            let saved = [vec![first], rules(&[81])].concat();
            assert_eq!(edits("C", &saved, &wanted, names).is_some(), is_edited, "{:?}", wanted[0]);
        }
    }
}
