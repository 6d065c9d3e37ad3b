//! The admission half: the webhook's pods, its configurations, its certificates, and whether it refuses.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::certificates::bundle::Bundle;
use crate::cli::plugin::doctor::Observed;
use crate::cli::plugin::doctor::Proof;
use crate::cli::plugin::finding::Finding;
use crate::cli::plugin::installation::text;
use crate::cluster::reader::Creation;

const WEBHOOK: &str = "webhook";
const PROOF: &str = "proof by dry run";

/// Certificates that end sooner are worth a word.
const SOON: i64 = 3 * 86_400;

/// Flags that webhook and agents must share, because agents check again what the webhook admitted.
const SHARED_FLAGS: [&str; 7] = [
    "annotation-key",
    "compat",
    "stateful-kind",
    "restricted-ports",
    "protected-ports",
    "allowed-namespaces",
    "allowed-namespace-selector",
];

/// One entry of a webhook configuration.
struct Hook<'a> {
    /// `ValidatingWebhookConfiguration pinhole, webhook pods.pinhole.dev`.
    name: String,
    kind: &'static str,
    value: &'a Value,
}

pub(crate) fn findings(observed: &Observed) -> Vec<Finding> {
    let mut findings = pods(observed);
    findings.extend(configurations(observed));
    findings.extend(served(observed));
    findings.extend(proof(&observed.proof));
    findings
}

fn pods(observed: &Observed) -> Vec<Finding> {
    let Some(part) = &observed.webhook else {
        let finding = match &observed.workloads {
            Ok(_) => Finding::problem(
                WEBHOOK,
                "no Deployment of the webhook is installed",
                "install the chart: helm install pinhole chart/ -n pinhole-system --create-namespace",
            ),
            Err(reason) => Finding::unchecked(
                WEBHOOK,
                format!("the Deployments cannot be listed: {reason}"),
                "get the right to list deployments in all namespaces",
            ),
        };
        return vec![finding];
    };
    let (namespace, reference) = (&part.namespace, &part.reference);
    let mut findings = Vec::new();
    let state = format!("{} of {} replicas of {reference} in {namespace} are ready", part.ready, part.wanted);
    findings.push(if part.ready == 0 {
        Finding::problem(
            WEBHOOK,
            format!("{state}: new requests for ports are refused"),
            format!("kubectl -n {namespace} describe {reference}, and the log of its pods"),
        )
    } else if part.ready < part.wanted {
        Finding::problem(WEBHOOK, state, format!("kubectl -n {namespace} describe {reference}"))
    } else {
        Finding::fine(WEBHOOK, state)
    });
    if part.wanted == 1 {
        findings.push(Finding::note(
            WEBHOOK,
            "there is one replica: while it restarts, new requests for ports are refused",
        ));
    }
    for pod in &observed.webhook_pods {
        if let Some(waits) = &pod.waits {
            findings.push(Finding::problem(
                WEBHOOK,
                format!("pod {} does not run: {waits}", pod.name),
                format!("kubectl -n {namespace} describe pod {}", pod.name),
            ));
        }
    }
    findings
}

fn configurations(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (kind, list) in [
        ("MutatingWebhookConfiguration", &observed.mutating),
        ("ValidatingWebhookConfiguration", &observed.validating),
    ] {
        let list = match list {
            Ok(list) => list,
            Err(reason) => {
                findings.push(Finding::unchecked(
                    WEBHOOK,
                    format!("{kind}s cannot be listed: {reason}"),
                    "get the right to list them",
                ));
                continue;
            }
        };
        let hooks = hooks(kind, list);
        if hooks.is_empty() {
            let effect = match kind {
                "ValidatingWebhookConfiguration" => "nothing is refused at kubectl apply",
                _ => "defaults are not written to pinhole.dev/effective",
            };
            findings.push(Finding::problem(
                WEBHOOK,
                format!("there is no {kind} of Pinhole, so {effect}"),
                "apply the chart, or webhook-config/, again: somebody deleted it",
            ));
        }
        for hook in &hooks {
            findings.extend(configuration(hook, observed));
        }
    }
    findings.extend(differing_flags(observed));
    findings
}

fn hooks<'a>(kind: &'static str, list: &'a [Value]) -> Vec<Hook<'a>> {
    let mut hooks = Vec::new();
    for configuration in list {
        let webhooks = configuration.get("webhooks").and_then(Value::as_array);
        for webhook in webhooks.into_iter().flatten() {
            let name = text(webhook, "/name");
            if name.ends_with(".pinhole.dev") {
                let name = format!("{name} of {kind} {}", text(configuration, "/metadata/name"));
                hooks.push(Hook { name, kind, value: webhook });
            }
        }
    }
    hooks
}

