use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::boot::dhcp::answerers::MANY;

const HOUR: Duration = Duration::from_secs(3600);
const NOW: Duration = Duration::from_secs(1000);

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 0, a, b, c, d])
}

fn a_pool(start: u8, end: u8) -> Pool {
    Pool {
        subnet: "10.77.0.0/24".parse().unwrap(),
        ranges: vec![(ip(start), ip(end))],
    }
}

fn leases(start: u8, end: u8) -> Leases {
    Leases::new(a_pool(start, end), HOUR)
}

/// Proposes, with every probe silent.
fn offer(leases: &mut Leases, mac: Mac, now: Duration) -> Option<Ipv4Addr> {
    loop {
        match leases.propose(mac, None, now) {
            Proposal::Ready(address) => return Some(address),
            Proposal::Probe(address) => {
                leases.probed(mac, address, None, now);
            }
            Proposal::Full => return None,
        }
    }
}

fn lease(leases: &mut Leases, mac: Mac, now: Duration) -> Option<Ipv4Addr> {
    let address = offer(leases, mac, now)?;
    assert_eq!(
        leases.rule(mac, Claim::Selecting(address), now),
        Ruling::Yes(address)
    );
    Some(address)
}

/// The address that is probed before it is offered to `mac`.
fn unknown(leases: &mut Leases, mac: Mac, wanted: Option<Ipv4Addr>) -> Ipv4Addr {
    match leases.propose(mac, wanted, NOW) {
        Proposal::Probe(address) => address,
        other => panic!("an unknown address is probed, and not {other:?}"),
    }
}

#[test]
fn a_machine_gets_the_same_address_each_time_and_after_a_restart() {
    let mut before = leases(100, 199);
    let address = lease(&mut before, mac(7), NOW).unwrap();
    assert_eq!(offer(&mut before, mac(7), NOW), Some(address));
    assert_eq!(offer(&mut before, mac(7), NOW + 10 * HOUR), Some(address));
    let mut after = leases(100, 199);
    assert_eq!(offer(&mut after, mac(7), NOW), Some(address));
}

#[test]
fn machines_seeded_after_a_restart_keep_what_they_had() {
    let mut before = leases(100, 109);
    let had: Vec<_> = (0..10)
        .map(|n| (mac(n), lease(&mut before, mac(n), NOW).unwrap()))
        .collect();
    let mut after = leases(100, 109);
    for (mac, address) in had.iter().rev() {
        after.seed(*mac, *address, NOW);
    }
    for (mac, address) in had {
        assert_eq!(offer(&mut after, mac, NOW), Some(address));
    }
}

#[test]
fn a_machine_that_was_silent_during_a_restart_keeps_its_address_while_another_is_free() {
    let home = offer(&mut leases(100, 109), mac(1), NOW).unwrap();
    let mut after = leases(100, 109);
    after.seed(mac(7), home, NOW);
    // An offer that it does not take costs it nothing.
    assert_eq!(offer(&mut after, mac(7), NOW), Some(home));
    let at = NOW + HOUR / 2;
    for number in (1..7).chain(8..10) {
        assert_ne!(lease(&mut after, mac(number), at), Some(home));
    }
    let Proposal::Probe(other) = after.propose(mac(10), Some(home), at) else {
        panic!("an unknown address is probed");
    };
    assert_ne!(other, home);
    assert_eq!(after.rule(mac(7), Claim::Extending(home), at), Ruling::Yes(home));
    assert_eq!(after.leased(at), 9);
    let mut forgotten = leases(100, 109);
    forgotten.seed(mac(7), home, NOW);
    assert_eq!(offer(&mut forgotten, mac(1), NOW + HOUR), Some(home));
}

#[test]
fn what_is_remembered_keeps_nobody_out_and_what_is_in_use_is_not_given_away() {
    let mut leases = leases(100, 103);
    for number in 0..4 {
        leases.seed(mac(number), ip(100 + u8::try_from(number).unwrap()), NOW);
    }
    assert_eq!(leases.leased(NOW), 0);
    // The least sure first; here its machine answers the probe.
    assert_eq!(leases.propose(mac(9), None, NOW), Proposal::Probe(ip(103)));
    leases.probed(mac(9), ip(103), Some(mac(3)), NOW);
    assert_eq!(
        leases.rule(mac(3), Claim::Extending(ip(103)), NOW),
        Ruling::Yes(ip(103))
    );
    assert_eq!(lease(&mut leases, mac(9), NOW), Some(ip(102)));
    // Strangers take offers from each other before they take what is remembered.
    for number in 10..1000 {
        assert_eq!(offer(&mut leases, mac(number), NOW), Some(ip(101)));
    }
    // Who has a remembered address by now says so.
    assert_eq!(
        leases.rule(mac(8), Claim::Extending(ip(100)), NOW),
        Ruling::Yes(ip(100))
    );
}

