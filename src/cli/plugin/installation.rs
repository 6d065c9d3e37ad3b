//! What of Pinhole is installed in a cluster, from its Deployments, DaemonSets and their pods: pure.
//!
//! A part is known by what it runs: a container whose arguments begin with `webhook`, `controller` or `agent` under our label
//! `app.kubernetes.io/component`. So a release of any name is found. The settings of the running agents are read from
//! their arguments by the same flags that the agents read them with.

use std::collections::BTreeMap;

use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::builder::Resettable;
use serde_json::Value;

use crate::cli::agent::AgentFlags;
use crate::cli::agent::Shape;
use crate::cluster::pod_access::Place;

/// The parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// `pinhole webhook`.
    Webhook,
    /// `pinhole controller`.
    Controller,
    /// `pinhole agent`.
    Agent,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Controller => "controller",
            Self::Agent => "agent",
        }
    }
}

/// A Deployment or DaemonSet of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// `deployment/pinhole-webhook`, as kubectl takes it.
    pub(crate) reference: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// The container that runs the part.
    pub(crate) container: String,
    /// The image of its template.
    pub(crate) image: String,
    /// The labels that its pods bear.
    pub(crate) labels: BTreeMap<String, String>,
    /// How many pods there should be.
    pub(crate) wanted: u64,
    /// How many are ready.
    pub(crate) ready: u64,
    arguments: Vec<String>,
}

/// A pod of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartPod {
    /// Its container.
    pub(crate) place: Option<Place>,
    /// Its name.
    pub(crate) name: String,
    /// Its node.
    pub(crate) node: String,
    /// Whether it is ready.
    pub(crate) ready: bool,
    /// Whether it runs.
    pub(crate) running: bool,
    /// The image that it runs.
    pub(crate) image: String,
    /// Why its container does not run, in the kubelet's words.
    pub(crate) waits: Option<String>,
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct AgentLine {
    #[arg(long)]
    log_level: Option<String>,
    #[arg(long)]
    log_format: Option<String>,
    #[command(flatten)]
    flags: AgentFlags,
}

/// The parts of one role among Deployments or DaemonSets, as the API server lists them.
pub(crate) fn parts(objects: &[Value], role: Role) -> Vec<Part> {
    objects.iter().filter_map(|object| part(object, role)).collect()
}

fn part(object: &Value, role: Role) -> Option<Part> {
    let template = object.pointer("/spec/template")?;
    let component = template.pointer("/metadata/labels/app.kubernetes.io~1component")?.as_str()?;
    if component != role.name() {
        return None;
    }
    let containers = template.pointer("/spec/containers")?.as_array()?;
    let container = containers
        .iter()
        .find(|container| container.pointer("/args/0").and_then(Value::as_str) == Some(role.name()))?;
    let kind = match role {
        Role::Webhook | Role::Controller => "deployment",
        Role::Agent => "daemonset",
    };
    let number = |path: &str| object.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let (wanted, ready) = match role {
        Role::Webhook | Role::Controller => (number("/spec/replicas"), number("/status/readyReplicas")),
        Role::Agent => (number("/status/desiredNumberScheduled"), number("/status/numberReady")),
    };
    Some(Part {
        reference: format!("{kind}/{}", text(object, "/metadata/name")),
        namespace: text(object, "/metadata/namespace"),
        container: text(container, "/name"),
        image: text(container, "/image"),
        labels: strings(object.pointer("/spec/selector/matchLabels")),
        wanted,
        ready,
        arguments: arguments(container),
    })
}

/// The arguments after the subcommand, and the variables of ours as the flags that they stand for.
fn arguments(container: &Value) -> Vec<String> {
    let given = container.pointer("/args").and_then(Value::as_array).into_iter().flatten().skip(1);
    let mut arguments: Vec<String> = given.filter_map(Value::as_str).map(str::to_owned).collect();
    for variable in container.pointer("/env").and_then(Value::as_array).into_iter().flatten() {
        let (name, value) = (text(variable, "/name"), text(variable, "/value"));
        let Some(flag) = name.strip_prefix("PINHOLE_").filter(|_| !value.is_empty()) else { continue };
        let flag = format!("--{}", flag.to_lowercase().replace('_', "-"));
        let is_given = arguments.iter().any(|given| given.split('=').next() == Some(flag.as_str()));
        if !is_given {
            arguments.push(format!("{flag}={value}"));
        }
    }
    // $(HOST_IP) and the like are filled in by the kubelet; here only the port behind them matters.
    arguments.into_iter().map(|argument| without_references(&argument)).collect()
}

fn without_references(argument: &str) -> String {
    match (argument.find("$("), argument.find(')')) {
        (Some(start), Some(end)) if start < end => {
            format!("{}0.0.0.0{}", &argument[..start], &argument[end + 1..])
        }
        _ => argument.to_owned(),
    }
}

impl Part {
    /// What the agents of this DaemonSet allow, serve and listen on; or why their flags cannot be read.
    pub(crate) fn agent_shape(&self) -> Result<Shape, String> {
        let command = AgentLine::command().mut_args(|argument| argument.env(Resettable::Reset));
        let matches = command.try_get_matches_from(&self.arguments);
        let line = matches.and_then(|matches| AgentLine::from_arg_matches(&matches));
        let line = line.map_err(|error| {
            error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        })?;
        Ok(line.flags.shape())
    }

