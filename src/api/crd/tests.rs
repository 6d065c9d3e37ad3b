//! What every definition promises to users and to the API server.

use serde_json::Value;

use super::*;
use crate::api::annotation;

/// Every property of a schema with its path, those of nested objects and lists included.
fn properties<'a>(schema: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
    // The API server explains metadata by itself.
    let members = schema["properties"].as_object().into_iter().flatten();
    for (name, property) in members.filter(|(name, _)| *name != "metadata") {
        let path = format!("{path}.{name}");
        found.push((path.clone(), property));
        properties(property, &path, found);
        properties(&property["items"], &path, found);
    }
}

fn every_property(check: impl Fn(&str, &Value)) {
    for definition in definitions().unwrap() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let mut found = Vec::new();
        properties(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], kind, &mut found);
        assert!(10 < found.len(), "{kind}");
        for (path, property) in &found {
            check(path, property);
        }
    }
}

#[test]
fn every_field_is_explained_in_whole_sentences() {
    every_property(|path, property| {
        let text = property["description"].as_str().unwrap_or_default();
        assert!(text.ends_with('.') && !text.contains('\n'), "{path}: {text:?}");
    });
}

#[test]
fn a_default_that_the_server_fills_in_is_named_in_the_explanation() {
    every_property(|path, property| {
        let text = property["description"].as_str().unwrap_or_default();
        let shown = match &property["default"] {
            Value::Null => return,
            Value::String(word) => word.clone(),
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let is_named = text.contains("Default: ") && text.contains(&shown);
        assert!(
            is_named || path.contains(".status."),
            "{path}: {text:?} does not name the default {shown:?}"
        );
    });
}

#[test]
fn the_server_meets_no_format_and_no_null_that_it_would_warn_of() {
    every_property(|path, property| {
        assert_eq!(property["nullable"], Value::Null, "{path}");
        let format = property["format"].as_str();
        assert!(
            format.is_none_or(|format| ["int32", "int64", "date-time"].contains(&format)),
            "{path}: {format:?}"
        );
    });
}

#[test]
fn everything_that_a_user_can_make_long_has_a_limit() {
    every_property(|path, property| {
        if path.contains(".status.") {
            return;
        }
        if property["type"] == "array" {
            assert!(property["maxItems"].is_u64(), "{path} is a list without maxItems");
            let item = &property["items"];
            let is_free = item["type"] == "string" && item["enum"].is_null();
            assert!(!is_free || item["maxLength"].is_u64(), "{path} has items without maxLength");
        }
        let is_free =
            property["type"] == "string" && property["enum"].is_null() && property["format"].is_null();
        assert!(!is_free || property["maxLength"].is_u64(), "{path} is a text without maxLength");
    });
}

#[test]
fn a_pinhole_has_room_for_all_that_a_pod_can_ask_for() {
    let definitions = definitions().unwrap();
    let schema = &definitions[2]["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(schema["properties"]["spec"]["properties"]["ports"]["maxItems"], annotation::MAX_ENTRIES);
}

#[test]
fn kubectl_get_pinholes_shows_what_was_promised() {
    let definitions = definitions().unwrap();
    let columns = definitions[2]["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
    let names: Vec<_> =
        columns.iter().map(|column| column["name"].as_str().unwrap().to_uppercase()).collect();
    assert_eq!(names, ["EXTERNAL", "TARGET", "NODE", "HOLDER", "PROGRAMMED", "REASON", "AGE"]);
    assert_eq!(definitions[2]["spec"]["names"]["shortNames"], serde_json::json!(["ph"]));
}

#[test]
fn kubectl_get_masqueradepolicies_shows_on_how_many_nodes_each_counts() {
    let definitions = definitions().unwrap();
    let columns = definitions[4]["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
    let shown = columns.iter().filter(|column| column["priority"].is_null() || column["priority"] == 0);
    let names: Vec<_> = shown.map(|column| column["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Nodes", "Programmed", "Reason", "Age"]);
}

#[test]
fn a_claim_alone_has_no_status() {
    for definition in definitions().unwrap() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let has_status = definition["spec"]["versions"][0]["subresources"]["status"].is_object();
        assert_eq!(has_status, kind != "PortClaim", "{kind}");
    }
}
