//! Several contenders and one API server, with all that may go wrong between them: messages that are late or lost, processes that
//! stop, end or give up, clocks that differ and run unevenly, people who take the holder off. At no moment do two lead, and every term has a
//! higher number.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Milliseconds of a clock that nobody in the simulation has.
type Time = u64;

const TICK: Time = 50;
/// For so long things go wrong; then they go well.
const TROUBLE: Time = 120_000;
/// The longest way back to a leader: a stop or a cut that has just begun, the lease, a request that is lost, and a try.
const CALM: Time = 60_000 + 15_000 + 10_000;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The process is stopped for so long.
    Stop(Time),
    /// It ends, and another is started in its place.
    Kill,
    /// Its requests, or their answers, are lost for so long.
    Cut(Time),
    /// It is told to end, and another is started in its place.
    Term,
    /// What it takes for the time of day is so much off.
    Wall(i64),
    /// Somebody takes the holder off the Lease, and its time.
    Cleared,
}

#[derive(Clone, Debug)]
struct Plan {
    /// For each contender: what its clock shows at the start, and how fast it runs, in thousandths.
    clocks: Vec<(Time, u64)>,
    faults: Vec<(Time, usize, Fault)>,
    seed: u64,
    /// The slowest message.
    slowest: Time,
}

fn plans() -> impl Strategy<Value = Plan> {
    let fault = prop_oneof![
        (1_000..40_000_u64).prop_map(Fault::Stop),
        Just(Fault::Kill),
        (1_000..40_000_u64).prop_map(Fault::Cut),
        Just(Fault::Term),
        (-1_000_000..1_000_000_i64).prop_map(Fault::Wall),
        Just(Fault::Cleared),
    ];
    let clocks = prop::collection::vec((0..1_000_000_u64, 970..1030_u64), 2..=5);
    let faults = prop::collection::vec((0..TROUBLE, 0..5_usize, fault), 0..24);
    (clocks, faults, 1..u64::MAX, 10..40_000_u64).prop_map(|(clocks, faults, seed, slowest)| Plan {
        clocks,
        faults,
        seed,
        slowest,
    })
}

enum Ask {
    Look,
    Write(Box<Lease>),
}

enum Answer {
    Lease(Option<Lease>),
    Taken(Lease),
    Refused,
    /// No answer, but what a watch shows: the Lease in this version.
    Watched(Lease, u64),
}

struct Message {
    at: Time,
    from: usize,
    /// Which life of the sender, and which of its requests.
    request: (u64, u64),
    what: Result<Ask, Answer>,
}

struct One {
    brain: Contender,
    life: u64,
    requests: u64,
    /// The request that it waits for, when it was sent and whether it is a write; by its own clock.
    asked: Option<(u64, Moment)>,
    stopped_until: Time,
    cut_until: Time,
    /// The version that its watch showed last.
    watched: u64,
    /// Told to end: writes nothing but the release.
    ending: bool,
    wall: i64,
    clock: (Time, u64),
}

impl One {
    fn local(&self, now: Time) -> Moment {
        let (start, speed) = self.clock;
        Duration::from_millis(start + now * speed / 1000)
    }

    fn leads(&self, now: Time) -> Option<i64> {
        let tenure = self.brain.tenure()?;
        (!self.ending && self.local(now) < tenure.until).then_some(tenure.epoch)
    }
}

fn identity(number: usize, life: u64) -> String {
    format!("{number}_{life}")
}

struct Sim {
    now: Time,
    lease: Option<Lease>,
    version: u64,
    ones: Vec<One>,
    messages: Vec<Message>,
    dead: BTreeSet<String>,
    highest: i64,
    leader: Option<(usize, u64, i64)>,
    random: u64,
    slowest: Time,
    timing: Timing,
}

