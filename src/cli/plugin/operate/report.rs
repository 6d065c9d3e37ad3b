//! The report of `history`: who held a port when: pure.

use serde_json::Value;
use serde_json::json;

use crate::allocation::history::Stretch;
use crate::allocation::key::ClaimKey;
use crate::cli::plugin::table;
use crate::cli::plugin::table::Cell;
use crate::cli::terminal::Palette;

const HEAD: [&str; 6] = ["FROM", "UNTIL", "HOLDER", "POD", "NODE", "CLAIM"];

/// The table, the last holder first.
pub(super) fn text(stretches: &[(ClaimKey, Stretch)], palette: Palette) -> String {
    let or_dash = |text: &str| Cell::from(if text.is_empty() { "-" } else { text });
    let row = |(key, stretch): &(ClaimKey, Stretch)| {
        let until = stretch.until.map(|until| until.to_string());
        vec![
            Cell::from(stretch.from.to_string()),
            or_dash(until.as_deref().unwrap_or_default()),
            Cell::from(format!("{} {}/{}", stretch.kind, stretch.namespace, stretch.name)),
            or_dash(&stretch.pod),
            or_dash(&stretch.node),
            Cell::from(key.to_string()),
        ]
    };
    table::render(&HEAD, &stretches.iter().map(row).collect::<Vec<_>>(), palette)
}

/// The same for programs.
pub(super) fn json(stretches: &[(ClaimKey, Stretch)]) -> Value {
    let item = |(key, stretch): &(ClaimKey, Stretch)| {
        json!({
            "claim": key.to_string(),
            "from": stretch.from,
            "until": stretch.until,
            "holder": {"kind": stretch.kind, "namespace": stretch.namespace, "name": stretch.name},
            "pod": stretch.pod,
            "node": stretch.node,
        })
    };
    json!({"items": stretches.iter().map(item).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::plugin::testing::golden;
    use crate::cli::plugin::yaml;

    #[test]
    fn the_last_holder_comes_first_and_what_goes_on_has_no_end() {
        let stretch = |value: Value| serde_json::from_value::<Stretch>(value).unwrap();
        let stretches = [
            (
                "v4-203-0-113-7-udp-7008-7023".parse().unwrap(),
                stretch(
                    json!({"kind": "StatefulSet", "namespace": "games", "name": "lobby", "pod": "lobby-0", "node": "node-1",
                    "from": "2026-03-01T10:00:00Z"}),
                ),
            ),
            (
                "v4-203-0-113-7-udp-7010".parse().unwrap(),
                stretch(json!({"kind": "Deployment", "namespace": "old", "name": "relay",
                    "from": "2026-02-01T10:00:00Z", "until": "2026-02-03T04:05:06Z"})),
            ),
        ];
        golden("history.txt", &text(&stretches, Palette { is_colourful: false }));
        golden("history.yaml", &yaml::render(&json(&stretches)));
    }
}
