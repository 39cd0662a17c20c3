//! What is to be done about one host: the decision, alone. Pure: no client, no runtime, no clock.
//!
//! ```text
//! paused                  nothing at all
//! a status to restore     that first
//! discovery's             nothing
//! being deleted           onto the way out (deletion.rs), unless detached (detached.rs)
//! then by its state       registration, inspection, preparing, available, provisioning, provisioned, deprovisioning
//! ```
//!
//! A transition writes the new state and nothing else; what is done there is said in the next round. So the status always stands
//! before what it announces.

use jiff::Timestamp;
use muster_proto::kinds::{BareMetalHost, OperationalStatus};

use super::{
    Owner, State, available, deletion, deprovisioning, detached,
    draft::Draft,
    inspection,
    observed::{Bmc, Observed},
    owner,
    owner::{has_bmc, is_held},
    plan::{BmcCall, Plan},
    preparing, provisioned, provisioning, registration, restore, secrets,
};
use crate::hosts;

/// What is to be done about `host`. Total: whatever the world looks like, there is a plan.
pub fn next(host: &BareMetalHost, seen: &Observed, now: Timestamp) -> Plan {
    match owner(host) {
        Owner::Nobody => return Plan::rest("it is paused"),
        Owner::Discovery => return Plan::rest("it is discovery's"),
        Owner::Operator => {}
    }
    let held = is_held(host);
    let deleted = hosts::is_being_deleted(host);
    if deleted && !held {
        return Plan::rest("it goes without us");
    }
    if let Some(plan) = restore::status(host, seen, now) {
        return plan;
    }
    // What a BMC said that the host has no more says nothing of its machine, and is forgotten.
    let is_former = !has_bmc(host) && seen.bmc != Bmc::default();
    let without = is_former.then(|| Observed {
        bmc: Bmc::default(),
        tried: None,
        ..seen.clone()
    });
    let mut draft = Draft::new(host, without.as_ref().unwrap_or(seen), now);
    if is_former {
        draft.call(BmcCall::Forget);
    }
    if draft.state == State::Foreign && !deleted {
        return Plan::rest(format!(
            "its state `{}` is unknown to this version",
            draft.old.provisioning.state
        ));
    }
    if !held {
        draft.metadata.finalizer = Some(true);
    }
    restore::hardware(&mut draft);
    decide(&mut draft);
    draft.finish()
}

fn decide(draft: &mut Draft<'_>) {
    if detached::apply(draft) {
        return;
    }
    if draft.is_being_deleted() && deletion::turn(draft) {
        return;
    }
    if !draft.state.is_young() {
        let status = &mut draft.status.operational_status;
        if matches!(*status, OperationalStatus::Unset | OperationalStatus::Discovered) {
            *status = OperationalStatus::Ok;
        }
    }
    // What goes is marked no more, and else marks come last: one that is refused ends the round, and the next one is put off.
    let holds = !draft.state.is_young() && draft.state != State::Deleting && !draft.is_being_deleted();
    match draft.state {
        State::New | State::Unmanaged => registration::begin(draft),
        State::Registering => registration::go_on(draft),
        State::Inspecting => inspection::go_on(draft),
        State::Preparing => preparing::go_on(draft),
        State::Available => available::go_on(draft),
        State::Provisioning => provisioning::go_on(draft),
        State::Provisioned => provisioned::go_on(draft),
        State::ExternallyProvisioned => provisioned::external(draft),
        State::Deprovisioning => deprovisioning::go_on(draft),
        State::PoweringOffBeforeDelete => deletion::power_off(draft),
        State::Deleting => deletion::drop_finalizers(draft),
        State::Foreign => {}
    }
    inspection::store_again(draft);
    if holds {
        secrets::hold(draft);
    }
}
