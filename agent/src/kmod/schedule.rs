//! In which order modules are loaded: what they need first, network drivers before all others, as many at once as asked.

use std::collections::HashMap;

use super::index::{Index, Module, Name};

/// Who waits for it. Later variants go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Storage and the rest: only the inventory waits.
    Inventory,
    /// Network drivers, the buses that devices hide behind, and random numbers: DHCP and the session's key take time of
    /// their own, so they start first.
    Network,
}

/// How urgent the module in this file is.
pub fn urgency(path: &str) -> Urgency {
    let network = ["/net/", "/virtio/", "/pci/", "/hv/", "/hw_random/"]
        .iter()
        .any(|part| path.contains(part));
    if network {
        Urgency::Network
    } else {
        Urgency::Inventory
    }
}

/// What is asked for, under way and done.
#[derive(Debug)]
pub struct Schedule {
    index: Index,
    entries: Vec<Entry>,
    known: HashMap<Name, usize>,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    path: Box<str>,
    urgency: Urgency,
    /// Entries that come first.
    first: Vec<usize>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    /// Others can use it; what it drives may still be probed.
    Live,
    Ended,
}

/// One module to load now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// To be handed back to [`Schedule::ended`].
    pub entry: usize,
    /// The module.
    pub name: Name,
    /// Its file, relative to the directory of `modules.dep`.
    pub path: Box<str>,
    /// Who waits for it.
    pub urgency: Urgency,
}

