//! `kubectl pinhole test`: a real connection from outside the pod network, and the client address that the pod saw.
//!
//! It connects from here, and from the agents of other nodes: they live in their nodes' network, so to the serving node
//! they are clients from outside. What the pod saw is read where it is certain: in the connection table of the serving
//! node, whose entry says to whom the pod's answers go.

use std::net::IpAddr;

use crate::cli::plugin::installation::PartPod;
use crate::cli::plugin::picture::standing::Standing;
use crate::cli::plugin::picture::standing::State;
use crate::cli::plugin::reference::PortReference;
use crate::cli::reach;
use crate::cli::reach::Outcome;
use crate::cli::reach::Reached;
use crate::cli::terminal::Palette;
use crate::cluster::pod_access;
use crate::cluster::reader::Reader;
use crate::dataplane::seen_flows::SeenFlow;
use crate::ruleset::entry::Key;

/// More nodes would only say the same again.
const OTHER_NODES: usize = 2;

/// One attempt and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// From where: `this machine`, `node node-2`.
    pub(crate) from: String,
    /// What came of it; or why it could not be made.
    pub(crate) reached: Result<Reached, String>,
}

/// One external port that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trial {
    /// How the request stands.
    pub(crate) standing: Standing,
    /// The port that was tried: the first one of a range.
    pub(crate) port: PortReference,
    /// The attempts.
    pub(crate) attempts: Vec<Attempt>,
    /// What the serving node knows of connections to the port; or why that was not looked at.
    pub(crate) flows: Result<Vec<SeenFlow>, String>,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The pod was reached.
    Reached,
    /// It was not.
    Failed,
    /// Nobody could try.
    Untried,
}

/// Tries a port that stands as programmed.
pub(crate) async fn attempt(reader: &Reader, standing: Standing, key: &Key, agents: &[PartPod]) -> Trial {
    let port = PortReference { address: key.external, port: key.ports.first(), protocol: key.protocol };
    let serving = standing.node.clone().unwrap_or_default();
    let mut attempts =
        vec![Attempt { from: "this machine".to_owned(), reached: Ok(reach::reach(port).await) }];
    let others =
        agents.iter().filter(|agent| agent.running && agent.node != serving && !agent.node.is_empty());
    for agent in others.take(OTHER_NODES) {
        let reached = in_agent(reader, agent, "reach", &port).await;
        attempts.push(Attempt { from: format!("node {}", agent.node), reached });
    }
    let agent = agents.iter().find(|agent| agent.running && agent.node == serving);
    let flows = match agent {
        Some(agent) => in_agent(reader, agent, "flows", &port).await,
        None => Err(format!("no agent runs on {serving}")),
    };
    Trial { standing, port, attempts, flows }
}

async fn in_agent<T: serde::de::DeserializeOwned>(
    reader: &Reader,
    agent: &PartPod,
    command: &str,
    port: &PortReference,
) -> Result<T, String> {
    let Some(place) = &agent.place else { return Err("its pod is not known".to_owned()) };
    let command = ["pinhole", command, &port.to_string()];
    let ran = pod_access::run(&reader.client(), place, &command).await.map_err(|error| match error {
        pod_access::AccessError::Denied(_) => {
            "the right to create pods/exec in the agents' namespace is missing".to_owned()
        }
        pod_access::AccessError::Failed(reason) => reason,
    })?;
    serde_json::from_str(&ran.stdout).map_err(|_| {
        let said = ran.stderr.trim();
        if said.is_empty() { "its agent is of another version".to_owned() } else { said.to_owned() }
    })
}

impl Trial {
    /// How it ended: one client that got through is proof, and of a UDP port only an answer is.
    pub(crate) fn verdict(&self) -> Verdict {
        let made: Vec<_> = self.attempts.iter().filter_map(|attempt| attempt.reached.as_ref().ok()).collect();
        let is_translated = |flow: &SeenFlow| flow.answered_by != self.port.address;
        let by_flows = self.flows.as_ref().is_ok_and(|flows| flows.iter().any(is_translated));
        if made.iter().any(|reached| reached.outcome == Outcome::Open) {
            Verdict::Reached
        } else if made.iter().any(|reached| reached.outcome == Outcome::Sent) {
            match &self.flows {
                Ok(_) if by_flows => Verdict::Reached,
                Ok(_) => Verdict::Failed,
                Err(_) => Verdict::Untried,
            }
        } else if made.is_empty() {
            Verdict::Untried
        } else {
            Verdict::Failed
        }
    }

