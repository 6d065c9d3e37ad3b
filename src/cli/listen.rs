//! Addresses to listen on, as flags write them.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::TcpListener;

/// Reads `ADDRESS:PORT`, or a bare port, which listens on every IPv4 address.
pub(crate) fn parse(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    // An IPv6 address without brackets, as Kubernetes writes a node's address into a variable.
    if let Some((address, port)) = text.rsplit_once(':')
        && let (Ok(address), Ok(port)) = (address.parse::<Ipv6Addr>(), port.parse())
    {
        return Ok(SocketAddr::new(IpAddr::V6(address), port));
    }
    text.parse().map_err(|_| {
        format!("{text:?} is not an address to listen on; write a port, ADDRESS:PORT or [IPV6]:PORT, as in 8484, 127.0.0.1:8484 or [::]:8484")
    })
}

/// Listens on `address`, which `flag` gave.
///
/// # Errors
/// When the address is taken or not this machine's; the message names flag and address.
pub(crate) async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("{flag} {address}: cannot listen there; is another process using the port, or is it not ours to use?")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses_of_both_families_are_read() {
        let cases = [
            ("8484", "0.0.0.0:8484"),
            (":8484", "0.0.0.0:8484"),
            ("127.0.0.1:8484", "127.0.0.1:8484"),
            ("[::]:8484", "[::]:8484"),
            ("2001:db8::1:8484", "[2001:db8::1]:8484"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_name_is_refused_with_examples() {
        for text in ["localhost:8484", "8484x", "", "70000", "127.0.0.1"] {
            assert!(parse(text).unwrap_err().contains("127.0.0.1:8484"), "{text}");
        }
    }
}
