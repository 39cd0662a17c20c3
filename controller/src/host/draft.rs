//! A plan while it is being made: the status as it will be, and all that goes with it. Pure.

mod waits;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::Resource as _;
use muster_proto::{
    kinds::{
        BareMetalHost, BareMetalHostStatus, ErrorType, HardwareData, OperationHistory, OperationMetric,
        OperationalStatus, Segment, Server, Session, SessionState,
    },
    text,
};

use super::{
    State, WaitReason, backoff, conditions,
    observed::Observed,
    owner::has_bmc,
    plan::{BmcCall, Effect, Metadata, Plan, PowerWatch},
    reasons, reboot, secrets, table,
};
use crate::{
    bmc::Health,
    events::Event,
    hosts::annotation,
    time::{is_ahead, whole_seconds},
};

/// The longest pause after a failure of what a reboot annotation asks for.
const ASKED: Duration = Duration::from_secs(120);

/// The longest message of an error or Event, in bytes: enough for a failure with its causes and the last lines of a log. Events may
/// have 1024, conditions 32768.
pub(super) const WORDS: usize = 1000;

/// What the host waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// For machines, CamelCase.
    pub(super) reason: WaitReason,
    /// For people: for what, and what happens next.
    pub(super) message: String,
    /// When it began; another one than before only if the reason is another one, or if it begins again.
    pub(super) since: Timestamp,
    /// Of an attempt that failed: the generation of the object that it was made for. Any later one is worth another attempt.
    pub(super) generation: Option<i64>,
}

/// Whether a failure of before still holds up the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldOff {
    /// There is none that does.
    None,
    /// It is not time yet to try again.
    Waiting,
    /// It is time to try again.
    Over,
}

/// A plan while it is being made.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) host: &'a BareMetalHost,
    pub(super) seen: &'a Observed,
    pub(super) now: Timestamp,
    /// The state at the beginning of the round.
    pub(super) state: State,
    /// The status at the beginning of the round.
    pub(super) old: BareMetalHostStatus,
    /// The status as it will be.
    pub(super) status: BareMetalHostStatus,
    pub(super) metadata: Metadata,
    pub(super) effects: Vec<Effect>,
    /// Why the power cannot be told.
    pub(super) powerless: Option<String>,
    /// Why nothing lets us to the machine, whatever error is made of that.
    refused: Option<String>,
    /// The machine was reached in this round: why it could not be before counts no more.
    pub(super) reached: bool,
    /// Nothing has happened yet that the status should tell: what it is to say is known with the next round.
    pub(super) untold: bool,
    events: Vec<Event>,
    wait: Option<Wait>,
    slot: bool,
    requeue: Option<Duration>,
    watch: Option<PowerWatch>,
    why: String,
}

/// An entry of the history.
type Which = fn(&mut OperationHistory) -> &mut Option<OperationMetric>;

/// The operation that a host in `state` is in the middle of.
fn operation(state: State) -> Option<Which> {
    match state {
        State::Registering => Some(|history| &mut history.register),
        State::Inspecting => Some(|history| &mut history.inspect),
        State::Provisioning => Some(|history| &mut history.provision),
        State::Deprovisioning => Some(|history| &mut history.deprovision),
        _ => None,
    }
}

impl<'a> Draft<'a> {
    /// When the operation began that the host is in the middle of; none: it is in none, or nobody wrote that down.
    pub(super) fn begun(&self) -> Option<Timestamp> {
        let mut history = self.old.operation_history.clone()?;
        let metric = operation(self.state)?(&mut history).as_ref()?;
        Some(metric.start.as_ref()?.0)
    }

