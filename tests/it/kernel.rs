//! Real rules in a real kernel, with real packets: a node, its pods and a client, each in a network namespace that
//! lives only as long as its test.
//!
//! Every test runs with nftables and both flavours of iptables, as far as it makes sense, and carries the number of the defect that it holds off. They need
//! root, or the user namespace that `make test-rust` gives an ordinary user, and Debian's iptables, nftables, iproute2
//! and conntrack; without, they fail and say so.

mod agent;
mod cluster;
mod gateway;
mod lab;
mod masquerade;
mod namespace;
mod policy;
mod programming;
mod rewriting;
mod scale;
mod sources;
mod strays;
mod switching;
mod traffic;

/// Runs each function with every backend, as one test each.
macro_rules! with_every_backend {
    ($($test:ident),* $(,)?) => {
        crate::kernel::with_backend!(nftables, pinhole::dataplane::settings::Firewall::Nftables, $($test),*);
        crate::kernel::with_iptables!($($test),*);
    };
}

/// Runs each function with both flavours of iptables, as one test each.
macro_rules! with_iptables {
    ($($test:ident),* $(,)?) => {
        crate::kernel::with_backend!(
            iptables_nft,
            pinhole::dataplane::settings::Firewall::Iptables(pinhole::dataplane::settings::Flavor::Nft),
            $($test),*
        );
        crate::kernel::with_backend!(
            iptables_legacy,
            pinhole::dataplane::settings::Firewall::Iptables(pinhole::dataplane::settings::Flavor::Legacy),
            $($test),*
        );
    };
}

/// Runs each function with one backend.
macro_rules! with_backend {
    ($name:ident, $firewall:expr, $($test:ident),* $(,)?) => {
        mod $name {
            $(#[test]
            fn $test() {
                super::$test(&mut crate::kernel::lab::Lab::new($firewall));
            })*
        }
    };
}

use with_backend;
use with_every_backend;
use with_iptables;