    /// What a person reads.
    pub(crate) fn text(&self, palette: Palette) -> String {
        let verdict = match self.verdict() {
            Verdict::Reached => palette.good("reached"),
            Verdict::Failed => palette.bad("NOT REACHED"),
            Verdict::Untried => palette.notice("not proven"),
        };
        let target = self.standing.target.as_deref().unwrap_or("-");
        let node = self.standing.node.as_deref().unwrap_or("-");
        let mut text = format!("{} -> {target} on {node}: {verdict}\n", palette.name(&self.port.to_string()));
        for attempt in &self.attempts {
            text.extend(["  from ", &attempt.from, ": ", &self.outcome(attempt), "\n"]);
        }
        text.extend(self.seen());
        if self.verdict() == Verdict::Failed {
            text.extend(["  next: ", &self.advice(), "\n"]);
        }
        text
    }

    fn outcome(&self, attempt: &Attempt) -> String {
        let reached = match &attempt.reached {
            Ok(reached) => reached,
            Err(reason) => return format!("not tried: {reason}"),
        };
        let error = reached.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        let outcome = match reached.outcome {
            Outcome::Open => "a server answers".to_owned(),
            Outcome::Refused => format!("refused{error}: nobody listens there"),
            Outcome::Silent => "no answer within 3 s".to_owned(),
            Outcome::Sent => "a datagram was sent; UDP servers need not answer".to_owned(),
            Outcome::Unreachable => format!("there is no way there{error}"),
        };
        let Some(from) = reached.from else { return outcome };
        match self.flow_of(from.ip(), from.port()) {
            Some(flow) => format!("{outcome}; the client is {}, the pod saw {}", from.ip(), flow.seen_by_pod),
            None => format!("{outcome}; the client is {}", from.ip()),
        }
    }

    fn flow_of(&self, ip: IpAddr, port: u16) -> Option<&SeenFlow> {
        let flows = self.flows.as_ref().ok()?;
        flows.iter().find(|flow| flow.client == ip && flow.client_port == port)
    }

    /// Who came to the port by the serving node's connection table, where no attempt of ours tells it.
    fn seen(&self) -> Option<String> {
        match &self.flows {
            Err(reason) => {
                Some(format!("  the client address that the pod saw was not looked at: {reason}\n"))
            }
            Ok(flows) if flows.is_empty() => Some(
                "  the node's connection table has no connection to the port: no packet arrived there\n"
                    .to_owned(),
            ),
            Ok(flows) => {
                let is_ours = |flow: &&SeenFlow| {
                    self.attempts.iter().any(|attempt| {
                        attempt.reached.as_ref().is_ok_and(|reached| {
                            reached.from.is_some_and(|from| {
                                from.ip() == flow.client && from.port() == flow.client_port
                            })
                        })
                    })
                };
                // A client behind NAT is known to the node by another address than to itself.
                let others = flows.iter().filter(|flow| !is_ours(flow)).take(3);
                let line = |flow: &SeenFlow| {
                    let answered = if flow.answered { "" } else { ", without an answer" };
                    format!(
                        "  the node also knows a client {}; the pod saw {}{answered}\n",
                        flow.client, flow.seen_by_pod
                    )
                };
                let lines = others.map(line).collect::<Vec<_>>().concat();
                (!lines.is_empty()).then_some(lines)
            }
        }
    }

    fn advice(&self) -> String {
        let made = self.attempts.iter().filter_map(|attempt| attempt.reached.as_ref().ok());
        let was_refused = made.clone().any(|reached| reached.outcome == Outcome::Refused);
        let arrived = self.flows.as_ref().is_ok_and(|flows| !flows.is_empty());
        if !self.standing.mapping.iter().all(|mapping| mapping.allowed_sources().is_empty()) {
            "the request names allowedSources: only from there is it open".to_owned()
        } else if was_refused {
            format!(
                "look whether the pod listens on {}: kubectl -n {} logs {}",
                self.standing.target.as_deref().unwrap_or("its port"),
                self.standing.asker.name().namespace,
                self.standing.asker.name().name
            )
        } else if arrived {
            "packets arrive at the node and the pod does not answer: look for a NetworkPolicy, and at kubectl pinhole doctor".to_owned()
        } else {
            "no packet arrives: a firewall or security group in front of the node must let the port through"
                .to_owned()
        }
    }
}

/// Whether a request stands so that a connection can be expected.
pub(crate) const fn can_be_tried(state: State) -> bool {
    matches!(state, State::Programmed | State::Reported | State::Expected)
}

#[cfg(test)]
mod tests;
