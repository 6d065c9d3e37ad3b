//! `pinhole crd`: the definitions of our custom resources, for `kubectl apply` and for the chart.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::api::crd;
use crate::cli::terminal;

/// The flags of `pinhole crd`: none.
#[derive(Debug, Args)]
pub(crate) struct Crd {}

impl Crd {
    /// Prints the definitions as a stream of YAML documents.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self {} = self;
        let mut text = String::new();
        for definition in crd::definitions()? {
            text.push_str("---\n");
            write(&definition, 0, &mut text);
        }
        terminal::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes an object or a list as YAML in block style, each line indented by `indent` spaces.
fn write(value: &Value, indent: usize, text: &mut String) {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                text.push_str(&margin);
                text.push_str(&scalar(&Value::from(key.as_str())));
                text.push(':');
                write_member(member, indent + 2, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                text.push_str(&margin);
                text.push('-');
                if is_block(item) {
                    let mut block = String::new();
                    write(item, indent + 2, &mut block);
                    // The first member stands beside the dash.
                    text.push(' ');
                    text.push_str(block.trim_start());
                } else {
                    write_member(item, indent + 2, text);
                }
            }
        }
        _ => {}
    }
}

fn write_member(value: &Value, indent: usize, text: &mut String) {
    if is_block(value) {
        text.push('\n');
        write(value, indent, text);
    } else {
        text.push(' ');
        text.push_str(&scalar(value));
        text.push('\n');
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(members) => !members.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A word or a sentence stands as it is; everything that YAML could take for something else in the quotes of JSON, which is
/// YAML too.
fn scalar(value: &Value) -> String {
    if let Value::String(text) = value {
        let is_plain =
            |character: char| character.is_ascii_alphanumeric() || " -_./,;()$'".contains(character);
        let starts_plain =
            text.starts_with(|character: char| character.is_ascii_alphabetic() || character == '$');
        let means_more = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
        if starts_plain
            && !text.ends_with(' ')
            && text.chars().all(is_plain)
            && !means_more.contains(&text.to_ascii_lowercase().as_str())
        {
            return text.clone();
        }
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same_value() {
        let values = [
            json!({"a": {"b": [1, "two", [3, {"c": null}], {}, []], "d": true}, "e: f": "true", "g": "- h", "i": "n"}),
            json!({"text": "a: b", "more": "# none", "quoted": "say \"it\"", "line": "one\ntwo", "end": "x ", "$ref": "$x"}),
            json!([{"a": 1, "b": [{"c": "d"}]}, "e"]),
        ];
        for value in values {
            let mut text = String::new();
            write(&value, 0, &mut text);
            let read: Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(read, value, "{text}");
        }
    }

    #[test]
    fn every_definition_survives_the_way_through_yaml() {
        for manifest in crd::definitions().unwrap() {
            let mut text = String::new();
            write(&manifest, 0, &mut text);
            assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), manifest);
        }
    }
}
