//! What it costs to program a node, to change one mapping, and to pass its rules, for every backend and beside two
//! others: one program per rule, as podnat-controller works, and the portmap plugin of CNI.
//!
//! Everything happens in network namespaces that this program makes: a node, two pods and a client. Nobody else's
//! rules are seen or touched. All mappings are of TCP on one IPv4 address, each leads to a pod of its own, and every
//! pod leaves with that address. CPU time is that of this process and of the programs that it started, and does not
//! depend on who else was running as much as time on the clock does.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a benchmark that cannot go on stops, prints its result, starts processes, and rounds"
)]

#[path = "dataplane/cost.rs"]
mod cost;
#[path = "dataplane/ours.rs"]
mod ours;
#[path = "page.rs"]
mod page;
#[path = "dataplane/report.rs"]
mod report;
#[path = "dataplane/rivals.rs"]
mod rivals;
#[path = "dataplane/traffic.rs"]
mod traffic;

/// The tests' node, pods and client.
#[path = "../tests/it/kernel"]
#[allow(dead_code, reason = "the tests use more of it")]
mod kernel {
    pub(crate) mod lab;
    pub(crate) mod namespace;
}

use pinhole::dataplane::settings::Firewall;
use pinhole::dataplane::settings::Flavor;

/// What is measured, each with its column or row.
pub(crate) const BACKENDS: [Firewall; 3] =
    [Firewall::Nftables, Firewall::Iptables(Flavor::Nft), Firewall::Iptables(Flavor::Legacy)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["memory", backend, mappings] => ours::print_memory(backend, mappings.parse().unwrap()),
        ["ours"] => print!("{}", report::ours(&ours::measure())),
        [] => {
            let load = page::load_average();
            let ours = ours::measure();
            let rivals = rivals::measure();
            let report = report::markdown(&load, &ours, &rivals);
            print!("{report}");
            page::write("make bench-dataplane", "The dataplane", &report);
        }
        other => panic!("unknown arguments {other:?}; run without any, or with `ours`"),
    }
}
