//! Where all servers of a fleet are, and the line that says so.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Where a server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Without power.
    #[default]
    Off,
    /// Its firmware tests itself and asks for something to boot.
    Firmware,
    /// It loads the ramdisk.
    Loading,
    /// Its agent enrols.
    Enrolling,
    /// Its agent collects the inventory and reports it.
    Inspecting,
    /// Its agent waits for jobs.
    Ready,
    /// Its agent carries out a job.
    Working,
    /// It runs the system on its disk.
    System,
    /// There is nothing to boot for it; it tries again.
    Idle,
    /// A fault on demand holds it up.
    Stuck,
}

impl State {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            State::Off => "off",
            State::Firmware => "firmware",
            State::Loading => "loading",
            State::Enrolling => "enrolling",
            State::Inspecting => "inspecting",
            State::Ready => "ready",
            State::Working => "working",
            State::System => "own system",
            State::Idle => "nothing to boot",
            State::Stuck => "stuck",
        }
    }
}

/// Where each server is, and what last went wrong.
#[derive(Debug)]
pub struct Tally {
    states: Mutex<Vec<State>>,
    trouble: Mutex<Option<String>>,
}

impl Tally {
    /// Of `servers` servers, all off.
    pub fn new(servers: usize) -> Tally {
        Tally {
            states: Mutex::new(vec![State::Off; servers]),
            trouble: Mutex::new(None),
        }
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        // Each is whole at every moment, whoever panicked.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server at `index` is in `state` now.
    pub fn enter(&self, index: usize, state: State) {
        if let Some(own) = self.states().get_mut(index) {
            *own = state;
        }
    }

    /// Something went wrong that the server gets over by itself.
    pub fn trouble(&self, what: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// The last trouble since this was last asked.
    pub fn take_trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where the server at `index` is.
    pub fn state(&self, index: usize) -> Option<State> {
        self.states().get(index).copied()
    }

    /// How many are in each state.
    pub fn counts(&self) -> BTreeMap<State, usize> {
        count(self.states().iter().copied())
    }
}

/// How often each thing occurs.
pub(super) fn count<T: Ord>(things: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for thing in things {
        *counts.entry(thing).or_insert(0) += 1;
    }
    counts
}

/// Whether all servers are where they stay: their hosts are made, and those that were discovered wait for jobs.
pub(super) fn have_arrived(
    all: usize,
    discovered: bool,
    servers: &BTreeMap<State, usize>,
    hosts: &BTreeMap<String, usize>,
) -> bool {
    let (servers_stay, hosts_stay) = match discovered {
        true => (servers.get(&State::Ready).copied() == Some(all), "unmanaged"),
        false => (true, "available"),
    };
    servers_stay && hosts.get(hosts_stay).copied() == Some(all)
}

/// `1000 servers: 3 firmware, 997 ready · hosts: 990 available, 10 inspecting`
pub(super) fn line(servers: &BTreeMap<State, usize>, hosts: &BTreeMap<String, usize>) -> String {
    let list = |parts: Vec<String>| match parts.is_empty() {
        true => "none".to_owned(),
        false => parts.join(", "),
    };
    let states = servers
        .iter()
        .map(|(state, count)| format!("{count} {}", state.name()));
    let states = list(states.collect());
    let hosts = list(
        hosts
            .iter()
            .map(|(state, count)| format!("{count} {state}"))
            .collect(),
    );
    format!(
        "{} servers: {states} · hosts: {hosts}",
        servers.values().sum::<usize>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fleet_has_arrived_when_nothing_more_is_going_to_happen() {
        let servers = |ready| BTreeMap::from([(State::Ready, ready)]);
        let hosts = |state: &str, number| BTreeMap::from([(state.to_owned(), number)]);
        assert!(have_arrived(2, true, &servers(2), &hosts("unmanaged", 2)));
        assert!(!have_arrived(2, true, &servers(1), &hosts("unmanaged", 2)));
        assert!(!have_arrived(2, true, &servers(2), &hosts("new", 2)));
        assert!(have_arrived(2, false, &servers(0), &hosts("available", 2)));
        assert!(!have_arrived(2, false, &servers(2), &hosts("inspecting", 2)));
    }

    #[test]
    fn line_counts_servers_and_hosts() {
        let tally = Tally::new(3);
        assert_eq!(
            line(&tally.counts(), &BTreeMap::new()),
            "3 servers: 3 off · hosts: none"
        );
        tally.enter(0, State::Ready);
        tally.enter(2, State::Ready);
        tally.enter(9, State::Ready);
        let hosts = count(["available", "available"].map(str::to_owned));
        assert_eq!(
            line(&tally.counts(), &hosts),
            "3 servers: 1 off, 2 ready · hosts: 2 available"
        );
        tally.trouble("a".to_owned());
        tally.trouble("b".to_owned());
        assert_eq!(tally.take_trouble().as_deref(), Some("b"));
        assert_eq!(tally.take_trouble(), None);
    }
}
