//! What goes wrong on demand: requests that fail or wait, somebody who writes in between, watches and clocks that are behind.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::Semaphore;

use super::{FakeApi, Inner};

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is done, 500.
    Refused,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// Another code, nothing is done.
    Code(u16),
}

/// The merge patch for an object as it is then; none: it is left as it is.
type Patching = Box<dyn Fn(&Value) -> Option<Value> + Send>;

/// Somebody who patches an object between two requests of others.
pub(super) struct Intruder {
    /// How many requests are left until then.
    left: usize,
    plural: String,
    name: String,
    patch: Patching,
    /// From then on the watched copies see nothing of this kind.
    unseen: bool,
    /// Only once that request is carried out, before it is answered.
    after: bool,
}

impl FakeApi {
    pub(crate) fn fail_next(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.lock().faults = faults.into_iter().collect();
    }

    /// From now on, the API server takes no write to a path with this end.
    pub(crate) fn refuse_writes(&self, end: String) {
        self.lock().invalid.push(end);
    }

    /// From now on, it keeps no conditions: the kinds that are installed do not know them.
    pub(crate) fn drop_conditions(&self, drops: bool) {
        self.lock().drops_conditions = drops;
    }

    /// From now on, it takes all writes again.
    pub(crate) fn take_writes(&self) {
        self.lock().invalid.clear();
    }

    /// From now on, it answers reads of paths with this end with `code`.
    pub(crate) fn refuse_reads(&self, end: &str, code: u16) {
        self.lock().unread = Some((end.to_owned(), code));
    }

    /// From now on, everything can be read again.
    pub(crate) fn take_reads(&self) {
        self.lock().unread = None;
    }

    /// Somebody merges `patch` into an object just before request number `left` of those to come.
    pub(crate) fn intrude(&self, left: usize, plural: &str, name: &str, patch: Value) {
        self.intrude_with(left, plural, name, move |_| Some(patch.clone()));
    }

    /// The same with the patch that `patch` makes of the object as it is then; none: nobody comes.
    pub(crate) fn intrude_with(
        &self,
        left: usize,
        plural: &str,
        name: &str,
        patch: impl Fn(&Value) -> Option<Value> + Send + 'static,
    ) {
        let (plural, name) = (plural.to_owned(), name.to_owned());
        self.lock().intruder = Some(Intruder {
            left,
            plural,
            name,
            patch: Box::new(patch),
            unseen: false,
            after: false,
        });
    }

    /// The same once that request is carried out, and the watched copies see it before that is answered.
    pub(crate) fn intrude_after(&self, left: usize, plural: &str, name: &str, patch: Value) {
        self.intrude(left, plural, name, patch);
        if let Some(intruder) = &mut self.lock().intruder {
            intruder.after = true;
        }
    }

    /// The same, and from then on the watched copies see nothing of that kind.
    pub(crate) fn intrude_unseen(&self, left: usize, plural: &str, name: &str, patch: Value) {
        self.intrude(left, plural, name, patch);
        if let Some(intruder) = &mut self.lock().intruder {
            intruder.unseen = true;
        }
    }

    /// From now on, the API server's clock is so many seconds ahead.
    pub(crate) fn set_ahead(&self, seconds: i64) {
        self.lock().ahead = seconds;
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    pub(crate) fn is_down(&self) -> bool {
        self.lock().down
    }

    /// While true, the watched copies see nothing.
    pub(crate) fn set_lagging(&self, lagging: bool) {
        let mut inner = self.lock();
        inner.lagging = lagging;
        inner.show();
    }

    /// From now on the watched copies see nothing of this kind.
    pub(crate) fn set_blind(&self, plural: &str) {
        self.lock().blind = Some(plural.to_owned());
    }

    /// The watched copies see every kind again, with what they have missed.
    pub(crate) fn see_again(&self) {
        let mut inner = self.lock();
        inner.blind = None;
        inner.show();
    }

    /// While true, whoever listens is told of no change, though the watched copies have it.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.lock().silent = silent;
    }

    /// From now on every answer is under way for so long.
    pub(crate) fn set_slow(&self, slow: Duration) {
        self.lock().slow = slow;
    }

    /// Lets the next request that is this method and ends with this path wait until [`FakeApi::release`].
    pub(crate) fn hold(&self, method: &str, path: &str) {
        self.lock().held = Some((format!("{method} {path}"), Arc::new(Semaphore::new(0))));
    }

    /// True once the request is there and waits.
    pub(crate) fn is_held(&self) -> bool {
        self.lock()
            .held
            .as_ref()
            .is_some_and(|(request, _)| request.is_empty())
    }

    pub(crate) fn release(&self) {
        let (_, gate) = self.lock().held.take().unwrap();
        gate.add_permits(1);
    }
}

impl Inner {
    /// Lets the intruder in whose turn it is; who comes after the request is returned.
    pub(super) fn let_intrude(&mut self) -> Option<Intruder> {
        match &mut self.intruder {
            Some(intruder) if intruder.left > 0 => intruder.left -= 1,
            Some(intruder) if intruder.after => return self.intruder.take(),
            Some(_) => {
                let intruder = self.intruder.take();
                self.let_in(intruder);
            }
            None => {}
        }
        None
    }

    pub(super) fn let_in(&mut self, intruder: Option<Intruder>) {
        let Some(intruder) = intruder else { return };
        self.blind = intruder.unseen.then(|| intruder.plural.clone());
        let mut stored = self.objects.iter();
        let stored = stored.find(|(key, _)| key.0 == intruder.plural && key.2 == intruder.name);
        if let Some(patch) = stored.and_then(|(_, object)| (intruder.patch)(object)) {
            let _ = self.edit(&intruder.plural, &intruder.name, &patch);
        }
    }

    /// What this request has to wait for.
    pub(super) fn held_by(&mut self, method: &str, path: &str) -> Option<Arc<Semaphore>> {
        let (request, gate) = self.held.as_mut()?;
        let (held_method, held_path) = request.split_once(' ')?;
        if method != held_method || !path.ends_with(held_path) {
            return None;
        }
        // One request only.
        request.clear();
        Some(Arc::clone(gate))
    }
}
