//! The loop where claims are on: what the controller says in Pinholes, and what the kernel and the reports then have.

use serde_json::Value;

use super::*;
use crate::api::crd::pinhole::Pinhole;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::holder::ObjectName;

const PORT: &str = "203.0.113.7:25";
const ENTRY: &str = "203.0.113.7:25/tcp -> 10.244.0.2:80";
const OWN: &str = "203.0.113.7:8080/tcp -> 10.244.0.2:80";

/// The first pod, which asks for this.
fn asking(ports: &str) -> Object {
    exposing(pod(1), ports)
}

/// The first pod's Pinhole: whether it is accepted, and the ports of 203.0.113.7 that are granted.
fn pinhole(accepted: &str, ports: &[u16]) -> Pinholes {
    let endpoint =
        |port: &u16| json!({"address": "203.0.113.7", "protocol": "TCP", "port": port, "targetPort": 80});
    let object = json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole",
        "metadata": {
            "namespace": "mail", "name": "pod-1", "uid": "pinhole-1", "generation": 3,
        },
        "spec": {"target": {"pod": "pod-1", "podUID": "uid-1"}, "ports": [{"port": 25}]},
        "status": {
            "observedGeneration": 3,
            "endpoints": ports.iter().map(endpoint).collect::<Vec<_>>(),
            "conditions": [{
                "type": "Accepted", "status": accepted, "reason": "Why", "message": "is claimed by somebody else",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    });
    let object: Pinhole = serde_json::from_value(object).unwrap();
    [(ObjectName::new("mail", "pod-1"), object)].into()
}

pub(super) fn settings(kernel: Kernel, pinholes: Pinholes) -> Settings {
    let known = KnownPinholes::default();
    known.replace(pinholes);
    Settings { kernel, granted: Some(Arc::new(known)), ..Settings::default() }
}

/// A kernel that an agent without claims left with this pod.
pub(super) async fn left_without_claims(pod: Object) -> Kernel {
    let bench = Bench::with_pods(Settings::default(), vec![pod]);
    bench.until("programmed", |bench| 0 < bench.kernel.count()).await;
    let ruleset = bench.end().await.ruleset.lock().unwrap().clone();
    Kernel { ruleset: Mutex::new(ruleset), ..Kernel::default() }
}

impl Bench {
    pub(super) fn granted(&self, pinholes: Pinholes) {
        self.granting.as_ref().unwrap().0.replace(pinholes);
        self.pods.wake();
    }

    /// What the agent says that the Pinholes do not say yet.
    pub(super) fn said(&self) -> String {
        let reports = self.granting.as_ref().unwrap().1.take();
        let said = reports.into_iter().map(|report| {
            let report = report.report;
            format!(
                "{} {} {:?} {}",
                report.programmed, report.reason, report.observed_generation, report.message
            )
        });
        said.collect::<Vec<_>>().join("; ")
    }

    /// Fails when an entry goes although the controller has decided nothing about what asks for it; `granted` are the Pinholes with
    /// a change.
    pub(super) async fn keeps_while_undecided(&self, entry: &str, granted: impl Fn(Value) -> Pinholes) {
        let waiting = json!({"status": {"endpoints": [], "conditions": [{
            "type": "Accepted", "status": "Unknown", "reason": "Waiting", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        for undecided in [json!({"status": null}), waiting] {
            self.granted(granted(undecided));
            tokio::time::sleep(Duration::from_millis(150)).await;
            assert_eq!(self.kernel.entries(), [entry]);
        }
    }

    pub(super) async fn until_said(&self, expected: &str) {
        let said = Mutex::new(String::new());
        self.until(expected, |bench| {
            let mut last = said.lock().unwrap();
            let now = bench.said();
            if !now.is_empty() {
                *last = now;
            }
            last.as_str() == expected
        })
        .await;
    }
}

/// The same, by a controller that has looked for claims of these own addresses of the node.
fn judged_at(own: &[&str], accepted: &str, ports: &[u16]) -> Pinholes {
    let mut pinholes = pinhole(accepted, ports);
    for pinhole in pinholes.values_mut() {
        let status = pinhole.status.as_mut().unwrap();
        status.own_addresses = own.iter().map(ToString::to_string).collect();
        for endpoint in &mut status.endpoints {
            endpoint.address = own[0].to_owned();
        }
    }
    pinholes
}

#[tokio::test]
async fn a_port_is_served_once_it_is_granted_on_a_fixed_address_and_on_the_node_s_own() {
    let pod = asking("203.0.113.7:25:80,203.0.113.8:25:80,8080:80");
    let bench = Bench::with_pods(settings(Kernel::default(), Pinholes::new()), vec![pod]);
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
    for undecided in [pinhole("Unknown", &[]), judged_at(&["203.0.113.7"], "Unknown", &[])] {
        bench.granted(undecided);
        // What the kernel keeps while nothing is decided is no answer to what is granted.
        bench.until_said("false Waiting None the controller has not granted it yet").await;
        assert_eq!(bench.kernel.count(), 0, "nothing is decided, and nothing was there");
    }
    bench.granted(judged_at(&["203.0.113.7"], "True", &[25]));
    bench.until("the fixed one", |bench| bench.kernel.entries() == [ENTRY]).await;
    bench.granted(judged_at(&["203.0.113.7"], "True", &[25, 8080]));
    let both = [ENTRY, OWN];
    bench.until("granted", |bench| bench.kernel.entries() == both).await;
    bench.until_said("true Programmed Some(3) ").await;
}

#[tokio::test]
async fn what_a_node_s_own_address_has_outlives_an_upgrade_until_it_was_looked_for_among_the_claims() {
    let pod = asking("8080:80");
    let bench =
        Bench::with_pods(settings(left_without_claims(pod.clone()).await, Pinholes::new()), vec![pod]);
    let of_an_older_controller = [pinhole("Unknown", &[]), pinhole("True", &[]), pinhole("False", &[])];
    for undecided in of_an_older_controller.into_iter().chain([judged_at(&["203.0.113.9"], "True", &[])]) {
        bench.granted(undecided);
        bench.until_said("true Programmed None ").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(bench.kernel.entries(), [OWN]);
    }
    bench.granted(judged_at(&["203.0.113.7"], "True", &[8080]));
    bench.until_said("true Programmed Some(3) ").await;
    assert_eq!(bench.kernel.entries(), [OWN]);
    bench.granted(judged_at(&["203.0.113.7"], "False", &[]));
    bench.until("somebody else's", |bench| bench.kernel.count() == 0).await;
    bench.until_said("false NotProgrammed Some(3) is claimed by somebody else").await;
}

#[tokio::test]
async fn at_another_own_address_a_port_is_served_once_that_is_claimed() {
    let settings = settings(Kernel::default(), judged_at(&["203.0.113.7"], "True", &[8080]));
    let bench = Bench::with_pods(settings, vec![asking("8080:80")]);
    bench.until("programmed", |bench| bench.kernel.entries() == [OWN]).await;
    *bench.public.lock().unwrap() = "203.0.113.9";
    bench.pods.wake();
    bench.until("the old address is gone", |bench| bench.kernel.count() == 0).await;
    bench.until_said("false Waiting None the controller has not granted it yet").await;
    bench.granted(judged_at(&["203.0.113.9"], "True", &[8080]));
    let moved = ["203.0.113.9:8080/tcp -> 10.244.0.2:80"];
    bench.until("claimed", |bench| bench.kernel.entries() == moved).await;
}

#[tokio::test]
async fn an_agent_waits_for_the_pinholes_before_it_changes_anything() {
    let kernel = left_without_claims(asking("203.0.113.7:25:80")).await;
    let known = Arc::<KnownPinholes>::default();
    let settings = Settings { kernel, granted: Some(Arc::clone(&known)), ..Settings::default() };
    let bench = Bench::with_pods(settings, Vec::new());
    bench.until("told", |bench| bench.missing().contains("the first list of pinholes")).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.kernel.reads.load(Ordering::SeqCst), 0);
    bench.granted(Pinholes::new());
    bench.until("nobody asks for it any more", |bench| bench.kernel.count() == 0).await;
}

#[tokio::test]
async fn what_flowed_before_claims_goes_on_until_the_controller_says_no() {
    let pod = asking("203.0.113.7:25:80");
    let bench =
        Bench::with_pods(settings(left_without_claims(pod.clone()).await, Pinholes::new()), vec![pod]);
    for undecided in [Pinholes::new(), pinhole("Unknown", &[]), pinhole("True", &[25]), Pinholes::new()] {
        bench.granted(undecided);
        bench.until("ready", |bench| bench.readiness.is_ready()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(bench.kernel.entries(), [ENTRY]);
    }
    bench.granted(pinhole("False", &[]));
    bench.until("refused", |bench| bench.kernel.count() == 0).await;
    bench.until_said("false NotProgrammed Some(3) is claimed by somebody else").await;
}

#[tokio::test]
async fn nothing_flows_again_without_a_grant_only_because_the_pod_has_another_address() {
    let pod = asking("203.0.113.7:25:80");
    let bench = Bench::with_pods(
        settings(left_without_claims(pod.clone()).await, Pinholes::new()),
        vec![pod.clone()],
    );
    let mut other = exposing(pod, "203.0.113.7:26:80");
    other.metadata.resource_version = "2".to_owned();
    bench.apply(other);
    bench.until("the old port is closed and the new one not open", |bench| bench.kernel.count() == 0).await;
}

#[tokio::test]
async fn a_report_says_what_is_so_in_the_kernel() {
    let bench = Bench::with_pods(
        settings(Kernel::default(), pinhole("True", &[25])),
        vec![asking(&format!("{PORT}:80"))],
    );
    bench.until_said("true Programmed Some(3) ").await;
    let mut starting = asking(&format!("{PORT}:80"));
    starting.status.pod_ips.clear();
    bench.apply(starting);
    bench.until_said("false NoAddress Some(3) the pod has no address yet").await;
    bench.pods.feed(POD, News::Deleted(Box::new(asking(&format!("{PORT}:80")))));
    bench.until_said("false Released Some(3) node-1 serves nothing of it").await;
    assert_eq!(bench.kernel.count(), 0);
}

#[tokio::test]
async fn a_suspended_pod_keeps_what_it_was_granted_closed_and_says_so() {
    let asks = || asking(&format!("{PORT}:80,8080:80"));
    let bench = Bench::with_pods(
        settings(Kernel::default(), judged_at(&["203.0.113.7"], "True", &[25, 8080])),
        vec![asks()],
    );
    bench.until_said("true Programmed Some(3) ").await;
    bench.apply(suspended(asks()));
    let closed = ["203.0.113.7:25/tcp -> reserved", "203.0.113.7:8080/tcp -> reserved"];
    bench.until("closed", |bench| bench.kernel.entries() == closed).await;
    let why = "the pod has pinhole.dev/suspended: \"true\", so its ports are kept and nothing is let through";
    bench.until_said(&format!("false Suspended Some(3) {why}")).await;
}

#[tokio::test]
async fn a_pod_behind_another_one_of_its_holder_says_whether_it_could_take_over() {
    let owner = json!([{"apiVersion": "example.com/v1", "kind": "Fleet", "name": "mx", "uid": "f", "controller": true}]);
    let of_fleet = |number: u16, ready: &str| {
        let mut pod = exposing(pod(number), &format!("{PORT}:80"));
        pod.metadata.owner_references = serde_json::from_value(owner.clone()).unwrap();
        pod.status.conditions[0].status = ready.to_owned();
        pod
    };
    let mut old = of_fleet(2, "True");
    old.metadata.creation_timestamp = "2025-01-01T00:00:00Z".to_owned();
    let mut grants = pinhole("True", &[25]);
    let mut of_old = grants[&ObjectName::new("mail", "pod-1")].clone();
    of_old.metadata.uid = Some("pinhole-2".to_owned());
    of_old.spec.target.pod_uid = Some("uid-2".to_owned());
    let report =
        json!({"name": "node-1", "programmed": true, "reason": "Programmed", "observedGeneration": 3});
    of_old.status.as_mut().unwrap().nodes = vec![serde_json::from_value(report).unwrap()];
    grants.insert(ObjectName::new("mail", "pod-2"), of_old);
    let bench = Bench::with_pods(settings(Kernel::default(), grants), vec![of_fleet(1, "False"), old]);
    let unready = "its containers are not ready, and another pod of the same holder is served";
    bench.until_said(&format!("false NotReady Some(3) {unready}")).await;
    bench.apply(of_fleet(1, "True"));
    let standby = "false Standby Some(3) another pod of the same holder is served";
    bench.until_said(&format!("true Programmed Some(3) ; {standby}")).await;
    bench.apply(suspended(of_fleet(1, "True")));
    let closed = "false Suspended Some(3) the pod has pinhole.dev/suspended: \"true\", and another pod of the same holder is served";
    bench.until("the old one is served", |bench| bench.said() == closed).await;
}

#[tokio::test]
async fn what_the_brake_keeps_is_not_said_to_be_released() {
    let pod = asking("203.0.113.7:25:80");
    let mut settings = settings(left_without_claims(pod.clone()).await, pinhole("True", &[25]));
    settings.brake = Brake { threshold_percent: 0, minimum: 0 };
    let bench = Bench::with_pods(settings, Vec::new());
    bench.until_said("false Removing None 203.0.113.7:25/tcp is still in the kernel of node-1").await;
    assert_eq!(bench.kernel.entries(), [ENTRY]);
}

#[tokio::test]
async fn nothing_is_said_twice() {
    let mut told = pinhole("True", &[25]);
    let report =
        json!({"name": "node-1", "programmed": true, "reason": "Programmed", "observedGeneration": 3});
    for pinhole in told.values_mut() {
        pinhole.status.as_mut().unwrap().nodes = vec![serde_json::from_value(report.clone()).unwrap()];
    }
    let bench = Bench::with_pods(settings(Kernel::default(), told), vec![asking(&format!("{PORT}:80"))]);
    bench.until("programmed", |bench| bench.readiness.is_ready() && bench.kernel.count() == 1).await;
    bench.pods.wake();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.said(), "");
}

/// The Pinhole of a pod, which serves for this holder.
fn serving_for(number: u16, accepted: &str, ports: &[u16], holder: &str) -> (ObjectName, Pinhole) {
    let (_, mut object) = pinhole(accepted, ports).pop_first().unwrap();
    object.metadata.name = Some(format!("pod-{number}"));
    object.spec.target.pod_uid = Some(format!("uid-{number}"));
    let reference = json!({"kind": "Deployment", "namespace": "mail", "name": holder});
    object.spec.holder = Some(serde_json::from_value(reference).unwrap());
    (ObjectName::new("mail", format!("pod-{number}")), object)
}

#[tokio::test]
async fn a_port_that_was_handed_over_changes_hands_when_the_new_pod_is_ready_and_not_before() {
    let pods = |ready: bool| {
        let mut new = exposing(pod(2), "203.0.113.7:25:80");
        new.metadata.creation_timestamp = "2026-01-02T00:00:00Z".to_owned();
        new.metadata.resource_version = if ready { "2" } else { "1" }.to_owned();
        new.status.conditions.retain(|_| ready);
        [asking("203.0.113.7:25:80"), new]
    };
    let granted = |old: &str| {
        let ports: &[u16] = if old == "True" { &[25] } else { &[] };
        Pinholes::from([serving_for(1, old, ports, "green"), serving_for(2, "True", &[25], "green")])
    };
    let bench = Bench::with_pods(settings(Kernel::default(), granted("True")), pods(false).into());
    bench.until("the old one serves", |bench| bench.kernel.entries() == [ENTRY]).await;
    let [_, ready] = pods(true);
    bench.apply(ready);
    let new = ["203.0.113.7:25/tcp -> 10.244.0.3:80"];
    bench.until("the new one serves", |bench| bench.kernel.entries() == new).await;
    bench.granted(granted("False"));
    let is_told =
        |bench: &Bench| bench.said().contains("false NotProgrammed Some(3) is claimed by somebody else");
    bench.until("the old one is told", is_told).await;
    assert_eq!(bench.kernel.entries(), new);
}