impl Sim {
    fn new(plan: &Plan, timing: Timing) -> Sim {
        let one = |(number, clock): (usize, &(Time, u64))| One {
            brain: Contender::new(identity(number, 0), timing),
            life: 0,
            requests: 0,
            asked: None,
            stopped_until: 0,
            cut_until: 0,
            watched: 0,
            ending: false,
            wall: 0,
            clock: *clock,
        };
        Sim {
            now: 0,
            lease: None,
            version: 0,
            ones: plan.clocks.iter().enumerate().map(one).collect(),
            messages: Vec::new(),
            dead: BTreeSet::new(),
            highest: 0,
            leader: None,
            random: plan.seed,
            slowest: plan.slowest,
            timing,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        // xorshift64 (Marsaglia, 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn send(&mut self, from: usize, request: (u64, u64), what: Result<Ask, Answer>) {
        let trouble = self.now < TROUBLE;
        // Some are slow, most are not.
        let longest = if trouble && self.random(8) == 0 {
            self.slowest
        } else {
            20
        };
        let lost = trouble && self.random(20) == 0;
        let at = self.now + self.random(longest + 1);
        if !lost && self.ones[from].cut_until <= self.now {
            self.messages.push(Message {
                at,
                from,
                request,
                what,
            });
        }
    }

    /// What the API server does.
    fn serve(&mut self, ask: Ask) -> Answer {
        let lease = match ask {
            Ask::Look => return Answer::Lease(self.lease.clone()),
            Ask::Write(lease) => lease,
        };
        let current = self
            .lease
            .as_ref()
            .and_then(|lease| lease.metadata.resource_version.clone());
        if lease.metadata.resource_version != current {
            return Answer::Refused;
        }
        Answer::Taken(self.store(*lease))
    }

    /// `lease` in its next version, of which all are told.
    fn store(&mut self, lease: Lease) -> Lease {
        self.version += 1;
        let lease = stored(lease, self.version);
        self.lease = Some(lease.clone());
        for number in 0..self.ones.len() {
            self.send(number, (0, 0), Err(Answer::Watched(lease.clone(), self.version)));
        }
        lease
    }

    fn deliver(&mut self) {
        let now = self.now;
        let stopped: Vec<bool> = self.ones.iter().map(|one| one.stopped_until > now).collect();
        // A stopped process reads no answer; what it had sent arrives.
        let due = |message: &Message| message.at <= now && (message.what.is_ok() || !stopped[message.from]);
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.messages).into_iter().partition(due);
        self.messages = later;
        for Message {
            from, request, what, ..
        } in due
        {
            match what {
                Ok(ask) => {
                    let answer = self.serve(ask);
                    self.send(from, request, Err(answer));
                }
                Err(answer) => self.answered(from, request, answer),
            }
        }
    }

    fn answered(&mut self, number: usize, request: (u64, u64), answer: Answer) {
        let now = self.now;
        let one = &mut self.ones[number];
        if let Answer::Watched(lease, version) = answer {
            // Only one that waits for its turn watches.
            let waits = one.asked.is_none() && one.brain.tenure().is_none();
            if waits && !one.ending && version > one.watched {
                one.watched = version;
                one.brain.saw(Some(lease), one.local(now));
            }
            return;
        }
        let Some((asked, sent)) = one.asked else { return };
        if request != (one.life, asked) {
            return;
        }
        one.asked = None;
        if one.ending {
            return self.restart(number);
        }
        let local = one.local(now);
        match answer {
            Answer::Lease(lease) => one.brain.saw(lease, local),
            Answer::Taken(lease) => one.brain.written(lease, sent),
            Answer::Refused => {
                one.brain.refused(local);
            }
            Answer::Watched(..) => {}
        }
    }

    fn restart(&mut self, number: usize) {
        let one = &mut self.ones[number];
        self.dead.insert(identity(number, one.life));
        one.life += 1;
        one.brain = Contender::new(identity(number, one.life), self.timing);
        one.asked = None;
        one.ending = false;
        one.stopped_until = 0;
    }

    fn ask(&mut self, number: usize, ask: Ask) {
        let now = self.now;
        let one = &mut self.ones[number];
        one.requests += 1;
        one.asked = Some((one.requests, one.local(now)));
        let request = (one.life, one.requests);
        self.send(number, request, Ok(ask));
    }

    fn think(&mut self, number: usize) {
        let one = &mut self.ones[number];
        if one.stopped_until > self.now {
            return;
        }
        let local = one.local(self.now);
        if let Some((_, sent)) = one.asked {
            if local >= sent + self.timing.renew / 2 {
                one.asked = None;
                if one.ending {
                    return self.restart(number);
                }
                one.brain.failed(local);
            } else {
                return;
            }
        }
        let milliseconds = 1_800_000_000_000 + i64::try_from(self.now).unwrap() + one.wall;
        let wall = Timestamp::from_millisecond(milliseconds).unwrap();
        // Processes of one place know of each other that they ended.
        let dead = &self.dead;
        let gone = |holder: &str| {
            let place = holder
                .split_once('_')
                .and_then(|(number, _)| number.parse::<usize>().ok());
            dead.contains(holder) && place.is_some_and(|place| place % 2 == number % 2)
        };
        match one.brain.next(local, wall, gone) {
            Step::Look => self.ask(number, Ask::Look),
            Step::Write(lease) => self.ask(number, Ask::Write(lease)),
            Step::Wait(until) => assert!(until > local, "a wait that is over"),
            Step::Spent => panic!("nobody wrote a number"),
            Step::Lost => one.brain.lost(),
        }
    }

