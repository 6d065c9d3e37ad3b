//! Reads the text that `iptables-save -c` prints.

use crate::dataplane::counters::Counters;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::rule;
use crate::dataplane::iptables::table::SavedRule;
use crate::dataplane::iptables::table::Table;
use crate::dataplane::iptables::table::TableName;
use crate::dataplane::iptables::table::Tables;

/// Why a text is not what `iptables-save` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// A line that is none of its lines.
    Line(String),
    /// A table that iptables-nft cannot show.
    Incompatible(String),
}

/// Reads the filter, mangle and nat tables; others are skipped.
pub fn parse(saved: &str, names: Names<'_>) -> Result<Tables, ParseError> {
    let mut tables = Tables::default();
    let mut current: Option<&mut Table> = None;
    for line in saved.lines() {
        let unknown = || ParseError::Line(line.to_owned());
        if let Some(name) = line.strip_prefix('*') {
            current = match name.trim_end() {
                "filter" => Some(tables.get_mut(TableName::Filter)),
                "mangle" => Some(tables.get_mut(TableName::Mangle)),
                "nat" => Some(tables.get_mut(TableName::Nat)),
                _ => None,
            };
        } else if let Some(comment) = line.strip_prefix('#') {
            if let Some(table) = incompatible(comment) {
                return Err(ParseError::Incompatible(table.to_owned()));
            }
        } else if line == "COMMIT" || line.trim().is_empty() {
        } else if let Some(table) = &mut current {
            if let Some(declaration) = line.strip_prefix(':') {
                let mut words = declaration.split(' ');
                let (name, policy) = words.next().zip(words.next()).ok_or_else(unknown)?;
                table.chain_mut(name).policy = (policy != "-").then(|| policy.to_owned());
            } else {
                let (chain, rule) = parse_rule(line, names).ok_or_else(unknown)?;
                table.chain_mut(&chain).rules.push(rule);
            }
        }
    }
    Ok(tables)
}

/// ``# Table `nat' is incompatible, use 'nft' tool.``
fn incompatible(comment: &str) -> Option<&str> {
    let table = comment.strip_prefix(" Table `")?;
    let (table, rest) = table.split_once('\'')?;
    (rest.contains("incompatible") && ["filter", "nat"].contains(&table)).then_some(table)
}

/// Reads `[12:720] -A FORWARD -j PINHOLE-FWD`.
fn parse_rule(line: &str, names: Names<'_>) -> Option<(String, SavedRule)> {
    let (counters, rest) = match line.strip_prefix('[') {
        None => (Counters::default(), line),
        Some(counted) => {
            let (counters, rest) = counted.split_once("] ")?;
            let (packets, bytes) = counters.split_once(':')?;
            (Counters { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? }, rest)
        }
    };
    let (chain, text) = rest.strip_prefix("-A ")?.split_once(' ').unwrap_or((rest.strip_prefix("-A ")?, ""));
    Some((chain.to_owned(), saved_rule(counters, text, names.owns(chain))))
}

/// Reads the rules that `iptables -v -S CHAIN` prints: counters stand in the middle of the rule as `-c 12 720`.
pub fn parse_listed(listed: &str, names: Names<'_>) -> Option<Vec<SavedRule>> {
    let rules = listed.lines().filter_map(|line| line.strip_prefix("-A "));
    let rule = |line: &str| {
        let (chain, text) = line.split_once(' ')?;
        let (before, counted) = text.rsplit_once("-c ")?;
        let mut counted = counted.splitn(3, ' ');
        let packets = counted.next()?.parse().ok()?;
        let bytes = counted.next()?.parse().ok()?;
        let text = format!("{before}{}", counted.next().unwrap_or_default());
        Some(saved_rule(Counters { packets, bytes }, &text, names.owns(chain)))
    };
    rules.map(rule).collect()
}

