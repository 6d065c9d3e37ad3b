//! The state as the data of a Secret, for people with `kubectl get secret -o yaml` as well.
//!
//! `ca.crt` is what callers should trust and is never read back. Whatever else is there must be understood whole:
//! half a state is an error, never a reason to begin anew.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::certificates::authority::Authority;
use crate::certificates::bundle::Bundle;
use crate::certificates::moment::Moment;
use crate::certificates::rotation::Introduction;
use crate::certificates::rotation::State;

/// A Secret's data, decoded from base64.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Why stored data are no state.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key}: {reason}")]
pub struct StoredError {
    /// Which key of the data.
    pub key: &'static str,
    /// What is wrong there.
    pub reason: String,
}

const PHASE: &str = "phase";
const SINCE: &str = "since";
const CONFIGURATIONS: &str = "configurations";
const BUNDLE: &str = "ca.crt";
const KEPT: &str = "kept.crt";
const ACTIVE: Keys = Keys { certificate: "active.crt", key: "active.key" };
const NEXT: Keys = Keys { certificate: "next.crt", key: "next.key" };

struct Keys {
    certificate: &'static str,
    key: &'static str,
}

/// The data that hold a state.
pub fn encode(state: &State) -> Data {
    let mut data = Data::new();
    let mut put = |key: &str, text: String| data.insert(key.to_owned(), text.into_bytes());
    put(PHASE, state.phase().to_owned());
    put(BUNDLE, state.bundle().pem());
    let mut put_authority = |keys: &Keys, authority: &Authority| {
        put(keys.certificate, authority.certificate().pem().to_owned());
        put(keys.key, authority.key_pem().to_owned());
    };
    match state {
        State::Stable { active } => put_authority(&ACTIVE, active),
        State::Publish(Introduction { active, next, kept })
        | State::Soak { introduction: Introduction { active, next, kept }, .. } => {
            if let Some(active) = active {
                put_authority(&ACTIVE, active);
            }
            put_authority(&NEXT, next);
            put(KEPT, kept.pem());
        }
        State::Retire { active, kept, .. } => {
            put_authority(&ACTIVE, active);
            put(KEPT, kept.pem());
        }
    }
    match state {
        State::Stable { .. } | State::Publish(_) => {}
        State::Soak { seen, since, .. } => {
            put(SINCE, since.unix().to_string());
            let lines = seen.iter().map(|(name, version)| format!("{name} {version}\n"));
            put(CONFIGURATIONS, lines.collect());
        }
        State::Retire { since, .. } => {
            put(SINCE, since.unix().to_string());
        }
    }
    data
}

/// The state that the data hold; `None` when they are empty.
pub fn decode(data: &Data) -> Result<Option<State>, StoredError> {
    if data.is_empty() {
        return Ok(None);
    }
    let state = match text(data, PHASE)? {
        "stable" => State::Stable { active: authority(data, &ACTIVE)? },
        "publish" => State::Publish(introduction(data)?),
        "soak" => {
            let lines = text(data, CONFIGURATIONS)?.lines();
            let seen = lines.filter_map(|line| line.rsplit_once(' '));
            let seen = seen.map(|(name, version)| (name.to_owned(), version.to_owned())).collect();
            State::Soak { introduction: introduction(data)?, seen, since: since(data)? }
        }
        "retire" => {
            State::Retire { active: authority(data, &ACTIVE)?, kept: kept(data)?, since: since(data)? }
        }
        other => {
            let reason = format!("{other:?} is not one of stable, publish, soak, retire");
            return Err(StoredError { key: PHASE, reason });
        }
    };
    Ok(Some(state))
}

fn introduction(data: &Data) -> Result<Introduction, StoredError> {
    let has_active = data.contains_key(ACTIVE.certificate) || data.contains_key(ACTIVE.key);
    let active = has_active.then(|| authority(data, &ACTIVE)).transpose()?;
    Ok(Introduction { active, next: authority(data, &NEXT)?, kept: kept(data)? })
}

