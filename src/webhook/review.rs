//! What the API server asks: an `AdmissionReview` as it arrives, read leniently.
//!
//! kube's own types fail as a whole on one unknown value, and then nobody knows the call's UID any more; without
//! the UID no answer is heard. So only what rules read is read here, and when even that fails, the UID is recovered
//! by ever simpler means: an answer that says what was wrong with the question is better than a failed call.

use serde::Deserialize;
use thiserror::Error;

use crate::api::object::Kind;
use crate::api::object::Object;
use crate::api::object::PinholeBody;
use crate::api::object::null_is_default;

/// One call.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Review {
    /// Names the call; the answer must repeat it.
    pub uid: String,
    /// What the matching rule of the webhook configuration calls the object's kind.
    #[serde(default, deserialize_with = "null_is_default")]
    pub kind: GroupVersionKind,
    /// The object's name; empty when the API server is yet to generate it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// The object's namespace; the object itself may not name it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub namespace: String,
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`, or whatever a later API server may say.
    #[serde(default, deserialize_with = "null_is_default")]
    pub operation: String,
    /// Nothing will be stored.
    #[serde(default, deserialize_with = "null_is_default")]
    pub dry_run: bool,
    /// The object as it would be stored.
    pub object: Option<Object>,
    /// The object as it is stored.
    pub old_object: Option<Object>,
}

/// Names a kind.
#[derive(Debug, Default, Deserialize)]
pub struct GroupVersionKind {
    /// The API group; empty for pods.
    #[serde(default, deserialize_with = "null_is_default")]
    pub group: String,
    /// The kind.
    #[serde(default, deserialize_with = "null_is_default")]
    pub kind: String,
}

#[derive(Deserialize)]
struct Envelope {
    request: Option<Review>,
}

#[derive(Deserialize)]
struct EnvelopeOfPinholes {
    request: RequestOfPinholes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestOfPinholes {
    object: Option<PinholeBody>,
    old_object: Option<PinholeBody>,
}

#[derive(Deserialize)]
struct EnvelopeOfUid {
    request: RequestOfUid,
}

#[derive(Deserialize)]
struct RequestOfUid {
    uid: String,
}

/// A body that is not an `AdmissionReview`.
#[derive(Debug, Error)]
#[error("the body is not a readable AdmissionReview: {reason}")]
pub struct Unreadable {
    /// The call's UID, if it could be recovered.
    pub uid: Option<String>,
    reason: String,
}

impl Review {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        let reason = match serde_json::from_slice::<Envelope>(body) {
            Ok(Envelope { request: Some(review) }) if !review.uid.is_empty() => {
                match review.with_pinholes(body) {
                    Ok(review) => return Ok(review),
                    Err(error) => error.to_string(),
                }
            }
            Ok(Envelope { request: Some(_) }) => "request.uid is empty".to_owned(),
            Ok(Envelope { request: None }) => "it has no request".to_owned(),
            Err(error) => error.to_string(),
        };
        let recovered =
            serde_json::from_slice::<EnvelopeOfUid>(body).ok().map(|envelope| envelope.request.uid);
        let uid = recovered.filter(|uid| !uid.is_empty()).or_else(|| scan_for_uid(body));
        Err(Unreadable { uid, reason })
    }

    /// Also reads what Pinholes ask for. They come seldom, so that the body is read again for them alone.
    fn with_pinholes(self, body: &[u8]) -> serde_json::Result<Self> {
        if self.object.as_ref().and_then(Object::known_kind) != Some(Kind::Pinhole) {
            return Ok(self);
        }
        let EnvelopeOfPinholes { request } = serde_json::from_slice(body)?;
        let with = |object: Option<Object>, body: Option<PinholeBody>| {
            object.zip(body).map(|(object, body)| object.with_pinhole(body))
        };
        let (object, old_object) =
            (with(self.object, request.object), with(self.old_object, request.old_object));
        Ok(Self { object, old_object, ..self })
    }

    /// The name to show: what the object is called, or what its name will begin with.
    pub fn shown_name(&self) -> &str {
        if !self.name.is_empty() {
            return &self.name;
        }
        let Some(object) = &self.object else { return "" };
        if object.metadata.name.is_empty() { &object.metadata.generate_name } else { &object.metadata.name }
    }
}

/// Finds the UID in the beginning of a body that is no whole JSON: the first string under the key `uid`. In what the
/// API server writes that is the call's, ahead of any object's.
pub(crate) fn scan_for_uid(body: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\"uid\"";
    const LONGEST: usize = 128;
    let head = &body[..body.len().min(crate::webhook::body::HEAD)];
    let key = head.windows(KEY.len()).position(|window| window == KEY)?;
    let rest = head[key + KEY.len()..].trim_ascii_start().strip_prefix(b":")?;
    let value = rest.trim_ascii_start().strip_prefix(b"\"")?;
    let end = value.iter().position(|&byte| byte == b'"')?;
    let uid = std::str::from_utf8(&value[..end]).ok()?;
    let is_plain = uid.chars().all(|character| character.is_ascii_graphic() && character != '\\');
    (is_plain && !uid.is_empty() && uid.len() <= LONGEST).then(|| uid.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: &str = r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{
        "uid":"705ab4f5","kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"resource":"pods"},
        "namespace":"mail","operation":"CREATE","userInfo":{"username":"u"},
        "object":{"kind":"Pod","metadata":{"generateName":"smtp-","uid":"of-the-object"}},
        "oldObject":null,"dryRun":true,"options":{"kind":"CreateOptions"}}}"#;

    #[test]
    fn a_call_is_read() {
        let review = Review::parse(CREATE.as_bytes()).unwrap();
        assert_eq!(
            (review.uid.as_str(), review.operation.as_str(), review.namespace.as_str()),
            ("705ab4f5", "CREATE", "mail")
        );
        assert_eq!((review.shown_name(), review.kind.kind.as_str(), review.dry_run), ("smtp-", "Pod", true));
        assert!(review.object.is_some() && review.old_object.is_none());
    }

    #[test]
    fn what_a_pinhole_asks_for_is_read_before_and_after() {
        let object = |port: u16| {
            format!(
                r#"{{"kind":"Pinhole","metadata":{{"name":"web"}},"spec":{{"target":{{"service":"web"}},"ports":[{{"port":{port}}}]}}}}"#
            )
        };
        let body = format!(
            r#"{{"request":{{"uid":"1","operation":"UPDATE","object":{},"oldObject":{}}}}}"#,
            object(81),
            object(80)
        );
        let review = Review::parse(body.as_bytes()).unwrap();
        let ports = |object: Option<Object>| object.unwrap().pinhole.unwrap().ports[0].port;
        assert_eq!((ports(review.object), ports(review.old_object)), (Some(81), Some(80)));
        let wrong = body.replace("81", "\"81\"");
        let unreadable = Review::parse(wrong.as_bytes()).unwrap_err();
        assert_eq!(unreadable.uid.as_deref(), Some("1"));
    }

    #[test]
    fn unknown_operations_and_missing_fields_are_no_obstacle() {
        let review =
            Review::parse(br#"{"request":{"uid":"1","operation":"TELEPORT","new":{"a":[1]}}}"#).unwrap();
        assert_eq!((review.operation.as_str(), review.dry_run), ("TELEPORT", false));
        let review = Review::parse(
            br#"{"request":{"uid":"1","operation":null,"kind":null,"dryRun":null,"namespace":null}}"#,
        );
        assert_eq!(review.unwrap().operation, "");
    }

    #[test]
    fn the_uid_is_recovered_from_what_cannot_be_read() {
        let cases: [(&str, Option<&str>); 9] = [
            // A field of the wrong type, with the UID in an unusual place.
            (r#"{"request":{"object":{"metadata":{"uid":"other","labels":7}},"uid":"u1"}}"#, Some("u1")),
            (&CREATE[..300], Some("705ab4f5")),
            (r#"{"request" : { "uid" : "u2" , "#, Some("u2")),
            (r#"{"request":{"uid":"u3""#, Some("u3")),
            (r#"{"request":{"uid":"u4"#, None),
            (r#"{"request":{"uid":7}}"#, None),
            (r#"{"request":{"uid":""}}"#, None),
            (r#"{"request":null}"#, None),
            ("not JSON at all", None),
        ];
        for (body, uid) in cases {
            let unreadable = Review::parse(body.as_bytes()).unwrap_err();
            assert_eq!(unreadable.uid.as_deref(), uid, "{body}");
        }
    }
}
