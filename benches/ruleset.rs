//! What the parts of a change cost that touch no kernel, with 10 000 mappings on a node: what it should have, what differs
//! from what it has, and the text that leads there.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that cannot go on stops, and criterion's macros write undocumented functions"
)]

use std::hint::black_box;
use std::io;

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use pinhole::dataplane::Dataplane;
use pinhole::dataplane::Observed;
use pinhole::dataplane::dry_run::Dialect;
use pinhole::dataplane::dry_run::DryRun;
use pinhole::dataplane::dry_run::transactions;
use pinhole::dataplane::settings::Settings;
use pinhole::model::holder::ObjectName;
use pinhole::model::mapping::Address;
use pinhole::model::mapping::Mapping;
use pinhole::model::port::Port;
use pinhole::model::port::PortRange;
use pinhole::model::port::Protocol;
use pinhole::ruleset::Ruleset;
use pinhole::ruleset::desired::desired;
use pinhole::ruleset::diff::diff;
use pinhole::ruleset::endpoint::Endpoint;
use pinhole::ruleset::endpoint::Leaving;
use pinhole::ruleset::node::NodeFacts;

const MAPPINGS: u16 = 10_000;
const FIRST_PORT: u16 = 10_000;
const DIALECTS: [(Dialect, &str); 2] = [(Dialect::Nftables, "nftables"), (Dialect::Iptables, "iptables")];

fn endpoints() -> Vec<Endpoint> {
    (0..MAPPINGS).map(|number| endpoint(number, &format!("pod-{number}"))).collect()
}

/// A port of the node's own address that leads to a pod of its own.
fn endpoint(number: u16, pod: &str) -> Endpoint {
    let external = PortRange::single(Port::new(FIRST_PORT + number).unwrap());
    let [high, low] = number.to_be_bytes();
    Endpoint {
        mapping: Mapping::new(Address::Node, Protocol::Tcp, external, Port::new(80).unwrap()).unwrap(),
        pod: ObjectName::new("default", pod),
        uid: format!("uid-of-{pod}"),
        ips: vec![[10, 244, high, low].into()],
        leaving: Leaving::default(),
        udp_handover: None,
        suspended: false,
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        addresses: [[203, 0, 113, 7].into()].into(),
        node_v4: Some([203, 0, 113, 7].into()),
        pod_cidrs: vec!["10.244.0.0/17".parse().unwrap()],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        ..NodeFacts::default()
    }
}

fn ruleset(endpoints: &[Endpoint]) -> Ruleset {
    let desired = desired(endpoints, &node());
    assert_eq!(desired.refused, []);
    desired.ruleset
}

/// All mappings, and the same with one that leads to another pod.
fn states() -> [Ruleset; 2] {
    let before = endpoints();
    let mut after = before.clone();
    after[5_000] = endpoint(5_000, "other");
    [ruleset(&before), ruleset(&after)]
}

fn wanted(criterion: &mut Criterion) {
    let (endpoints, node) = (endpoints(), node());
    criterion.bench_function("desired", |bencher| bencher.iter(|| desired(black_box(&endpoints), &node)));
    let [before, after] = states();
    assert_eq!(diff(&before, &after).len(), 2);
    criterion.bench_function("diff", |bencher| bencher.iter(|| diff(black_box(&before), &after)));
}

fn render(criterion: &mut Criterion) {
    let settings = Settings::default();
    let [before, after] = states();
    for (dialect, name) in DIALECTS {
        let backend = DryRun::new(settings.clone(), dialect, Box::new(io::sink()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let held = runtime.block_on(backend.apply(&before, Observed::default())).observed;
        let mut group = criterion.benchmark_group(name);
        for (title, observed) in [("render all", &Observed::default()), ("render one change", &held)] {
            assert_eq!(transactions(&after, observed, &settings, dialect).len(), 1);
            group.bench_function(title, |bencher| {
                bencher.iter(|| transactions(black_box(&after), observed, &settings, dialect));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, wanted, render);
criterion_main!(benches);
