//! The person who walks to servers without a BMC: one whose firmware or agent hangs is power-cycled, and one whose host asks for that.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    objects::Objects,
    pace::{Step, takes},
    server::{Power, World},
    tally::State,
};

/// How often the person looks around.
const LOOK: Duration = Duration::from_millis(500);

/// Walks for ever. `first` is the number of the first server.
pub(super) async fn walk(
    world: Arc<World>,
    objects: Objects,
    first: u32,
    switches: Vec<watch::Sender<Power>>,
) {
    let mut since = HashMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let is = |index: usize, states: &[State]| {
            world
                .tally
                .state(index)
                .is_some_and(|state| states.contains(&state))
        };
        let stuck = (0..switches.len()).filter(|index| is(*index, &[State::Stuck]));
        // A host asks until its ramdisk has called in, also while that boots.
        let asked = objects.by_hand().into_iter();
        let asked = asked.filter(|index| is(*index, &[State::Off, State::System, State::Idle]));
        let needs: BTreeSet<usize> = stuck.chain(asked).collect();
        let far = |index: usize| {
            let number = u32::try_from(index).unwrap_or_default() + first;
            takes(Step::Walk, number, world.scale)
        };
        for index in reached(&mut since, &needs, Instant::now(), far) {
            if let Some(switch) = switches.get(index) {
                switch.send_modify(Power::cycle);
            }
        }
    }
}

/// Those of the servers that need somebody who have needed that as long as the walk to them takes. `since` says of each how long it has.
fn reached(
    since: &mut HashMap<usize, Instant>,
    needs: &BTreeSet<usize>,
    now: Instant,
    far: impl Fn(usize) -> Duration,
) -> Vec<usize> {
    since.retain(|index, _| needs.contains(index));
    let mut reached = Vec::new();
    for index in needs {
        let since_then = since.entry(*index).or_insert(now);
        if now.duration_since(*since_then) >= far(*index) {
            reached.push(*index);
        }
    }
    // Until it is seen what that came to, nobody goes there again.
    for index in &reached {
        since.remove(index);
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_reached_once_it_has_needed_somebody_for_as_long_as_the_walk_takes() {
        let (mut since, begun) = (HashMap::new(), Instant::now());
        let mut reached = |needs: &[usize], seconds| {
            let needs = needs.iter().copied().collect();
            let far = |index| Duration::from_secs(if index == 3 { 20 } else { 10 });
            super::reached(&mut since, &needs, begun + Duration::from_secs(seconds), far)
        };
        assert_eq!(reached(&[1, 3], 0), [0; 0]);
        assert_eq!(reached(&[1, 2, 3], 9), [0; 0]);
        assert_eq!(reached(&[1, 3], 10), [1]);
        assert_eq!(reached(&[1, 2, 3], 19), [0; 0], "it helped itself meanwhile");
        assert_eq!(reached(&[2, 3], 29), [2, 3]);
    }
}
