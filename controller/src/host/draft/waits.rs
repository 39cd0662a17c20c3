//! What a host waits for, since when, and what happens next. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use muster_proto::{kinds::OperationalStatus, text};

use super::{Draft, WORDS, Wait};
use crate::host::{WaitReason, conditions};

impl Draft<'_> {
    /// Says what the host waits for.
    pub(in crate::host) fn wait_for(&mut self, reason: WaitReason, message: impl Into<String>) {
        let since = self.waiting_since(reason).unwrap_or(self.now);
        let message = text::clean_to(message.into().as_bytes(), 2 * WORDS);
        if self.why.is_empty() {
            self.why.clone_from(&message);
        }
        self.wait = Some(Wait {
            reason,
            message,
            since,
            generation: None,
        });
    }

    /// Says that the host waits for a slot among the busy ones. Its turn wakes it.
    pub(super) fn is_delayed(&mut self) {
        self.status.operational_status = OperationalStatus::Delayed;
        let limit = self.seen.limit;
        self.wait_for(
            WaitReason::Place,
            format!(
                "waits for a free provisioning slot: as many hosts are busy as --provisioning-limit allows ({limit}); next: continues once one of them is done"
            ),
        );
    }

    /// Says what the host waits for, unless it waits for something else meanwhile.
    pub(in crate::host) fn wait_beside(&mut self, reason: WaitReason, message: impl Into<String>) {
        if self.wait.is_none() {
            self.wait_for(reason, message);
        }
    }

    /// What it says so far that the host waits for.
    pub(in crate::host) fn said(&self) -> Option<Wait> {
        self.wait.clone()
    }

    /// Says that, and nothing that was said in between.
    pub(in crate::host) fn say(&mut self, wait: Wait) {
        self.wait = Some(wait);
    }

    /// True if what it says so far is that the host waits for one of these `reasons`.
    pub(in crate::host) fn waits_for(&self, reasons: &[WaitReason]) -> bool {
        self.wait
            .as_ref()
            .is_some_and(|wait| reasons.contains(&wait.reason))
    }

    /// The same as [`Draft::wait_for`], from now on, however long it has waited for that.
    pub(in crate::host) fn wait_anew(&mut self, reason: WaitReason, message: impl Into<String>) {
        self.wait_for(reason, message);
        if let Some(wait) = &mut self.wait {
            wait.since = self.now;
        }
    }

    /// The same as [`Draft::wait_for`], since it began to wait for `other` if it does so far: it is the same that keeps it waiting.
    pub(in crate::host) fn wait_on(
        &mut self,
        reason: WaitReason,
        other: WaitReason,
        message: impl Into<String>,
    ) {
        let since = self.waiting_since(other);
        self.wait_for(reason, message);
        if let (Some(wait), Some(since)) = (&mut self.wait, since) {
            wait.since = since;
        }
    }

    /// Since when the host has been waiting for `reason`, as its status says; none: it has not.
    pub(in crate::host) fn waiting_since(&self, reason: WaitReason) -> Option<Timestamp> {
        self.old_wait()
            .filter(|wait| wait.reason == reason.name())
            .map(|wait| self.not_ahead(wait.last_transition_time.0))
    }

    /// True if the status says that the host waits for `reason` with this `message`.
    pub(in crate::host) fn has_said(&self, reason: WaitReason, message: &str) -> bool {
        let said = |wait: &Condition| {
            wait.reason == reason.name() && conditions::without_time(&wait.message) == message
        };
        self.old_wait().is_some_and(said)
    }

    pub(super) fn old_wait(&self) -> Option<&Condition> {
        conditions::waiting(&self.old)
    }

    /// What a person is asked for now, who was not asked for it before.
    pub(super) fn newly_asked(&self) -> Option<&str> {
        let by_hand = |wait: &&Wait| wait.reason.needs_person() && !self.untold;
        let wait = self.wait.as_ref().filter(by_hand)?;
        let asked = self
            .old_wait()
            .map(|old| (old.reason.as_str(), conditions::without_time(&old.message)));
        (asked != Some((wait.reason.name(), &wait.message))).then_some(&wait.message)
    }

    /// Comes back when the host has waited for `reason` for as long as `limit`.
    pub(in crate::host) fn again_after(&mut self, reason: WaitReason, limit: SignedDuration) {
        let since = self.looking_since(reason).unwrap_or(self.now);
        self.again_at(since.checked_add(limit).unwrap_or(self.now));
    }

    /// True if the host waited for `reason` since before `limit`.
    pub(in crate::host) fn waited(&self, reason: WaitReason, limit: SignedDuration) -> bool {
        self.looking_since(reason)
            .is_some_and(|since| self.now.duration_since(since) >= limit)
    }

    /// Since when the host has waited for `reason` and somebody looked whether that comes: while it is paused, or nobody leads, nobody does, and
    /// nothing that it waits for is late for that. Who switches a machine on or off needs nobody who looks.
    fn looking_since(&self, reason: WaitReason) -> Option<Timestamp> {
        let since = self.waiting_since(reason)?;
        let began = self.seen.began;
        match reason == WaitReason::PowerByHand || self.is_ahead(began) {
            true => Some(since),
            false => Some(since.max(began)),
        }
    }

    /// What the host waited for before, it waits for still. False: that was nothing.
    pub(in crate::host) fn keep_wait(&mut self) -> bool {
        let old = self.old_wait().and_then(|wait| {
            Some(Wait {
                reason: WaitReason::parse(&wait.reason)?,
                message: conditions::without_time(&wait.message).to_owned(),
                since: self.not_ahead(wait.last_transition_time.0),
                generation: wait.observed_generation,
            })
        });
        self.wait = old;
        self.wait.is_some()
    }
}