    /// The values of a flag, where it is given.
    pub(crate) fn flag(&self, flag: &str) -> Vec<&str> {
        let prefix = format!("--{flag}=");
        self.arguments.iter().filter_map(|argument| argument.strip_prefix(&prefix)).collect()
    }

    /// The port on which a webhook's pods take the API server's calls.
    pub(crate) fn webhook_port(&self) -> u16 {
        const USUAL: u16 = 8443;
        let listen = self.flag("listen").into_iter().next();
        listen.and_then(|address| address.rsplit(':').next()?.parse().ok()).unwrap_or(USUAL)
    }

    /// The port on which the controller's pods tell their metrics.
    pub(crate) fn controller_port(&self) -> u16 {
        const USUAL: u16 = 8484;
        let address = self.flag("http-address").into_iter().next();
        address.and_then(|address| address.rsplit(':').next()?.parse().ok()).unwrap_or(USUAL)
    }

    /// The path of its pods, and their selector.
    pub(crate) fn pods_path(&self) -> String {
        let selector: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}%3D{value}")).collect();
        let selector = selector.join(",").replace('/', "%2F");
        format!("/api/v1/namespaces/{}/pods?labelSelector={selector}", self.namespace)
    }

    /// One of its pods, as the API server lists it.
    pub(crate) fn pod(&self, pod: &Value) -> PartPod {
        let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
        let status = statuses.into_iter().flatten().find(|status| text(status, "/name") == self.container);
        let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
        let container =
            containers.into_iter().flatten().find(|container| text(container, "/name") == self.container);
        let waiting = status.and_then(|status| status.pointer("/state/waiting"));
        let waits = waiting.map(|waiting| {
            let (reason, message) = (text(waiting, "/reason"), text(waiting, "/message"));
            if message.is_empty() { reason } else { format!("{reason}: {message}") }
        });
        let name = text(pod, "/metadata/name");
        PartPod {
            place: Some(Place {
                namespace: self.namespace.clone(),
                pod: name.clone(),
                container: self.container.clone(),
            }),
            name,
            node: text(pod, "/spec/nodeName"),
            ready: status.is_some_and(|status| status.pointer("/ready") == Some(&Value::Bool(true))),
            running: text(pod, "/status/phase") == "Running" && waits.is_none(),
            image: container.map(|container| text(container, "/image")).unwrap_or_default(),
            waits,
        }
    }
}

/// The text at a pointer; empty where there is none.
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A map of strings; empty where there is none.
pub(crate) fn strings(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn daemon_set(arguments: &Value, environment: &Value) -> Value {
        json!({
            "metadata": {"namespace": "edge", "name": "ports-agent"},
            "spec": {
                "selector": {"matchLabels": {"app.kubernetes.io/component": "agent", "app": "p"}},
                "template": {
                    "metadata": {"labels": {"app.kubernetes.io/component": "agent", "app": "p"}},
                    "spec": {"containers": [
                        {"name": "sidecar", "image": "other"},
                        {"name": "agent", "image": "example.com/agent:1.2", "args": arguments, "env": environment},
                    ]},
                },
            },
            "status": {"desiredNumberScheduled": 3, "numberReady": 2},
        })
    }

    #[test]
    fn a_part_is_known_by_what_it_runs_whatever_it_is_called() {
        let stranger = json!({"metadata": {"name": "nginx"}, "spec": {"template": {"metadata": {"labels": {
            "app.kubernetes.io/component": "agent"}}, "spec": {"containers": [{"name": "a", "args": ["run"]}]}}}});
        let found = parts(&[stranger, daemon_set(&json!(["agent"]), &json!([]))], Role::Agent);
        let [part] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((part.reference.as_str(), part.namespace.as_str()), ("daemonset/ports-agent", "edge"));
        assert_eq!((part.container.as_str(), part.wanted, part.ready), ("agent", 3, 2));
        assert_eq!(
            part.pods_path(),
            "/api/v1/namespaces/edge/pods?labelSelector=app%3Dp,app.kubernetes.io%2Fcomponent%3Dagent"
        );
        assert!(parts(&[daemon_set(&json!(["agent"]), &json!([]))], Role::Webhook).is_empty());
    }

    #[test]
    fn the_settings_of_the_agents_are_those_of_their_arguments_and_variables() {
        let arguments =
            json!(["agent", "--restricted-ports=22", "--log-format=json", "--include-net=10.9.0.0/16"]);
        let environment = json!([
            {"name": "PINHOLE_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "PINHOLE_HTTP_ADDRESS", "value": "$(HOST_IP):9484"},
            {"name": "PINHOLE_ENTRIES_ADDRESS", "value": "127.0.0.1:9485"},
            {"name": "PINHOLE_RESTRICTED_PORTS", "value": "25"},
        ]);
        let part = parts(&[daemon_set(&arguments, &environment)], Role::Agent).remove(0);
        let shape = part.agent_shape().unwrap();
        assert_eq!((shape.http_port, shape.entries_port), (9484, 9485));
        assert_eq!(shape.policy.restricted_ports.to_string(), "22", "a flag goes before its variable");
        assert_eq!(shape.filter.include.len(), 1);
        assert_eq!(part.flag("include-net"), ["10.9.0.0/16"]);
    }

    #[test]
    fn flags_of_another_version_are_told() {
        let part =
            parts(&[daemon_set(&json!(["agent", "--of-tomorrow"]), &json!([]))], Role::Agent).remove(0);
        assert_eq!(part.agent_shape().unwrap_err(), "unexpected argument '--of-tomorrow' found");
    }
}