#[test]
fn the_surest_memory_of_an_address_and_of_a_machine_counts() {
    let mut leases = leases(100, 109);
    leases.seed(mac(1), ip(105), NOW);
    leases.seed(mac(2), ip(105), NOW);
    leases.seed(mac(1), ip(106), NOW);
    assert_eq!(offer(&mut leases, mac(1), NOW), Some(ip(105)));
    assert_ne!(offer(&mut leases, mac(2), NOW), Some(ip(105)));
}

#[test]
fn a_claim_nobody_contradicts_is_believed_after_a_restart() {
    let mut leases = leases(100, 199);
    assert_eq!(
        leases.rule(mac(1), Claim::InitReboot(ip(150)), NOW),
        Ruling::Yes(ip(150))
    );
    assert!(matches!(
        leases.rule(mac(2), Claim::Extending(ip(150)), NOW),
        Ruling::No(_)
    ));
    assert_eq!(
        leases.rule(mac(1), Claim::Extending(ip(150)), NOW),
        Ruling::Yes(ip(150))
    );
}

#[test]
fn an_active_lease_is_offered_without_another_probe() {
    let mut leases = leases(100, 199);
    let address = lease(&mut leases, mac(1), NOW).unwrap();
    let later = NOW + HOUR / 2;
    assert_eq!(leases.propose(mac(1), None, later), Proposal::Ready(address));
    let much_later = NOW + 2 * HOUR;
    assert_eq!(leases.propose(mac(1), None, much_later), Proposal::Probe(address));
}

#[test]
fn an_address_in_use_is_left_alone_for_ten_minutes() {
    let mut leases = leases(100, 101);
    let taken = unknown(&mut leases, mac(1), None);
    leases.probed(mac(1), taken, Some(mac(99)), NOW);
    let other = offer(&mut leases, mac(1), NOW).unwrap();
    assert_ne!(other, taken);
    assert_eq!(
        leases.rule(mac(1), Claim::Selecting(taken), NOW),
        Ruling::No("another machine has this address")
    );
    // The one that answered the probe may have it: it does have it.
    assert_eq!(
        leases.rule(mac(99), Claim::InitReboot(taken), NOW),
        Ruling::Yes(taken)
    );
    assert_eq!(
        offer(&mut leases, mac(3), NOW + QUARANTINE),
        Some(other),
        "the offer to 1 is stale by then"
    );
}

/// A router that does proxy ARP: it answers for every address but those that `others` have.
fn offer_behind(
    router: Mac,
    others: &HashMap<Ipv4Addr, Mac>,
    leases: &mut Leases,
    mac: Mac,
    now: Duration,
) -> (Option<Ipv4Addr>, Vec<Finding>) {
    let mut found = Vec::new();
    loop {
        match leases.propose(mac, None, now) {
            Proposal::Ready(address) => return (Some(address), found),
            Proposal::Probe(address) => {
                let answer = others.get(&address).copied().unwrap_or(router);
                found.push(leases.probed(mac, address, Some(answer), now));
            }
            Proposal::Full => return (None, found),
        }
    }
}

#[test]
fn who_answers_for_every_address_takes_none_from_the_pool() {
    let (router, nobody) = (mac(99), HashMap::new());
    let mut leases = leases(100, 109);
    let (offered, found) = offer_behind(router, &nobody, &mut leases, mac(1), NOW);
    assert!(offered.is_some());
    let believed = vec![Finding::Taken(router); MANY - 1];
    let unknown = |is_news| Finding::Unknown { by: router, is_news };
    assert_eq!(found, [believed, vec![unknown(true)]].concat());
    assert_eq!(
        leases.rule(mac(1), Claim::Selecting(offered.unwrap()), NOW),
        Ruling::Yes(offered.unwrap())
    );
    // Nor are those left alone for which it was believed.
    for number in 2..=10 {
        let (offered, found) = offer_behind(router, &nobody, &mut leases, mac(number), NOW);
        assert_eq!(found, [unknown(false)]);
        let offered = offered.unwrap();
        assert_eq!(
            leases.rule(mac(number), Claim::Selecting(offered), NOW),
            Ruling::Yes(offered)
        );
    }
    assert_eq!(leases.leased(NOW), 10);
}