/// Understands a rule as far as it matters: wholly in a chain of ours or where it jumps to one, else its target.
pub fn saved_rule(counters: Counters, text: &str, ours: bool) -> SavedRule {
    let words = words(text);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let end = words.iter().position(|word| matches!(*word, "-j" | "-g" | "--jump" | "--goto"));
    let target = end.and_then(|end| words.get(end + 1)).copied().unwrap_or_default();
    let conditions = words.get(..end.unwrap_or(words.len())).unwrap_or_default();
    let unconditional = takes_all(conditions);
    let takes_dnat = unconditional || takes_dnat(conditions);
    SavedRule {
        counters,
        text: text.to_owned(),
        target: target.to_owned(),
        unconditional,
        takes_dnat,
        rule: if ours || unconditional { rule::parse(words.iter().copied()) } else { None },
    }
}

fn takes_all(conditions: &[&str]) -> bool {
    matches!(conditions, [] | ["-m", "comment", "--comment", _])
}

/// Whether nothing else is asked of a connection than that its destination was rewritten.
fn takes_dnat(conditions: &[&str]) -> bool {
    let begin = conditions.windows(4).position(|four| {
        matches!(four, ["-m", "conntrack", "--ctstate", states] if states.split(',').any(|state| state == "DNAT"))
    });
    begin.and_then(|begin| conditions.split_at_checked(begin)).is_some_and(|(before, rest)| {
        let behind = rest.get(4..).unwrap_or_default();
        takes_all(before) && takes_all(behind)
    })
}

/// Splits at spaces, except inside quotes, where a backslash protects the next character.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut in_word = false;
    let mut quoted = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                in_word = true;
            }
            '\\' if quoted => word.extend(characters.next()),
            ' ' if !quoted => {
                if std::mem::take(&mut in_word) {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => {
                word.push(character);
                in_word = true;
            }
        }
    }
    if in_word {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::settings::Prefix;

    fn read(saved: &str) -> Result<Tables, ParseError> {
        parse(saved, Names(&Prefix::default()))
    }

    #[test]
    fn our_tables_are_read_with_policies_and_counters_and_others_are_skipped() {
        let tables = read(
            "# Generated by iptables-save v1.8.9 on Sun Nov 22 00:00:00 2026\n\
             *raw\n:PREROUTING ACCEPT [0:0]\n[1:2] -A PREROUTING -j ODD \"\n COMMIT\nCOMMIT\n\
             *mangle\n:PREROUTING ACCEPT [0:0]\n[1:2] -A PREROUTING -j ODD\nCOMMIT\n\
             *filter\n:FORWARD DROP [3:180]\n:KUBE-FORWARD - [0:0]\n\
             [7:420] -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
             [0:0] -A FORWARD -i eth0 -g OTHER\nCOMMIT\n",
        )
        .unwrap();
        let forward = &tables.filter.chains["FORWARD"];
        assert_eq!(forward.policy.as_deref(), Some("DROP"));
        assert_eq!(forward.rules[0].counters, Counters { packets: 7, bytes: 420 });
        assert_eq!(
            (forward.rules[0].target.as_str(), forward.rules[0].unconditional),
            ("KUBE-FORWARD", true)
        );
        assert_eq!((forward.rules[1].target.as_str(), forward.rules[1].unconditional), ("OTHER", false));
        assert_eq!(tables.mangle.rules("PREROUTING")[0].target, "ODD");
        assert!(tables.nat.chains.is_empty());
    }

    #[test]
    fn a_table_that_iptables_cannot_show_is_told() {
        let error = read("# Table `nat' is incompatible, use 'nft' tool.\n").unwrap_err();
        assert_eq!(error, ParseError::Incompatible("nat".into()));
    }

    #[test]
    fn a_line_that_is_no_rule_is_told() {
        assert_eq!(read("*nat\nnonsense\n").unwrap_err(), ParseError::Line("nonsense".into()));
    }

    #[test]
    fn quotes_and_backslashes_are_undone() {
        assert_eq!(words(r#"-m comment --comment "say \"hi\" \\ there" -j X"#)[3], r#"say "hi" \ there"#);
    }
}
