//! The demo's network: a node with a bridge for its pods, and the internet outside it.
//!
//! ```text
//!   client 198.51.100.23 --- router 203.0.113.1 === 203.0.113.7 node 10.244.1.1 === pods 10.244.1.0/24
//!   198.51.100.99 ----------'                       203.0.113.25
//! ```
//!
//! All addresses are from the ranges that RFC 5737 and RFC 1918 set aside.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;

use anyhow::Context;

use crate::cli::demo::namespace::Namespace;
use crate::dataplane::command::Tools;

/// The node's name.
pub(crate) const NODE: &str = "node-1";

/// The node's own public address.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// A second public address, which one of the examples asks for by name.
pub(crate) const FIXED_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 25);

/// Where the node sends what leaves it.
const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Somebody on the internet.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 23);

/// Somebody else on the internet.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

/// The network of the node's pods.
pub(crate) const POD_CIDR: &str = "10.244.1.0/24";

/// The last part of the first pod's address.
const FIRST_POD: u8 = 10;

const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);

/// The namespaces around the node, which is the process's own.
#[derive(Debug)]
pub(crate) struct Network {
    /// The internet, seen from the node.
    pub(crate) outside: Namespace,
    pods: u8,
}

impl Network {
    /// Makes the node and what is outside it.
    pub(crate) async fn build(tools: &Tools) -> anyhow::Result<Self> {
        let outside = Namespace::new("client").await?;
        let mut node = String::from("link set lo up\n");
        let _ = writeln!(node, "link add dev eth0 type veth peer name eth0 netns {}", outside.thread);
        for address in [NODE_ADDRESS, FIXED_ADDRESS] {
            let _ = writeln!(node, "addr add {address}/24 dev eth0");
        }
        let _ = writeln!(node, "link add dev cni0 type bridge");
        let _ = writeln!(node, "addr add {BRIDGE}/24 dev cni0");
        node.push_str("link set cni0 up\nlink set eth0 up\n");
        let _ = writeln!(node, "route add default via {ROUTER}");
        ip(tools, &node).await?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")
            .context("the node cannot be made to forward packets: /proc/sys is not writable here")?;

        let mut internet = String::from("link set lo up\nlink set eth0 up\n");
        let _ = writeln!(internet, "addr add {ROUTER}/24 dev eth0");
        for address in [CLIENT, STRANGER] {
            let _ = writeln!(internet, "addr add {address}/32 dev lo");
        }
        ip_in(&outside, tools, internet).await?;
        Ok(Self { outside, pods: 0 })
    }

    /// Adds a pod to the node, as its CNI plugin would; returns where to run what is in the pod, and its address.
    pub(crate) async fn add_pod(&mut self, tools: &Tools) -> anyhow::Result<(Namespace, IpAddr)> {
        self.pods += 1;
        let number = FIRST_POD + self.pods - 1;
        let address = Ipv4Addr::new(10, 244, 1, number);
        let pod = Namespace::new("pod").await?;
        let node = format!(
            "link add dev veth{number} type veth peer name eth0 netns {}\n\
             link set veth{number} master cni0 up\n",
            pod.thread
        );
        ip(tools, &node).await?;
        let inside = format!(
            "link set lo up\nlink set eth0 up\naddr add {address}/24 dev eth0\nroute add default via {BRIDGE}\n"
        );
        ip_in(&pod, tools, inside).await?;
        Ok((pod, address.into()))
    }
}

/// Runs `ip` commands in the node.
async fn ip(tools: &Tools, commands: &str) -> anyhow::Result<()> {
    tools.run("ip", &["-batch", "-"], commands).await?;
    Ok(())
}

/// Runs `ip` commands in another namespace.
async fn ip_in(namespace: &Namespace, tools: &Tools, commands: String) -> anyhow::Result<()> {
    let tools = tools.clone();
    namespace.run(async move { ip(&tools, &commands).await }).await
}
