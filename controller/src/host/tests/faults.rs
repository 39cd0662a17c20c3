//! A world in which everything goes wrong for a while: it comes to the same end, and nothing is written that should not be.

use jiff::SignedDuration;
use muster_proto::kinds::{
    AutomatedCleaningMode, DETACHED_ANNOTATION, HostBootMode, IN_BAND_ANNOTATION, PAUSED_ANNOTATION,
    PROTECTED_ANNOTATION, REBOOT_ANNOTATION,
};
use proptest::prelude::*;

use super::{
    super::{State, observed::SecretState, plan::PowerOrder},
    world::{Content, Edge, Fault, UID, World, secret},
};

/// What happens next.
#[derive(Clone, Debug)]
enum Happening {
    Round {
        crash: Option<usize>,
        /// What befalls the writes of the host itself.
        writes: Fault,
        /// What befalls all else.
        fault: Fault,
    },
    Time(u32),
    /// The clock is set back by so many seconds.
    Back(u32),
    Restart,
    Image(Option<u8>),
    Online(bool),
    Annotate(&'static str, &'static str),
    Unannotate(&'static str),
    Bmc(bool),
    /// How long calls to the BMC take.
    BmcTakes(u32),
    Place(bool),
    JobsFail(usize),
    /// How long cleaning and writing take.
    JobsTake(u32),
    /// What goes on a config drive is another one, or none.
    UserData(bool),
    Edge(Edge),
    Answers(bool),
    Crashes,
    /// Its ramdisk says nothing for so many rounds, and is there again, unless the machine was booted meanwhile.
    Silent(u8),
    /// Its ramdisk takes up nothing.
    Deaf(bool),
    /// So often it does not go down as it was told.
    Stays(usize),
    /// Whether the BMC says if the machine is on.
    Mute(bool),
    Rival(Option<(State, bool)>),
    Contested(bool),
    /// Discovery takes the machine for another host's, or for this one's again.
    Linked(bool),
    External(bool),
    Secret(bool),
    /// Whether disks are cleaned.
    Cleans(bool),
    /// Whether the machine may be switched off.
    KeepsOn(bool),
    /// In which mode it is to boot.
    Mode(Option<HostBootMode>),
    /// Whether it boots in its own, whatever its BMC is told.
    KeepsMode(bool),
    Delete,
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        1 => Just(Fault::Fails),
        1 => Just(Fault::Lost),
        1 => Just(Fault::Twice),
        1 => Just(Fault::Doubtful),
        1 => Just(Fault::Late),
    ]
}

