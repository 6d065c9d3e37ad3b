//! A label selector as `kubectl -l` takes it: `team=a,env in (prod, staging),!legacy`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// All of these requirements must hold; none at all selects nothing, so that an empty flag opens nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

impl LabelSelector {
    /// Whether the selector has no requirement.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object with these labels is selected.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.0.is_empty() && self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::Missing(key) => !labels.contains_key(key),
        }
    }
}

/// Why a text is not a label selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a label requirement: write key=value, key!=value, key, !key, key in (a, b) or key notin (a, b)"
)]
pub struct LabelSelectorError(pub String);

impl FromStr for LabelSelector {
    type Err = LabelSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        split_outside_parentheses(text)
            .into_iter()
            .map(|part| parse_requirement(part.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
    .collect()
}

fn parse_requirement(text: &str) -> Result<Requirement, LabelSelectorError> {
    let wrong = || LabelSelectorError(text.to_owned());
    let name = |text: &str| {
        let text = text.trim();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        (!text.is_empty() && text.bytes().all(allowed)).then(|| text.to_owned()).ok_or_else(wrong)
    };
    if let Some((key, value)) = text.split_once("!=") {
        return Ok(Requirement::NotIn(name(key)?, vec![name(value)?]));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Requirement::In(name(key)?, vec![name(value)?]));
    }
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Requirement::Missing(name(key)?));
    }
    if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = values.split(',').map(name).collect::<Result<Vec<_>, _>>()?;
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => Ok(Requirement::In(name(key)?, values)),
            (Some(key), Some("notin"), None) => Ok(Requirement::NotIn(name(key)?, values)),
            _ => Err(wrong()),
        };
    }
    Ok(Requirement::Exists(name(text)?))
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, requirement) in self.0.iter().enumerate() {
            f.write_str(if position == 0 { "" } else { "," })?;
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values.concat())?,
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(", "))?,
                Requirement::NotIn(key, values) if values.len() == 1 => {
                    write!(f, "{key}!={}", values.concat())?;
                }
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(", "))?,
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::Missing(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_kubectl_is_understood_and_decides() {
        let labels =
            BTreeMap::from([("team".to_owned(), "a".to_owned()), ("env".to_owned(), "prod".to_owned())]);
        let cases = [
            ("team=a", true),
            ("team==a,env=prod", true),
            ("team=b", false),
            ("team!=b", true),
            ("env in (prod, staging)", true),
            ("env notin (prod, staging)", false),
            ("team", true),
            ("!legacy", true),
            ("!team", false),
            ("team=a,env in (test)", false),
            ("", false),
        ];
        for (text, expected) in cases {
            let selector: LabelSelector = text.parse().unwrap();
            assert_eq!(selector.selects(&labels), expected, "{text}");
            assert_eq!(selector.to_string().parse::<LabelSelector>().unwrap(), selector, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in ["team=a b", "=a", "team=", "env in prod", "env in ()", "a,,b", "env of (a)"] {
            assert!(bad.parse::<LabelSelector>().is_err(), "{bad}");
        }
    }
}
