//! What the API server did not do, in words that say what helps.

use std::{borrow::Cow, error::Error};

use kube::{Resource, core::Status, runtime::watcher};
use muster_proto::{
    Chain,
    kinds::{BareMetalHost, Enrolment, HardwareData, Segment, Server},
    text,
};

/// The longest text that is taken over from an answer, in bytes: a proxy's may be a whole page.
const WORDS: usize = 600;

/// Why objects of `kind` could not be had from the API server at `server`, and what helps.
pub(crate) fn words(error: &(dyn Error + 'static), kind: &str, server: Option<&str>) -> String {
    let chain = Chain(error);
    match (status(error), server) {
        (Some(status), _) => refused(status, kind),
        (None, Some(server)) if is_unreached(error) => {
            format!("the API server at {server} cannot be reached: {chain}")
        }
        (None, _) => chain.to_string(),
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The API server's answer, if there is one.
fn status<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Status> {
    causes(error).find_map(|cause| {
        if let Some(kube::Error::Api(status)) = cause.downcast_ref::<kube::Error>() {
            return Some(&**status);
        }
        match cause.downcast_ref::<watcher::Error>() {
            Some(watcher::Error::WatchError(status)) => Some(&**status),
            _ => None,
        }
    })
}

/// True if there was no answer at all.
fn is_unreached(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| {
        let error = cause.downcast_ref::<kube::Error>();
        matches!(error, Some(kube::Error::Service(_) | kube::Error::HyperError(_)))
    })
}

fn refused(status: &Status, kind: &str) -> String {
    let said = if status.message.is_empty() {
        &status.reason
    } else {
        &status.message
    };
    let said = text::clean_to(said.as_bytes(), WORDS);
    match (status.code, api_version(kind)) {
        (404, Some(version)) => format!(
            "the kind {kind} ({version}) is not installed in this cluster; next: kubectl apply -f deploy/crds (docs/install.md)"
        ),
        // Only who asks for all namespaces at once is told this.
        (403, _) if said.contains("at the cluster scope") => format!(
            "{said}; next: grant this in all namespaces (deploy/manifests/roles), or name the one namespace of the hosts with --watch-namespace"
        ),
        (403, _) => format!("{said}; next: grant this (deploy/manifests/roles)"),
        (401, _) => format!("the API server does not accept the credentials ({said}); next: check them"),
        (code, _) => format!("the API server answered {code}: {said}"),
    }
}

/// The group and version of `kind`, if it is one that has to be installed.
fn api_version(kind: &str) -> Option<Cow<'static, str>> {
    fn of<K: Resource<DynamicType = ()>>() -> (Cow<'static, str>, Cow<'static, str>) {
        (K::kind(&()), K::api_version(&()))
    }
    let installed = [
        of::<BareMetalHost>(),
        of::<HardwareData>(),
        of::<Segment>(),
        of::<Server>(),
        of::<Enrolment>(),
    ];
    let found = installed.into_iter().find(|(name, _)| name == kind);
    found.map(|(_, version)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(message: &str, reason: &str, code: u16) -> watcher::Error {
        let status = Status::failure(message, reason).with_code(code);
        watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn what_the_api_server_refuses_says_what_helps() {
        let server = Some("https://192.0.2.1:6443/");
        let missing = listed("404 page not found", "Failed to parse error data", 404);
        assert_eq!(
            words(&missing, "BareMetalHost", server),
            "the kind BareMetalHost (metal3.io/v1alpha1) is not installed in this cluster; next: kubectl apply -f deploy/crds \
             (docs/install.md)"
        );
        let cannot = "User \"edge\" cannot list resource \"baremetalhosts\"";
        let everywhere = listed(&format!("{cannot} at the cluster scope"), "Forbidden", 403);
        let told = words(&everywhere, "BareMetalHost", server);
        assert!(
            told.starts_with(cannot) && told.contains("--watch-namespace"),
            "{told}"
        );
        let somewhere = listed(&format!("{cannot} in the namespace \"metal\""), "Forbidden", 403);
        let told = words(&somewhere, "BareMetalHost", server);
        assert!(
            told.contains("deploy/manifests/roles") && !told.contains("--watch-namespace"),
            "{told}"
        );
        let expired = Status::failure("too old resource version", "Expired").with_code(410);
        let told = words(
            &watcher::Error::WatchError(expired.boxed()),
            "BareMetalHost",
            server,
        );
        assert_eq!(told, "the API server answered 410: too old resource version");
    }

    #[test]
    fn an_api_server_that_is_not_reached_is_named_once() {
        let refused = kube::Error::Service("connection refused".into());
        let told = words(
            &watcher::Error::WatchStartFailed(refused),
            "Server",
            Some("https://192.0.2.1:6443/"),
        );
        assert_eq!(told.matches("https://192.0.2.1:6443/").count(), 1, "{told}");
        assert!(told.ends_with("connection refused"), "{told}");
        let other = std::io::Error::other("broken");
        assert_eq!(words(&other, "Server", Some("https://192.0.2.1:6443/")), "broken");
    }
}
