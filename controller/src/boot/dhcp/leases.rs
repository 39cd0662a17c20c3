//! Who has which address. Pure: the time is passed in, as a duration since some start.
//!
//! A machine's address follows from its MAC address alone, so that ROM, iPXE, agent and installed system get the same one, before and
//! after a restart. An offer is only a hint and may be recycled; an acknowledged lease is never given to anybody else while it lasts.
//! What a machine had before a restart is a hint, too, but one that goes to nobody else while another address is free.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    time::Duration,
};

use muster_proto::Mac;

use super::answerers::{Answerers, Finding};
use crate::boot::segment::{Net, Subnet};

#[cfg(test)]
mod tests;

/// How long an offer stands.
const OFFER: Duration = Duration::from_secs(30);
/// How long an address on which a stranger answered is left alone.
const QUARANTINE: Duration = Duration::from_secs(600);
/// How long a probe's silence is believed.
const VERIFIED: Duration = Duration::from_secs(300);
/// The most offers at one time; an older one is recycled for a new one.
const MAX_OFFERS: usize = 4096;
/// How long a search that found every address taken is believed, unless one comes free.
const FULL: Duration = Duration::from_secs(1);

/// The addresses that a segment may lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    subnet: Subnet,
    ranges: Vec<(Ipv4Addr, Ipv4Addr)>,
}

impl Pool {
    /// A segment's pool.
    pub fn of(net: &Net) -> Pool {
        Pool {
            subnet: net.subnet,
            ranges: net.handout.ranges.clone(),
        }
    }

    /// How many addresses.
    pub fn len(&self) -> u32 {
        self.ranges
            .iter()
            .map(|(start, end)| end.to_bits() - start.to_bits() + 1)
            .sum()
    }

    /// How many addresses it has.
    fn size(&self) -> usize {
        let sizes = self.ranges.iter().map(|(first, last)| {
            let between = u32::from(*last).saturating_sub(u32::from(*first));
            usize::try_from(between).unwrap_or(usize::MAX).saturating_add(1)
        });
        sizes.fold(0, usize::saturating_add)
    }

    /// True for a pool without any address.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        self.ranges
            .iter()
            .any(|(start, end)| (*start..=*end).contains(&address))
    }

    /// The address at place `at`, counted round and round.
    fn nth(&self, at: u32) -> Option<Ipv4Addr> {
        let mut rest = at.checked_rem(self.len())?;
        for (start, end) in &self.ranges {
            let length = end.to_bits() - start.to_bits() + 1;
            if rest < length {
                return Some(Ipv4Addr::from_bits(start.to_bits() + rest));
            }
            rest -= length;
        }
        None
    }
}

/// What one machine has.
#[derive(Clone, Copy, Debug)]
struct Holding {
    address: Ipv4Addr,
    until: Duration,
    /// Acknowledged, or else offered or remembered under this number.
    hint: Option<u64>,
}

/// What is known of one address.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    owner: Option<Mac>,
    /// Probed and found silent; believed until then.
    verified: Duration,
    /// In use by a stranger; left alone until then.
    shunned: Duration,
    /// The stranger, if it showed itself.
    stranger: Option<Mac>,
    /// Another machine than the owner was heard to take it, too.
    doubted: bool,
}

impl Slot {
    /// True if it is left alone for a stranger's sake, who is not `mac`.
    fn is_shunned_for(&self, mac: Mac, now: Duration) -> bool {
        self.shunned > now && self.stranger != Some(mac)
    }
}

/// The proposal for a machine that looks for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Offer this.
    Ready(Ipv4Addr),
    /// Reserved, but ask the network first whether somebody uses it; then [`Leases::probed`], then propose again.
    Probe(Ipv4Addr),
    /// Every address is leased, or left alone because it is in use.
    Full,
}

/// How a machine asks for a certain address (RFC 2131, 4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It takes our offer.
    Selecting(Ipv4Addr),
    /// It was off and wants its former address.
    InitReboot(Ipv4Addr),
    /// It has the address and wants to keep it.
    Extending(Ipv4Addr),
}

