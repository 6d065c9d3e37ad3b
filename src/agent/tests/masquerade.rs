//! What the NatNode tells of the MasqueradePolicy that counts.

use std::collections::BTreeMap;

use super::*;
use crate::api::crd::masquerade_policy::MasqueradePolicy;
use crate::api::crd::masquerade_policy::MasqueradePolicySpec;

fn policies(generation: i64, pods: &str) -> Arc<BTreeMap<String, MasqueradePolicy>> {
    let spec = MasqueradePolicySpec { pod_cidrs: vec![pods.to_owned()], ..MasqueradePolicySpec::default() };
    let mut policy = MasqueradePolicy::new("default", spec);
    policy.metadata.generation = Some(generation);
    Arc::new(BTreeMap::from([("default".to_owned(), policy)]))
}

#[tokio::test]
async fn the_policy_is_told_as_programmed_once_the_kernel_has_that_generation_of_it() {
    let (stored_tx, stored_rx) = watch::channel(stored(false));
    let (desk, situation_rx) = Desk::new(stored_rx);
    let (known_tx, known_rx) = watch::channel(Some(policies(1, "10.244.1.0/24")));
    let settings =
        Settings { masquerading: Masquerading::default().with_policies(known_rx), ..Settings::default() };
    let bench = Bench::start_with(settings, Some(desk));
    bench.list_node();
    bench.pods.feed(POD, News::Listed(Vec::new()));
    let told = || {
        let said =
            situation_rx.borrow().as_ref().and_then(|told| told.masquerade.clone()).unwrap_or_default();
        (said.generation.unwrap_or_default(), said.programmed, said.reason)
    };
    let tells = |generation, reason: &str| {
        let expected = (generation, reason == "Programmed", reason.to_owned());
        move || told() == expected
    };
    let is = tells(1, "Programmed");
    bench.until("it is programmed", |_| is()).await;

    bench.kernel.fails.store(true, Ordering::SeqCst);
    known_tx.send_replace(Some(policies(2, "10.244.2.0/24")));
    let is = tells(2, "NotProgrammed");
    bench.until("the next generation fails", |_| is()).await;
    bench.kernel.fails.store(false, Ordering::SeqCst);
    let is = tells(2, "Programmed");
    bench.until("it is tried again", |_| is()).await;

    stored_tx.send_replace(stored(true));
    bench.until("it is paused", |bench| bench.metrics.paused.get() == 1).await;
    bench.until("what is programmed counts", |_| is()).await;
    known_tx.send_replace(Some(policies(3, "10.244.3.0/24")));
    let is = tells(3, "Paused");
    bench.until("nothing is changed", |_| is()).await;
    bench.end().await;
}