    pub(super) fn new(host: &'a BareMetalHost, seen: &'a Observed, now: Timestamp) -> Draft<'a> {
        let state = State::of(host);
        let mut old = host.status.clone().unwrap_or_default();
        if !state.is_provisioned() {
            old.provisioning_fail_count = conditions::failures(&old);
        }
        Draft {
            host,
            seen,
            now,
            state,
            status: old.clone(),
            old,
            metadata: Metadata::default(),
            effects: Vec::new(),
            powerless: None,
            refused: None,
            reached: false,
            untold: false,
            events: Vec::new(),
            wait: None,
            slot: false,
            requeue: None,
            watch: None,
            why: String::new(),
        }
    }

    pub(super) fn uid(&self) -> &'a str {
        self.host.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&'a str> {
        annotation(self.host, name)
    }

    pub(super) fn is_being_deleted(&self) -> bool {
        self.host.metadata.deletion_timestamp.is_some()
    }

    /// The Server that stands for the host.
    pub(super) fn server(&self) -> Option<&'a Server> {
        self.seen.server.as_deref()
    }

    /// The Segment of that Server's latest session.
    pub(super) fn segment(&self) -> Option<&'a Segment> {
        self.seen.segment.as_deref()
    }

    /// The HardwareData of the host.
    pub(super) fn hardware(&self) -> Option<&'a HardwareData> {
        self.seen.hardware.as_deref()
    }

    /// When the session of its ramdisk was connected last, if it is there.
    pub(super) fn here_since(&self) -> Option<Timestamp> {
        self.session().and_then(|(_, session)| session.since.parse().ok())
    }

    /// The session of its ramdisk, if it is there.
    pub(super) fn session(&self) -> Option<(&'a Server, &'a Session)> {
        let server = self.server()?;
        let session = server.session()?;
        (session.state == SessionState::Connected).then_some((server, session))
    }

    pub(super) fn why(&mut self, why: impl Into<String>) {
        self.why = why.into();
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn call(&mut self, call: BmcCall) {
        self.effect(Effect::Bmc(call));
    }

    /// Comes back after `pause` or earlier.
    pub(super) fn again(&mut self, pause: Duration) {
        self.requeue = Some(self.requeue.map_or(pause, |other| other.min(pause)));
    }

    /// Comes back at `at` or earlier, but not at once.
    pub(super) fn again_at(&mut self, at: Timestamp) {
        self.again(self.left(at));
    }

    /// All is as it should be; what was `read` of the power counts for as long as `holds`.
    pub(super) fn watch_power(&mut self, read: Timestamp, holds: SignedDuration) {
        self.watch = Some(PowerWatch {
            first: self.left(read.checked_add(holds).unwrap_or(self.now)),
            every: holds.unsigned_abs(),
        });
    }

    /// How long it is until `at`, and not nothing.
    fn left(&self, at: Timestamp) -> Duration {
        let left = Duration::try_from(at.duration_since(self.now)).unwrap_or_default();
        left.max(Duration::from_secs(1))
    }

    pub(super) fn tell(&mut self, reason: &'static str, message: impl Into<String>) {
        let message: String = message.into();
        self.event(false, reason, &message);
    }

    pub(super) fn warn(&mut self, reason: &'static str, message: impl Into<String>) {
        let message: String = message.into();
        self.event(true, reason, &message);
    }

    fn event(&mut self, warning: bool, reason: &'static str, message: &str) {
        debug_assert!(reasons::is_known(reason), "{reason} stands in no table");
        let about = self.host.object_ref(&());
        self.events.push(Event {
            about,
            related: self.host.spec.consumer_ref.clone(),
            warning,
            reason,
            message: bounded(message),
        });
    }

    /// The host is to be in `state` from now on: errors are past, and the next round does what is done there.
    pub(super) fn enter(&mut self, state: State) {
        debug_assert!(
            table::knows(self.state, state),
            "{} to {state} is no transition",
            self.state
        );
        self.why(format!("{} -> {state}", self.state));
        // However it ends.
        if let Some(which) = operation(self.state)
            && let Some(history) = &mut self.status.operation_history
            && which(history)
                .as_ref()
                .is_some_and(|metric| metric.start.is_some() && metric.end.is_none())
        {
            self.end(which);
        }
        state.name().clone_into(&mut self.status.provisioning.state);
        self.clear_error();
        self.status.error_count = 0;
        if !state.is_young() {
            self.status.operational_status = OperationalStatus::Ok;
        }
        self.wait = None;
        self.slot = state.is_busy();
        self.again(Duration::ZERO);
    }

    pub(super) fn clear_error(&mut self) {
        self.status.error_type = None;
        self.status.error_message.clear();
        if self.status.operational_status == OperationalStatus::Error {
            self.status.operational_status = OperationalStatus::Ok;
        }
    }

    /// What failed as `kind` before is past.
    pub(super) fn forget(&mut self, kind: ErrorType) {
        if self.status.error_type == Some(kind) {
            self.clear_error();
        }
    }

    /// An attempt failed: counted, told, and repeated after a while that doubles with every failure.
    pub(super) fn fail(&mut self, kind: ErrorType, message: impl AsRef<str>) {
        let message = bounded(message.as_ref());
        self.set_error(kind, &message);
        self.status.error_count = self.old.error_count.saturating_add(1);
        let pause = self.pause_after(kind, self.status.error_count);
        self.warn(event_reason(kind), message.clone());
        self.wait = Some(Wait {
            reason: WaitReason::Retry,
            message: and_next(&message, &format!("retrying after {}", backoff::words(pause))),
            since: self.now,
            generation: conditions::tried_for(&self.old).or(self.host.metadata.generation),
        });
        self.again(pause);
        self.why(format!("failed: {message}"));
    }

    /// Nothing can be done before somebody changes something: not counted and not repeated by itself.
    pub(super) fn refuse(&mut self, kind: ErrorType, message: impl AsRef<str>) {
        self.refuse_as(event_reason(kind), kind, message);
    }

    /// The same, told with a `reason` that is not the one of all errors of this `kind`.
    pub(super) fn refuse_as(&mut self, reason: &'static str, kind: ErrorType, message: impl AsRef<str>) {
        let message = bounded(message.as_ref());
        self.set_error(kind, &message);
        if kind == ErrorType::Registration {
            self.refused = Some(message.clone());
        }
        if self.old.error_message != message || self.old.error_type != Some(kind) {
            self.warn(reason, message.clone());
        }
        self.why(format!("refused: {message}"));
        let message = match message.contains(NEXT) {
            true => clause(&message).to_owned(),
            false => and_next(&message, "continues once this is fixed"),
        };
        self.wait_for(WaitReason::Refused, message);
    }

    /// The same where something else may be under way or have failed: that is told, and goes on by what is told of it.
    pub(super) fn refuse_beside(&mut self, kind: ErrorType, message: impl AsRef<str>) {
        if self.status.error_type.is_some_and(|other| other != kind) {
            return;
        }
        // What is held off is at rest.
        let wait = self.wait.take().filter(|wait| wait.reason != WaitReason::HeldOff);
        self.refuse(kind, message);
        self.wait = wait.or_else(|| self.wait.take());
    }

    /// Shows an error, and no more than that.
    pub(super) fn set_error(&mut self, kind: ErrorType, message: &str) {
        self.status.error_type = Some(kind);
        message.clone_into(&mut self.status.error_message);
        self.status.operational_status = OperationalStatus::Error;
    }

    /// `at`, or now where that is far ahead: the clock was set back, and a deadline that is counted from there would be as far away. What
    /// is a little ahead is another computer's clock, and stays: operations are named by it.
    fn not_ahead(&self, at: Timestamp) -> Timestamp {
        if self.is_ahead(at) { self.now } else { at }
    }

    /// True if `pause` has gone by since `at`; also if that has not come: it is of another clock, or this one was set back.
    pub(super) fn has_paused(&self, at: Timestamp, pause: SignedDuration) -> bool {
        at > self.now || self.now.duration_since(at) >= pause
    }

    /// The same of the time of this round.
    pub(super) fn is_ahead(&self, at: Timestamp) -> bool {
        is_ahead(at, self.now)
    }

    /// True if something of this plan writes to the Server.
    pub(super) fn writes_server(&self) -> bool {
        let writes = |effect: &Effect| {
            matches!(
                effect,
                Effect::PlaceJob(_) | Effect::RemoveJob { .. } | Effect::Wake(_)
            )
        };
        self.effects.iter().any(writes)
    }

    /// When the failure that the status speaks of was counted; none: there is none that is to be repeated. A status that another
    /// operator wrote has no such condition: what failed in its hands is tried at once in ours.
    pub(super) fn failed_at(&self) -> Option<Timestamp> {
        self.old.error_type?;
        let wait = self
            .old_wait()
            .filter(|wait| wait.reason == WaitReason::Retry.name())?;
        Some(wait.last_transition_time.0)
    }

    /// True if the spec is not the one any more that the object had in its `generation`, which is known.
    pub(super) fn is_another_spec(&self, generation: Option<i64>) -> bool {
        generation.is_some() && generation != self.host.metadata.generation
    }

    /// How long the `count`th failure in a row, of `kind`, waits for the next attempt. Who asks for a reboot may want to fence the machine, and
    /// does not wait for hours where the BMC was mended long ago.
    fn pause_after(&self, kind: ErrorType, count: i64) -> Duration {
        let pause = backoff::pause(self.uid(), count);
        let is_at_rest = matches!(
            State::of(self.host),
            State::Available | State::Provisioned | State::ExternallyProvisioned
        );
        let is_asked = is_at_rest && !self.is_being_deleted() && reboot::wish(self.host, false).off();
        match kind == ErrorType::PowerManagement && is_asked {
            true => pause.min(ASKED),
            false => pause,
        }
    }

    /// Whether a failure of one of `kinds` still holds up the work; if so, all stays as it is until it is time, or until somebody changes
    /// what the host is to be.
    pub(super) fn hold_off(&mut self, kinds: &[ErrorType]) -> HoldOff {
        let kind = self.old.error_type.filter(|kind| kinds.contains(kind));
        let (Some(kind), Some(at)) = (kind, self.failed_at()) else {
            return HoldOff::None;
        };
        let pause = self.pause_after(kind, self.old.error_count);
        let due = at.checked_add(pause).unwrap_or(self.now);
        let made_for = self.old_wait().and_then(|wait| wait.observed_generation);
        if self.is_another_spec(made_for)
            || self.has_paused(at, SignedDuration::try_from(pause).unwrap_or_default())
        {
            return HoldOff::Over;
        }
        self.keep_wait();
        self.why("waits before retrying");
        self.again_at(due);
        HoldOff::Waiting
    }

    /// The host needs a slot among the busy ones. False: it has none and is delayed.
    pub(super) fn takes_slot(&mut self) -> bool {
        self.slot = true;
        if self.seen.slot {
            self.is_not_delayed();
            return true;
        }
        self.is_delayed();
        false
    }

    /// The host needs no slot among the busy ones, or has one.
    pub(super) fn is_not_delayed(&mut self) {
        if self.status.operational_status == OperationalStatus::Delayed {
            // An error of before is still to be seen.
            self.status.operational_status = match self.status.error_type {
                Some(_) => OperationalStatus::Error,
                None => OperationalStatus::Ok,
            };
        }
    }

    /// The history entry that `which` picks.
    pub(super) fn history(&mut self, which: Which) -> &mut OperationMetric {
        let history = self
            .status
            .operation_history
            .get_or_insert_with(OperationHistory::default);
        which(history).get_or_insert_with(OperationMetric::default)
    }

    /// An operation begins now; later than any of its kind before, since its name is made of the time.
    pub(super) fn begin(&mut self, which: Which) {
        let now = self.now;
        let metric = self.history(which);
        let after = metric
            .start
            .as_ref()
            .and_then(|start| start.0.checked_add(SignedDuration::from_secs(1)).ok());
        let start = after.map_or(now, |after| after.max(now));
        *metric = OperationMetric {
            start: Some(whole_seconds(start)),
            end: None,
        };
    }

    /// The operation `which`, which has just begun, did not begin before `other`, whatever the clock of the one who began that.
    pub(super) fn begin_after(&mut self, which: Which, other: Which) {
        let history = self.status.operation_history.as_mut();
        let earliest = history.and_then(|history| other(history).as_ref()?.start.clone());
        let start = &mut self.history(which).start;
        *start = start.take().max(earliest);
    }

    /// An operation ended now.
    pub(super) fn end(&mut self, which: Which) {
        let now = self.now;
        let metric = self.history(which);
        let end = metric.start.as_ref().map_or(now, |start| start.0.max(now));
        metric.end = Some(whole_seconds(end));
    }

    /// The machine's health; none: nobody has asked since its power was changed, or since this process began.
    fn health(&self) -> Option<Health> {
        if !has_bmc(self.host) || self.powerless.is_some() {
            return Some(Health::Unknown);
        }
        self.seen.bmc.power.map(|reading| reading.health)
    }

    /// Why the machine cannot be managed: as was found now, or before, until it is reached.
    fn barred(&mut self) -> Option<conditions::Barred> {
        let refused = self.refused.take();
        let refused = refused.map(|why| (conditions::REGISTRATION_FAILED, why));
        let powerless = self.powerless.take();
        let powerless = powerless.map(|why| (conditions::POWER_FAILURE, why));
        let before = || conditions::barred(&self.old).filter(|_| !self.reached);
        refused.or(powerless).or_else(before)
    }

    /// True if nothing is done to the machine before a person acts: that needs no slot among the busy ones.
    fn needs_no_place(&self) -> bool {
        let waits = self
            .wait
            .as_ref()
            .is_some_and(|wait| wait.reason.is_left_to_a_person());
        waits && !self.effects.iter().any(Effect::touches_the_machine)
    }

    /// The plan.
    pub(super) fn finish(mut self) -> Plan {
        if self.slot && !self.seen.slot && State::parse(&self.status.provisioning.state).is_busy() {
            // It may enter the state but not begin; who starts anew sees by this that it has no slot.
            self.is_delayed();
        }
        if let Some(message) = self.newly_asked().map(str::to_owned) {
            self.warn("ActionNeeded", message);
        }
        let health = self.health();
        let barred = self.barred();
        let held = secrets::held(&self);
        if conditions::set_secret_held(&mut self.status, held.as_deref(), self.now) {
            self.warn(conditions::SECRET_HELD, held.unwrap_or_default());
        }
        let slot = self.slot && (!self.seen.slot || !self.needs_no_place());
        conditions::set(
            &mut self.status,
            self.wait.as_ref(),
            barred.as_ref(),
            health,
            (self.old.provisioning_fail_count, self.host.metadata.generation),
            self.now,
        );
        let dirty = !self.untold && (self.host.status.is_none() || self.status != self.old);
        if dirty {
            self.status.last_updated = Some(whole_seconds(self.now));
        }
        if !self.metadata.is_empty() {
            // What comes next rests on what is written now.
            self.again(Duration::ZERO);
        }
        Plan {
            status: dirty.then(|| Box::new(self.status)),
            metadata: self.metadata,
            effects: self.effects,
            events: self.events,
            slot,
            requeue: self.requeue,
            watch: self.watch,
            why: self.why,
        }
    }
}

