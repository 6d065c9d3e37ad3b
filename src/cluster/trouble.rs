//! Says what went wrong between us and the API server, and what to do about it.

use std::error::Error;

use kube::runtime::watcher;

/// The failure of a request in one line that ends with what to do, where that is known.
pub(super) fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            let advice = match status.code {
                401 => "; the credentials are not accepted: renew the token or the kubeconfig",
                // Admission, a namespace or a definition that is going says 403 as well.
                403 if status.message.contains(" cannot ") => "; grant it as webhook-config/self.yaml does",
                404 => "; the API server does not serve this resource",
                _ => "",
            };
            format!("HTTP {}: {}{advice}", status.code, status.message)
        }
        kube::Error::Service(error) => explain_connection(error.as_ref()),
        kube::Error::HyperError(error) => explain_connection(error),
        other => causes(other),
    }
}

fn explain_connection(error: &(dyn Error + 'static)) -> String {
    // The outermost layer of the client only says that it is one.
    let reason = error.source().map_or_else(|| causes(error), causes);
    let advice = if reason.contains("certificate") {
        "check the CA and the server's address in the kubeconfig"
    } else {
        "check that the API server runs and can be reached from here"
    };
    format!("{reason}; {advice}")
}

/// Likewise for a watch.
pub(super) fn describe_watch(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => describe(error),
        watcher::Error::WatchError(status) => format!("HTTP {}: {}", status.code, status.message),
        watcher::Error::NoResourceVersion => {
            "the API server sent no resource version; is this a Kubernetes API?".to_owned()
        }
    }
}

/// Whether the API server answered that we may not ask.
pub(super) fn is_denied(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403))
}

/// Whether a watch only fell too far behind: the list that follows repairs it and nobody need act.
pub(super) fn is_expired(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::WatchFailed(kube::Error::Api(status))
    | watcher::Error::WatchError(status)) = error
    else {
        return false;
    };
    status.code == 410
}

/// Whether there is no such resource, or no right to look at it.
pub(super) fn is_out_of_reach(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    matches!(status.code, 403 | 404)
}

/// An error and what caused it, each said once.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_right_is_advised_where_one_is_missing_and_not_for_everything_that_is_forbidden() {
        let refused =
            |message: &str| kube::Error::Api(Box::new(Status::failure(message, "Forbidden").with_code(403)));
        let missing = "pods is forbidden: User \"pinhole\" cannot list resource \"pods\"";
        assert_eq!(
            describe(&refused(missing)),
            format!("HTTP 403: {missing}; grant it as webhook-config/self.yaml does")
        );
        let going = "natnodes.pinhole.dev \"a\" is forbidden: create not allowed while custom resource definition is terminating";
        assert_eq!(describe(&refused(going)), format!("HTTP 403: {going}"));
    }
}
