//! A host that is taken out of our hands without touching the machine. Pure.

use muster_proto::kinds::{BareMetalHost, DETACHED_ANNOTATION, ErrorType, OperationalStatus};
use serde::Deserialize;

use super::{
    State, WaitReason, access, deprovisioning, draft::Draft, guard, jobs, observed::Bmc, plan::BmcCall,
    provisioning,
};
use crate::hosts::{self, annotation, arguments};

/// What the annotation says beside that it is there. What cannot be read says nothing, as upstream has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Arguments {
    #[serde(rename = "deleteaction")]
    delete_action: DeleteAction,
    force: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DeleteAction {
    Delay,
    #[default]
    #[serde(other)]
    Delete,
}

/// What is wrong with the annotation of `host`, for people; none: it can be read, or is not there. Upstream takes any value, and some write
/// who they are: only what was meant as arguments can be wrong.
pub(super) fn unreadable(host: &BareMetalHost) -> Option<String> {
    let value = annotation(host, DETACHED_ANNOTATION)?;
    let is_meant = value.trim_start().starts_with('{');
    let error = arguments::<Arguments>(value).err().filter(|_| is_meant)?;
    let example = r#"{"force":true}"#;
    Some(format!(
        "the annotation {DETACHED_ANNOTATION} cannot be parsed: {error}; it is treated as if it had no value; use JSON such as {example}, or no value"
    ))
}

/// True if the host is out of our hands, or is to be at once, whatever is being done to it: by force, or because it is deleted.
pub(super) fn is_cut_off(host: &BareMetalHost) -> bool {
    let detached = host
        .status
        .as_ref()
        .is_some_and(|status| status.operational_status == OperationalStatus::Detached);
    let is_deleted = hosts::is_being_deleted(host);
    let forces = |value| is_deleted || arguments::<Arguments>(value).unwrap_or_default().force;
    detached || annotation(host, DETACHED_ANNOTATION).is_some_and(forces)
}

/// Leaves the host alone if that is asked for and may be. True if nothing else is to be done.
pub(super) fn apply(draft: &mut Draft<'_>) -> bool {
    let is_detached = draft.old.operational_status == OperationalStatus::Detached;
    let Some(value) = draft.annotation(DETACHED_ANNOTATION) else {
        if is_detached {
            draft.status.operational_status = match draft.old.error_type {
                Some(_) => OperationalStatus::Error,
                None => OperationalStatus::Ok,
            };
            draft.why("the host is no longer detached");
            draft.again(std::time::Duration::ZERO);
        }
        // Of another operator, which was asked for what nobody asks for any more.
        draft.forget(ErrorType::Detach);
        return is_detached;
    };
    let arguments: Arguments = arguments(value).unwrap_or_default();
    let young = matches!(
        draft.state,
        State::New | State::Unmanaged | State::Registering | State::Deleting
    );
    if draft.is_being_deleted() {
        return delete_detached(draft, arguments);
    }
    let may = draft.state.is_steady() || is_detached || (arguments.force && !young);
    if !may {
        return false;
    }
    detach(draft);
    draft.wait_for(
        WaitReason::Detached,
        format!("the host is detached; next: continues where it stopped once the annotation {DETACHED_ANNOTATION} is removed"),
    );
    true
}

/// What is wrong with it stays so, and who looks for a host to claim sees it.
fn detach(draft: &mut Draft<'_>) {
    draft.forget(ErrorType::Detach);
    draft.status.operational_status = OperationalStatus::Detached;
    jobs::clear(draft);
    if draft.seen.bmc != Bmc::default() {
        draft.call(BmcCall::Forget);
    }
}

/// A host that is deleted while the annotation stands goes at once, whatever was being done to it and with the machine as it is, unless
/// it is to wait for that.
fn delete_detached(draft: &mut Draft<'_>, arguments: Arguments) -> bool {
    if draft.state == State::Deleting {
        return false;
    }
    if arguments.delete_action == DeleteAction::Delay {
        if draft.state.is_steady() {
            detach(draft);
        }
        let next = match is_cleaned_then(draft) {
            true => format!(
                "its disks are cleaned once the annotation {DETACHED_ANNOTATION} is removed; if its value is emptied instead, the host is removed at once without cleaning"
            ),
            false => format!(
                "the host is removed without cleaning once the annotation {DETACHED_ANNOTATION} is removed"
            ),
        };
        draft.wait_for(
            WaitReason::Detached,
            format!("the host is being deleted while detached; next: {next}"),
        );
        return true;
    }
    draft.enter(State::Deleting);
    true
}

/// True if the deletion that waits cleans the disks when it goes on, as things are.
fn is_cleaned_then(draft: &Draft<'_>) -> bool {
    let may_run = matches!(
        draft.state,
        State::Provisioning | State::Provisioned | State::Deprovisioning
    );
    may_run
        && provisioning::is_cleaned(draft)
        && !deprovisioning::is_released(draft)
        && guard::kept(draft.host).is_none()
        && access::hopeless(draft).is_none()
}
