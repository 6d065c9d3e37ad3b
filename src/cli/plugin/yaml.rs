//! A JSON value as block-style YAML. Text is written as JSON writes it, which YAML reads as the same text.

use serde_json::Value;

/// The document, every line ended.
pub(crate) fn render(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

fn write(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                text.push_str(&indent);
                text.push_str(name);
                text.push(':');
                write_under(field, depth + 1, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                write(item, depth + 1, &mut inner);
                // The dash takes the place of the first line's indentation.
                text.push_str(&indent);
                text.push_str("- ");
                text.push_str(inner.trim_start());
            }
        }
        scalar => {
            text.push_str(&scalar.to_string());
            text.push('\n');
        }
    }
}

fn write_under(value: &Value, depth: usize, text: &mut String) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    text.push(if is_block { '\n' } else { ' ' });
    write(value, depth, text);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back_as_the_same() {
        let value = json!({
            "items": [
                {"external": "203.0.113.7:25/tcp", "packets": 12, "target": null, "allowedSources": ["10.0.0.0/8"]},
                {"external": "no: really\n- \"x\"", "empty": [], "nothing": {}, "nested": [[1, 2], {"a": true}]},
            ],
            "more": {"b": "yes"},
        });
        let text = render(&value);
        assert!(
            text.starts_with("items:\n  - external: \"203.0.113.7:25/tcp\"\n    packets: 12\n"),
            "{text}"
        );
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
    }
}
