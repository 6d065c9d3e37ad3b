//! Our own backends.

use std::process::Command;

use pinhole::dataplane::Dataplane;
use pinhole::dataplane::drift::Watcher;
use pinhole::dataplane::settings::Firewall;
use pinhole::ruleset::Ruleset;
use pinhole::ruleset::desired::desired;
use pinhole::ruleset::endpoint::Endpoint;
use pinhole::ruleset::node::NodeFacts;

use crate::BACKENDS;
use crate::cost::Costs;
use crate::cost::Start;
use crate::cost::peak_memory;
use crate::kernel::lab::A;
use crate::kernel::lab::Lab;
use crate::kernel::lab::to_port;
use crate::traffic;
use crate::traffic::Traffic;

pub(crate) const SIZES: [usize; 4] = [100, 1_000, 10_000, 50_000];
/// The external port of the first mapping.
pub(crate) const FIRST_PORT: usize = 10_000;

/// How often a node of each size is programmed from nothing.
const COLD: [usize; 4] = [7, 7, 5, 3];
const CHANGES: usize = 100;
const READS: usize = 5;
const PROBES: usize = 1_000;

/// What one backend took.
pub(crate) struct Measured {
    pub(crate) firewall: Firewall,
    /// For each of [`SIZES`].
    pub(crate) cold: Vec<Costs>,
    /// One change with 10 000 mappings there.
    pub(crate) change: Costs,
    pub(crate) read: Costs,
    pub(crate) probe: Costs,
    /// A probe after somebody else changed a table of their own.
    pub(crate) probe_under_churn: Costs,
    /// For each of [`traffic::SIZES`].
    pub(crate) traffic: Vec<Traffic>,
    /// Megabytes at 10 000 and 50 000 mappings: of the agent, and of the largest program that it started.
    pub(crate) memory: [(f64, f64); 2],
}

/// The address of one of many pods; the last one is pod a.
fn pod_address(index: usize, count: usize) -> String {
    if index + 1 == count {
        A[0].to_owned()
    } else {
        format!("10.244.{}.{}", 2 + index / 200, 1 + index % 200)
    }
}

/// This many mappings.
pub(crate) fn wanted(count: usize) -> Vec<Endpoint> {
    let mapping = |index: usize| {
        let (external, ip) = (format!("{}/tcp", FIRST_PORT + index), pod_address(index, count));
        to_port(&external, &format!("pod-{index}"), &[&ip], 80)
    };
    (0..count).map(mapping).collect()
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts { node_v6: None, ..Lab::facts() }
}

fn ruleset(endpoints: &[Endpoint]) -> Ruleset {
    let desired = desired(endpoints, &facts());
    assert!(desired.refused.is_empty());
    desired.ruleset
}

/// Measures all of them, in turns, so that whatever else the machine does meets all alike.
pub(crate) fn measure() -> Vec<Measured> {
    let mut all: Vec<_> = BACKENDS.into_iter().map(Measured::new).collect();
    for (index, (size, runs)) in SIZES.into_iter().zip(COLD).enumerate() {
        for _ in 0..runs {
            for measured in &mut all {
                measured.program(index, size);
            }
        }
    }
    for measured in &mut all {
        measured.change();
    }
    let mut labs = Vec::new();
    for measured in &all {
        labs.extend(traffic::SIZES.map(|size| programmed(measured.firewall, size)));
    }
    let measured = traffic::measure(&labs);
    for (index, traffic) in measured.into_iter().enumerate() {
        all[index / traffic::SIZES.len()].traffic.push(traffic);
    }
    for measured in &mut all {
        measured.memory = [10_000, 50_000].map(|size| memory(measured.firewall, size));
    }
    all
}

fn programmed(firewall: Firewall, size: usize) -> Lab {
    let mut lab = Lab::new(firewall);
    let applied = lab.apply_ruleset(&ruleset(&wanted(size)));
    assert!(applied.failures.is_empty() && applied.refused.is_empty());
    lab
}

