use proptest::prelude::*;

use super::*;

mod segments;

const UUID_A: &str = "4c4c4544-0035-4b10-8032-cac04f583933";
const UUID_B: &str = "4c4c4544-0036-4b10-8032-b2c04f583934";

/// A vendor's address.
fn nic(last: u8) -> Mac {
    Mac([0x00, 0x1b, 0x21, 0, 0, last])
}

/// A locally administered address.
fn local(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

fn id(uuid: &str, serial: &str, board: &str, macs: &[Mac]) -> Identity {
    let some = |text: &str| Some(text.to_owned());
    Identity {
        system_uuid: some(uuid),
        system_serial: some(serial),
        board_serial: some(board),
        macs: macs.iter().copied().collect(),
    }
    .normalised()
}

fn machine<'a>(name: &'a str, identity: &'a Identity) -> Machine<'a> {
    Machine {
        name,
        identity,
        live: false,
        booted: None,
        in_use: false,
        seen: Seen::There,
    }
}

fn name(claimed: &Identity, boot: Mac, machines: &[Machine<'_>]) -> String {
    resolve(
        &whole(claimed, Some(boot)),
        Some(boot),
        machines,
        &BTreeSet::new(),
    )
    .unwrap()
    .name
}

fn settled(name: &str, claimed: &Identity, boot: Mac, machines: &[Machine<'_>]) -> Settled {
    let nobody = Identity::default();
    let known = machines
        .iter()
        .find(|machine| machine.name == name)
        .map_or(&nobody, |machine| machine.identity);
    settle(
        name,
        known,
        &whole(claimed, Some(boot)),
        Some(boot),
        machines,
        Word::Enrolment,
    )
}

#[test]
fn a_machine_that_boots_again_is_the_same() {
    let known = id(UUID_A, "A1", "BA1", &[nic(1), nic(2)]);
    let live = Machine {
        live: true,
        ..machine("a", &known)
    };
    assert_eq!(name(&known, nic(2), &[live]), "a");
    assert_eq!(
        settled("a", &known, nic(2), &[live]),
        Settled {
            identity: known.clone(),
            ..Settled::default()
        }
    );
}

#[test]
fn a_swapped_nic_leaves_the_machine_and_keeps_the_old_alias() {
    let known = id(UUID_A, "A1", "BA1", &[nic(1)]);
    let now = id(UUID_A, "A1", "BA1", &[nic(9)]);
    let machines = [machine("a", &known)];
    assert_eq!(name(&now, nic(9), &machines), "a");
    assert_eq!(
        settled("a", &now, nic(9), &machines).identity.macs,
        BTreeSet::from([nic(1), nic(9)])
    );
}

#[test]
fn two_connected_machines_with_one_serial_and_uuid_clash() {
    let known = id(UUID_A, "A1", "", &[nic(1)]);
    let twin = id(UUID_A, "A1", "", &[nic(2)]);
    let machines = [Machine {
        live: true,
        ..machine("mac-001b21000001", &known)
    }];
    assert_eq!(name(&twin, nic(2), &machines), "mac-001b21000002");
    let settled = settled("mac-001b21000002", &twin, nic(2), &machines);
    assert_eq!(settled.clashes, BTreeSet::from(["mac-001b21000001".to_owned()]));
}

#[test]
fn two_machines_with_one_uuid_are_never_one() {
    for (serial, other) in [("A1", "B1"), ("", "To Be Filled By O.E.M."), ("A1", "")] {
        let known = id(UUID_A, serial, "", &[nic(1)]);
        let twin = id(UUID_A, other, "", &[nic(2)]);
        let machines = [machine("a", &known)];
        assert_eq!(
            name(&twin, nic(2), &machines),
            "mac-001b21000002",
            "{serial:?} {other:?}"
        );
        assert!(settled("b", &twin, nic(2), &machines).clashes.contains("a"));
    }
}

#[test]
fn a_swapped_board_into_which_system_data_was_written_is_the_same_machine() {
    let known = id(UUID_A, "A1", "BA1", &[nic(1), nic(2)]);
    let now = id(UUID_A, "A1", "BB1", &[nic(3), nic(4)]);
    assert_eq!(name(&now, nic(3), &[machine("a", &known)]), "a");
    let settled = settled("a", &now, nic(3), &[machine("a", &known)]);
    assert_eq!(settled.identity.board_serial.as_deref(), Some("BB1"));
    assert_eq!(settled.identity.macs.len(), 4);
}

/// Nodes of one chassis and boards of some vendors share a serial number that is on no list of those.
#[test]
fn a_serial_alone_makes_no_machine_one_that_has_another_uuid() {
    let known = id(UUID_A, "A1", "BA1", &[nic(1)]);
    for in_use in [false, true] {
        let machines = [Machine {
            in_use,
            ..machine("a", &known)
        }];
        let swapped_nic = id(UUID_A, "A1", "BA1", &[nic(3)]);
        assert_eq!(name(&swapped_nic, nic(3), &machines), "a");
        let other = id(UUID_B, "A1", "BB1", &[nic(3)]);
        assert_eq!(name(&other, nic(3), &machines), "mac-001b21000003");
        let settled = settled("mac-001b21000003", &other, nic(3), &machines);
        assert_eq!(settled.clashes, BTreeSet::from(["a".to_owned()]));
        let without_uuid = id("", "A1", "BB1", &[nic(3)]);
        let is = if in_use { "mac-001b21000003" } else { "a" };
        assert_eq!(name(&without_uuid, nic(3), &machines), is);
    }
}

/// Who claims an address of a machine and no UUID at all knows as little as who claims another one.
#[test]
fn a_machine_that_hides_its_uuid_is_none_that_is_in_use_unless_it_boots_from_its_address() {
    let known = id(UUID_A, "A1", "BA1", &[nic(1), nic(2)]);
    let in_use = Machine {
        in_use: true,
        ..machine("a", &known)
    };
    for serial in ["", "A1"] {
        let hidden = id("", serial, "", &[nic(1), nic(3)]);
        assert_eq!(name(&hidden, nic(3), &[in_use]), "mac-001b21000003", "{serial:?}");
        let settled = settled("mac-001b21000003", &hidden, nic(3), &[in_use]);
        assert_eq!(settled.identity.macs, BTreeSet::from([nic(3)]), "{serial:?}");
        assert_eq!(settled.clashes, BTreeSet::from(["a".to_owned()]), "{serial:?}");
        assert_eq!(name(&hidden, nic(1), &[in_use]), "a", "{serial:?}");
    }
    // Nor is one that makes up a UUID, and has read the serial number off the machine.
    let made_up = id(UUID_B, "A1", "BA1", &[nic(1), nic(3)]);
    assert_eq!(name(&made_up, nic(3), &[in_use]), "mac-001b21000003");
    // Of a board that never told one the address is all that tells.
    let silent = id("", "A1", "", &[nic(1), nic(2)]);
    let silent = Machine {
        identity: &silent,
        ..in_use
    };
    let swapped = id("", "A1", "", &[nic(1), nic(3)]);
    assert_eq!(name(&swapped, nic(1), &[silent]), "a");
    assert_eq!(name(&swapped, nic(3), &[silent]), "mac-001b21000003");
    // It booted from there before, by a NIC that another machine has.
    let withheld = Machine {
        booted: Some(nic(3)),
        ..silent
    };
    assert_eq!(name(&swapped, nic(3), &[withheld]), "a");
}

#[test]
fn a_swapped_board_is_the_same_machine_by_its_add_in_nic() {
    let known = id(UUID_A, "", "BA1", &[nic(1), nic(9)]);
    let now = id(UUID_B, "", "BB1", &[nic(3), nic(9)]);
    assert_eq!(name(&now, nic(3), &[machine("a", &known)]), "a");
}

/// Without serial numbers it looks like a swapped board.
#[test]
fn a_nic_that_moved_makes_nobody_a_machine_that_is_connected_or_in_use() {
    let known = id(UUID_A, "", "BA1", &[nic(1), nic(9)]);
    let now = id(UUID_B, "", "BB1", &[nic(3), nic(9)]);
    for (live, in_use) in [(true, false), (false, true)] {
        let machines = [Machine {
            live,
            in_use,
            ..machine("a", &known)
        }];
        assert_eq!(
            name(&now, nic(3), &machines),
            "mac-001b21000003",
            "{live} {in_use}"
        );
        let settled = settled("mac-001b21000003", &now, nic(3), &machines);
        assert_eq!(settled.identity.macs, BTreeSet::from([nic(3)]));
        assert_eq!(settled.clashes, BTreeSet::from(["a".to_owned()]));
    }
    // By the address that Metal3 knows a host by: its data may be meant. Nobody is thrown out by that.
    let of = |live, in_use| Machine {
        live,
        in_use,
        ..machine("a", &known)
    };
    assert_eq!(name(&now, nic(9), &[of(false, true)]), "a");
    assert_eq!(name(&now, nic(9), &[of(true, false)]), "mac-001b21000009");
    // Its board was swapped, or its virtual machine made anew, faster than its session ended.
    let swapped = Machine {
        booted: Some(nic(9)),
        ..of(true, true)
    };
    assert_eq!(name(&now, nic(9), &[swapped]), "a");
    // What it was made into while the other one was connected does not keep it for good.
    let local: Mac = "52:54:00:00:00:01".parse().unwrap();
    let made_before = id(UUID_A, "", "", &[local]);
    let made_beside = id(UUID_B, "", "", &[]);
    let machines = [machine("a", &made_before), machine("a-2", &made_beside)];
    let now = id(UUID_B, "", "", &[local]);
    assert_eq!(name(&now, local, &machines), "a");
    // Unless the other one's host is in use by now.
    let in_use = Machine {
        in_use: true,
        ..machines[0]
    };
    assert_eq!(name(&now, local, &[in_use, machines[1]]), "a-2");
    // It is the same machine, whatever boots.
    let again = id(UUID_A, "", "BA1", &[nic(9)]);
    assert_eq!(name(&again, nic(9), &[of(true, true)]), "a");
}

#[test]
fn a_uuid_in_the_other_byte_order_is_the_same() {
    let swapped = text::swapped_uuid(UUID_A).unwrap();
    let known = id(&swapped, "", "", &[nic(1)]);
    let in_use = Machine {
        in_use: true,
        ..machine("a", &known)
    };
    let now = id(UUID_A, "", "", &[nic(1), nic(2)]);
    assert_eq!(name(&now, nic(2), &[in_use]), "a");
    let other = id(UUID_B, "", "", &[nic(1), nic(2)]);
    assert_eq!(name(&other, nic(2), &[in_use]), "mac-001b21000002");
}

#[test]
fn a_nic_that_moved_takes_its_address_along() {
    let a = id(UUID_A, "A1", "BA1", &[nic(1), nic(9)]);
    let b = id(UUID_B, "B1", "BB1", &[nic(2)]);
    let now = id(UUID_B, "B1", "BB1", &[nic(2), nic(9)]);
    let machines = [machine("a", &a), machine("b", &b)];
    assert_eq!(name(&now, nic(9), &machines), "b");
    let settled = settled("b", &now, nic(9), &machines);
    assert_eq!(settled.moved, BTreeSet::from([("a".to_owned(), nic(9))]));
    assert_eq!(settled.identity.macs, BTreeSet::from([nic(2), nic(9)]));
    assert!(settled.clashes.is_empty());
}

#[test]
fn a_nic_that_moved_into_a_new_machine_makes_a_new_one() {
    let a = id(UUID_A, "A1", "BA1", &[nic(1)]);
    let now = id(UUID_B, "B1", "BB1", &[nic(1)]);
    let machines = [machine("mac-001b21000001", &a)];
    assert_eq!(name(&now, nic(1), &machines), "mac-001b21000001-2");
    let settled = settled("mac-001b21000001-2", &now, nic(1), &machines);
    assert_eq!(
        settled.moved,
        BTreeSet::from([("mac-001b21000001".to_owned(), nic(1))])
    );
}

#[test]
fn no_address_is_taken_from_a_machine_that_is_connected_or_in_use() {
    let a = id(UUID_A, "A1", "BA1", &[nic(1)]);
    let now = id(UUID_B, "B1", "BB1", &[nic(1), nic(2)]);
    for guarded in [
        Machine {
            live: true,
            ..machine("a", &a)
        },
        Machine {
            in_use: true,
            ..machine("a", &a)
        },
    ] {
        let settled = settled("b", &now, nic(2), &[guarded]);
        assert!(settled.moved.is_empty());
        assert_eq!(settled.identity.macs, BTreeSet::from([nic(2)]));
        assert_eq!(settled.clashes, BTreeSet::from(["a".to_owned()]));
    }
}

#[test]
fn an_address_that_one_machine_keeps_leaves_no_other_either() {
    let a = id(UUID_A, "A1", "", &[nic(1)]);
    let live = Machine {
        live: true,
        ..machine("live", &a)
    };
    let now = id(UUID_B, "B1", "", &[nic(1), nic(2)]);
    let settled = settled("b", &now, nic(2), &[machine("a", &a), live]);
    assert!(settled.moved.is_empty());
    assert_eq!(settled.identity.macs, BTreeSet::from([nic(2)]));
}

#[test]
fn junk_leaves_the_addresses_alone_to_speak() {
    let junk = |macs: &[Mac]| {
        id(
            "00000000-0000-0000-0000-000000000000",
            "To Be Filled By O.E.M.",
            "None",
            macs,
        )
    };
    let known = junk(&[nic(1), nic(2)]);
    assert_eq!(name(&junk(&[nic(2)]), nic(2), &[machine("a", &known)]), "a");
    assert_eq!(
        name(&junk(&[nic(3)]), nic(3), &[machine("a", &known)]),
        "mac-001b21000003"
    );
}

#[test]
fn a_machine_without_any_signal_is_nobody() {
    let nothing = whole(
        &id("", "0000", "None", &[Mac([0; 6]), Mac([0xff; 6])]),
        Some(Mac([0; 6])),
    );
    assert_eq!(resolve(&nothing, None, &[], &BTreeSet::new()), Err(Nobody));
}

#[test]
fn local_addresses_never_join_machines_with_different_serials() {
    let a = id(UUID_A, "A1", "", &[local(1)]);
    let b = id(UUID_B, "B1", "", &[local(1)]);
    assert_eq!(
        name(&b, local(1), &[machine("mac-525400000001", &a)]),
        "mac-525400000001-2"
    );
    let unknown_uuid = id("", "B1", "", &[local(1)]);
    assert_eq!(
        name(&unknown_uuid, local(1), &[machine("mac-525400000001", &a)]),
        "mac-525400000001-2"
    );
}

#[test]
fn local_addresses_suffice_where_nothing_else_is_usable() {
    let vm = id("", "", "", &[local(1)]);
    assert_eq!(name(&vm, local(1), &[machine("a", &vm)]), "a");
    let same_uuid = id(UUID_A, "B1", "", &[local(1)]);
    let known = id(UUID_A, "A1", "", &[local(1)]);
    assert_eq!(name(&same_uuid, local(1), &[machine("a", &known)]), "a");
}

#[test]
fn of_more_clashes_than_are_kept_the_first_ones_are_whatever_order_they_are_found_in() {
    let known = id(UUID_A, "SN1", "B1", &[]);
    let names: Vec<String> = (0..100).map(|number| format!("m{number:02}")).collect();
    let mut machines: Vec<Machine<'_>> = names.iter().map(|name| machine(name, &known)).collect();
    machines.reverse();
    let settled = settled("new", &id(UUID_A, "SN2", "B2", &[nic(1)]), nic(1), &machines);
    assert!(settled.clashes.iter().eq(&names[..64]));
}

#[test]
fn the_usb_nic_that_every_bmc_has_joins_nobody_and_clashes_with_nobody() {
    let a = id(UUID_A, "A1", "", &[nic(1), local(7)]);
    let b = id(UUID_B, "B1", "", &[nic(2), local(7)]);
    let machines = [machine("a", &a)];
    assert_eq!(name(&b, nic(2), &machines), "mac-001b21000002");
    let settled = settled("b", &b, nic(2), &machines);
    assert!(settled.clashes.is_empty() && settled.moved.is_empty());
    let junk = id("", "", "", &[nic(3), local(7)]);
    assert_eq!(name(&junk, nic(3), &machines), "mac-001b21000003");
}

#[test]
fn most_signals_win() {
    let by_mac = id(UUID_A, "", "", &[nic(1)]);
    let by_serial = id("", "B1", "", &[nic(2)]);
    let claimed = id(UUID_B, "B1", "", &[nic(1)]);
    let machines = [machine("a", &by_mac), machine("b", &by_serial)];
    assert_eq!(name(&claimed, nic(1), &machines), "b");
    assert_eq!(
        settled("b", &claimed, nic(1), &machines).moved,
        BTreeSet::from([("a".to_owned(), nic(1))])
    );
}

#[test]
fn a_name_without_nics_comes_from_the_serial() {
    let claimed = id(UUID_A, "J5 K2/X93", "", &[]);
    let resolved = resolve(&claimed, None, &[], &BTreeSet::new()).unwrap();
    assert_eq!(
        resolved,
        Resolved {
            name: "serial-j5-k2-x93".into(),
            new: true
        }
    );
    let known = id(UUID_A, "", "", &[nic(1)]);
    let bare = id(UUID_A, "", "", &[]);
    assert_eq!(
        resolve(&bare, None, &[machine("a", &known)], &BTreeSet::new())
            .unwrap()
            .name,
        "a"
    );
}

#[test]
fn a_server_of_which_nothing_is_known_is_taken_up_under_its_name() {
    let claimed = id(UUID_A, "A1", "", &[nic(1)]);
    let blank = Identity::default();
    let resolve =
        |machines: &[Machine<'_>]| resolve(&claimed, Some(nic(1)), machines, &BTreeSet::new()).unwrap();
    let own = machine("mac-001b21000001", &blank);
    assert_eq!(
        resolve(&[own]),
        Resolved {
            name: "mac-001b21000001".into(),
            new: false
        }
    );
    assert!(resolve(&[machine("mac-001b21000002", &blank)]).new);
    let live = Machine { live: true, ..own };
    assert_eq!(resolve(&[live]).name, "mac-001b21000001-2");
}

#[test]
fn a_report_only_adds_what_nobody_claims() {
    let own = id(UUID_A, "A1", "", &[nic(1)]);
    let victim = id(UUID_B, "B1", "", &[nic(2)]);
    let report = id(UUID_B, "B1", "B9", &[nic(1), nic(2), nic(3)]);
    let machines = [machine("own", &own), machine("victim", &victim)];
    let settled = settle("own", &own, &whole(&report, None), None, &machines, Word::Report);
    assert!(settled.moved.is_empty());
    assert_eq!(settled.identity.system_serial.as_deref(), Some("A1"));
    assert_eq!(settled.identity.system_uuid.as_deref(), Some(UUID_A));
    assert_eq!(settled.identity.macs, BTreeSet::from([nic(1), nic(3)]));
    assert_eq!(settled.clashes, BTreeSet::from(["victim".to_owned()]));
}

#[test]
fn a_placeholder_that_an_older_version_stored_is_forgotten() {
    let known = Identity {
        system_uuid: Some("4c4c4544-0000-2010-8020-80c04f202020".to_owned()),
        ..id("", "A1", "", &[nic(1)])
    };
    for (uuid, then) in [("", None), (UUID_A, Some(UUID_A))] {
        let claimed = id(uuid, "A1", "", &[nic(1)]);
        for word in [Word::Enrolment, Word::Report] {
            let settled = settle("a", &known, &claimed, None, &[machine("a", &known)], word);
            assert_eq!(settled.identity.system_uuid.as_deref(), then, "{word:?}");
        }
    }
}

fn any_identity() -> impl Strategy<Value = Identity> {
    let uuid = prop::sample::select(vec!["", UUID_A, UUID_B, "4c4c4544-0037-4b10-8032-b2c04f583935"]);
    let serial = prop::sample::select(vec!["", "A1", "B1", "C1"]);
    let board = prop::sample::select(vec!["", "BA1", "BB1"]);
    let macs = prop::collection::vec((0_u8..6, any::<bool>()), 0..4);
    (uuid, serial, board, macs).prop_map(|(uuid, serial, board, macs)| {
        let macs: Vec<Mac> = macs
            .into_iter()
            .map(|(last, is_local)| if is_local { local(last) } else { nic(last) })
            .collect();
        id(uuid, serial, board, &macs)
    })
}

fn any_fleet() -> impl Strategy<Value = Vec<(Identity, bool, bool, Seen)>> {
    let seen = vec![
        Seen::There,
        Seen::Elsewhere,
        Seen::WithMoreTrust,
        Seen::WithLessTrust,
    ];
    let seen = prop::sample::select(seen);
    prop::collection::vec((any_identity(), any::<bool>(), any::<bool>(), seen), 0..6)
}

#[test]
fn nobody_takes_the_place_of_a_connected_machine_but_by_booting_from_its_address() {
    let known = id(UUID_A, "SN1", "B1", &[nic(1), nic(2)]);
    let connected = Machine {
        live: true,
        ..machine("one", &known)
    };
    // A thief that knows everything, and a twin by a NIC that both vendors numbered alike.
    assert_eq!(name(&known, nic(9), &[connected]), "mac-001b21000009");
    assert_eq!(
        settled("mac-001b21000009", &known, nic(9), &[connected]).clashes,
        ["one".to_owned()].into()
    );
    // It boots again by its other NIC before anybody noticed that it is gone.
    assert_eq!(name(&known, nic(2), &[connected]), "one");
    assert_eq!(
        name(&known, nic(9), &[machine("one", &known)]),
        "one",
        "a NIC was added"
    );
    // Another machine has the address that it boots from.
    let withheld = Machine {
        booted: Some(nic(9)),
        ..connected
    };
    assert_eq!(name(&known, nic(9), &[withheld]), "one");
}

proptest! {
    #[test]
    fn machines_that_share_nothing_are_never_one(claimed in any_identity(), fleet in any_fleet()) {
        let names: Vec<String> = (0..fleet.len()).map(|at| format!("m{at}")).collect();
        let machines: Vec<Machine<'_>> = fleet.iter().zip(&names)
            .map(|((identity, live, in_use, seen), name)| Machine {
                live: *live, in_use: *in_use, seen: *seen, ..machine(name, identity)
            })
            .collect();
        let boot = claimed.macs.first().copied();
        let Ok(resolved) = resolve(&claimed, boot, &machines, &BTreeSet::new()) else {
            prop_assert!(claimed.macs.is_empty());
            return Ok(());
        };
        if let Some(chosen) = machines.iter().find(|machine| machine.name == resolved.name) {
            let relation = Relation::of(&claimed, chosen.identity);
            let shares_mac = !claimed.macs.is_disjoint(&chosen.identity.macs);
            prop_assert!(shares_mac || relation.serial == Signal::Same || relation.uuid == Signal::Same);
            prop_assert!(relation.serial != Signal::Differs || relation.uuid != Signal::Differs);
            prop_assert!(chosen.seen != Seen::WithLessTrust);
            prop_assert!(chosen.may_be(&claimed, boot), "its session would be refused");
            let is_held = chosen.live || chosen.in_use;
            let may = relation.uuid == Signal::Same
                || (chosen.seen == Seen::WithMoreTrust && chosen.identity.system_uuid.is_none());
            prop_assert!(chosen.seen == Seen::There || !is_held || may);
        }
        let known = machines.iter().find(|machine| machine.name == resolved.name).map(|machine| machine.identity.clone());
        let settled = settle(&resolved.name, &known.unwrap_or_default(), &claimed, boot, &machines, Word::Enrolment);
        prop_assert!(!settled.clashes.contains(&resolved.name));
        for (from, mac) in &settled.moved {
            let from = machines.iter().find(|machine| machine.name == from).unwrap();
            prop_assert!(!from.live && !from.in_use && from.seen != Seen::WithLessTrust);
            prop_assert!(settled.identity.macs.contains(mac));
        }
    }

    #[test]
    fn the_order_of_machines_does_not_matter(claimed in any_identity(), fleet in any_fleet(), seed: u64) {
        let names: Vec<String> = (0..fleet.len()).map(|at| format!("m{at}")).collect();
        let machines: Vec<Machine<'_>> = fleet.iter().zip(&names)
            .map(|((identity, live, in_use, seen), name)| Machine {
                live: *live, in_use: *in_use, seen: *seen, ..machine(name, identity)
            })
            .collect();
        let mut shuffled = machines.clone();
        let len = shuffled.len();
        for at in 0..len {
            shuffled.swap(at, usize::try_from(seed.rotate_left(u32::try_from(at).unwrap() * 7) % 64).unwrap() % len);
        }
        let boot = claimed.macs.last().copied();
        let taken = BTreeSet::new();
        prop_assert_eq!(resolve(&claimed, boot, &machines, &taken), resolve(&claimed, boot, &shuffled, &taken));
        let nobody = Identity::default();
        prop_assert_eq!(
            settle("x", &nobody, &claimed, boot, &machines, Word::Enrolment),
            settle("x", &nobody, &claimed, boot, &shuffled, Word::Enrolment)
        );
    }

    #[test]
    fn a_machine_that_was_taken_in_is_found_again(claimed in any_identity(), fleet in any_fleet()) {
        let names: Vec<String> = (0..fleet.len()).map(|at| format!("m{at}")).collect();
        let machines: Vec<Machine<'_>> = fleet.iter().zip(&names)
            .map(|((identity, ..), name)| machine(name, identity))
            .collect();
        let boot = claimed.macs.first().copied();
        let Ok(first) = resolve(&claimed, boot, &machines, &BTreeSet::new()) else { return Ok(()) };
        prop_assume!(first.new && boot.is_some());
        let settled = settle(&first.name, &Identity::default(), &claimed, boot, &machines, Word::Enrolment);
        let mut after: Vec<(String, Identity)> = names.iter().cloned().zip(fleet.iter().map(|one| one.0.clone())).collect();
        for (from, mac) in &settled.moved {
            after.iter_mut().find(|one| one.0 == *from).unwrap().1.macs.remove(mac);
        }
        after.push((first.name.clone(), settled.identity.clone()));
        let machines: Vec<Machine<'_>> = after.iter().map(|(name, identity)| machine(name, identity)).collect();
        prop_assert_eq!(resolve(&claimed, boot, &machines, &BTreeSet::new()).unwrap(), Resolved { name: first.name, new: false });
    }
}
