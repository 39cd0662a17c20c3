//! One round of a host: it is decided what to do, and that is done.

use std::{sync::Arc, time::Duration};

use kube::{Resource as _, runtime::controller::Action};
use muster_proto::{
    Chain,
    kinds::{BareMetalHost, BareMetalHostStatus},
};
use tokio::time::Instant;

use super::{
    super::{
        Owner, Plan, State,
        conditions::asks_a_person,
        detached,
        draft::{and_next, bounded},
        execute::Fresh,
        memory::Rest,
        metrics::Plain,
        next,
        observe::Snapshot,
        owner,
        plan::{BmcCall, Effect, PowerWatch},
        reboot, restore,
        slot_state::waits_for_slot,
        state,
    },
    Context, TOO_FAST,
    carry::{Call, Done, carry_out, watch_power},
};
use crate::{
    events::Event,
    path::Path,
    round::{ExecuteError, PATIENCE},
};

/// How long a status that only says what the host waits for may wait itself: most steps are over by then, and cost no write.
const DEFER: Duration = Duration::from_secs(5);
/// The same of one that waits for a slot and whose turn is likely to come by then: it is woken, and nothing need be written. Those that
/// wait for longer say so one after the other (`Slots::turn_to_tell`), as soon as [`DEFER`] is over.
const DEFER_IN_LINE: Duration = Duration::from_secs(120);
/// The same where so few wait that all of them can say so in this time: that costs little.
const DEFER_IN_SHORT_LINE: Duration = Duration::from_secs(10);
/// How often a round goes on with what it has written, before others have their turn.
const TURNS: usize = 2;

/// What comes after a turn.
enum After {
    /// The round is over.
    Over(Action),
    /// The host was written: it is decided anew at once.
    Wrote(Done),
}

/// Decides and acts, and once more where that wrote the host: most steps begin with a state that is written first, and what was written
/// a moment ago need not be read again before data is destroyed.
pub(super) async fn round(host: Arc<BareMetalHost>, context: Arc<Context>) -> Result<Action, ExecuteError> {
    // The host was taken before this round began to look, and a change in between was told before, too: this round must see it.
    let Some(host) = context.now(&host) else {
        return Ok(Action::await_change());
    };
    if let Some(action) = watch_power(&host, &context) {
        return Ok(action);
    }
    let (mut watched, mut fresh) = (host, None);
    for _ in 0..TURNS {
        let done = match turn(&watched, fresh, &context).await? {
            After::Over(action) => return Ok(action),
            After::Wrote(done) => done,
        };
        // The watch may have shown more meanwhile: what a person forbids counts from then on.
        watched = match context.now(&watched) {
            Some(now) => now,
            None => break,
        };
        fresh = done.fresh;
    }
    Ok(Action::requeue(Duration::ZERO))
}

/// Decides and acts once.
async fn turn(
    host: &Arc<BareMetalHost>,
    fresh: Option<Fresh>,
    context: &Arc<Context>,
) -> Result<After, ExecuteError> {
    let path = Path::of(host.as_ref());
    context.metrics.reconciled(&path);
    if !context.executor.term.still() {
        // The loop is dropped in a moment, unless a renewal that is under way is taken yet: then nobody else comes back to this host.
        return Ok(After::Over(Action::requeue(TOO_FAST)));
    }
    if owner(host) != Owner::Operator {
        leave_alone(context, host, &path);
        return Ok(After::Over(Action::await_change()));
    }
    context.memory.looks(host, (context.executor.clock)());
    let mut snapshot = context.observer().look(host).await;
    warn_of_unreadable(context, &snapshot.host);
    let mut plan = decide(context, &path, &mut snapshot);
    let rests = plan.rests();
    if let Some(defer) = defers(context, &snapshot.host, &plan) {
        plan.status = None;
        plan.requeue = Some(plan.requeue.map_or(defer, |pause| pause.min(defer)));
    }
    let calls = plan.effects.iter().any(|effect| matches!(effect, Effect::Bmc(_)));
    let call = match calls {
        true => match Call::begin(context, &snapshot.host) {
            Some(call) => Some(call),
            // Its end is looked at before another one is made.
            None => {
                context.forget_if_gone(host, &path);
                return Ok(After::Over(Action::await_change()));
            }
        },
        false => None,
    };
    let (slot, requeue) = (plan.slot, plan.next());
    let acted = tokio::time::timeout(
        PATIENCE,
        carry_out(
            context,
            &snapshot,
            Done::nothing(&snapshot.host, fresh),
            plan,
            call,
        ),
    )
    .await;
    let outcome = acted.unwrap_or_else(|_| {
        Err(ExecuteError::Late {
            subject: format!("host {path}"),
        })
    });
    let stored = outcome.as_ref().map_or(&snapshot.host, |done| &done.host);
    if !slot && !context.keeps_slot(stored, snapshot.seen.server.as_deref()) {
        context.wake(context.slots.give_back(&path));
    }
    let after = match outcome {
        Ok(done) => {
            context.memory.went_well(&snapshot.host);
            if let Some(PowerWatch { first, every }) = rests {
                let ask = Instant::now() + first;
                context.memory.rests(&snapshot.host, Rest { ask, every });
            }
            let pause = if done.wrote { Some(Duration::ZERO) } else { requeue };
            let at_once = pause.is_some_and(|pause| pause.is_zero());
            Ok(if at_once && !context.memory.may_hurry(&snapshot.host) {
                After::Over(Action::requeue(TOO_FAST))
            } else if done.wrote {
                After::Wrote(done)
            } else {
                After::Over(pause.map_or_else(Action::await_change, Action::requeue))
            })
        }
        Err(error) => Err(failed(context, &snapshot.host, error)),
    };
    context.forget_if_gone(host, &path);
    after
}

