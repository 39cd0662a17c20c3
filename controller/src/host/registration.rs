//! From a new object to one whose machine can be reached. Pure.

use muster_proto::kinds::{BareMetalHost, ErrorType, OperationalStatus};

use super::{
    State, WaitReason,
    access::{self, LOOK_AGAIN, Reach},
    available, boot_mode,
    conditions::{self, CONTESTED, ENROLS_AGAIN},
    draft::Draft,
    guard, inspection,
    owner::{has_bmc, opt_in},
    ramdisk,
};
use crate::hosts::forbids_inspection;

/// A host that nobody manages: is it to be?
pub(super) fn begin(draft: &mut Draft<'_>) {
    if has_bmc(draft.host) || opt_in(draft.host).is_some() {
        if access::awaits_secret(draft) {
            return;
        }
        draft.enter(State::Registering);
        draft.begin(|history| &mut history.register);
        boot_mode::snapshot(draft);
        if !is_held_back(draft) {
            access::announce(draft);
        }
        return;
    }
    if draft.state == State::New {
        draft.enter(State::Unmanaged);
        draft.tell(
            "Discovered",
            "the host has no BMC: Muster shows its machine, but does nothing to it until spec.bmc or the annotation muster.dev/in-band is set",
        );
    } else {
        draft.clear_error();
        draft.why("the host is unmanaged");
    }
    let what = match draft.server() {
        Some(_) => conditions::MANAGE,
        None => conditions::MANAGE_UNKNOWN,
    };
    draft.wait_for(WaitReason::Management, what);
    draft.status.operational_status = OperationalStatus::Discovered;
}

/// True if the machine of `host` may already run what the host asks for, which nothing tells: the host is protected, and never got further
/// than this. So is one that was made anew from a repository, or from a backup without its status.
pub(super) fn may_run_already(host: &BareMetalHost) -> bool {
    !State::of(host).is_registered()
        && guard::is_protected(host)
        && available::has_request(&host.spec)
        && host.spec.externally_provisioned != Some(true)
}

/// True if the host goes no further for that; the draft says what helps.
fn is_held_back(draft: &mut Draft<'_>) -> bool {
    let may_run = may_run_already(draft.host);
    if may_run {
        draft.refuse(ErrorType::Registration, MAY_RUN);
    }
    may_run
}

/// Why the machine of a protected host is left as it is, and what helps.
const MAY_RUN: &str = "the host is protected and its machine may already run what the host asks for: the machine is left as it is; next: \
    set spec.externallyProvisioned to true, restore the host's status by the annotation baremetalhost.metal3.io/status, or remove the annotation \
    muster.dev/protected if the disks may be cleaned and written";

/// The way to the machine is sought for the first time.
pub(super) fn go_on(draft: &mut Draft<'_>) {
    if draft.status.operational_status == OperationalStatus::Delayed {
        draft.status.operational_status = OperationalStatus::Ok;
    }
    if is_held_back(draft) {
        return;
    }
    let rival = draft.seen.rivals.iter().find(|rival| rival.precedes);
    if let Some(rival) = rival {
        draft.refuse(ErrorType::Registration, rival.words());
        draft.again(LOOK_AGAIN * 6);
        return;
    }
    let reach = access::ensure(draft);
    let registered = match reach {
        Reach::Bmc => true,
        Reach::InBand => is_opted_in(draft),
        Reach::Silent(_) | Reach::No => false,
    };
    if !registered {
        return;
    }
    let next = leads_to(draft.host);
    // As upstream does: who would only wait there stays. So the state says that there is a slot, and no other write has to.
    if next == State::Inspecting && !draft.takes_slot() {
        return;
    }
    draft.enter(next);
    draft.end(|history| &mut history.register);
    if draft.status.provisioning.id.is_empty() {
        draft.uid().clone_into(&mut draft.status.provisioning.id);
    }
    if let (Reach::Bmc, Some(bmc)) = (reach, &draft.host.spec.bmc) {
        access::tell_access(draft, &bmc.credentials_name);
    }
    draft.tell("Registered", "the machine can be reached");
    if next == State::Preparing {
        draft.tell("InspectionSkipped", "inspection is disabled");
    }
    if next == State::Inspecting {
        inspection::begin_with_what_is_known(draft);
    }
}

/// The state that `host` is in once its machine can be reached.
pub(super) fn leads_to(host: &BareMetalHost) -> State {
    if host.spec.externally_provisioned == Some(true) {
        State::ExternallyProvisioned
    } else if forbids_inspection(host) {
        State::Preparing
    } else {
        State::Inspecting
    }
}

fn is_opted_in(draft: &mut Draft<'_>) -> bool {
    let value = opt_in(draft.host).unwrap_or_default();
    let Some((server, session)) = draft.session() else {
        draft.clear_error();
        ramdisk::is_awaited(draft, "the host is registered with that session");
        return false;
    };
    if server.status.as_ref().is_some_and(|status| status.contested) {
        draft.refuse(
            ErrorType::Registration,
            format!("{CONTESTED}; next: {ENROLS_AGAIN}"),
        );
        return false;
    }
    match access::opted_in(value, session, draft.segment()) {
        Ok(()) => true,
        Err(missing) => {
            draft.refuse(ErrorType::Registration, missing);
            false
        }
    }
}

/// True if the host was registered here, which gives it its own UID as id. Else another operator has or had to do with it, or with an object
/// of before, or it was never registered.
pub(super) fn was_here(draft: &Draft<'_>) -> bool {
    draft.old.provisioning.id == draft.uid()
}