fn configuration(hook: &Hook<'_>, observed: &Observed) -> Vec<Finding> {
    let Hook { name, kind, value } = hook;
    let mut findings = vec![trust(hook, observed.now)];
    if let Some(part) = &observed.webhook {
        let namespace = text(value, "/clientConfig/service/namespace");
        if namespace != part.namespace {
            findings.push(Finding::problem(
                WEBHOOK,
                format!(
                    "{name} calls a Service in namespace {namespace}, and the webhook runs in {}",
                    part.namespace
                ),
                "delete the configuration of the other installation, or apply the chart again",
            ));
        }
    }
    if *kind == "ValidatingWebhookConfiguration" && text(value, "/failurePolicy") == "Ignore" {
        findings.push(Finding::note(
            WEBHOOK,
            format!("{name} has failurePolicy Ignore: while no replica answers, every request for ports is stored unchecked (the agents check it again)"),
        ));
    }
    findings.extend(unlisted_keys(hook, observed));
    findings
}

/// Whether API servers can trust the webhook.
fn trust(hook: &Hook<'_>, now: i64) -> Finding {
    let name = &hook.name;
    let fix = "say certificates.mode in the chart, and see docs/certificates.md: self and cert-manager fill it in by themselves, files needs certificates.files.caBundle";
    let bundle = hook.value.pointer("/clientConfig/caBundle").cloned().unwrap_or(Value::Null);
    let bytes = serde_json::from_value::<ByteString>(bundle).map(|bytes| bytes.0).unwrap_or_default();
    if bytes.is_empty() {
        return Finding::problem(
            WEBHOOK,
            format!("{name} has no caBundle, so no API server trusts the webhook"),
            fix,
        );
    }
    let bundle = match Bundle::parse(&String::from_utf8_lossy(&bytes)) {
        Ok(bundle) if !bundle.is_empty() => bundle,
        Ok(_) => {
            return Finding::problem(WEBHOOK, format!("the caBundle of {name} holds no certificate"), fix);
        }
        Err(error) => {
            return Finding::problem(WEBHOOK, format!("the caBundle of {name} cannot be read: {error}"), fix);
        }
    };
    let ends: BTreeSet<i64> = bundle.iter().map(|trusted| trusted.not_after().unix()).collect();
    let last = ends.last().copied().unwrap_or(0);
    let authorities = match ends.len() {
        1 => "1 authority".to_owned(),
        more => format!("{more} authorities"),
    };
    if last <= now {
        Finding::problem(WEBHOOK, format!("the caBundle of {name} has expired on {}", day(last)), fix)
    } else if last - now < SOON {
        Finding::problem(
            WEBHOOK,
            format!("the caBundle of {name} expires on {}", day(last)),
            "look at the log of the webhook's pods (self), at the Certificate (cert-manager), or at whoever writes the Secret (files)",
        )
    } else {
        Finding::fine(WEBHOOK, format!("{name} trusts {authorities}, until {}", day(last)))
    }
}

/// A key that the agents read and the API server does not call the webhook for.
fn unlisted_keys(hook: &Hook<'_>, observed: &Observed) -> Vec<Finding> {
    let Some(shape) = &observed.agents.shape else { return Vec::new() };
    let conditions = hook.value.get("matchConditions").and_then(Value::as_array);
    let expressions: String =
        conditions.into_iter().flatten().map(|condition| text(condition, "/expression")).collect();
    if expressions.is_empty() {
        return vec![Finding::note(
            WEBHOOK,
            format!("{} has no matchConditions: every pod of the cluster is sent to the webhook", hook.name),
        )];
    }
    let unlisted = shape.policy.foreign_keys().filter(|key| !expressions.contains(&format!("'{key}'")));
    let finding = |key: &str| {
        Finding::problem(
            WEBHOOK,
            format!("{} is not called for the annotation {key}, which the agents read", hook.name),
            "set policy.annotationKeys and policy.compat in the chart's values, which render both",
        )
    };
    unlisted.map(finding).collect()
}

fn differing_flags(observed: &Observed) -> Vec<Finding> {
    let (Some(webhook), Some(agents)) = (&observed.webhook, &observed.agents.part) else { return Vec::new() };
    let shown = |values: Vec<&str>| match values.as_slice() {
        [] => "its default".to_owned(),
        values => values.join(", "),
    };
    SHARED_FLAGS
        .into_iter()
        .filter(|flag| webhook.flag(flag) != agents.flag(flag))
        .map(|flag| {
            Finding::problem(
                WEBHOOK,
                format!(
                    "--{flag} is {} for the webhook and {} for the agents: what one grants the other may refuse",
                    shown(webhook.flag(flag)),
                    shown(agents.flag(flag))
                ),
                "set it once, in the chart's values under policy",
            )
        })
        .collect()
}