#[test]
fn who_answers_for_every_address_of_a_small_pool_takes_none_either_nor_after_a_quiet_time() {
    let (router, nobody) = (mac(99), HashMap::new());
    let mut leases = leases(100, 104);
    let mut offer = |machine, now| {
        let (offered, _) = offer_behind(router, &nobody, &mut leases, mac(machine), now);
        let claim = Claim::Selecting(offered.expect("an address is free"));
        assert!(matches!(leases.rule(mac(machine), claim, now), Ruling::Yes(_)));
    };
    offer(1, NOW);
    let quiet = NOW + QUARANTINE * 2;
    offer(2, quiet);
    offer(3, quiet);
}

#[test]
fn an_address_in_use_is_left_alone_also_where_another_device_answers_for_every_one() {
    let (router, stranger) = (mac(99), mac(98));
    let mut leases = leases(100, 111);
    let (offered, _) = offer_behind(router, &HashMap::new(), &mut leases, mac(1), NOW);
    let home = unknown(&mut leases, mac(2), None);
    let others = HashMap::from([(home, stranger)]);
    let (other, found) = offer_behind(router, &others, &mut leases, mac(2), NOW);
    assert_eq!(found[0], Finding::Taken(stranger));
    assert!(other.is_some() && other != Some(home) && other != offered);
    // A machine that finds its address in use says so itself.
    let declined = other.unwrap();
    assert!(leases.decline(mac(2), declined, NOW));
    let (third, _) = offer_behind(router, &others, &mut leases, mac(2), NOW);
    assert!(third.is_some() && ![Some(home), other, offered].contains(&third));
    assert!(leases.slots[&home].shunned > NOW && leases.slots[&declined].shunned > NOW);
}

#[test]
fn a_machine_that_answers_its_own_probe_is_no_stranger() {
    let mut leases = leases(100, 199);
    let address = unknown(&mut leases, mac(1), None);
    leases.probed(mac(1), address, Some(mac(1)), NOW);
    assert_eq!(leases.propose(mac(1), None, NOW), Proposal::Ready(address));
}

#[test]
fn a_machine_that_has_used_its_address_all_along_gets_it_again() {
    let mut leases = leases(100, 199);
    let address = unknown(&mut leases, mac(1), None);
    leases.probed(mac(1), address, Some(mac(2)), NOW);
    let other = unknown(&mut leases, mac(3), Some(address));
    assert_ne!(other, address);
    assert_eq!(
        leases.propose(mac(2), Some(address), NOW),
        Proposal::Probe(address)
    );
}

#[test]
fn only_its_own_address_can_be_declined_or_released() {
    let mut leases = leases(100, 101);
    let address = lease(&mut leases, mac(1), NOW).unwrap();
    assert!(!leases.decline(mac(2), address, NOW));
    assert!(!leases.release(mac(2), address));
    assert_eq!(leases.leased(NOW), 1);
    assert!(leases.decline(mac(1), address, NOW));
    assert_ne!(offer(&mut leases, mac(1), NOW), Some(address));
}

#[test]
fn claims_on_foreign_addresses_are_refused_or_left_to_others() {
    let mut leases = leases(100, 199);
    let foreign = Ipv4Addr::new(192, 168, 1, 5);
    assert!(matches!(
        leases.rule(mac(1), Claim::InitReboot(foreign), NOW),
        Ruling::No(_)
    ));
    assert!(matches!(
        leases.rule(mac(1), Claim::Selecting(ip(5)), NOW),
        Ruling::No(_)
    ));
    assert!(matches!(
        leases.rule(mac(1), Claim::InitReboot(ip(5)), NOW),
        Ruling::NotOurs(_)
    ));
    lease(&mut leases, mac(1), NOW).unwrap();
    assert!(matches!(
        leases.rule(mac(1), Claim::InitReboot(ip(5)), NOW),
        Ruling::No(_)
    ));
}

