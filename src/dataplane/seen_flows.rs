//! Reads the kernel's connection table for whoever asks who came to a port: both directions of each connection.
//!
//! The second direction is the pod's own view: its answers go to the client address that the pod saw.

use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;

use crate::dataplane::command::CommandError;
use crate::dataplane::command::Tools;
use crate::model::port::Port;
use crate::model::port::Protocol;

/// A tracked connection to an external port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenFlow {
    /// Who started it, as the node saw them.
    pub client: IpAddr,
    /// From which port.
    pub client_port: u16,
    /// Who answers: the pod, when the packets were translated.
    pub answered_by: IpAddr,
    /// From which port.
    pub answered_from: u16,
    /// To whom the answers go: the client, as the pod sees it.
    pub seen_by_pod: IpAddr,
    /// Whether an answer came.
    pub answered: bool,
}

/// The connections to one external port.
pub async fn flows_to(
    tools: &Tools,
    address: IpAddr,
    port: Port,
    protocol: Protocol,
) -> Result<Vec<SeenFlow>, CommandError> {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let (protocol, address, port) = (protocol.to_string(), address.to_string(), port.to_string());
    let arguments = ["-L", "-f", family, "-p", &protocol, "--orig-dst", &address, "--orig-port-dst", &port];
    let listed = tools.run("conntrack", &arguments, "").await?;
    Ok(read_listed(&listed))
}

/// Reads what `conntrack -L` printed.
#[doc(hidden)]
pub fn read_listed(listed: &str) -> Vec<SeenFlow> {
    listed.lines().filter_map(parse_line).collect()
}

/// Reads `tcp 6 117 SYN_SENT src=… dst=… sport=… dport=… [UNREPLIED] src=… dst=… sport=… dport=… mark=0 use=1`.
fn parse_line(line: &str) -> Option<SeenFlow> {
    let values = |name: &str| -> Vec<&str> {
        let prefix = format!("{name}=");
        line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(&prefix)).collect()
    };
    let (sources, destinations, ports) = (values("src"), values("dst"), values("sport"));
    Some(SeenFlow {
        client: sources.first()?.parse().ok()?,
        client_port: ports.first()?.parse().ok()?,
        answered_by: sources.get(1)?.parse().ok()?,
        answered_from: ports.get(1)?.parse().ok()?,
        seen_by_pod: destinations.get(1)?.parse().ok()?,
        answered: !line.contains("[UNREPLIED]"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_a_connection_are_read() {
        let line = "tcp      6 431999 ESTABLISHED src=198.51.100.9 dst=203.0.113.7 sport=40000 dport=8080 src=10.244.1.9 dst=198.51.100.9 sport=80 dport=40000 [ASSURED] mark=4096 use=1";
        let flow = parse_line(line).unwrap();
        let expected = SeenFlow {
            client: "198.51.100.9".parse().unwrap(),
            client_port: 40000,
            answered_by: "10.244.1.9".parse().unwrap(),
            answered_from: 80,
            seen_by_pod: "198.51.100.9".parse().unwrap(),
            answered: true,
        };
        assert_eq!(flow, expected);
        let waiting = line.replace("ESTABLISHED", "SYN_SENT").replace("dport=8080", "dport=8080 [UNREPLIED]");
        assert!(!parse_line(&waiting).unwrap().answered);
        assert_eq!(parse_line("conntrack v1.4.7: 1 flow entries have been shown."), None);
    }
}