/// The answer to a [`Claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It is its own for another lease time.
    Yes(Ipv4Addr),
    /// It must not use it.
    No(&'static str),
    /// Not ours to say.
    NotOurs(&'static str),
}

/// All leases of one segment.
#[derive(Clone, Debug)]
pub struct Leases {
    pool: Pool,
    lease: Duration,
    holdings: HashMap<Mac, Holding>,
    slots: HashMap<Ipv4Addr, Slot>,
    /// Open offers, oldest first.
    offers: BTreeMap<u64, Mac>,
    /// What was seeded and not heard of since, the surest first.
    remembered: BTreeMap<u64, Mac>,
    next_hint: u64,
    full_until: Duration,
    recycled: u64,
    answerers: Answerers,
}

impl Leases {
    /// Nobody has anything.
    pub fn new(pool: Pool, lease: Duration) -> Leases {
        Leases {
            pool,
            lease,
            holdings: HashMap::new(),
            slots: HashMap::new(),
            offers: BTreeMap::new(),
            remembered: BTreeMap::new(),
            next_hint: 0,
            full_until: Duration::ZERO,
            recycled: 0,
            answerers: Answerers::default(),
        }
    }

    /// The segment was edited: what still lies in the pool is kept.
    pub fn reshape(&mut self, pool: Pool, lease: Duration) {
        self.lease = lease;
        if pool == self.pool {
            return;
        }
        self.pool = pool;
        self.full_until = Duration::ZERO;
        let gone: Vec<Mac> = self
            .holdings
            .iter()
            .filter(|(_, holding)| !self.pool.contains(holding.address))
            .map(|(mac, _)| *mac)
            .collect();
        for mac in gone {
            self.forget(mac);
        }
        self.slots.retain(|address, _| self.pool.contains(*address));
    }

    /// A machine that had this address before a restart. Seed the surest first: it weighs more than what comes after it.
    ///
    /// Nobody else is offered the address until the machine's lease must have ended, unless no other is free and a probe finds it
    /// silent. It is not leased: whoever has the address by now may say so and keep it.
    pub fn seed(&mut self, mac: Mac, address: Ipv4Addr, now: Duration) {
        if self.pool.contains(address) && self.is_free(mac, address, now) && !self.holds(mac, now) {
            self.forget(mac);
            let hint = self.number();
            self.remembered.insert(hint, mac);
            self.take(mac, address, now + self.lease, Some(hint));
        }
    }

    /// The addresses that are leased at the moment.
    pub fn leased(&self, now: Duration) -> usize {
        self.holdings
            .values()
            .filter(|holding| holding.hint.is_none() && holding.until > now)
            .count()
    }

    /// How many hints were taken back for somebody else.
    pub fn recycled(&self) -> u64 {
        self.recycled
    }

    /// An address for `mac`, which would like `wanted`.
    pub fn propose(&mut self, mac: Mac, wanted: Option<Ipv4Addr>, now: Duration) -> Proposal {
        self.drop_stale_offers(now);
        if let Some(holding) = self.holdings.get(&mac).copied() {
            if self.may_have(mac, holding.address, now) {
                match holding.hint {
                    _ if holding.until <= now => {}
                    None if self.slots.get(&holding.address).is_some_and(|slot| slot.doubted) => {
                        return self.ask_first(holding.address, now);
                    }
                    None => return Proposal::Ready(holding.address),
                    // Who asks and then takes nothing is remembered no less.
                    Some(hint) if self.remembered.contains_key(&hint) => {
                        return self.ask_first(holding.address, now);
                    }
                    Some(_) => {}
                }
                return self.reserve(mac, holding.address, now);
            }
            self.forget(mac);
        }
        let wanted =
            wanted.filter(|address| self.pool.contains(*address) && self.is_free(mac, *address, now));
        match wanted.or_else(|| self.search(mac, now)) {
            Some(address) => self.reserve(mac, address, now),
            None => Proposal::Full,
        }
    }

    /// Takes in what a probe of `address` for `mac` brought, the MAC address that answered or silence; what it means.
    pub fn probed(&mut self, mac: Mac, address: Ipv4Addr, answer: Option<Mac>, now: Duration) -> Finding {
        let stranger = answer.filter(|answer| *answer != mac);
        let finding = stranger.map_or(Finding::Free, |by| {
            self.answerers
                .hear(by, address, self.pool.size(), QUARANTINE, now)
        });
        if let Finding::Unknown { by, is_news: true } = finding {
            self.forgive(by);
        }
        if let Finding::Taken(by) = finding {
            self.shun(mac, address, Some(by), now);
        } else {
            self.slots.entry(address).or_default().verified = now + VERIFIED;
        }
        finding
    }

    /// A machine asks for a certain address.
    pub fn rule(&mut self, mac: Mac, claim: Claim, now: Duration) -> Ruling {
        self.drop_stale_offers(now);
        let (Claim::Selecting(address) | Claim::InitReboot(address) | Claim::Extending(address)) = claim;
        if self.pool.contains(address) {
            if self.may_have(mac, address, now) {
                self.acknowledge(mac, address, now);
                return Ruling::Yes(address);
            }
            return Ruling::No("another machine has this address");
        }
        match claim {
            Claim::Selecting(_) => Ruling::No("this address was not offered"),
            _ if !self.pool.subnet.contains(address) => Ruling::No("this address belongs to another network"),
            _ if self.holdings.contains_key(&mac) => Ruling::No("this machine has another address here"),
            _ => Ruling::NotOurs("it asks for an address outside of the ranges that is not known here"),
        }
    }

    /// A machine found `address` in use: true if it was its own.
    pub fn decline(&mut self, mac: Mac, address: Ipv4Addr, now: Duration) -> bool {
        let own = self
            .holdings
            .get(&mac)
            .is_some_and(|holding| holding.address == address);
        if own {
            self.shun(mac, address, None, now);
        }
        own
    }

    /// A machine gives `address` back: true if it was its own.
    pub fn release(&mut self, mac: Mac, address: Ipv4Addr) -> bool {
        let own = self
            .holdings
            .get(&mac)
            .is_some_and(|holding| holding.address == address);
        if own {
            self.forget(mac);
        }
        own
    }

    /// A machine took `address` from another replica of ours, which leases from the same ranges.
    pub fn overhear(&mut self, mac: Mac, address: Ipv4Addr, now: Duration) {
        if self.pool.contains(address) && self.may_have(mac, address, now) {
            self.acknowledge(mac, address, now);
        } else {
            self.withdraw(mac);
            self.doubt(address);
        }
    }

    /// Two machines may have `address`: whose lease it is here keeps it, and before it is offered that again the network is asked.
    fn doubt(&mut self, address: Ipv4Addr) {
        if let Some(slot) = self.slots.get_mut(&address) {
            slot.verified = Duration::ZERO;
            slot.doubted = true;
        }
    }

    /// A machine took another server's offer.
    pub fn withdraw(&mut self, mac: Mac) {
        if self
            .holdings
            .get(&mac)
            .is_some_and(|holding| holding.hint.is_some())
        {
            self.forget(mac);
        }
    }

    /// True if nobody but `mac` has a right to `address`, not even an offer; one that uses it without our leave may have it.
    fn is_free(&self, mac: Mac, address: Ipv4Addr, now: Duration) -> bool {
        let Some(slot) = self.slots.get(&address) else {
            return true;
        };
        !slot.is_shunned_for(mac, now) && slot.owner.is_none_or(|owner| !self.holds(owner, now))
    }

    /// True if `mac` may be given `address`: a lease of another machine stands in the way, a mere hint to one does not.
    fn may_have(&self, mac: Mac, address: Ipv4Addr, now: Duration) -> bool {
        let Some(slot) = self.slots.get(&address) else {
            return true;
        };
        if slot.is_shunned_for(mac, now) {
            return false;
        }
        slot.owner.is_none_or(|owner| {
            owner == mac
                || self
                    .holdings
                    .get(&owner)
                    .is_none_or(|holding| holding.hint.is_some() || holding.until <= now)
        })
    }

    fn holds(&self, mac: Mac, now: Duration) -> bool {
        self.holdings.get(&mac).is_some_and(|holding| holding.until > now)
    }

    /// The first free address from the machine's own place on; if there is none, that of the oldest open offer; without one, the
    /// least sure of those that are remembered.
    fn search(&mut self, mac: Mac, now: Duration) -> Option<Ipv4Addr> {
        if now >= self.full_until {
            let home = place(mac);
            // Past as many places as are spoken for there must be a free one.
            let steps = u32::try_from(self.slots.len())
                .unwrap_or(u32::MAX)
                .saturating_add(1);
            for step in 0..steps.min(self.pool.len()) {
                let address = self.pool.nth((home % self.pool.len()).wrapping_add(step))?;
                if self.is_free(mac, address, now) {
                    return Some(address);
                }
            }
            self.full_until = now + FULL;
        }
        let (_, &weakest) = self
            .offers
            .first_key_value()
            .or_else(|| self.remembered.last_key_value())?;
        let address = self.holdings.get(&weakest)?.address;
        self.recycle(weakest);
        Some(address)
    }

    fn reserve(&mut self, mac: Mac, address: Ipv4Addr, now: Duration) -> Proposal {
        self.forget(mac);
        if self.offers.len() >= MAX_OFFERS
            && let Some(oldest) = self.offers.first_key_value().map(|(_, mac)| *mac)
        {
            self.recycle(oldest);
        }
        let hint = self.number();
        self.offers.insert(hint, mac);
        self.take(mac, address, now + OFFER, Some(hint));
        self.ask_first(address, now)
    }

    /// Proposes `address`, by way of a probe unless one was silent lately.
    fn ask_first(&self, address: Ipv4Addr, now: Duration) -> Proposal {
        if self.slots.get(&address).is_some_and(|slot| slot.verified > now) {
            Proposal::Ready(address)
        } else {
            Proposal::Probe(address)
        }
    }

    fn number(&mut self) -> u64 {
        let number = self.next_hint;
        self.next_hint += 1;
        number
    }

    fn acknowledge(&mut self, mac: Mac, address: Ipv4Addr, now: Duration) {
        self.forget(mac);
        self.take(mac, address, now + self.lease, None);
    }

    /// Makes `mac` the one owner of `address`.
    fn take(&mut self, mac: Mac, address: Ipv4Addr, until: Duration, hint: Option<u64>) {
        if let Some(former) = self.slots.get(&address).and_then(|slot| slot.owner) {
            self.forget(former);
        }
        let slot = self.slots.entry(address).or_default();
        (slot.owner, slot.doubted) = (Some(mac), false);
        self.holdings.insert(mac, Holding { address, until, hint });
    }

    fn forget(&mut self, mac: Mac) {
        let Some(holding) = self.holdings.remove(&mac) else {
            return;
        };
        if let Some(hint) = holding.hint {
            self.offers.remove(&hint);
            self.remembered.remove(&hint);
        }
        if let Some(slot) = self.slots.get_mut(&holding.address) {
            slot.owner = None;
        }
        self.full_until = Duration::ZERO;
    }

    fn recycle(&mut self, mac: Mac) {
        let full_until = self.full_until;
        self.forget(mac);
        // Its address goes to the next one at once: the pool is as full as before.
        self.full_until = full_until;
        self.recycled += 1;
    }

    fn shun(&mut self, mac: Mac, address: Ipv4Addr, stranger: Option<Mac>, now: Duration) {
        // While its address was probed it may have taken another one.
        if self
            .holdings
            .get(&mac)
            .is_some_and(|holding| holding.address == address)
        {
            self.forget(mac);
        }
        let slot = self.slots.entry(address).or_default();
        slot.verified = Duration::ZERO;
        slot.shunned = now + QUARANTINE;
        slot.stranger = stranger;
    }

    /// What only `stranger` answered for is left alone no longer.
    fn forgive(&mut self, stranger: Mac) {
        for slot in self.slots.values_mut() {
            if slot.stranger == Some(stranger) {
                (slot.shunned, slot.stranger) = (Duration::ZERO, None);
            }
        }
        self.full_until = Duration::ZERO;
    }

    fn drop_stale_offers(&mut self, now: Duration) {
        while let Some(mac) = self.offers.first_key_value().map(|(_, mac)| *mac) {
            if self.holds(mac, now) {
                return;
            }
            self.forget(mac);
        }
    }
}

/// Where a machine's search starts: FNV-1a of its MAC address, folded.
fn place(mac: Mac) -> u32 {
    let hash = mac.0.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The lowest bits of FNV depend on few input bits; the fold brings the higher ones down.
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    u32::from_be_bytes([a ^ e, b ^ f, c ^ g, d ^ h])
}