#[test]
fn a_full_pool_recycles_the_oldest_offer_and_never_a_lease() {
    let mut leases = leases(100, 103);
    let kept = lease(&mut leases, mac(0), NOW).unwrap();
    let first = offer(&mut leases, mac(1), NOW).unwrap();
    offer(&mut leases, mac(2), NOW).unwrap();
    offer(&mut leases, mac(3), NOW).unwrap();
    assert_eq!(leases.recycled(), 0);
    assert_eq!(offer(&mut leases, mac(4), NOW), Some(first));
    assert_eq!(leases.recycled(), 1);
    for number in 10..1000 {
        assert_ne!(offer(&mut leases, mac(number), NOW), Some(kept));
    }
    assert_eq!(
        leases.rule(mac(0), Claim::Extending(kept), NOW),
        Ruling::Yes(kept)
    );
}

#[test]
fn leases_everywhere_leave_nothing_to_offer_until_one_ends() {
    let mut leases = leases(100, 103);
    for number in 0..4 {
        lease(&mut leases, mac(number), NOW).unwrap();
    }
    assert_eq!(offer(&mut leases, mac(9), NOW), None);
    leases.release(mac(2), leases.holdings[&mac(2)].address);
    assert!(offer(&mut leases, mac(9), NOW).is_some());
    assert!(offer(&mut leases, mac(8), NOW + 2 * HOUR).is_some());
}

#[test]
fn a_hundred_thousand_strangers_take_bounded_memory_and_do_not_shut_a_host_out() {
    let pool = Pool {
        subnet: "10.0.0.0/16".parse().unwrap(),
        ranges: vec![(Ipv4Addr::new(10, 0, 1, 0), Ipv4Addr::new(10, 0, 255, 254))],
    };
    let mut leases = Leases::new(pool, HOUR);
    let host = Mac([0x52, 0x54, 0, 0, 0, 1]);
    let offered = offer(&mut leases, host, NOW).unwrap();
    for number in 0..100_000 {
        offer(&mut leases, mac(number), NOW).unwrap();
    }
    assert!(leases.offers.len() <= MAX_OFFERS);
    assert!(leases.holdings.len() <= MAX_OFFERS);
    assert_eq!(
        leases.rule(host, Claim::Selecting(offered), NOW),
        Ruling::Yes(offered)
    );
}

#[test]
fn an_edited_range_keeps_the_leases_that_lie_in_it() {
    let mut leases = leases(100, 199);
    assert_eq!(
        leases.rule(mac(1), Claim::InitReboot(ip(110)), NOW),
        Ruling::Yes(ip(110))
    );
    assert_eq!(
        leases.rule(mac(2), Claim::InitReboot(ip(190)), NOW),
        Ruling::Yes(ip(190))
    );
    leases.reshape(a_pool(100, 150), HOUR);
    assert_eq!(leases.leased(NOW), 1);
    assert_eq!(offer(&mut leases, mac(1), NOW), Some(ip(110)));
    assert!(offer(&mut leases, mac(2), NOW).unwrap() <= ip(150));
}

#[test]
fn machines_are_spread_over_the_pool() {
    let mut leases = leases(100, 199);
    let homes: std::collections::HashSet<_> = (0..50)
        .map(|number| offer(&mut leases.clone(), mac(number), NOW).unwrap())
        .collect();
    assert!(homes.len() > 30, "{} places for 50 machines", homes.len());
    let _ = offer(&mut leases, mac(1), NOW);
}

#[derive(Clone, Debug)]
enum Act {
    Propose(u8, Option<u8>),
    Probed(u8, u8, Option<u8>),
    Claim(u8, u8, u8),
    Decline(u8, u8),
    Release(u8, u8),
    Withdraw(u8),
    Seed(u8, u8),
    Wait(u16),
    Reshape(u8),
}

fn an_act() -> impl Strategy<Value = Act> {
    let who = 0..24_u8;
    let place = 98..116_u8;
    prop_oneof![
        4 => (who.clone(), proptest::option::of(place.clone())).prop_map(|(a, b)| Act::Propose(a, b)),
        3 => (who.clone(), place.clone(), proptest::option::of(who.clone())).prop_map(|(a, b, c)| Act::Probed(a, b, c)),
        4 => (who.clone(), place.clone(), 0..3_u8).prop_map(|(a, b, c)| Act::Claim(a, b, c)),
        1 => (who.clone(), place.clone()).prop_map(|(a, b)| Act::Decline(a, b)),
        1 => (who.clone(), place.clone()).prop_map(|(a, b)| Act::Release(a, b)),
        1 => who.clone().prop_map(Act::Withdraw),
        1 => (who, place).prop_map(|(a, b)| Act::Seed(a, b)),
        2 => (0..900_u16).prop_map(Act::Wait),
        1 => (104..116_u8).prop_map(Act::Reshape),
    ]
}