/// `message`, fit to be stored: specs, BMCs and agents may say anything. One that is cut shows it, and leaves no bracket open.
pub(super) fn bounded(message: &str) -> String {
    let whole = text::clean_to(message.as_bytes(), usize::MAX);
    if whole.len() <= WORDS {
        return whole;
    }
    let cut = text::clean_to(whole.as_bytes(), WORDS - "…)".len());
    let is_open = cut.matches('(').count() > cut.matches(')').count();
    cut + if is_open { "…)" } else { "…" }
}

/// Between what is waited for and what happens next.
const NEXT: &str = "; next: ";

/// `message`, and what happens `next`, after what the message itself says that somebody is to do.
pub(super) fn and_next(message: &str, next: &str) -> String {
    let message = clause(message);
    match message.contains(NEXT) {
        true => format!("{message}, and then {next}"),
        false => format!("{message}{NEXT}{next}"),
    }
}

/// `message` where a sentence goes on after it: a BMC's own words end with a full stop.
pub(super) fn clause(message: &str) -> &str {
    message.trim_end_matches(['.', ' '])
}

/// Upstream's reason of the Event about an error.
pub(super) fn event_reason(kind: ErrorType) -> &'static str {
    match kind {
        ErrorType::ProvisionedRegistration => "ProvisionedRegistrationError",
        ErrorType::Registration => "RegistrationError",
        ErrorType::Inspection => "InspectionError",
        ErrorType::Preparation => "PreparationError",
        ErrorType::Provisioning => "ProvisioningError",
        ErrorType::PowerManagement => "PowerManagementError",
        ErrorType::Servicing => "ServicingError",
        ErrorType::Detach => "DetachError",
    }
}

#[cfg(test)]
mod tests;