impl Measured {
    fn new(firewall: Firewall) -> Self {
        let cold = vec![Costs::default(); SIZES.len()];
        Self {
            firewall,
            cold,
            change: Costs::default(),
            read: Costs::default(),
            probe: Costs::default(),
            probe_under_churn: Costs::default(),
            traffic: Vec::new(),
            memory: [(0.0, 0.0); 2],
        }
    }

    /// From an empty kernel to all mappings: what an agent does at its start on a new node.
    fn program(&mut self, index: usize, size: usize) {
        let lab = Lab::new(self.firewall);
        let backend = lab.backend();
        let wanted = ruleset(&wanted(size));
        let costs = lab.on_node(async || {
            let observed = backend.read().await.unwrap();
            let start = Start::now();
            let applied = backend.apply(&wanted, observed).await;
            let cost = start.cost();
            assert_eq!(applied.observed.ruleset, wanted);
            cost
        });
        self.cold[index].add(costs);
    }

    /// One mapping leads to another pod, then back, with 10 000 there.
    fn change(&mut self) {
        let lab = Lab::new(self.firewall);
        let backend = lab.backend();
        let before = wanted(10_000);
        let mut after = before.clone();
        after[5_000] = to_port(&format!("{}/tcp", FIRST_PORT + 5_000), "other", &["10.244.1.10"], 80);
        let states = [ruleset(&before), ruleset(&after)];
        lab.on_node(async || {
            let mut observed = backend.read().await.unwrap();
            observed = backend.apply(&states[0], observed).await.observed;
            for turn in 0..CHANGES {
                let start = Start::now();
                let applied = backend.apply(&states[(turn + 1) % 2], observed).await;
                self.change.add(start.cost());
                assert_eq!(applied.transactions.len(), 1);
                observed = applied.observed;
            }
            for _ in 0..READS {
                let start = Start::now();
                observed = backend.read().await.unwrap();
                self.read.add(start.cost());
            }
            assert_eq!(observed.ruleset.len(), 10_000);
            let watcher = Watcher::new(&backend, lab.settings.clone()).unwrap();
            watcher.settle(&observed).await.unwrap();
            for _ in 0..PROBES {
                let start = Start::now();
                let found = watcher.look(&observed).await.unwrap();
                self.probe.add(start.cost());
                assert_eq!(found, None);
            }
            // As kube-proxy and CNIs do all the time.
            lab.node.sh("nft add table ip busy; nft add chain ip busy services");
            for _ in 0..CHANGES {
                lab.node.sh("nft add rule ip busy services accept");
                let start = Start::now();
                let found = watcher.look(&observed).await.unwrap();
                self.probe_under_churn.add(start.cost());
                assert_eq!(found, None);
            }
        });
    }
}

/// The name of a backend, also as an argument.
pub(crate) const fn name(firewall: Firewall) -> &'static str {
    match firewall {
        Firewall::Nftables => "nftables",
        Firewall::Iptables(flavor) => match flavor {
            pinhole::dataplane::settings::Flavor::Nft => "iptables-nft",
            pinhole::dataplane::settings::Flavor::Legacy => "iptables-legacy",
        },
    }
}

/// Memory is of a process that does nothing else.
fn memory(firewall: Firewall, size: usize) -> (f64, f64) {
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output = again.args(["memory", name(firewall), &size.to_string()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut peaks = text.split_whitespace().map(|peak| peak.parse().unwrap());
    (peaks.next().unwrap(), peaks.next().unwrap())
}

/// Programs this many mappings, changes one, and prints how much memory it took.
pub(crate) fn print_memory(backend: &str, size: usize) {
    let firewall = BACKENDS.into_iter().find(|firewall| name(*firewall) == backend).unwrap();
    let mut lab = Lab::new(firewall);
    lab.apply_ruleset(&ruleset(&wanted(size)));
    lab.apply_ruleset(&ruleset(&wanted(size)[1..]));
    let (own, started) = peak_memory();
    println!("{own} {started}");
}