    fn fault(&mut self, number: usize, fault: Fault) {
        let now = self.now;
        let number = number % self.ones.len();
        let one = &mut self.ones[number];
        match fault {
            Fault::Stop(time) => one.stopped_until = one.stopped_until.max(now + time),
            Fault::Cut(time) => one.cut_until = one.cut_until.max(now + time),
            Fault::Wall(by) => one.wall = by,
            Fault::Kill => self.restart(number),
            Fault::Cleared => {
                if let Some(mut lease) = self.lease.clone() {
                    let spec = lease.spec.get_or_insert_default();
                    spec.holder_identity = None;
                    spec.lease_duration_seconds = Some(0);
                    self.store(lease);
                }
            }
            Fault::Term if one.stopped_until > now => {}
            Fault::Term => {
                let wall = Timestamp::from_second(1_800_000_000).unwrap();
                one.ending = true;
                match one.brain.released(wall).filter(|_| one.brain.tenure().is_some()) {
                    Some(lease) => self.ask(number, Ask::Write(Box::new(lease))),
                    None => self.restart(number),
                }
            }
        }
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let leaders: Vec<_> = (0..self.ones.len())
            .filter_map(|number| {
                let one = &self.ones[number];
                Some((number, one.life, one.leads(self.now)?))
            })
            .collect();
        prop_assert!(leaders.len() <= 1, "at {}: {leaders:?} lead at once", self.now);
        let leader = leaders.first().copied();
        if let Some((.., epoch)) = leader
            && leader != self.leader
        {
            prop_assert!(
                epoch > self.highest,
                "at {}: {leader:?} leads after {:?}",
                self.now,
                self.leader
            );
            self.highest = epoch;
            self.leader = leader;
        }
        Ok(())
    }

    fn run(mut self, plan: &Plan) -> Result<(), TestCaseError> {
        while self.now < TROUBLE + CALM {
            let due: Vec<_> = plan
                .faults
                .iter()
                .filter(|(at, ..)| (self.now..self.now + TICK).contains(at))
                .collect();
            for (_, number, fault) in due {
                self.fault(*number, *fault);
            }
            self.deliver();
            for number in 0..self.ones.len() {
                self.think(number);
            }
            self.check()?;
            self.now += TICK;
        }
        let leads = |one: &One| one.leads(self.now).is_some();
        prop_assert!(self.ones.iter().any(leads), "nobody leads in the end");
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn at_no_moment_do_two_lead_and_in_the_end_one_does(plan in plans()) {
        Sim::new(&plan, TIMING).run(&plan)?;
    }
}

#[test]
fn a_leader_that_acts_for_longer_than_its_lease_is_found() {
    let plan = Plan {
        clocks: vec![(0, 1000), (5_000, 1000)],
        faults: vec![(10_000, 0, Fault::Cut(60_000)), (10_000, 1, Fault::Cut(5_000))],
        seed: 1,
        slowest: 20,
    };
    let wrong = Timing {
        renew: Duration::from_secs(20),
        ..TIMING
    };
    assert!(Sim::new(&plan, TIMING).run(&plan).is_ok());
    assert!(Sim::new(&plan, wrong).run(&plan).is_err());
}

#[test]
fn without_trouble_the_first_leads_all_the_time() {
    let plan = Plan {
        clocks: vec![(0, 1000), (5_000, 1000), (9_000, 1000)],
        faults: Vec::new(),
        seed: 1,
        slowest: 20,
    };
    let mut sim = Sim::new(&plan, TIMING);
    // No message is lost after the time of trouble.
    sim.now = TROUBLE;
    while sim.now < TROUBLE + 60_000 {
        sim.deliver();
        (0..3).for_each(|number| sim.think(number));
        sim.check().unwrap();
        sim.now += TICK;
    }
    let spec = sim.lease.unwrap().spec.unwrap();
    assert_eq!(spec.lease_transitions, Some(0));
}