/// The host is somebody else's, for now or for good: it keeps its slot among the busy ones only as long as its machine is busy.
fn leave_alone(context: &Context, host: &Arc<BareMetalHost>, path: &Path) {
    context.memory.leaves_alone(host);
    let server = context.observer().server(host);
    if context.has_begun(host, server.as_deref()) {
        context.slots.begin_with(path);
    } else if !context.keeps_slot(host, server.as_deref()) {
        context.wake(context.slots.give_back(path));
    }
}

/// Tells once of what people wrote into the host that cannot be read.
fn warn_of_unreadable(context: &Context, host: &BareMetalHost) {
    let unknown = state::unreadable(host);
    let reason = match unknown {
        Some(_) => "Unreadable",
        None => "InvalidAnnotationValue",
    };
    let wrong = [
        unknown,
        reboot::unreadable(host),
        detached::unreadable(host),
        restore::unreadable_hardware(host),
    ];
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    let wrong = (!wrong.is_empty()).then(|| bounded(&wrong.join("; ")));
    if let Some(message) = context.memory.finds(host, wrong) {
        context.events.record(Event {
            about: host.object_ref(&()),
            related: host.spec.consumer_ref.clone(),
            warning: true,
            reason,
            message,
        });
    }
}

/// After which time to look again, if the status of `plan` is not written yet.
fn defers(context: &Context, host: &BareMetalHost, plan: &Plan) -> Option<Duration> {
    let waits = plan.status.as_ref().filter(|_| can_wait(host, plan));
    let Some(status) = waits else {
        // What waits after this begins to wait then.
        context.memory.waits_no_more(host);
        return None;
    };
    let in_line = waits_for_slot(status);
    let longest = match context.slots.can_tell_all(DEFER_IN_SHORT_LINE) {
        true => DEFER_IN_SHORT_LINE,
        false => DEFER_IN_LINE,
    };
    let patience = match in_line && context.slots.is_near(&Path::of(host), longest) {
        true => longest,
        false => DEFER,
    };
    context.memory.defers(host, patience, || match in_line {
        true => context.slots.turn_to_tell(),
        false => Duration::ZERO,
    })
}

/// True if what `plan` would write says only what the host waits for, and nothing that is begun now needs to be announced by it: a job
/// announces itself, unless it destroys data. Where one step follows the other at once, nobody could read it anyway; but a person is
/// told at once what to do.
fn can_wait(host: &BareMetalHost, plan: &Plan) -> bool {
    let (Some(old), Some(new)) = (&host.status, &plan.status) else {
        return false;
    };
    let nothing_else = plan.effects.iter().all(|effect| {
        matches!(effect, Effect::PlaceJob(_) | Effect::Bmc(BmcCall::ReadPower)) && !effect.destroys()
    });
    let mut said = BareMetalHostStatus {
        conditions: old.conditions.clone(),
        last_updated: old.last_updated.clone(),
        ..*new.clone()
    };
    // In a state that takes no slot it changes nothing but what people read; and whoever starts anew asks the BMC again.
    if waits_for_slot(new) && !State::of(host).is_busy() {
        said.operational_status = old.operational_status;
        said.good_credentials.clone_from(&old.good_credentials);
        said.tried_credentials.clone_from(&old.tried_credentials);
    }
    nothing_else && !asks_a_person(new) && plan.events.is_empty() && plan.metadata.is_empty() && said == *old
}

/// The plan for the host, with a slot among the busy ones if it needs one and there is one.
fn decide(context: &Context, path: &Path, snapshot: &mut Snapshot) -> Plan {
    let now = (context.executor.clock)();
    if context.has_begun(&snapshot.host, snapshot.seen.server.as_deref()) {
        context.slots.begin_with(path);
    }
    let Snapshot { host, seen } = snapshot;
    let mut plan = |slot| {
        seen.slot = slot;
        next(host, seen, now)
    };
    let wanted = plan(true);
    if !wanted.slot || context.slots.take(path) {
        return wanted;
    }
    plan(false)
}

fn failed(context: &Context, host: &BareMetalHost, error: ExecuteError) -> ExecuteError {
    if !error.is_behind() {
        context.metrics.count(Plain::ReconcileError);
    }
    // Said once for a row of failures: it stays so until somebody acts.
    let refusal = error.is_refusal().then(|| Event {
        about: host.object_ref(&()),
        related: host.spec.consumer_ref.clone(),
        warning: true,
        reason: "WriteRefused",
        message: and_next(&Chain(&error).to_string(), "it is retried until it succeeds"),
    });
    if let Some(news) = context.memory.failed(host, error.step(), refusal) {
        context.events.record(news);
    }
    error.log(context.memory.failures(host));
    error
}
