//! Files of the repository that must agree with each other or with the program; `UPDATE_GOLDEN=1 cargo test --test it` writes
//! the generated ones anew.

use crate::golden::golden;
use crate::program::Program;

#[test]
fn the_published_schema_is_the_one_that_the_program_checks_with() {
    let output = Program::new(&["schema"]).run();
    assert_eq!(output.code, 0, "{}", output.stderr);
    golden("docs/annotation.schema.json", &output.stdout);
}

#[test]
fn every_alert_of_the_chart_has_its_place_in_the_runbook() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let rules = std::fs::read_to_string(format!("{root}chart/files/rules.yaml")).unwrap();
    let runbook = std::fs::read_to_string(format!("{root}docs/operations.md")).unwrap();
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let headings: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert!(!alerts.is_empty());
    assert_eq!(headings, alerts);
}
