//! What a round decided is carried out: the host is written, people are told, effects take place; those that call a BMC beside the rounds.

use std::sync::Arc;

use kube::runtime::controller::Action;
use muster_proto::{Chain, kinds::BareMetalHost};
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    super::{
        Plan, State, counts,
        execute::Fresh,
        guard,
        memory::Rest,
        observe::Snapshot,
        plan::{BmcCall, Effect, PowerOrder},
    },
    Context, EARLY, TOO_FAST,
};
use crate::{events::Event, path::Path, round::ExecuteError, sync::lock};

/// What a round has done.
#[derive(Debug)]
pub(super) struct Done {
    /// The host itself was written.
    pub(super) wrote: bool,
    /// The host as it is then.
    pub(super) host: Arc<BareMetalHost>,
    /// What proves that the API server has it so.
    pub(super) fresh: Option<Fresh>,
}

impl Done {
    /// Nothing yet.
    pub(super) fn nothing(host: &Arc<BareMetalHost>, fresh: Option<Fresh>) -> Done {
        Done {
            wrote: false,
            host: Arc::clone(host),
            fresh,
        }
    }

    /// The API server has answered with `now` to the write that was sent at `asked`. What changed nothing was not sent and proves nothing.
    fn answered(&mut self, asked: Instant, now: Arc<BareMetalHost>) {
        let version = now.metadata.resource_version.clone();
        if version != self.host.metadata.resource_version {
            self.fresh = Some(Fresh {
                version,
                asked,
                answered: Instant::now(),
            });
        }
        (self.wrote, self.host) = (true, now);
    }
}

/// The right to call the BMC of one host. When a call under it ends, the host is looked at again, unless that said nothing new and nobody
/// waits for it; where none was begun, it is the round that says when, or a write that the API server refuses would be tried again
/// without a pause.
pub(super) struct Call {
    context: Arc<Context>,
    host: Arc<BareMetalHost>,
    begun: bool,
}