proptest! {
    /// Against a model that only remembers which yes was said to whom until when.
    #[test]
    fn no_two_machines_hold_one_address(acts in proptest::collection::vec(an_act(), 1..200)) {
        let mut leases = leases(100, 111);
        let mut now = NOW;
        let mut promised: HashMap<Ipv4Addr, (Mac, Duration)> = HashMap::new();
        for act in acts {
            match act {
                Act::Propose(who, wanted) => {
                    let who = mac(who.into());
                    if let Proposal::Ready(address) | Proposal::Probe(address) = leases.propose(who, wanted.map(ip), now) {
                        prop_assert!(leases.pool.contains(address));
                        if let Some((owner, until)) = promised.get(&address) {
                            prop_assert!(*owner == who || *until <= now, "{address} of {owner} offered to {who}");
                        }
                    }
                }
                Act::Probed(who, place, answer) => {
                    // As the engine does: only what was proposed is probed.
                    let who = mac(who.into());
                    if leases.holdings.get(&who).is_some_and(|holding| holding.address == ip(place) && holding.hint.is_some()) {
                        leases.probed(who, ip(place), answer.map(|other| mac(other.into())), now);
                    }
                }
                Act::Claim(who, place, how) => {
                    let who = mac(who.into());
                    let claim = match how {
                        0 => Claim::Selecting(ip(place)),
                        1 => Claim::InitReboot(ip(place)),
                        _ => Claim::Extending(ip(place)),
                    };
                    if let Ruling::Yes(address) = leases.rule(who, claim, now) {
                        prop_assert_eq!(address, ip(place));
                        if let Some((owner, until)) = promised.get(&address) {
                            prop_assert!(*owner == who || *until <= now, "{address} of {owner} given to {who}");
                        }
                        // Its former address is free again.
                        promised.retain(|_, (owner, _)| *owner != who);
                        promised.insert(address, (who, now + HOUR));
                    }
                }
                Act::Decline(who, place) => {
                    if leases.decline(mac(who.into()), ip(place), now) {
                        promised.remove(&ip(place));
                    }
                }
                Act::Release(who, place) => {
                    if leases.release(mac(who.into()), ip(place)) {
                        promised.remove(&ip(place));
                    }
                }
                Act::Withdraw(who) => leases.withdraw(mac(who.into())),
                Act::Seed(who, place) => {
                    let who = mac(who.into());
                    leases.seed(who, ip(place), now);
                }
                Act::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                Act::Reshape(end) => {
                    leases.reshape(a_pool(100, end), HOUR);
                    promised.retain(|address, _| leases.pool.contains(*address));
                }
            }
            // The tables agree with each other.
            for (who, holding) in &leases.holdings {
                prop_assert_eq!(leases.slots[&holding.address].owner, Some(*who));
                let hinted = |hint| leases.offers.get(&hint).or_else(|| leases.remembered.get(&hint));
                prop_assert_eq!(holding.hint.map(hinted), holding.hint.map(|_| Some(who)));
            }
            prop_assert_eq!(leases.slots.values().filter(|slot| slot.owner.is_some()).count(), leases.holdings.len());
            prop_assert!(leases.offers.len() + leases.remembered.len() <= leases.holdings.len());
        }
    }
}

#[test]
fn what_another_replica_leases_is_leased_here_too() {
    let mut here = leases(100, 101);
    let theirs = offer(&mut here, mac(1), NOW).unwrap();
    // Ours was another offer; the machine took the other replica's of what we would give to machine 1.
    here.overhear(mac(2), theirs, NOW);
    assert_eq!(offer(&mut here, mac(2), NOW), Some(theirs));
    assert_ne!(lease(&mut here, mac(1), NOW), Some(theirs));
    // What is leased already stays whose it is.
    lease(&mut here, mac(2), NOW);
    here.overhear(mac(3), theirs, NOW);
    // The network says whose it is.
    assert_eq!(here.propose(mac(2), None, NOW), Proposal::Probe(theirs));
    assert_eq!(
        lease(&mut here, mac(5), NOW),
        None,
        "it is nobody else's for that"
    );
    assert_eq!(offer(&mut here, mac(2), NOW), Some(theirs));
    assert_eq!(lease(&mut here, mac(2), NOW), Some(theirs));
    here.overhear(mac(4), ip(7), NOW);
    assert_eq!(here.leased(NOW), 2);
}
