//! The controller, where claims are on: whether one replica leads, and what its self-test of the webhook shows.

use crate::cli::plugin::doctor::Observed;
use crate::cli::plugin::doctor::agents::value;
use crate::cli::plugin::finding::Finding;

const CONTROLLER: &str = "controller";

/// Nothing where there is no controller: claims are opt-in.
pub(crate) fn findings(observed: &Observed) -> Vec<Finding> {
    let Some(part) = &observed.controller else { return Vec::new() };
    let (namespace, reference) = (&part.namespace, &part.reference);
    let state = format!("{} of {} replicas of {reference} in {namespace} are ready", part.ready, part.wanted);
    let advice = format!("kubectl -n {namespace} describe {reference}, and the log of its pods");
    if part.ready == 0 {
        let effect = "ports are not given back, and new pods get no Pinhole";
        return vec![Finding::problem(CONTROLLER, format!("{state}: {effect}"), advice)];
    }
    let replicas = if part.ready < part.wanted {
        Finding::problem(CONTROLLER, state, advice)
    } else {
        Finding::fine(CONTROLLER, state)
    };
    vec![replicas, self_test(observed)]
}

fn self_test(observed: &Observed) -> Finding {
    let read = observed.controller_metrics.values();
    let unread = read.clone().find_map(|metrics| metrics.as_ref().err());
    let leads = |metrics: &&String| value(metrics, "pinhole_controller_leading") == Some(1.0);
    let leader = read.clone().filter_map(|metrics| metrics.as_ref().ok()).find(leads);
    let Some(leader) = leader else {
        return match unread {
            None => Finding::problem(
                CONTROLLER,
                "no replica leads, so ports are not given back",
                "look for the Lease in the log of the controller's pods",
            ),
            Some(reason) => Finding::unchecked(
                CONTROLLER,
                format!("what the self-test shows is unknown: {reason}"),
                "get the right to create pods/portforward there, or look at pinhole_controller_self_test_passed",
            ),
        };
    };
    match value(leader, "pinhole_controller_self_test_passed") {
        Some(1.0) => Finding::fine(CONTROLLER, "its self-test shows, every minute, that the webhook decides"),
        Some(_) => Finding::problem(
            CONTROLLER,
            "its last self-test did not show that the webhook decides",
            "the log of the leading pod has the reason; what is said here of the webhook may name it, too",
        ),
        None => Finding::note(CONTROLLER, "no self-test of the webhook is run")
            .advising("set claims.controller.selfTest.enabled=true in the chart"),
    }
}