impl Call {
    pub(super) fn begin(context: &Arc<Context>, host: &Arc<BareMetalHost>) -> Option<Call> {
        context.memory.begin_call(host).then(|| Call {
            context: Arc::clone(context),
            host: Arc::clone(host),
            begun: false,
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let is_awaited = self.context.memory.end_call(&self.host);
        if self.begun || is_awaited {
            self.context.wake([Path::of(self.host.as_ref())]);
        }
    }
}

/// Writes what `plan` says and does what it asks for, up to what calls the BMC: that goes on beside the rounds.
pub(super) async fn carry_out(
    context: &Arc<Context>,
    snapshot: &Snapshot,
    mut done: Done,
    plan: Plan,
    call: Option<Call>,
) -> Result<Done, ExecuteError> {
    let executor = &context.executor;
    if plan.status.is_some() || !plan.metadata.is_empty() || !plan.effects.is_empty() {
        let effects: Vec<_> = plan.effects.iter().map(Effect::name).collect();
        tracing::info!(state = %State::of(&done.host), why = %plan.why, ?effects, "acting on the host");
    }
    let mut events = plan.events;
    if let Some(status) = &plan.status {
        let asked = Instant::now();
        done.answered(asked, executor.write_status(&done.host, status).await?);
        context.memory.waits_no_more(&done.host);
        counts::status_written(
            &context.metrics,
            &snapshot.host,
            &done.host,
            &snapshot.seen,
            &events,
        );
        // What is stored will not be said again by a later plan, so people are told now, whatever becomes of the effects.
        events.drain(..).for_each(|event| context.events.record(event));
    }
    if !plan.metadata.is_empty() {
        let asked = Instant::now();
        done.answered(asked, executor.write_metadata(&done.host, &plan.metadata).await?);
    }
    let mut effects = plan.effects.into_iter();
    while let Some(effect) = effects.next() {
        if matches!(effect, Effect::Bmc(_)) {
            let rest: Vec<Effect> = std::iter::once(effect).chain(effects).collect();
            spawn(
                context,
                Arc::clone(&done.host),
                snapshot.clone(),
                rest,
                events,
                call,
            );
            return Ok(done);
        }
        // Whatever is waited for makes what was known before it old.
        executor
            .act(&done.host, snapshot, done.fresh.take(), effect)
            .await?;
    }
    events.into_iter().for_each(|event| context.events.record(event));
    Ok(done)
}

/// Goes on with `call` beside the rounds; what it logs is of the round that it came from.
pub(super) fn beside(context: &Context, call: impl Future<Output = ()> + Send + 'static) {
    let mut calls = lock(&context.calls);
    // Those that have ended.
    while calls.try_join_next().is_some() {}
    calls.spawn(call.in_current_span());
}

/// What a call failed for may last a moment, before the host is looked at again.
async fn failed(error: &ExecuteError) {
    tracing::debug!(error = %Chain(error), "a call failed; looking at the host again");
    tokio::time::sleep(TOO_FAST / 4).await;
}

/// Carries out `effects`, the first of which calls the BMC, beside the rounds; tells `events` if all goes well.
fn spawn(
    context: &Arc<Context>,
    host: Arc<BareMetalHost>,
    snapshot: Snapshot,
    effects: Vec<Effect>,
    events: Vec<Event>,
    mut call: Option<Call>,
) {
    if let Some(call) = &mut call {
        call.begun = true;
    }
    let of = Arc::clone(context);
    beside(context, async move {
        // Dropped at the end, whatever the end is.
        let _call = call;
        act(&of, &host, &snapshot, effects, events).await;
        of.log_out_if_gone(&host).await;
    });
}

/// Carries out `effects` up to one that fails or must not be; tells `events` if all went well.
async fn act(
    context: &Context,
    host: &Arc<BareMetalHost>,
    snapshot: &Snapshot,
    effects: Vec<Effect>,
    events: Vec<Event>,
) {
    for effect in effects {
        let power = match &effect {
            Effect::Bmc(BmcCall::Power { order, .. }) => {
                Some(!matches!(order, PowerOrder::SoftOff | PowerOrder::HardOff))
            }
            _ => None,
        };
        // What comes before an order on the power may take minutes.
        if power.is_some() && context.now(host).is_none_or(|now| guard::is_left_alone(&now)) {
            // What was armed for it is armed again then: else it would count as booted.
            let memory = &context.executor.memory;
            memory.set_bmc(host, |_, tried| {
                *tried = tried.take().filter(|tried| tried.on_power);
            });
            return;
        }
        if let Err(error) = context.executor.act(host, snapshot, None, effect).await {
            failed(&error).await;
            return;
        }
        if let Some(on) = power.filter(|_| context.now(host).is_some()) {
            context.metrics.power(&Path::of(host.as_ref()), on);
        }
    }
    events.into_iter().for_each(|event| context.events.record(event));
}

/// Asks for the power of `host` beside the rounds, if it rests and that is due. Returns when there is something to do again; none: the
/// host is to be looked at.
pub(super) fn watch_power(host: &Arc<BareMetalHost>, context: &Arc<Context>) -> Option<Action> {
    let Rest { ask, every } = context.memory.rest(host)?;
    let now = Instant::now();
    let left = ask.saturating_duration_since(now);
    if left > EARLY {
        return Some(Action::requeue(left));
    }
    let mut call = Call::begin(context, host)?;
    let next = Rest {
        ask: now + every,
        every,
    };
    context.memory.rests(host, next);
    let (of, host) = (Arc::clone(context), Arc::clone(host));
    call.begun = true;
    beside(context, async move {
        // Dropped at the end, whatever the end is.
        let mut call = call;
        let before = of.memory.power(&host);
        let asked = of.executor.call(&host, &BmcCall::ReadPower).await;
        if let Err(error) = &asked {
            failed(error).await;
        }
        call.begun = asked.is_err() || of.memory.power(&host) != before;
        of.log_out_if_gone(&host).await;
    });
    Some(Action::requeue(every))
}
