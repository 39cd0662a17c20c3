//! Who answers ARP probes for addresses that it does not use: a router that does so for all of them (proxy ARP) would leave no address
//! to offer. Pure: the time is passed in.

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use muster_proto::Mac;

use crate::bounded::make_room;

/// Who answered for so many addresses answers for every one. Hardly a device has as many of its own amid those that a Segment leases, and
/// where one has, a machine that is given one of them may notice and decline it.
pub const MANY: usize = 8;

/// The same of a smaller pool: a device may well have a few of its own.
const FEW: usize = 4;

/// How long who did is not believed after its last answer. A router answers again tomorrow, and one that was believed again could keep a
/// pool that is nearly full from ever having a free address.
const DISBELIEVED: Duration = Duration::from_secs(86_400);

/// The most devices that are remembered.
const MAX: usize = 64;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nobody else uses the address.
    Free,
    /// This device uses it.
    Taken(Mac),
    /// It counts as free: who answered does so for every address.
    Unknown {
        /// Who answered.
        by: Mac,
        /// It was believed before.
        is_news: bool,
    },
}

/// What one device answered.
#[derive(Clone, Debug, Default)]
struct Device {
    /// For which addresses, and until when that counts; fewer than are many.
    addresses: Vec<(Ipv4Addr, Duration)>,
    /// It answered for many; not believed until then.
    disbelieved: Duration,
}

/// The devices of one segment that answered lately.
#[derive(Clone, Debug, Default)]
pub struct Answerers(HashMap<Mac, Device>);

impl Answerers {
    /// What it means that `mac` answered for `address`, one of `pool`; that it did is remembered for `span`.
    pub fn hear(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        pool: usize,
        span: Duration,
        now: Duration,
    ) -> Finding {
        let many = MANY.min(pool).max(FEW);
        if !self.0.contains_key(&mac) {
            // Who forges answers does not make us believe again.
            make_room(&mut self.0, MAX, |device| device.disbelieved > now);
        }
        let device = self.0.entry(mac).or_default();
        let was_believed = device.disbelieved <= now;
        device
            .addresses
            .retain(|(one, until)| *one != address && *until > now);
        device.addresses.push((address, now + span));
        if was_believed && device.addresses.len() < many {
            return Finding::Taken(mac);
        }
        device.addresses.clear();
        device.disbelieved = now + DISBELIEVED;
        Finding::Unknown {
            by: mac,
            is_news: was_believed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(600);
    const NOW: Duration = Duration::from_secs(1000);
    const TAKEN: Finding = Finding::Taken(Mac([2, 0, 0, 0, 0, 1]));

    fn unknown(is_news: bool) -> Finding {
        Finding::Unknown { by: mac(1), is_news }
    }

    fn mac(number: u32) -> Mac {
        let [a, b, c, d] = number.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    fn ip(last: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(last).unwrap())
    }

    /// What the device says for each of the first `number` addresses.
    fn hear(answerers: &mut Answerers, number: usize, now: Duration) -> Vec<Finding> {
        let each = (0..number).map(|last| answerers.hear(mac(1), ip(last), 100, SPAN, now));
        each.collect()
    }

    #[test]
    fn who_answers_for_many_addresses_is_believed_no_more_until_it_is_silent_for_long() {
        let mut answerers = Answerers::default();
        let first = hear(&mut answerers, MANY + 1, NOW);
        assert_eq!(first[..MANY - 1], [TAKEN; MANY - 1]);
        assert_eq!(first[MANY - 1..], [unknown(true), unknown(false)]);
        let later = NOW + DISBELIEVED - Duration::from_secs(1);
        assert_eq!(hear(&mut answerers, 1, later), [unknown(false)]);
        assert_eq!(hear(&mut answerers, 1, later + DISBELIEVED), [TAKEN]);
    }

    #[test]
    fn in_a_small_pool_fewer_addresses_are_many() {
        for (pool, many) in [(100, MANY), (5, 5), (2, FEW)] {
            let mut answerers = Answerers::default();
            let found = (0..many).map(|last| answerers.hear(mac(1), ip(last), pool, SPAN, NOW));
            let found: Vec<Finding> = found.collect();
            assert_eq!(found[..many - 1], vec![TAKEN; many - 1], "{pool}");
            assert_eq!(found[many - 1], unknown(true), "{pool}");
        }
    }

    #[test]
    fn a_device_with_some_addresses_is_believed_however_often_it_answers() {
        let mut answerers = Answerers::default();
        for _ in 0..100 {
            let all = hear(&mut answerers, MANY - 1, NOW);
            assert_eq!(all, [TAKEN; MANY - 1]);
        }
        // One that was given another address of late.
        assert_eq!(answerers.hear(mac(1), ip(99), 100, SPAN, NOW + SPAN), TAKEN);
    }

    #[test]
    fn who_forges_answers_is_not_remembered_without_end_and_lets_nobody_be_believed_again() {
        let mut answerers = Answerers::default();
        hear(&mut answerers, MANY, NOW);
        for number in 2..100_000 {
            answerers.hear(mac(number), ip(1), 100, SPAN, NOW);
        }
        assert!(answerers.0.len() <= MAX);
        assert_eq!(hear(&mut answerers, 1, NOW), [unknown(false)]);
    }
}
