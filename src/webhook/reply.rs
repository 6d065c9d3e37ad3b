//! What the API server is told: an `AdmissionReview` v1 with the call's UID, in the form that each reader needs.
//!
//! kubectl shows a refusal's causes and drops its message; controllers keep the message and drop the causes. So a
//! refusal carries both, and each stands alone. Warnings with control characters are thrown away unread by the API
//! server and long ones are cut, so they are cleaned and shortened here.

use json_patch::Patch;
use k8s_openapi::ByteString;
use serde::Serialize;

/// The longest warning that every client shows whole.
const LONGEST_WARNING: usize = 120;

/// More warnings than this are not read by anybody, and the API server limits their sum.
const MOST_WARNINGS: usize = 10;

/// The answer to one call.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reply {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_annotations: Option<AuditAnnotations>,
}

#[derive(Debug, Serialize)]
struct Status {
    #[serde(rename = "status")]
    outcome: &'static str,
    message: String,
    reason: &'static str,
    code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

/// The object that is refused, and why.
#[derive(Debug, Serialize)]
pub(crate) struct Details {
    /// The object's name, or what it will begin with.
    pub(crate) name: String,
    /// The object's API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) group: String,
    /// The object's kind.
    pub(crate) kind: String,
    /// One for each field that is wrong.
    pub(crate) causes: Vec<Cause>,
}

/// What is wrong with one field.
#[derive(Debug, Serialize)]
pub(crate) struct Cause {
    /// A machine's word for it, from the list that the API server itself uses.
    pub(crate) reason: &'static str,
    /// The value, the rule and what to do.
    pub(crate) message: String,
    /// The field's path.
    pub(crate) field: String,
}

#[derive(Debug, Serialize)]
struct AuditAnnotations {
    /// The rules that refused, comma-separated.
    rules: String,
}

impl Reply {
    /// Granted.
    pub(crate) fn allowed(uid: String, warnings: Vec<String>) -> Self {
        Self::new(uid, true, warnings)
    }

    /// Granted, with changes. `None` when the patch cannot be written as JSON.
    pub(crate) fn patched(uid: String, patch: &Patch) -> Result<Self, serde_json::Error> {
        let mut reply = Self::new(uid, true, Vec::new());
        reply.response.patch = Some(ByteString(serde_json::to_vec(patch)?));
        reply.response.patch_type = Some("JSONPatch");
        Ok(reply)
    }

    /// Refused because of what the object asks for. `message` and `details` each tell everything.
    pub(crate) fn denied(
        uid: String,
        message: String,
        details: Details,
        rules: String,
        warnings: Vec<String>,
    ) -> Self {
        let mut reply = Self::new(uid, false, warnings);
        reply.response.status = Some(Status {
            outcome: "Failure",
            message,
            reason: "Invalid",
            code: 422,
            details: Some(details),
        });
        reply.response.audit_annotations = Some(AuditAnnotations { rules });
        reply
    }

    /// Refused because the question itself cannot be read.
    pub(crate) fn unreadable(uid: String, message: String) -> Self {
        let mut reply = Self::new(uid, false, Vec::new());
        reply.response.status =
            Some(Status { outcome: "Failure", message, reason: "BadRequest", code: 400, details: None });
        reply
    }

    /// Refused because the question is too long to be read.
    pub(crate) fn too_large(uid: String, message: String) -> Self {
        let mut reply = Self::new(uid, false, Vec::new());
        reply.response.status = Some(Status {
            outcome: "Failure",
            message,
            reason: "RequestEntityTooLarge",
            code: 413,
            details: None,
        });
        reply
    }

