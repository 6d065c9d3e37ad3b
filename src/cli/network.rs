//! Networks as flags name them.

use std::net::IpAddr;

use ipnet::IpNet;

/// A network, or a single address.
pub(crate) fn parse(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let address = || text.parse().ok().map(|address: IpAddr| IpNet::from(address));
    text.parse::<IpNet>().ok().or_else(address).map(|net| net.trunc()).ok_or_else(|| {
        format!("{text:?} is not a network; write 203.0.113.0/24, 2001:db8::/32 or a single address")
    })
}

/// The same, but not all addresses at once.
pub(crate) fn parse_part(text: &str) -> Result<IpNet, String> {
    let net = parse(text)?;
    if net.prefix_len() == 0 {
        return Err(format!("{text} is every destination; leave --masquerade out to masquerade nothing"));
    }
    Ok(net)
}
