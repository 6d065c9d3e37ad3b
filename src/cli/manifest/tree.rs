//! One YAML or JSON document with the line that each of its parts was written on.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde_json::Map;
use serde_json::Number;
use serde_json::Value;
use serde_saphyr::MessageFormatter;
use serde_saphyr::Spanned;
use serde_saphyr::UserMessageFormatter;

/// A value, and the lines of what is in it, counted from the document's first line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    /// Text, a number, a boolean or null.
    Scalar(Value),
    /// A list, each item with its line.
    Sequence(Vec<(usize, Tree)>),
    /// A mapping, each key with its line.
    Mapping(Vec<(usize, String, Tree)>),
}

/// Why a document cannot be read, and on which of its lines if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeError {
    /// The line, counted from the document's first line.
    pub(crate) line: Option<usize>,
    /// What is wrong there.
    pub(crate) message: String,
}

impl Tree {
    /// Reads one document; `None` when it holds nothing but comments.
    pub(crate) fn read(text: &str) -> Result<Option<Self>, TreeError> {
        let budget = serde_saphyr::budget! {
            // A `kubectl get -A -o yaml` of a large cluster is one document.
            max_events: 100_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: usize::MAX,
        };
        let options = serde_saphyr::options! { budget: budget, with_snippet: false };
        match serde_saphyr::from_str_with_options::<Self>(text, options) {
            Ok(Self::Scalar(Value::Null)) => Ok(None),
            Ok(tree) => Ok(Some(tree)),
            Err(error) => Err(tree_error(&error, text)),
        }
    }

    /// What stands under a key of this mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|(_, tree)| tree)
    }

    fn entry(&self, key: &str) -> Option<(usize, &Self)> {
        let Self::Mapping(entries) = self else { return None };
        entries.iter().find(|(_, name, _)| name == key).map(|(line, _, tree)| (*line, tree))
    }

    /// The lines and values of this list.
    pub(crate) fn items(&self) -> Option<&[(usize, Self)]> {
        match self {
            Self::Sequence(items) => Some(items),
            Self::Scalar(_) | Self::Mapping(_) => None,
        }
    }

    /// The text of a scalar that is text.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Scalar(value) => value.as_str(),
            Self::Sequence(_) | Self::Mapping(_) => None,
        }
    }

    /// The line of the deepest part of a field path, as in `metadata.annotations[pinhole.dev/nat].entries[0]`, that
    /// was written; `None` when not even its first part was.
    pub(crate) fn line_of(&self, path: &str) -> Option<usize> {
        let mut deepest = None;
        let mut tree = self;
        for step in steps(path) {
            let Some((line, below)) = tree.entry(step) else { break };
            deepest = Some(line);
            tree = below;
        }
        deepest
    }

    /// The value without its lines.
    pub(crate) fn to_value(&self) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::Sequence(items) => Value::Array(items.iter().map(|(_, tree)| tree.to_value()).collect()),
            Self::Mapping(entries) => {
                let entries = entries.iter().map(|(_, key, tree)| (key.clone(), tree.to_value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }
}

/// The keys of a field path: names between dots, and whatever stands in brackets.
fn steps(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches('.');
        let end = match rest.strip_prefix('[') {
            Some(inside) => {
                let (step, after) = inside.split_once(']')?;
                rest = after;
                return Some(step);
            }
            None => rest.find(['.', '[']).unwrap_or(rest.len()),
        };
        let (step, after) = rest.split_at(end);
        rest = after;
        (!step.is_empty()).then_some(step)
    })
}

fn tree_error(error: &serde_saphyr::Error, text: &str) -> TreeError {
    let line = error.location().and_then(|location| usize::try_from(location.line()).ok());
    let error = error.without_snippet();
    let message = match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {key:?} is given twice in one mapping; remove one of the two")
        }
        error => UserMessageFormatter.format_message(error).into_owned(),
    };
    let hint = if text.contains("{{") {
        "; if this is a template, render it first and check the result"
    } else {
        ""
    };
    // The parser may quote what it found, and a terminal must not obey it.
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    TreeError { line: line.filter(|line| 0 < *line), message: message + hint }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::from(value)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::from(value)))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut sequence = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Tree>>()? {
            sequence.push((line(&item), item.value));
        }
        Ok(Tree::Sequence(sequence))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Tree, A::Error> {
        let mut mapping = Vec::new();
        while let Some(key) = fields.next_key::<Spanned<String>>()? {
            let line = line(&key);
            mapping.push((line, key.value, fields.next_value()?));
        }
        Ok(Tree::Mapping(mapping))
    }
}

fn line<T>(spanned: &Spanned<T>) -> usize {
    usize::try_from(spanned.referenced.line()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Tree {
        Tree::read(text).unwrap().unwrap()
    }

    #[test]
    fn a_path_leads_to_the_line_of_its_deepest_part() {
        let tree = tree(
            "---\nkind: Pod\nmetadata:\n  annotations:\n    a: b\n    pinhole.dev/nat: |\n      {\n      }\n\
             spec:\n  containers:\n    - name: c\n",
        );
        let cases = [
            ("metadata.annotations[pinhole.dev/nat].entries[1].srcPort", Some(6)),
            ("metadata.annotations[a]", Some(5)),
            ("metadata.namespace", Some(3)),
            ("spec.hostNetwork", Some(9)),
            ("status.phase", None),
        ];
        for (path, line) in cases {
            assert_eq!(tree.line_of(path), line, "{path}");
        }
    }

    #[test]
    fn json_is_read_with_its_lines_and_tabs() {
        let tree = tree(
            "{\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\n\t\t\"annotations\": {\"a\": \"1\\n2\"}\n\t}\n}\n",
        );
        assert_eq!(tree.line_of("metadata.annotations[a]"), Some(4));
        let expected = serde_json::json!({"kind": "Pod", "metadata": {"annotations": {"a": "1\n2"}}});
        assert_eq!(tree.to_value(), expected);
    }

    #[test]
    fn scalars_keep_their_type_and_aliases_are_followed() {
        let tree = tree("a: &x {n: 80, t: '80', f: 1.5, b: true, z: ~}\nc: *x\nd: [1, two]\n8080: k\n");
        let inner = serde_json::json!({"n": 80, "t": "80", "f": 1.5, "b": true, "z": null});
        let expected = serde_json::json!({"a": inner, "c": inner, "d": [1, "two"], "8080": "k"});
        assert_eq!(tree.to_value(), expected);
    }

    #[test]
    fn an_error_has_its_line_and_says_what_to_do() {
        let cases = [
            ("kind: Pod\nmetadata:\n  name: a\n bad: [\n", 4, "did not find expected key"),
            ("a: 1\na: 2\n", 2, "the key \"a\" is given twice in one mapping; remove one of the two"),
            ("a: 1\nb: {{ .Values.port }}\n", 2, "if this is a template, render it first"),
            ("a: 1\nb: \"x\n", 2, "unclosed quote"),
            ("{\"a\": 1", 1, "unclosed bracket '{'"),
        ];
        for (text, line, expected) in cases {
            let error = Tree::read(text).unwrap_err();
            assert_eq!(error.line, Some(line), "{text}: {error:?}");
            assert!(error.message.contains(expected) && !error.message.contains('\n'), "{text}: {error:?}");
        }
    }

    #[test]
    fn a_document_without_content_is_none() {
        for empty in ["", "# only a comment\n", "---\n", "null\n"] {
            assert_eq!(Tree::read(empty).unwrap(), None, "{empty:?}");
        }
    }
}