fn happenings() -> impl Strategy<Value = Happening> {
    let annotations = prop_oneof![
        Just((PAUSED_ANNOTATION, "")),
        Just((DETACHED_ANNOTATION, "")),
        Just((DETACHED_ANNOTATION, r#"{"force":true}"#)),
        Just((DETACHED_ANNOTATION, r#"{"deleteAction":"delay"}"#)),
        Just((PROTECTED_ANNOTATION, "")),
        Just((REBOOT_ANNOTATION, "")),
        Just((REBOOT_ANNOTATION, r#"{"mode":"hard"}"#)),
        Just((REBOOT_ANNOTATION, r#"{"force":true}"#)),
        Just(("reboot.metal3.io/somebody", r#"{"force":true}"#)),
        Just((muster_proto::kinds::INSPECT_ANNOTATION, "")),
        Just((muster_proto::kinds::RELEASE_ANNOTATION, "")),
    ];
    prop_oneof![
        30 => (proptest::option::weighted(0.2, 0..4_usize), faults(), faults())
            .prop_map(|(crash, writes, fault)| Happening::Round { crash, writes, fault }),
        10 => (1..200_u32).prop_map(Happening::Time),
        1 => prop_oneof![1..10_u32, 600..100_000_u32].prop_map(Happening::Back),
        1 => Just(Happening::Restart),
        3 => proptest::option::weighted(0.8, 0..2_u8).prop_map(Happening::Image),
        1 => any::<bool>().prop_map(Happening::Online),
        2 => annotations.clone().prop_map(|(name, value)| Happening::Annotate(name, value)),
        2 => annotations.prop_map(|(name, _)| Happening::Unannotate(name)),
        1 => any::<bool>().prop_map(Happening::Bmc),
        1 => prop_oneof![Just(0_u32), Just(12), Just(45)].prop_map(Happening::BmcTakes),
        1 => any::<bool>().prop_map(Happening::Place),
        1 => (0..3_usize).prop_map(Happening::JobsFail),
        2 => prop_oneof![Just(0_u32), Just(30), Just(400)].prop_map(Happening::JobsTake),
        1 => any::<bool>().prop_map(Happening::UserData),
        1 => prop_oneof![Just(Edge::Newest), Just(Edge::KnowsNoLeave), Just(Edge::KnowsNoThen)]
            .prop_map(Happening::Edge),
        1 => any::<bool>().prop_map(Happening::Answers),
        1 => Just(Happening::Crashes),
        1 => (1..40_u8).prop_map(Happening::Silent),
        1 => proptest::bool::weighted(0.3).prop_map(Happening::Deaf),
        1 => (0..3_usize).prop_map(Happening::Stays),
        1 => proptest::bool::weighted(0.3).prop_map(Happening::Mute),
        1 => proptest::option::of((
            prop_oneof![Just(State::Available), Just(State::Provisioning), Just(State::Provisioned)],
            any::<bool>(),
        )).prop_map(Happening::Rival),
        1 => any::<bool>().prop_map(Happening::Contested),
        1 => any::<bool>().prop_map(Happening::Linked),
        1 => proptest::bool::weighted(0.3).prop_map(Happening::External),
        1 => any::<bool>().prop_map(Happening::Secret),
        1 => any::<bool>().prop_map(Happening::Cleans),
        1 => any::<bool>().prop_map(Happening::KeepsOn),
        1 => prop_oneof![Just(None), Just(Some(HostBootMode::Uefi)), Just(Some(HostBootMode::Legacy))]
            .prop_map(Happening::Mode),
        1 => any::<bool>().prop_map(Happening::KeepsMode),
    ]
}

fn mode(cleans: bool) -> AutomatedCleaningMode {
    match cleans {
        true => AutomatedCleaningMode::Metadata,
        false => AutomatedCleaningMode::Disabled,
    }
}

fn url(which: u8) -> String {
    format!("http://images.test/{which}.raw")
}

fn happen(world: &mut World, happening: &Happening) {
    if world.host.is_none() {
        return;
    }
    match *happening {
        Happening::Round { crash, writes, fault } => {
            let plan = world.plan();
            world.carry_out(plan, crash, writes, fault);
        }
        Happening::Time(seconds) => world.tick(seconds),
        Happening::Back(seconds) => world.set_back(seconds),
        Happening::Restart => world.restart(),
        Happening::Image(which) => world.set_image(which.map(url).as_deref()),
        Happening::Online(online) => world.host().spec.online = online,
        Happening::Annotate(name, value) => world.annotate(name, value),
        Happening::Unannotate(name) => world.unannotate(name),
        Happening::Bmc(up) => world.bmc_up = up,
        Happening::BmcTakes(seconds) => world.bmc_takes = seconds,
        Happening::Place(slot) => world.slot = slot,
        Happening::JobsFail(count) => world.failing_jobs = count,
        Happening::JobsTake(seconds) => world.jobs_take = seconds,
        Happening::UserData(true) => world.name_user_data(),
        Happening::UserData(false) => world.host().spec.user_data = None,
        Happening::Edge(edge) => world.edge = edge,
        Happening::Answers(lost) => world.loses_answer = lost,
        // The machine loses its power for a moment.
        Happening::Crashes => {
            if world.machine.on {
                world.power(PowerOrder::Reset);
            }
        }
        Happening::Silent(rounds) => silent(world, rounds),
        Happening::Deaf(deaf) => world.machine.deaf = deaf,
        Happening::Stays(count) => world.failing_ends = count,
        Happening::Mute(mute) => world.says_nothing_of_power = mute,
        Happening::Rival(rival) => world.rival(rival),
        Happening::Contested(contested) => world.contest(contested),
        Happening::Linked(ours) => world.link(if ours { UID } else { "somebody-else" }),
        Happening::External(external) => world.host().spec.externally_provisioned = Some(external),
        Happening::Secret(there) => {
            world.secrets.bmc.state = if there {
                secret("1", "a").state
            } else {
                SecretState::Missing
            };
        }
        Happening::Cleans(cleans) => world.host().spec.automated_cleaning_mode = Some(mode(cleans)),
        Happening::KeepsOn(keeps_on) => world.host().spec.disable_power_off = Some(keeps_on),
        Happening::Mode(mode) => world.host().spec.boot_mode = mode,
        Happening::KeepsMode(keeps) => world.keeps_mode = keeps,
        Happening::Delete => world.delete(),
    }
    let of_the_spec = matches!(
        happening,
        Happening::Image(_)
            | Happening::Online(_)
            | Happening::UserData(_)
            | Happening::External(_)
            | Happening::Cleans(_)
            | Happening::KeepsOn(_)
            | Happening::Mode(_)
    );
    if let Some(host) = world.host.as_mut().filter(|_| of_the_spec) {
        host.metadata.generation = Some(host.metadata.generation.unwrap_or_default() + 1);
    }
    check(world);
}

fn silent(world: &mut World, rounds: u8) {
    let before = world.machine.clone();
    world.disconnect();
    (0..rounds).for_each(|_| world.round());
    if before.ramdisk.is_some() && world.machine.on && world.machine.boots == before.boots {
        world.call_back();
        // Whatever it is at, it goes on with meanwhile.
        (world.machine.ramdisk, world.machine.working) = (before.ramdisk, before.working);
    }
}

/// True if somebody else provisioned the machine once.
fn is_external(world: &World) -> bool {
    world.states.contains(&State::ExternallyProvisioned)
}

/// What must hold at every moment.
fn check(world: &World) {
    let Some(host) = &world.host else { return };
    let status = host.status.clone().unwrap_or_default();
    // What the disk of one that somebody else provisioned holds is that one's word, and is taken away as any image.
    let is_ours = !is_external(world);
    if State::of(host) == State::Provisioned && is_ours {
        let image = status
            .provisioning
            .image
            .expect("what is provisioned has an image");
        assert_eq!(world.machine.disk, Content::Image(image.url));
    }
    let attempts = status
        .operation_history
        .and_then(|history| history.provision)
        .is_some();
    assert!(attempts || world.machine.writes.is_empty() && (world.machine.cleans == 0 || !is_ours));
}

/// All is well again, and everybody keeps quiet.
fn calm(world: &mut World) {
    world.bmc_up = true;
    world.slot = true;
    world.failing_jobs = 0;
    world.failing_ends = 0;
    world.machine.deaf = false;
    world.says_nothing_of_power = false;
    world.retries = 0;
    world.rival(None);
    world.contest(false);
    world.link(UID);
    if world.secrets.bmc.state == SecretState::Missing {
        world.secrets.bmc.state = secret("1", "a").state;
    }
    // What is late comes now.
    world.tick(1);
    if let Some(host) = &mut world.host {
        let is_nobodys = host.spec.bmc.is_none() && world.states.contains(&State::ExternallyProvisioned);
        host.spec.externally_provisioned = None;
        host.spec.automated_cleaning_mode = None;
        host.spec.disable_power_off = None;
        // Somebody sees that it cannot be had so.
        if host.spec.boot_mode.take().is_some() {
            host.metadata.generation = Some(host.metadata.generation.unwrap_or_default() + 1);
        }
        let annotations = host.metadata.annotations.get_or_insert_default();
        annotations.retain(|name, _| name == IN_BAND_ANNOTATION);
        if is_nobodys {
            // Whoever provisioned it knows that it is off; nobody else can tell.
            world.power(PowerOrder::On);
        }
    }
}

/// Rounds until `done`, in which a person does what the host asks for.
fn until(world: &mut World, what: &str, done: impl Fn(&World) -> bool) {
    for _ in 0..200 {
        for _ in 0..10 {
            if done(world) {
                return;
            }
            world.round();
        }
        world.obey();
    }
    world.until(what, done);
}

/// 192 histories, unless somebody asks for more.
fn cases() -> u32 {
    std::env::var_os("PROPTEST_CASES").map_or(192, |_| ProptestConfig::default().cases)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_end_is_what_the_spec_says(
        before in proptest::collection::vec(happenings(), 0..150),
        network_first in any::<bool>(),
        in_band in any::<bool>(),
        wakes in any::<bool>(),
        older_kind in proptest::bool::weighted(0.2),
        delete in proptest::option::of(0..150_usize),
        image in proptest::option::weighted(0.7, 0..2_u8),
        online in proptest::bool::weighted(0.7),
    ) {
        let released = before.iter().any(|happening| {
            matches!(
                happening,
                Happening::Annotate(muster_proto::kinds::RELEASE_ANNOTATION, _) | Happening::Cleans(false)
            )
        });
        let mut world = if in_band { World::in_band() } else { World::new() };
        world.machine.network_first |= network_first;
        world.machine.wakes = wakes;
        world.older_kind = older_kind;
        for (at, happening) in before.into_iter().enumerate() {
            if delete == Some(at) {
                happen(&mut world, &Happening::Delete);
            }
            happen(&mut world, &happening);
        }
        calm(&mut world);
        if delete.is_some() {
            world.delete();
            until(&mut world, "gone", |world| world.host.is_none());
            prop_assert!(!world.secrets.bmc.finalizer);
            return Ok(());
        }
        world.host().spec.online = true;
        world.set_image(image.map(url).as_deref());
        let wanted = if image.is_some() { State::Provisioned } else { State::Available };
        until(&mut world, "where it belongs", |world| {
            check(world);
            let status = world.host.as_ref().unwrap().status.clone().unwrap_or_default();
            let runs = status.provisioning.image.map(|image| image.url);
            // What somebody else provisioned, nobody knows as what, is taken for what is asked for.
            let is_it = runs == image.map(url) || runs.is_none() && is_external(world);
            world.state() == wanted
                && is_it
                // That a person has switched on what has no BMC shows only in its ramdisk.
                && (status.powered_on || in_band && image.is_some())
                && world.machine.on && status.error_message.is_empty()
                // What has an image runs it.
                && (image.is_none() || world.machine.ramdisk.is_none())
        });
        let (writes, cleans, boots) = (world.machine.writes.len(), world.machine.cleans, world.machine.boots);
        world.settle();
        prop_assert_eq!(world.state(), wanted);
        prop_assert_eq!((writes, cleans, boots), (world.machine.writes.len(), world.machine.cleans, world.machine.boots));
        prop_assert!(world.machine.on);
        if image.is_none() && writes > 0 && !released {
            prop_assert_eq!(&world.machine.disk, &Content::Blank);
        }
        // What has no BMC and is not in its ramdisk only a person can switch off.
        if !online && !in_band {
            world.host().spec.online = false;
            until(&mut world, "off", |world| !world.machine.on);
            world.settle();
            prop_assert_eq!(world.state(), wanted);
            prop_assert!(!world.machine.on && !world.host().status.as_ref().unwrap().powered_on);
        }
    }
}

#[test]
fn a_crash_between_any_two_effects_of_a_whole_life_comes_to_the_same_end() {
    // The n-th step of the whole life is the one before which the process dies.
    let life = |in_band: bool, crash: usize| {
        let mut world = if in_band { World::in_band() } else { World::new() };
        world.set_image(Some(&url(0)));
        world.name_user_data();
        let mut left = Some(crash);
        let run = |world: &mut World, left: &mut Option<usize>, done: &dyn Fn(&World) -> bool| {
            for round in 1..3000 {
                if done(world) {
                    return;
                }
                let plan = world.plan();
                let steps = usize::from(plan.status.is_some())
                    + usize::from(!plan.metadata.is_empty())
                    + plan.effects.len();
                let now = left.filter(|left| *left < steps);
                *left = left.filter(|_| now.is_none()).map(|left| left - steps);
                let at_once = plan.requeue == Some(std::time::Duration::ZERO);
                world.execute(plan, now, Fault::None);
                check(world);
                if !at_once {
                    world.tick(11);
                }
                if in_band && round % 20 == 0 {
                    world.obey();
                }
            }
            panic!("never: {:?}", world.plan());
        };
        run(&mut world, &mut left, &|world| {
            world.state() == State::Provisioned
        });
        let rests = world.now + SignedDuration::from_mins(10);
        run(&mut world, &mut left, &|world| world.now >= rests);
        assert_eq!(world.state(), State::Provisioned, "crash before step {crash}");
        assert_eq!(world.machine.writes.len(), 1, "crash before step {crash}");
        world.set_image(None);
        run(&mut world, &mut left, &|world| world.state() == State::Available);
        assert_eq!(world.machine.disk, Content::Blank);
        world.delete();
        run(&mut world, &mut left, &|world| world.host.is_none());
        assert!(!world.machine.on);
        left.is_none()
    };
    for in_band in [false, true] {
        let steps = (0..200).take_while(|crash| life(in_band, *crash)).count();
        assert!((15..200).contains(&steps), "in-band: {in_band}, {steps}");
    }
}
