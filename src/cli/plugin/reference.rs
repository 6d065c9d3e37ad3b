//! What a user points at: an object, as kubectl writes it, or an external port.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::allocation::key::ClaimKey;
use crate::allocation::key::PortBlock;
use crate::api::object::Kind;
use crate::model::address::ExternalAddress;
use crate::model::port::Port;
use crate::model::port::Protocol;

/// What a user points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// `TYPE/NAME`.
    Object(ObjectReference),
    /// `ADDRESS:PORT[/PROTO]`.
    Port(PortReference),
}

/// A pod or workload in the namespace at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectReference {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its name.
    pub(crate) name: String,
}

/// One external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortReference {
    /// The external address.
    pub(crate) address: IpAddr,
    /// The port.
    pub(crate) port: Port,
    /// The protocol.
    pub(crate) protocol: Protocol,
}

/// Every name that kubectl knows a kind by.
const NAMES: [(Kind, [&str; 3]); 8] = [
    (Kind::Pod, ["pod", "pods", "po"]),
    (Kind::Deployment, ["deployment", "deployments", "deploy"]),
    (Kind::StatefulSet, ["statefulset", "statefulsets", "sts"]),
    (Kind::DaemonSet, ["daemonset", "daemonsets", "ds"]),
    (Kind::ReplicaSet, ["replicaset", "replicasets", "rs"]),
    (Kind::Job, ["job", "jobs", "job"]),
    (Kind::CronJob, ["cronjob", "cronjobs", "cj"]),
    (Kind::Pinhole, ["pinhole", "pinholes", "ph"]),
];

impl FromStr for ObjectReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((kind, name)) = text.split_once('/') else {
            return Err(format!("{text:?} is not TYPE/NAME; write pod/web or deployment/web"));
        };
        // kubectl prints `deployment.apps/web`, and takes it back.
        let kind_name = kind.split('.').next().unwrap_or(kind).to_lowercase();
        let kind = NAMES.iter().find(|(_, names)| names.contains(&kind_name.as_str())).map(|(kind, _)| *kind);
        let Some(kind) = kind else {
            return Err(format!(
                "{kind_name:?} asks for no ports; write pod, deployment, statefulset, daemonset, replicaset, job, cronjob or pinhole"
            ));
        };
        if name.is_empty() || name.contains('/') {
            return Err(format!("{text:?} names no object; write pod/web"));
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

impl ObjectReference {
    /// Reads a pod, or a workload that makes some: what can be connected to.
    pub(crate) fn of_pods(text: &str) -> Result<Self, String> {
        let object: Self = text.parse()?;
        if object.kind == Kind::Pinhole {
            return Err(format!(
                "a Pinhole cannot be tried from here; see kubectl pinhole explain {object} for the pod that it leads to"
            ));
        }
        Ok(object)
    }
}

impl FromStr for PortReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "{text:?} is not ADDRESS:PORT[/PROTO]; write 203.0.113.7:25, 203.0.113.7:53/udp or [2001:db8::1]:443"
            )
        };
        let (socket, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (address, port) = socket.rsplit_once(':').ok_or_else(wrong)?;
        let address = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => IpAddr::V6(inner.parse::<Ipv6Addr>().map_err(|_| wrong())?),
            None => IpAddr::V4(address.parse().map_err(|_| wrong())?),
        };
        let port = port.parse().map_err(|_| wrong())?;
        let protocol = protocol.to_lowercase().parse().map_err(|_| wrong())?;
        Ok(Self { address, port, protocol })
    }
}

impl PortReference {
    /// What a claim on it alone is for; `None` for an address that nobody outside can connect to.
    pub(crate) fn key(&self) -> Option<ClaimKey> {
        let address = ExternalAddress::new(self.address).ok()?;
        Some(ClaimKey::ports(address, self.protocol, PortBlock::single(self.port)))
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Only a port can begin with a digit or a bracket: kinds begin with a letter.
        if text.starts_with(|first: char| first.is_ascii_digit() || first == '[') {
            text.parse().map(Self::Port)
        } else {
            text.parse().map(Self::Object)
        }
    }
}

impl fmt::Display for ObjectReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.name().to_lowercase(), self.name)
    }
}

impl fmt::Display for PortReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}")?,
            IpAddr::V6(address) => write!(f, "[{address}]")?,
        }
        write!(f, ":{}/{}", self.port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_ports_are_told_apart_and_read_as_kubectl_writes_them() {
        for (text, expected) in [
            ("pod/mx-0", "pod/mx-0"),
            ("po/mx-0", "pod/mx-0"),
            ("deployment.apps/web", "deployment/web"),
            ("STS/game", "statefulset/game"),
            ("cj/backup", "cronjob/backup"),
            ("203.0.113.7:25", "203.0.113.7:25/tcp"),
            ("203.0.113.7:53/UDP", "203.0.113.7:53/udp"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443/tcp"),
        ] {
            let shown = match text.parse().unwrap() {
                Reference::Object(object) => object.to_string(),
                Reference::Port(port) => port.to_string(),
            };
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn what_is_neither_is_refused_with_an_example() {
        for (text, hint) in [
            ("web", "write pod/web"),
            ("service/web", "asks for no ports"),
            ("ph/web", "see kubectl pinhole explain pinhole/web"),
            ("pod/", "names no object"),
            ("203.0.113.7", "write 203.0.113.7:25"),
            ("203.0.113.7:0", "write 203.0.113.7:25"),
            ("203.0.113.7:25/icmp", "write 203.0.113.7:25"),
            ("[::1:443", "write 203.0.113.7:25"),
        ] {
            let read = text.parse().and_then(|read| match read {
                Reference::Object(_) => ObjectReference::of_pods(text).map(Reference::Object),
                port @ Reference::Port(_) => Ok(port),
            });
            let refusal = read.unwrap_err();
            assert!(refusal.contains(hint), "{text}: {refusal}");
        }
    }
}