/// The certificates that the replicas show.
fn served(observed: &Observed) -> Vec<Finding> {
    let of_one = |(pod, certificate): &(String, Result<i64, String>)| match certificate {
        Ok(end) if *end - observed.now < SOON / 3 => Finding::problem(
            WEBHOOK,
            format!("the certificate of pod {pod} expires on {}", day(*end)),
            "look at the log of that pod: the renewal fails, and it says why",
        ),
        Ok(end) => Finding::fine(
            WEBHOOK,
            format!("the certificate of pod {pod} is trusted by the caBundle, until {}", day(*end)),
        ),
        Err(reason) if reason.contains("certificate") => Finding::problem(
            WEBHOOK,
            format!("API servers do not take the certificate of pod {pod}: {reason}"),
            "see docs/certificates.md; with mode self or cert-manager, the log of the pod or of cert-manager says why",
        ),
        Err(reason) => Finding::unchecked(
            WEBHOOK,
            format!("the certificate of pod {pod} was not looked at: {reason}"),
            "get the right to create pods/portforward in the webhook's namespace",
        ),
    };
    observed.certificates.iter().map(of_one).collect()
}

fn day(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .map_or_else(|_| "an unknown day".to_owned(), |at| at.strftime("%Y-%m-%d").to_string())
}

/// What the dry runs prove.
fn proof(proof: &Proof) -> Vec<Finding> {
    let Proof { namespace, refused_request, refused, granted } = proof;
    let mut findings = vec![refusal(namespace, refused_request, refused)];
    if let Some(granted) = granted {
        findings.push(defaulting(namespace, granted));
    }
    findings
}

fn refusal(namespace: &str, request: &str, outcome: &Creation) -> Finding {
    let what = format!("a pod in namespace {namespace} that asks for {request:?}");
    match outcome {
        Creation::Accepted(_) => Finding::problem(
            PROOF,
            format!("{what} would be accepted: the API server does not ask the webhook"),
            "apply the chart, or webhook-config/, again; look for a namespaceSelector or an objectSelector that somebody changed",
        ),
        Creation::Refused { .. } if outcome.is_our_refusal() => {
            Finding::fine(PROOF, format!("{what} is refused by the webhook"))
        }
        Creation::Refused { message, .. } if outcome.is_failed_call() => Finding::problem(
            PROOF,
            format!("the API server cannot call the webhook: {message}"),
            advice(message),
        ),
        Creation::Refused { code, message } => Finding::unchecked(
            PROOF,
            format!("{what} is refused by somebody else first (HTTP {code}): {message}"),
            "name a namespace where you may create pods with -n",
        ),
        Creation::Unanswered(reason) => {
            Finding::unchecked(PROOF, format!("no answer to a dry run: {reason}"), "check the API server")
        }
    }
}

fn defaulting(namespace: &str, outcome: &Creation) -> Finding {
    match outcome {
        Creation::Accepted(pod) if pod.pointer("/metadata/annotations/pinhole.dev~1effective").is_some() => {
            Finding::fine(
                PROOF,
                format!(
                    "a harmless pod in namespace {namespace} is granted, with its defaults written to pinhole.dev/effective"
                ),
            )
        }
        Creation::Accepted(_) => Finding::problem(
            PROOF,
            "a harmless pod is granted without pinhole.dev/effective: the mutating webhook is not called, or fails",
            "look at the MutatingWebhookConfiguration and at the log of the webhook's pods",
        ),
        Creation::Refused { message, .. } => Finding::unchecked(
            PROOF,
            format!("whether defaults are written was not seen: the pod for it is refused: {message}"),
            "name a namespace that may publish ports with -n",
        ),
        Creation::Unanswered(reason) => {
            Finding::unchecked(PROOF, format!("no answer to a dry run: {reason}"), "check the API server")
        }
    }
}

/// What mends a failed call, by what the API server says of it.
fn advice(message: &str) -> &'static str {
    if message.contains("no endpoints available") {
        "no replica is ready: look at the webhook's pods"
    } else if message.contains("x509") || message.contains("certificate") {
        "the caBundle does not trust what the webhook shows: see docs/certificates.md, and wait some seconds after an install"
    } else if message.contains("deadline exceeded") || message.contains("timeout") || message.contains("i/o")
    {
        "the control plane does not reach the pods: open port 8443 from it to the nodes, or set webhook.hostNetwork=true"
    } else if message.contains("not found") {
        "the Service of the webhook is gone: apply the chart again"
    } else {
        "look at the webhook's pods and their log; to take the webhook out of the way: kubectl delete validatingwebhookconfiguration,mutatingwebhookconfiguration pinhole"
    }
}
