//! `pinhole reach` and `pinhole flows`: what `kubectl pinhole test` has the agents do. One connects to an external port as
//! any client would, the other tells who came to it. Both print JSON and change nothing.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::net::UdpSocket;

use crate::cli::plugin::reference::PortReference;
use crate::cli::terminal;
use crate::dataplane::command::Tools;
use crate::dataplane::seen_flows;
use crate::model::port::Protocol;

/// A server in the same data centre answers in a thousandth of this.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a client finds at an external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// A server answered.
    Open,
    /// Somebody answered that nobody listens.
    Refused,
    /// Nobody answered.
    Silent,
    /// One datagram was sent, to which nobody need answer.
    Sent,
    /// There is no way there.
    Unreachable,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// The client's own address and port, as the client knows them.
    pub(crate) from: Option<SocketAddr>,
    /// The system's words, where it failed.
    pub(crate) error: Option<String>,
}

/// Connects once, and closes the connection again.
pub(crate) async fn reach(port: PortReference) -> Reached {
    let to = SocketAddr::new(port.address, port.port.get());
    match port.protocol {
        Protocol::Udp => send(to).await,
        Protocol::Tcp => connect(to).await,
        Protocol::Sctp => Reached {
            outcome: Outcome::Unreachable,
            from: None,
            error: Some("SCTP is not tried: use a client of your own".to_owned()),
        },
    }
}

async fn connect(to: SocketAddr) -> Reached {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => Reached { outcome: Outcome::Open, from: stream.local_addr().ok(), error: None },
        Ok(Err(error)) => {
            let outcome = match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Outcome::Refused,
                io::ErrorKind::TimedOut => Outcome::Silent,
                _ => Outcome::Unreachable,
            };
            Reached { outcome, from: None, error: Some(error.to_string()) }
        }
        Err(_) => Reached { outcome: Outcome::Silent, from: None, error: None },
    }
}

async fn send(to: SocketAddr) -> Reached {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let sent = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(to).await?;
        socket.send(b"\n").await?;
        socket.local_addr()
    };
    match sent.await {
        Ok(from) => Reached { outcome: Outcome::Sent, from: Some(from), error: None },
        Err(error) => Reached { outcome: Outcome::Unreachable, from: None, error: Some(error.to_string()) },
    }
}

/// The flags of `pinhole reach`.
#[derive(Debug, Args)]
pub(crate) struct Reach {
    /// The external port.
    #[arg(value_name = "ADDRESS:PORT[/PROTO]")]
    port: PortReference,
}

impl Reach {
    /// Connects and prints what came of it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { port } = self;
        let reached = runtime()?.block_on(reach(port));
        terminal::print(&(serde_json::to_string(&reached)? + "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The flags of `pinhole flows`.
#[derive(Debug, Args)]
pub(crate) struct Flows {
    /// The external port.
    #[arg(value_name = "ADDRESS:PORT[/PROTO]")]
    port: PortReference,
}

impl Flows {
    /// Prints the connections to the port that the kernel knows.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { port: PortReference { address, port, protocol } } = self;
        let flows = runtime()?.block_on(seen_flows::flows_to(&Tools::default(), address, port, protocol))?;
        terminal::print(&(serde_json::to_string(&flows)? + "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no runtime can be made")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn at(port: u16, protocol: &str) -> Reached {
        reach(format!("127.0.0.1:{port}/{protocol}").parse().unwrap()).await
    }

    #[tokio::test]
    async fn an_open_and_a_closed_port_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = at(port, "tcp").await;
        let (_, client) = listener.accept().await.unwrap();
        assert_eq!((open.outcome, open.from), (Outcome::Open, Some(client)));
        drop(listener);
        assert_eq!(at(port, "tcp").await.outcome, Outcome::Refused);
        assert_eq!(at(port, "udp").await.outcome, Outcome::Sent);
    }
}