fn authority(data: &Data, keys: &Keys) -> Result<Authority, StoredError> {
    Authority::load(text(data, keys.certificate)?, text(data, keys.key)?)
        .map_err(|error| StoredError { key: keys.certificate, reason: error.to_string() })
}

fn kept(data: &Data) -> Result<Bundle, StoredError> {
    Bundle::parse(text(data, KEPT)?).map_err(|error| StoredError { key: KEPT, reason: error.to_string() })
}

fn since(data: &Data) -> Result<Moment, StoredError> {
    let text = text(data, SINCE)?;
    text.parse().map(Moment::from_unix).map_err(|_| StoredError {
        key: SINCE,
        reason: format!("{text:?} is not a number of seconds since 1970"),
    })
}

fn text<'a>(data: &'a Data, key: &'static str) -> Result<&'a str, StoredError> {
    let bytes = data.get(key).ok_or_else(|| StoredError {
        key,
        reason: "it is missing although other keys are there".to_owned(),
    })?;
    std::str::from_utf8(bytes).map_err(|error| StoredError { key, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::KeyPair;

    use super::*;
    use crate::certificates::rotation::Versions;

    fn authority() -> Authority {
        let names = ["pinhole-webhook.pinhole-system.svc".to_owned()];
        let now = Moment::from_unix(1_763_856_000);
        Authority::mint(&KeyPair::generate().unwrap(), &names, now, Duration::from_hours(24)).unwrap()
    }

    fn states() -> Vec<State> {
        let since = Moment::from_unix(1_763_856_100);
        let kept: Bundle =
            [authority().certificate().clone(), authority().certificate().clone()].into_iter().collect();
        let first = Introduction { active: None, next: authority(), kept: kept.clone() };
        let later = Introduction { active: Some(authority()), next: authority(), kept: Bundle::default() };
        let seen: Versions =
            [("MutatingWebhookConfiguration/pinhole".to_owned(), "0a-1.2".to_owned())].into_iter().collect();
        vec![
            State::Stable { active: authority() },
            State::Publish(first.clone()),
            State::Publish(later.clone()),
            State::Soak { introduction: later, seen: seen.clone(), since },
            State::Soak { introduction: first, seen, since },
            State::Retire { active: authority(), kept, since },
        ]
    }

    #[test]
    fn every_state_is_read_as_it_was_written() {
        for state in states() {
            assert_eq!(decode(&encode(&state)), Ok(Some(state)));
        }
    }

    #[test]
    fn what_callers_should_trust_is_there_in_plain_pem() {
        for state in states() {
            let data = encode(&state);
            let bundle = String::from_utf8(data["ca.crt"].clone()).unwrap();
            assert_eq!(Bundle::parse(&bundle), Ok(state.bundle()));
        }
    }

    #[test]
    fn no_data_are_no_state_and_half_of_one_is_an_error_that_names_the_key() {
        assert_eq!(decode(&Data::new()), Ok(None));
        for state in states() {
            let whole = encode(&state);
            for key in whole.keys().filter(|key| *key != "ca.crt") {
                let mut half = whole.clone();
                half.remove(key);
                let error = decode(&half).unwrap_err().to_string();
                let pair = key.split('.').next().unwrap();
                assert!(error.starts_with(pair), "{} without {key}: {error}", state.phase());
            }
        }
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let mut data = encode(&State::Stable { active: authority() });
        data.insert("active.key".to_owned(), authority().key_pem().as_bytes().to_vec());
        let error = decode(&data).unwrap_err().to_string();
        assert_eq!(error, "active.crt: the key does not belong to the certificate");
    }

    #[test]
    fn damage_is_an_error_and_never_a_fresh_start() {
        let whole = encode(&State::Stable { active: authority() });
        let cases = [
            ("phase", "sleeping", "phase: \"sleeping\" is not one of stable, publish, soak, retire"),
            ("active.crt", "-----BEGIN CERTIFICATE-----", "active.crt: the certificate cannot be understood"),
            ("active.key", "secret", "active.crt: the key cannot be understood"),
        ];
        for (key, value, expected) in cases {
            let mut data = whole.clone();
            data.insert(key.to_owned(), value.as_bytes().to_vec());
            let error = decode(&data).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
