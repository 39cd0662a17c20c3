//! The BMCs of a fleet: one service with a system per server, whose power the servers follow.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::{mpsc::UnboundedReceiver, watch};

use super::{
    objects,
    pace::{Failing, Fault, Luck, Step, takes},
    place::Place,
    server::{Power, Source, Switch, World},
    tally::State,
};
use crate::{
    bmc::{BootSource, Change, Event, Options, Rule, Service, What},
    sim::hardware::Hardware,
};

/// Who may ask the BMCs.
pub(super) const USER: (&str, &str) = ("admin", "of-the-fleet");
/// More than any controller opens at a time.
const SESSIONS: usize = 100_000;

/// The service, and what happens to the power of its systems.
pub(super) fn start(
    place: &Place,
    numbers: impl Iterator<Item = u32> + Clone,
    failing: &[Failing],
    scale: f64,
) -> Result<(Arc<Service>, UnboundedReceiver<Event>)> {
    let switch = takes(Step::Switch, 0, scale);
    let options = Options {
        // Of a machine without a system of its own nothing obeys.
        obeys: false,
        change: match switch.is_zero() {
            true => Change::AtOnce,
            false => Change::After(switch),
        },
        user: (USER.0.to_owned(), USER.1.to_owned()),
        systems: numbers.clone().map(objects::name).collect(),
        manufacturer: "Example Servers".to_owned(),
        sessions: Some(SESSIONS),
        remember: false,
        ..Options::default()
    };
    let (service, events) = Service::on(place.listen()?, options)?;
    for number in numbers {
        let hardware = Hardware::number(number);
        let system = &hardware.inventory.system;
        service.describe(
            &objects::name(number),
            &system.uuid,
            &system.serial,
            hardware.boot_mac(),
        );
        let refusal = Rule::always(crate::bmc::Fault::Status(500, "InternalError"))
            .method("POST")
            .path(&format!("/{}/", objects::name(number)));
        match Luck::of(number, failing).times(Fault::Power) {
            0 => {}
            u32::MAX => service.inject(refusal),
            times => service.inject(refusal.times(times)),
        }
    }
    Ok((Arc::new(service), events))
}

/// Hands what happens on to the servers of `world`, which begin with number `first`, for ever.
pub(super) async fn follow(
    mut events: UnboundedReceiver<Event>,
    service: Arc<Service>,
    world: Arc<World>,
    first: u32,
    switches: Vec<watch::Sender<Power>>,
) {
    while let Some(event) = events.recv().await {
        let number = event
            .system
            .rsplit('-')
            .next()
            .and_then(|number| number.parse().ok());
        let Some(number): Option<u32> = number else {
            continue;
        };
        let index = number
            .checked_sub(first)
            .and_then(|index| usize::try_from(index).ok());
        let Some((index, switch)) = index.and_then(|index| Some((index, switches.get(index)?))) else {
            continue;
        };
        match event.what {
            What::On(source) => switch.send_modify(|power| {
                *power = Power {
                    on: true,
                    cycles: power.cycles + 1,
                    source: read(&source),
                }
            }),
            What::Off => switch.send_modify(|power| power.on = false),
            // Nothing else of a machine obeys.
            What::ShutdownAsked | What::RestartAsked if world.tally.state(index) != Some(State::System) => {}
            asked @ (What::ShutdownAsked | What::RestartAsked) => {
                let (service, asked_at, mut power) =
                    (Arc::clone(&service), *switch.borrow(), switch.subscribe());
                let takes = takes(Step::Shutdown, number, world.scale);
                tokio::spawn(async move {
                    tokio::select! {
                        // It was switched otherwise meanwhile.
                        _ = power.wait_for(|now| *now != asked_at) => {}
                        () = tokio::time::sleep(takes) => match asked {
                            What::RestartAsked => service.restarted(&event.system),
                            _ => service.went_off(&event.system),
                        },
                    }
                });
            }
        }
    }
}

fn read(source: &BootSource) -> Source {
    match source.target.as_deref() {
        Some("Hdd") => Source::Disk,
        _ => Source::Order(source.boot_mode()),
    }
}

