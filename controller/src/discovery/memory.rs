//! What rounds about Servers remember. Lost with the process: then a notice is told once more.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use crate::{events::Event, round::Failures, sync::lock};

/// By Server; of most there is nothing to be remembered.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<HashMap<String, Entry>>);

#[derive(Debug, Default)]
struct Entry {
    notices: Vec<Event>,
    failures: Failures,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        lock(&self.0)
    }

    /// Those of `notices` that the last round about `server` did not have.
    pub(super) fn news(&self, server: &str, notices: &[Event]) -> Vec<Event> {
        let mut all = self.lock();
        let before = all.get(server).map_or(&[][..], |entry| &entry.notices);
        let news = notices.iter().filter(|notice| !before.contains(notice));
        let news = news.cloned().collect();
        if !(before.is_empty() && notices.is_empty()) {
            all.entry(server.to_owned()).or_default().notices = notices.to_vec();
        }
        news
    }

    /// A round went well.
    pub(super) fn went_well(&self, server: &str) {
        let mut all = self.lock();
        let notices = all.remove(server).map(|entry| entry.notices);
        if let Some(notices) = notices.filter(|notices| !notices.is_empty()) {
            let entry = Entry {
                notices,
                ..Entry::default()
            };
            all.insert(server.to_owned(), entry);
        }
    }

    /// A round failed, with `refusal` if the API server will say the same next time. Returns that if it was not told in this row of
    /// failures: it stays so until somebody acts.
    pub(super) fn failed(&self, server: &str, refusal: Option<Event>) -> Option<Event> {
        let mut all = self.lock();
        all.entry(server.to_owned()).or_default().failures.add(refusal)
    }

    /// How many rounds in a row have failed, for one that has.
    pub(super) fn failures(&self, server: &str) -> u32 {
        self.lock().get(server).map_or(1, |entry| entry.failures.count())
    }

    /// The Server is gone.
    pub(super) fn forget(&self, server: &str) {
        self.lock().remove(server);
    }

    /// All Servers are gone but those that `is_there` knows.
    pub(super) fn retain(&self, is_there: impl Fn(&String) -> bool) {
        self.lock().retain(|name, _| is_there(name));
    }
}
