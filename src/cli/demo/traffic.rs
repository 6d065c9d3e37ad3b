//! Real packets: servers in the pods that tell who called, and clients on the internet that call.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::cli::demo::namespace::Namespace;
use crate::model::port::Protocol;

/// More than any packet takes here, on a machine with much else to do.
pub(crate) const LONG: Duration = Duration::from_secs(5);

/// Enough for a packet on a machine at rest: how long to wait for one that must not come.
pub(crate) const SHORT: Duration = Duration::from_secs(1);

/// Listens on ports inside a namespace; whoever calls is told who answers and whom they saw.
pub(crate) async fn serve(
    namespace: &Namespace,
    protocol: Protocol,
    who: &str,
    ports: impl IntoIterator<Item = u16>,
) -> anyhow::Result<()> {
    for port in ports {
        let who = who.to_owned();
        match protocol {
            Protocol::Tcp => {
                let listener =
                    namespace.run(async move { Ok(TcpListener::bind(("0.0.0.0", port)).await?) }).await?;
                namespace.start(async move {
                    while let Ok((mut stream, caller)) = listener.accept().await {
                        // A caller that is gone needs no answer.
                        let _ = stream.write_all(introduction(&who, caller.ip()).as_bytes()).await;
                    }
                });
            }
            Protocol::Udp => {
                let socket =
                    namespace.run(async move { Ok(UdpSocket::bind(("0.0.0.0", port)).await?) }).await?;
                namespace.start(async move {
                    let mut buffer = [0; 64];
                    while let Ok((_, caller)) = socket.recv_from(&mut buffer).await {
                        let _ = socket.send_to(introduction(&who, caller.ip()).as_bytes(), caller).await;
                    }
                });
            }
            Protocol::Sctp => bail!("the demo does not speak SCTP"),
        }
    }
    Ok(())
}

/// What a caller is told.
pub(crate) fn introduction(who: &str, caller: IpAddr) -> String {
    format!("{who} saw {caller}")
}

/// What a caller got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This text.
    Told(String),
    /// Somebody said that nobody listens.
    Refused,
    /// Nothing at all.
    Silence,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Told(text) => text,
            Self::Refused => "connection refused",
            Self::Silence => "no answer",
        })
    }
}

/// Calls from one of the namespace's addresses, and waits for an answer with this patience.
pub(crate) async fn call(
    namespace: &Namespace,
    protocol: Protocol,
    from: IpAddr,
    to: SocketAddr,
    patience: Duration,
) -> anyhow::Result<Answer> {
    let answer = match protocol {
        Protocol::Tcp => answer(namespace, call_tcp(from, to), patience).await,
        Protocol::Udp => answer(namespace, call_udp(from, to), patience).await,
        Protocol::Sctp => bail!("the demo does not speak SCTP"),
    };
    answer.with_context(|| format!("{protocol} from {from} to {to}"))
}

async fn call_tcp(from: IpAddr, to: SocketAddr) -> io::Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let mut answer = String::new();
    socket.connect(to).await?.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn call_udp(from: IpAddr, to: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind((from, 0)).await?;
    socket.connect(to).await?;
    socket.send(b"who am I?").await?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).await?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

async fn answer(
    namespace: &Namespace,
    exchange: impl Future<Output = io::Result<String>> + Send + 'static,
    patience: Duration,
) -> anyhow::Result<Answer> {
    let answer = namespace.run(async move { Ok(timeout(patience, exchange).await) }).await?;
    match answer {
        Ok(Ok(text)) => Ok(Answer::Told(text)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Answer::Refused),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(Answer::Silence),
    }
}
