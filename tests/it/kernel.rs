//! Real rules in a real kernel, with real packets: a node, its pods and a client, each in a network namespace that
//! lives only as long as its test.
//!
//! Every test runs with both flavours of iptables and carries the number of the defect that it holds off. They need
//! root, or the user namespace that `make test-rust` gives an ordinary user, and Debian's iptables, nftables, iproute2
//! and conntrack; without, they fail and say so.

mod agent;
mod lab;
mod namespace;
mod policy;
mod programming;
mod rewriting;
mod traffic;

/// Runs each function with both flavours, as one test each.
macro_rules! with_both_flavors {
    ($($test:ident),* $(,)?) => {
        mod nft {
            $(#[test]
            fn $test() {
                super::$test(&mut crate::kernel::lab::Lab::new(pinhole::dataplane::settings::Flavor::Nft));
            })*
        }
        mod legacy {
            $(#[test]
            fn $test() {
                super::$test(&mut crate::kernel::lab::Lab::new(pinhole::dataplane::settings::Flavor::Legacy));
            })*
        }
    };
}

use with_both_flavors;