/// The switch of one server.
pub(super) struct Bmc {
    service: Arc<Service>,
    system: String,
}

impl Bmc {
    /// Of server `number`.
    pub(super) fn new(service: &Arc<Service>, number: u32) -> Bmc {
        Bmc {
            service: Arc::clone(service),
            system: objects::name(number),
        }
    }
}

impl Switch for Bmc {
    fn boots(&self) -> Source {
        read(&self.service.boots(&self.system))
    }

    fn went_off(&self) {
        self.service.went_off(&self.system);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        fleet::{server::Server, tally::Tally},
        sim::hardware::Model,
    };

    const SOON: Duration = Duration::from_secs(20);

    /// Nobody serves boot scripts there: port 9 of loopback refuses connections.
    fn world(failing: Vec<Failing>) -> Arc<World> {
        Arc::new(World {
            scripts: "http://127.0.0.1:9/ipxe/a/b".to_owned(),
            model: Model::default(),
            scale: 0.0,
            failing,
            tally: Tally::new(2),
            fetching: tokio::sync::Semaphore::new(1),
        })
    }

    async fn shows(world: &World, index: usize, state: State) {
        let shown = async {
            while world.tally.state(index) != Some(state) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let shown = tokio::time::timeout(SOON, shown).await;
        shown.unwrap_or_else(|_| panic!("not {state:?} but {:?}", world.tally.state(index)));
    }

    #[tokio::test]
    async fn servers_follow_the_power_that_their_own_bmc_gives_and_takes() {
        let options = Options {
            systems: vec![objects::name(41), objects::name(42)],
            ..Options::default()
        };
        let (service, events) = Service::start(options).unwrap();
        let service = Arc::new(service);
        let world = world(vec!["firmware=100x1".parse().unwrap()]);
        let mut switches = Vec::new();
        for (index, number) in [41, 42].into_iter().enumerate() {
            let (switch, power) = watch::channel(Power::default());
            let server = Server::new(Arc::clone(&world), index, number);
            tokio::spawn(server.live(power, Bmc::new(&service, number)));
            switches.push(switch);
        }
        tokio::spawn(follow(
            events,
            Arc::clone(&service),
            Arc::clone(&world),
            41,
            switches,
        ));

        let system = objects::name(42);
        service.went_on(&system);
        shows(&world, 1, State::Stuck).await;
        assert_eq!(world.tally.state(0), Some(State::Off));
        service.went_off(&system);
        shows(&world, 1, State::Off).await;
        // A power cycle helps firmware that hangs once; then there is nobody to boot from, and nothing on its disk.
        service.went_on(&system);
        shows(&world, 1, State::Idle).await;
        assert!(world.tally.take_trouble().unwrap().contains("server 42"));
    }

    #[tokio::test]
    async fn only_a_system_of_its_own_obeys_when_it_is_asked_to_shut_down() {
        let options = Options {
            systems: vec![objects::name(41)],
            obeys: false,
            ..Options::default()
        };
        let (service, events) = Service::start(options).unwrap();
        let (service, world) = (Arc::new(service), world(Vec::new()));
        let (switch, _power) = watch::channel(Power::default());
        let mut power = switch.subscribe();
        let (asked, told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(follow(
            told,
            Arc::clone(&service),
            Arc::clone(&world),
            41,
            vec![switch],
        ));
        drop(events);
        let system = objects::name(41);
        service.went_on(&system);
        let tell = |what| {
            asked
                .send(Event {
                    system: system.clone(),
                    what,
                })
                .unwrap();
        };
        tell(What::On(BootSource::default()));
        power.wait_for(|power| power.on).await.unwrap();
        world.tally.enter(0, State::Ready);
        tell(What::ShutdownAsked);
        // What is told is looked at in its order.
        tell(What::On(BootSource::default()));
        power.wait_for(|power| power.cycles == 2).await.unwrap();
        assert_eq!(service.power(&system), crate::bmc::PowerState::On);
        world.tally.enter(0, State::System);
        tell(What::ShutdownAsked);
        let off = async {
            while service.power(&system) == crate::bmc::PowerState::On {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, off).await.unwrap();
    }
}
