//! JSON as users write it, read without losing a word: a key given twice is reported, where serde_json would
//! silently keep the last.

use std::fmt;

use serde::de::DeserializeSeed;
use serde::de::Deserializer;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde_json::Map;
use serde_json::Number;
use serde_json::Value;

/// A JSON text, and the paths (`.entries[0].srcPort`) of the keys that it gives more than once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// The value; of a repeated key, the first.
    pub(crate) value: Value,
    /// The paths of the repeated keys.
    pub(crate) repeated: Vec<String>,
}

/// Reads one JSON value and nothing after it.
///
/// # Errors
/// What serde_json says of a text that is not JSON, with line and column.
pub(crate) fn parse(text: &str) -> Result<Document, serde_json::Error> {
    let mut repeated = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Seed { path: String::new(), repeated: &mut repeated }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Document { value, repeated })
}

struct Seed<'a> {
    path: String,
    repeated: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(Seed {
            path: format!("{}[{}]", self.path, values.len()),
            repeated: &mut *self.repeated,
        })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let path = format!("{}.{key}", self.path);
            let value = fields.next_value_seed(Seed { path: path.clone(), repeated: &mut *self.repeated })?;
            if map.contains_key(&key) {
                self.repeated.push(path);
            } else {
                map.insert(key, value);
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_given_twice_is_reported_with_its_path() {
        let document = parse(r#"{"entries":[{"srcPort":1,"srcPort":2}],"entries":[]}"#).unwrap();
        assert_eq!(document.repeated, [".entries[0].srcPort", ".entries"]);
        assert_eq!(document.value, serde_json::json!({"entries":[{"srcPort":1}]}));
    }

    #[test]
    fn every_kind_of_value_reads_as_serde_json_reads_it() {
        let text = r#"{"a":[1,-2,3.5,true,null,"x\u00e9",{"b":{}}],"c":18446744073709551615}"#;
        assert_eq!(parse(text).unwrap().value, serde_json::from_str::<Value>(text).unwrap());
        for bad in ["", "{", "{} x", "'a'", "{\"a\":01}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
