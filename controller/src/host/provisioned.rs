//! Hosts that somebody's operating system runs on: looked after, never written. Pure.

use muster_proto::kinds::{ErrorType, OperationalStatus};

use super::{State, access, available::image_url, deprovisioning, draft::Draft, guard, power};

/// The host is provisioned.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    if is_to_go(draft) {
        if !guard::is_protected(draft.host) {
            deprovisioning::begin(draft);
            return;
        }
        draft.refuse(
            ErrorType::Provisioning,
            "the host is protected: what it runs is not taken away before the annotation muster.dev/protected is removed",
        );
    } else {
        draft.forget(ErrorType::Provisioning);
    }
    look_after(draft);
}

/// The host is externally provisioned.
pub(super) fn external(draft: &mut Draft<'_>) {
    if draft.host.spec.externally_provisioned != Some(true) {
        draft.enter(State::Provisioned);
        draft.status.provisioning.image.clone_from(&draft.host.spec.image);
        draft
            .status
            .provisioning
            .custom_deploy
            .clone_from(&draft.host.spec.custom_deploy);
        return;
    }
    // The request that failed is not to be fulfilled any more.
    draft.forget(ErrorType::Provisioning);
    look_after(draft);
}

fn look_after(draft: &mut Draft<'_>) {
    // Another operator's: nobody services the host here, and nothing of it waits for a place.
    draft.forget(ErrorType::Servicing);
    let status = &mut draft.status.operational_status;
    if matches!(*status, OperationalStatus::Servicing | OperationalStatus::Delayed) {
        *status = OperationalStatus::Ok;
    }
    let reach = access::ensure(draft);
    power::manage(draft, &reach);
}

/// True if what the host runs is not what it is to run. Only the image's URL counts, as upstream has it.
fn is_to_go(draft: &Draft<'_>) -> bool {
    let spec = &draft.host.spec;
    let runs = &draft.old.provisioning;
    let method = |custom: Option<&muster_proto::kinds::CustomDeploy>| {
        custom
            .map(|custom| custom.method.clone())
            .filter(|method| !method.is_empty())
    };
    let image = image_url(runs.image.as_ref());
    let custom = method(runs.custom_deploy.as_ref());
    match (image, &custom) {
        // Nobody knows what runs there. It goes if nothing is asked for, and else is taken for what is asked for.
        (None, None) => !super::available::has_request(spec),
        _ => {
            (image.is_some() && image != image_url(spec.image.as_ref()))
                || (custom.is_some() && custom != method(spec.custom_deploy.as_ref()))
        }
    }
}