impl Schedule {
    /// Nothing asked for yet.
    pub fn new(index: Index) -> Schedule {
        Schedule {
            index,
            entries: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// Asks for every module that serves a device with this modalias.
    pub fn want_device(&mut self, modalias: &str) {
        let names: Vec<Name> = self.index.serving(modalias).cloned().collect();
        for name in names {
            self.want(&name);
        }
    }

    /// Asks for one module and what it needs. Unknown names are passed over: built in, or not in this ramdisk.
    pub fn want(&mut self, name: &str) {
        if let Some(module) = self.index.module(name) {
            let urgency = urgency(&module.path);
            self.insert(name, urgency);
        }
    }

    /// The most urgent module whose needs are met, unless more than `limit` would then run; network drivers never wait
    /// for a place, because a storage driver may take seconds.
    pub fn next(&mut self, limit: usize) -> Option<Start> {
        let running = self.running().count();
        let waiting = || {
            self.entries
                .iter()
                .enumerate()
                .filter(|(_, entry)| entry.phase == Phase::Waiting)
        };
        let rank = |(at, entry): &(usize, &Entry)| (entry.urgency, std::cmp::Reverse(*at));
        let met = |at: &usize| matches!(self.entries[*at].phase, Phase::Live | Phase::Ended);
        let (at, entry) = waiting()
            .filter(|(_, entry)| entry.first.iter().all(met))
            .filter(|(_, entry)| running < limit || entry.urgency == Urgency::Network)
            .max_by_key(rank)
            // Soft dependencies may form a circle: then one of it must begin.
            .or_else(|| {
                if running == 0 {
                    waiting().max_by_key(rank)
                } else {
                    None
                }
            })?;
        let start = Start {
            entry: at,
            name: entry.name.clone(),
            path: entry.path.clone(),
            urgency: entry.urgency,
        };
        self.entries[at].phase = Phase::Running;
        Some(start)
    }

    /// The kernel has the module, and its loading has not ended: what needs it need not wait, and it keeps no place from others.
    pub fn live(&mut self, name: &str) {
        let entry = self.known.get(name).and_then(|at| self.entries.get_mut(*at));
        if let Some(entry) = entry.filter(|entry| entry.phase == Phase::Running) {
            entry.phase = Phase::Live;
        }
    }

    /// The module is loaded, or will never be.
    pub fn ended(&mut self, entry: usize) {
        if let Some(entry) = self.entries.get_mut(entry) {
            entry.phase = Phase::Ended;
        }
    }

    /// The modules that are being loaded and not there yet.
    pub fn running(&self) -> impl Iterator<Item = &Name> {
        let running = self.entries.iter().filter(|entry| entry.phase == Phase::Running);
        running.map(|entry| &entry.name)
    }

    /// True if nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.entries.iter().all(|entry| entry.phase == Phase::Ended)
    }

    /// The modules that run, probe or wait.
    pub fn unfinished(&self) -> Vec<Name> {
        let unfinished = self.entries.iter().filter(|entry| entry.phase != Phase::Ended);
        unfinished.map(|entry| entry.name.clone()).collect()
    }

    /// How many modules there are to choose from.
    pub fn available(&self) -> usize {
        self.index.len()
    }

    fn insert(&mut self, name: &str, urgency: Urgency) -> Option<usize> {
        if let Some(&at) = self.known.get(name) {
            self.hurry(at, urgency);
            return Some(at);
        }
        let Module {
            path,
            needs,
            before,
            after,
        } = self.index.module(name)?.clone();
        let at = self.entries.len();
        self.entries.push(Entry {
            name: name.into(),
            path,
            urgency,
            first: Vec::new(),
            phase: Phase::Waiting,
        });
        self.known.insert(name.into(), at);
        let called = |words: &[Box<str>]| -> Vec<Name> {
            words.iter().flat_map(|word| self.index.called(word)).collect()
        };
        let (before, after) = (called(&before), called(&after));
        let first: Vec<usize> = before
            .iter()
            .chain(&needs)
            .filter_map(|name| self.insert(name, urgency))
            .collect();
        self.entries[at].first = first;
        for name in &after {
            if let Some(follower) = self.insert(name, urgency)
                && self.entries[follower].phase == Phase::Waiting
            {
                self.entries[follower].first.push(at);
            }
        }
        Some(at)
    }

    /// What a network driver needs is as urgent as the driver.
    fn hurry(&mut self, at: usize, urgency: Urgency) {
        if self.entries[at].urgency < urgency {
            self.entries[at].urgency = urgency;
            for first in self.entries[at].first.clone() {
                self.hurry(first, urgency);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEPENDENCIES: &str = "kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/virtio/virtio.ko:\n\
        kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/shared/core.ko\n\
        kernel/drivers/net/net_failover.ko:\n\
        kernel/shared/core.ko:\n\
        kernel/drivers/block/virtio_blk.ko: kernel/shared/core.ko\n\
        kernel/drivers/a.ko:\nkernel/drivers/b.ko:\nkernel/drivers/c.ko:\n";

    const SOFT: &str = "softdep a pre: b\nsoftdep b pre: a\nsoftdep c pre: virtio_blk post: net-failover";

    fn schedule() -> Schedule {
        Schedule::new(Index::parse(
            DEPENDENCIES,
            "alias virtio:d2* virtio_blk\nalias virtio:d1* virtio_net",
            SOFT,
        ))
    }

    /// Loads one after the other until nothing is left.
    fn order(schedule: &mut Schedule) -> Vec<String> {
        let mut order = Vec::new();
        while let Some(start) = schedule.next(1) {
            schedule.ended(start.entry);
            order.push(start.name.to_string());
        }
        assert!(schedule.is_idle());
        order
    }

    #[test]
    fn what_a_module_needs_comes_first() {
        let mut schedule = schedule();
        schedule.want("virtio_pci");
        assert_eq!(order(&mut schedule), ["virtio", "virtio_pci"]);
    }

    #[test]
    fn network_and_all_it_needs_goes_before_storage() {
        let mut schedule = schedule();
        schedule.want_device("virtio:d2");
        schedule.want_device("virtio:d1");
        assert_eq!(
            order(&mut schedule),
            ["core", "net_failover", "virtio_net", "virtio_blk"]
        );
    }

    #[test]
    fn what_runs_or_waits_is_unfinished() {
        let mut schedule = schedule();
        schedule.want("virtio_pci");
        let start = schedule.next(1).unwrap();
        let names = |schedule: &Schedule| {
            let mut names = schedule.unfinished();
            names.sort();
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(&schedule), ["virtio", "virtio_pci"]);
        schedule.ended(start.entry);
        assert_eq!(names(&schedule), ["virtio_pci"]);
        assert_eq!(order(&mut schedule), ["virtio_pci"]);
        assert_eq!(names(&schedule), [""; 0]);
    }

    #[test]
    fn a_module_is_loaded_once() {
        let mut schedule = schedule();
        schedule.want_device("virtio:d2");
        assert_eq!(order(&mut schedule), ["core", "virtio_blk"]);
        schedule.want_device("virtio:d2");
        schedule.want("virtio_blk");
        assert_eq!(order(&mut schedule), Vec::<String>::new());
    }

    #[test]
    fn soft_dependencies_come_before_and_after_and_may_form_a_circle() {
        let mut schedule = schedule();
        schedule.want("c");
        assert_eq!(order(&mut schedule), ["core", "virtio_blk", "c", "net_failover"]);
        schedule.want("a");
        let mut circle = order(&mut schedule);
        circle.sort();
        assert_eq!(circle, ["a", "b"]);
    }

    #[test]
    fn a_slow_storage_driver_never_holds_up_the_network() {
        let mut schedule = schedule();
        schedule.want("virtio_blk");
        let core = schedule.next(1).unwrap();
        assert_eq!(schedule.next(1), None, "virtio_blk needs core");
        schedule.ended(core.entry);
        assert_eq!(*schedule.next(1).unwrap().name, *"virtio_blk");
        schedule.want("a");
        assert_eq!(schedule.next(1), None, "one at a time");
        schedule.want("net_failover");
        assert_eq!(*schedule.next(1).unwrap().name, *"net_failover");
    }

    /// Its `finit_module` ends only when all that any driver probes in the background has been.
    #[test]
    fn a_module_that_is_there_holds_up_nobody_and_is_not_finished() {
        let mut schedule = schedule();
        schedule.want("virtio_pci");
        let virtio = schedule.next(1).unwrap();
        assert_eq!(schedule.next(1), None, "it is not there yet");
        schedule.live("virtio");
        schedule.live("nobody");
        let pci = schedule.next(1).unwrap();
        assert_eq!(*pci.name, *"virtio_pci");
        schedule.live("virtio_pci");
        assert!(schedule.next(1).is_none() && !schedule.is_idle());
        assert_eq!(schedule.unfinished().len(), 2);
        schedule.ended(pci.entry);
        // Told late.
        schedule.live("virtio_pci");
        schedule.ended(virtio.entry);
        assert!(schedule.is_idle());
    }

    proptest! {
        /// Whatever depends on whatever, circles included: everything is loaded once, and without a circle in order.
        #[test]
        fn every_schedule_ends(edges in proptest::collection::vec((0_usize..12, 0_usize..12), 0..30), limit in 1_usize..4) {
            let line = |from: usize| {
                let needs: String =
                    edges.iter().filter(|edge| edge.0 == from).map(|edge| format!(" m{}.ko", edge.1)).collect();
                format!("m{from}.ko:{needs}\n")
            };
            let text: String = (0..12).map(line).collect();
            let mut schedule = Schedule::new(Index::parse(&text, "", ""));
            for module in 0..12 {
                schedule.want(&format!("m{module}"));
            }
            let mut seen = Vec::new();
            while !schedule.is_idle() {
                let mut batch = Vec::new();
                while let Some(start) = schedule.next(limit) {
                    batch.push(start);
                }
                prop_assert!(!batch.is_empty() && batch.len() <= limit);
                for start in batch {
                    schedule.ended(start.entry);
                    seen.push(start.name);
                }
            }
            let downwards = edges.iter().all(|edge| edge.1 < edge.0);
            for (from, to) in &edges {
                let at = |module: &usize| seen.iter().position(|name| **name == *format!("m{module}"));
                prop_assert!(!downwards || at(to) < at(from));
            }
            prop_assert_eq!(seen.len(), 12);
        }
    }
}
