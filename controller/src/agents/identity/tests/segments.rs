//! Machines that are seen on another Segment than that of their latest session.

use super::*;

#[test]
fn on_another_segment_nobody_is_a_machine_that_is_connected_or_in_use_without_its_uuid() {
    let known = id(UUID_A, "A1", "BA1", &[nic(1), nic(2)]);
    let forged = [id("", "", "", &[nic(1)]), id(UUID_B, "A1", "BA1", &[nic(1)])];
    for (live, in_use) in [(true, false), (false, true)] {
        let there = Machine {
            live,
            in_use,
            booted: Some(nic(1)),
            ..machine("a", &known)
        };
        let elsewhere = Machine {
            seen: Seen::Elsewhere,
            ..there
        };
        for claimed in &forged {
            assert_eq!(name(claimed, nic(1), &[there]), "a", "on its own Segment");
            let is = name(claimed, nic(1), &[elsewhere]);
            assert_eq!(is, "mac-001b21000001");
            let settled = settled(&is, claimed, nic(1), &[elsewhere]);
            assert!(settled.moved.is_empty() && settled.identity.macs.is_empty());
            assert_eq!(settled.clashes, BTreeSet::from(["a".to_owned()]));
        }
        // Its first NIC found no server, and its second one is on another network.
        assert_eq!(name(&known, nic(2), &[elsewhere]), "a");
        // More trust is asked for than anybody has yet: it proves nothing.
        let stricter = Machine {
            seen: Seen::WithMoreTrust,
            ..there
        };
        assert_eq!(name(&forged[0], nic(1), &[stricter]), "mac-001b21000001");
        let told_none = id("", "A1", "", &[nic(1)]);
        let told_none = Machine {
            identity: &told_none,
            ..stricter
        };
        assert_eq!(name(&known, nic(1), &[told_none]), "a");
    }
    // One of which nothing is at stake goes where its cable goes.
    let idle = Machine {
        seen: Seen::Elsewhere,
        ..machine("a", &known)
    };
    assert_eq!(name(&forged[0], nic(1), &[idle]), "a");
}

#[test]
fn on_a_segment_that_asks_for_less_trust_nobody_is_a_machine_of_one_that_asks_for_more() {
    let known = id(UUID_A, "A1", "BA1", &[nic(1), nic(2)]);
    let machines = [Machine {
        seen: Seen::WithLessTrust,
        ..machine("a", &known)
    }];
    assert_eq!(name(&known, nic(1), &machines), "mac-001b21000001");
    let settled = settled("mac-001b21000001", &known, nic(1), &machines);
    assert!(settled.moved.is_empty() && settled.identity.macs.is_empty());
    assert_eq!(settled.clashes, BTreeSet::from(["a".to_owned()]));
    assert!(!machines[0].may_be(&known, Some(nic(1))));
    let nobody = Identity::default();
    let blank = Machine {
        identity: &nobody,
        ..machine("mac-001b21000001", &nobody)
    };
    assert_eq!(name(&known, nic(1), &[blank]), "mac-001b21000001");
    let blank = Machine {
        seen: Seen::WithLessTrust,
        ..blank
    };
    assert_eq!(name(&known, nic(1), &[blank]), "mac-001b21000001-2");
    assert!(!blank.may_be(&known, Some(nic(1))));
}

/// It is known there by its UUID and serial number alone, since its Server of before keeps its addresses.
#[test]
fn a_machine_that_was_moved_and_boots_again_at_once_is_still_one_server() {
    let known = id(UUID_A, "A1", "BA1", &[nic(1)]);
    let strict = Machine {
        seen: Seen::WithLessTrust,
        ..machine("mac-001b21000001", &known)
    };
    let withheld = id(UUID_A, "A1", "BA1", &[]);
    let moved = Machine {
        live: true,
        booted: Some(nic(1)),
        ..machine("mac-001b21000001-2", &withheld)
    };
    assert_eq!(name(&known, nic(1), &[strict, moved]), "mac-001b21000001-2");
}
