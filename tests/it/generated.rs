//! Files of the repository that must agree with each other or with the program; `UPDATE_GOLDEN=1 cargo test --test it` writes
//! the generated ones anew.

use std::fmt::Write as _;
use std::fs;

use serde_json::Value;

use crate::golden::golden;
use crate::program::Program;

#[test]
fn the_published_schema_is_the_one_that_the_program_checks_with() {
    let output = Program::new(&["schema"]).run();
    assert_eq!(output.code, 0, "{}", output.stderr);
    golden("docs/annotation.schema.json", &output.stdout);
}

#[test]
fn the_annotation_reference_has_the_keys_and_words_of_the_schema() {
    let schema = pinhole::api::annotation::schema();
    let mut table = String::from("| key | type | meaning |\n|---|---|---|\n");
    let entry = &schema["$defs"]["NatEntry"];
    let required: Vec<_> = entry["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for (key, property) in entry["properties"].as_object().unwrap() {
        let kind = match &property["type"] {
            Value::Array(kinds) => kinds[0].as_str().unwrap(),
            kind => kind.as_str().unwrap(),
        };
        let kind = match property["items"]["type"].as_str() {
            Some(item) => format!("{kind} of {item}s"),
            None => kind.to_owned(),
        };
        let needed = if required.contains(&key.as_str()) { ", required" } else { "" };
        let meaning = property["description"].as_str().unwrap().replace('\n', " ");
        writeln!(table, "| `{key}` | {kind}{needed} | {meaning} |").unwrap();
    }
    let (path, start, end) = ("docs/annotations.md", "<!-- from the schema -->\n", "<!-- end -->");
    let page = fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (before, rest) = page.split_once(start).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    golden(path, &format!("{before}{start}{table}{end}{after}"));
}

#[test]
fn the_definitions_of_the_chart_are_those_of_the_program() {
    let output = Program::new(&["crd"]).run();
    assert_eq!(output.code, 0, "{}", output.stderr);
    let mut documents = 0;
    for document in output.stdout.split("---\n").filter(|document| !document.is_empty()) {
        let name = document.lines().find_map(|line| line.strip_prefix("  name: ")).unwrap();
        golden(&format!("chart/files/crds/{name}.yaml"), document);
        documents += 1;
    }
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/chart/files/crds");
    assert_eq!(
        std::fs::read_dir(directory).unwrap().count(),
        documents,
        "{directory} has a file of no definition"
    );
}

#[test]
fn every_alert_of_the_chart_has_its_place_in_the_runbook() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let rules = fs::read_to_string(format!("{root}chart/files/rules.yaml")).unwrap();
    let runbook = fs::read_to_string(format!("{root}docs/operations.md")).unwrap();
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let headings: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert!(!alerts.is_empty());
    assert_eq!(headings, alerts);
}
