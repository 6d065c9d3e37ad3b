//! Nodes with as many mappings as an address has ports.

use std::fs;
use std::process::Command;

use pinhole::dataplane::Dataplane;
use pinhole::dataplane::Observed;
use pinhole::dataplane::settings::Firewall;
use pinhole::dataplane::settings::Flavor;
use pinhole::ruleset::Ruleset;
use pinhole::ruleset::desired::desired;
use pinhole::ruleset::node::NodeFacts;

use crate::kernel::lab::A;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;

const MANY: u16 = 10_000;
/// So many times as many.
const TIMES: u16 = 5;
const MEGABYTE: u64 = 1_000_000;

fn many(count: u16) -> Ruleset {
    let facts = NodeFacts { node_v6: None, ..Lab::facts() };
    let mappings = (0..count).map(|index| endpoint(&format!("{}/tcp", 1000 + index), "a", &A[..1]));
    desired(&mappings.collect::<Vec<_>>(), &facts).ruleset
}

/// CPU time of this process and of the programs that it started, in ticks.
fn ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(4);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}

fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn program_and_print(firewall: Firewall) {
    let program = |count| {
        let wanted = many(count);
        let lab = Lab::new(firewall);
        let before = ticks();
        let applied = lab.on_node(async || lab.backend().apply(&wanted, Observed::default()).await);
        assert_eq!(applied.observed.ruleset, wanted);
        ticks() - before
    };
    let some: u64 = (0..TIMES).map(|_| program(MANY)).sum();
    let all = program(TIMES * MANY);
    eprintln!("measured {some} {all} {}", peak_memory());
}

#[test]
#[ignore = "r52 runs it in a process of its own, whose time and memory are nobody else's"]
fn with_nftables() {
    program_and_print(Firewall::Nftables);
}

#[test]
#[ignore = "r52 runs it in a process of its own, whose time and memory are nobody else's"]
fn with_iptables_nft() {
    program_and_print(Firewall::Iptables(Flavor::Nft));
}

#[test]
#[ignore = "r52 runs it in a process of its own, whose time and memory are nobody else's"]
fn with_iptables_legacy() {
    program_and_print(Firewall::Iptables(Flavor::Legacy));
}

/// Runs one of these alone: ticks for [`TIMES`] times [`MANY`] mappings one after the other and at once, and the most
/// memory that it had.
fn measured(test: &str) -> [u64; 3] {
    let program = std::env::current_exe().unwrap();
    let name = format!("kernel::scale::{test}");
    let output = Command::new(program).args(["--ignored", "--exact", &name, "--nocapture"]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = printed.lines().find_map(|line| line.strip_prefix("measured "));
    let figures = line.unwrap_or_else(|| panic!("{printed}"));
    let mut figures = figures.split(' ').map(|figure| figure.parse().unwrap());
    [(); 3].map(|()| figures.next().unwrap())
}

#[test]
fn r52_50_000_mappings_take_no_quadratic_step_and_less_than_100_megabytes() {
    for test in ["with_nftables", "with_iptables_nft", "with_iptables_legacy"] {
        let [some, all, peak] = measured(test);
        assert!(5 * all < 8 * some, "{test}, 5 x 10 000: {some} ticks, 50 000: {all}");
        // What nftables takes is the agent's own alone; iptables-restore takes as much again.
        assert!(test != "with_nftables" || peak < 100 * MEGABYTE, "{test}: {peak}");
    }
}
