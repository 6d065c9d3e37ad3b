//! What the parts of one decision cost: reading the call, deciding, and writing the patch.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that cannot go on stops, and criterion's macros write undocumented functions"
)]

#[path = "fixture.rs"]
mod fixture;

use std::hint::black_box;
use std::sync::Arc;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use pinhole::admission;
use pinhole::admission::Operation;
use pinhole::admission::Request;
use pinhole::admission::World;
use pinhole::admission::effective;
use pinhole::admission::index::Index;
use pinhole::admission::policy::Policy;
use pinhole::webhook::review::Review;
use serde_json::Value;

fn request(review: &[u8]) -> Request {
    let review = Review::parse(review).unwrap();
    Request {
        operation: Operation::Create,
        namespace: review.namespace,
        object: review.object,
        old_object: None,
    }
}

/// The same call for a port that the first holder has.
fn for_a_held_port(review: &[u8]) -> Vec<u8> {
    let mut review: Value = serde_json::from_slice(review).unwrap();
    let annotations = &mut review["request"]["object"]["metadata"]["annotations"];
    annotations["pinhole.dev/nat"] =
        r#"{"entries":[{"srcIP":"198.18.0.1","srcPort":10000,"dstPort":8080}]}"#.into();
    review.to_string().into_bytes()
}

fn parse(criterion: &mut Criterion) {
    let review = fixture::review(0);
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Bytes(review.len() as u64));
    group.bench_function("the CREATE of a pod", |bencher| {
        bencher.iter(|| Review::parse(black_box(&review)).unwrap());
    });
    group.finish();
}

fn decide(criterion: &mut Criterion) {
    let policy = Policy::default();
    let mut group = criterion.benchmark_group("decide");
    for held in [0, 10_000, 100_000] {
        let index = fixture::index(held);
        let world = World { policy: &policy, index: &index };
        let granted = request(&fixture::review(0));
        assert!(admission::decide(&granted, &world).is_granted());
        group.bench_with_input(BenchmarkId::new("granted", held), &granted, |bencher, request| {
            bencher.iter(|| admission::decide(black_box(request), &world));
        });
        if held == 0 {
            continue;
        }
        let refused = request(&for_a_held_port(&fixture::review(0)));
        assert!(!admission::decide(&refused, &world).is_granted());
        group.bench_with_input(BenchmarkId::new("refused", held), &refused, |bencher, request| {
            bencher.iter(|| admission::decide(black_box(request), &world));
        });
    }
    group.finish();
}

fn patch(criterion: &mut Criterion) {
    let policy = Arc::new(Policy::default());
    let index = Index::new(policy.clone());
    let world = World { policy: &policy, index: &index };
    let request = request(&fixture::review(0));
    criterion.bench_function("patch", |bencher| {
        bencher
            .iter(|| serde_json::to_vec(&effective::mutate(black_box(&request), &world).unwrap()).unwrap());
    });
}

criterion_group!(benches, parse, decide, patch);
criterion_main!(benches);