    fn new(uid: String, allowed: bool, warnings: Vec<String>) -> Self {
        let response = Response {
            uid,
            allowed,
            status: None,
            patch: None,
            patch_type: None,
            warnings: presentable(warnings),
            audit_annotations: None,
        };
        Self { api_version: "admission.k8s.io/v1", kind: "AdmissionReview", response }
    }
}

fn presentable(warnings: Vec<String>) -> Vec<String> {
    let total = warnings.len();
    let mut shown: Vec<String> = warnings.into_iter().map(|warning| clean(&warning)).collect();
    if MOST_WARNINGS < total {
        shown.truncate(MOST_WARNINGS - 1);
        shown.push(format!("and {} more warnings of this kind", total - shown.len()));
    }
    shown
}

fn clean(warning: &str) -> String {
    let mut text: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some((cut, _)) = text.char_indices().nth(LONGEST_WARNING) {
        let keep = text[..cut].char_indices().nth_back(2).map_or(0, |(at, _)| at);
        text.truncate(keep);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;

    fn written(reply: &Reply) -> Value {
        serde_json::to_value(reply).unwrap()
    }

    #[test]
    fn a_refusal_has_the_form_that_kubectl_and_controllers_read() {
        let cause = Cause {
            reason: "FieldValueForbidden",
            message: "22: is restricted here (22, 53, 6443); choose another external port".into(),
            field: "metadata.annotations[pinhole.dev/nat].entries[0].srcPort".into(),
        };
        let details =
            Details { name: "web".into(), group: String::new(), kind: "Pod".into(), causes: vec![cause] };
        let reply = Reply::denied(
            "u1".into(),
            "everything in one line".into(),
            details,
            "restricted-port".into(),
            vec!["w".into()],
        );
        assert_eq!(
            serde_json::to_string_pretty(&written(&reply)).unwrap(),
            r#"{
  "apiVersion": "admission.k8s.io/v1",
  "kind": "AdmissionReview",
  "response": {
    "uid": "u1",
    "allowed": false,
    "status": {
      "status": "Failure",
      "message": "everything in one line",
      "reason": "Invalid",
      "code": 422,
      "details": {
        "name": "web",
        "kind": "Pod",
        "causes": [
          {
            "reason": "FieldValueForbidden",
            "message": "22: is restricted here (22, 53, 6443); choose another external port",
            "field": "metadata.annotations[pinhole.dev/nat].entries[0].srcPort"
          }
        ]
      }
    },
    "warnings": [
      "w"
    ],
    "auditAnnotations": {
      "rules": "restricted-port"
    }
  }
}"#
        );
    }

    #[test]
    fn a_grant_is_bare() {
        let reply = Reply::allowed("u1".into(), Vec::new());
        assert_eq!(
            written(&reply),
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                   "response": {"uid": "u1", "allowed": true}})
        );
    }

    #[test]
    fn a_patch_is_base64_of_a_json_patch() {
        let patch: Patch =
            serde_json::from_value(json!([{"op": "add", "path": "/metadata/labels/a~1b", "value": "true"}]))
                .unwrap();
        let reply = written(&Reply::patched("u1".into(), &patch).unwrap());
        assert_eq!(reply["response"]["patchType"], "JSONPatch");
        // [{"op":"add","path":"/metadata/labels/a~1b","value":"true"}]
        assert_eq!(
            reply["response"]["patch"],
            "W3sib3AiOiJhZGQiLCJwYXRoIjoiL21ldGFkYXRhL2xhYmVscy9hfjFiIiwidmFsdWUiOiJ0cnVlIn1d"
        );
    }

    #[test]
    fn warnings_are_clean_short_and_few() {
        let reply = written(&Reply::allowed("u1".into(), vec!["a\nb\u{7}".into(), "é".repeat(121)]));
        let warnings = reply["response"]["warnings"].as_array().unwrap();
        assert_eq!(warnings[0], "a b ");
        assert_eq!(warnings[1], format!("{}...", "é".repeat(117)));
        assert_eq!(clean(&"é".repeat(120)), "é".repeat(120));

        let many = written(&Reply::allowed("u1".into(), vec!["w".into(); 25]));
        let warnings = many["response"]["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), MOST_WARNINGS);
        assert_eq!(warnings[9], "and 16 more warnings of this kind");
    }
}
