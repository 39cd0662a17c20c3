//! Which known machine is this? One answer from several signals; none of them proves anything. Pure.
//!
//! A MAC address of a vendor identifies a NIC, and a NIC rarely moves. A locally administered one counts less: virtual machines are
//! given them by hand, and vendors build the same one into the BMC's USB interface of every server. So two machines *meet* by
//! MAC address if they share a vendor's one, or the one that boots now, or any one where one of them has no vendor's at all.
//!
//! | meet by | serial | UUID | the machine is | |
//! | --- | --- | --- | --- | --- |
//! | vendor's MAC | differs | differs | another | a NIC moved: its address goes to where it is now |
//! | vendor's MAC | any other | | the same, but see below | board swapped, or the firmware's data changed |
//! | local MAC | differs | the same | the same | |
//! | local MAC | differs | any other | another | addresses made up twice |
//! | local MAC | same or unusable | | the same | |
//! | nothing | the same | differs | another, and a clash | nodes of one chassis, boards of some vendors |
//! | nothing | the same | any other | the same, unless that one is connected now from another address | NICs swapped |
//! | nothing | unusable | the same | another, and a clash | vendors ship one UUID on many boards |
//! | nothing | differs | the same | another, and a clash | |
//! | nothing | unusable | the same, and no MAC address on one side | the same, unless that one is connected now from another address | |
//! | nothing | | | another | |
//!
//! Of all that a machine claims, only the address that boots was seen on the network. So whatever the table says, nobody takes the
//! place of a machine that is connected now but by booting from one of its addresses, or from where its session did.
//!
//! A board that was swapped and a NIC that moved into another machine look alike where no serial number tells. With another UUID, and
//! without a serial number that is the same, a machine is therefore another one than one that is connected now, unless it boots from the
//! very address that that did. A machine whose UUID is known and that claims none counts as one with another UUID: firmware does not lose
//! it, and a liar need not know it. Than one whose host is in use it is another one if it neither has its UUID nor boots from an address
//! that that has had, whatever else is the same: serial numbers are printed on machines.
//!
//! Who is on one Segment sees what is sent there, and nothing of other Segments. So on another Segment than that of its latest session
//! nobody takes the place of a machine that is connected, or whose host is in use, without its UUID (where more trust is asked for, one whose
//! UUID nobody knows gives way); and on a Segment that asks for less
//! trust nobody takes the place of any machine: else one careless Segment would give away what the others protect. A machine that was moved
//! to such a Segment is known there once its Server is deleted.
//!
//! If several known machines fit, the one with most signals wins: serial before vendor's MAC before UUID before local MAC.
//! Every other machine that still shares a signal is a clash, shown on both; one that has its share of them already does not show it. A MAC
//! address that another machine has leaves it, unless that machine is connected now or its host is in use: then it stays there and is a
//! clash.

use std::{cmp::Reverse, collections::BTreeSet};

use muster_proto::{Mac, identity::Identity, kinds::ServerStatus, text};

/// The most MAC addresses that are kept of one machine.
const MAX_MACS: usize = 1024;

/// The most clashes that are kept of one machine: some vendors ship thousands of boards with one UUID, and each clash is a write to the other
/// Server, too.
pub(super) const MAX_CLASHES: usize = 64;

/// A machine that is known already.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// Its Server's name.
    pub name: &'a str,
    /// Every signal by which it was ever known.
    pub identity: &'a Identity,
    /// Its agent is connected now.
    pub live: bool,
    /// The address that its session booted from, which may be withheld from its identity.
    pub booted: Option<Mac>,
    /// Its host carries someone's data: nothing that a stranger reports takes an address from it.
    pub in_use: bool,
    /// Where the one that it is compared with is.
    pub seen: Seen,
}

/// Where a machine that enrols or reports is, as seen from the Segment of a known machine's latest session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// On the same Segment.
    There,
    /// On another Segment, which asks for as much trust; or nobody knows any more what the known machine's asked for.
    Elsewhere,
    /// On another Segment, which asks for more trust.
    WithMoreTrust,
    /// On another Segment, which asks for less trust.
    WithLessTrust,
}

impl Machine<'_> {
    /// True if it is connected, and a machine that boots from `boot` is another one: see the head of this module.
    pub fn keeps_its_place(&self, boot: Option<Mac>) -> bool {
        let boots_as_it = |boot| self.identity.macs.contains(&boot) || self.booted == Some(boot);
        self.live && !boot.is_some_and(boots_as_it)
    }

    /// True if one on that Segment is another machine whatever it claims, but for the UUID.
    fn is_out_of_reach(&self, uuid: Signal) -> bool {
        let is_held = self.live || self.in_use;
        match self.seen {
            Seen::There => false,
            Seen::Elsewhere => is_held && uuid != Signal::Same,
            // Whoever was first where less is asked for, and told no UUID, does not keep the machine out.
            Seen::WithMoreTrust => is_held && uuid != Signal::Same && self.identity.system_uuid.is_some(),
            Seen::WithLessTrust => true,
        }
    }

    /// True if it may be the machine that is `claimed` and boots from `boot`: nothing is known of it, or enough is the same.
    pub fn may_be(&self, claimed: &Identity, boot: Option<Mac>) -> bool {
        match self.identity.is_empty() {
            true => !self.keeps_its_place(boot) && self.seen != Seen::WithLessTrust,
            false => score(claimed, boot, self).is_some(),
        }
    }
}

/// Who speaks, and what its words may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A machine that enrols: it is where it is, addresses follow it.
    Enrolment,
    /// A report in a session: it adds what nobody else claims.
    Report,
}

/// Who the machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its Server's name.
    pub name: String,
    /// True if there is no such Server yet.
    pub new: bool,
}

/// What is then known of it and of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Every signal by which the machine is known from now on.
    pub identity: Identity,
    /// Addresses that leave another Server.
    pub moved: BTreeSet<(String, Mac)>,
    /// Servers that share a signal and are another machine; of more than are kept, the first ones.
    pub clashes: BTreeSet<String>,
}

impl Settled {
    /// True if all of it stands in `status` already, and nothing leaves another Server.
    pub fn is_known(&self, status: &ServerStatus) -> bool {
        self.moved.is_empty() && self.identity == status.identity && self.clashes.iter().eq(&status.clashes)
    }
}

/// Nothing identifies the machine: no usable serial or UUID and no NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing identifies this machine: no usable serial number, no usable UUID and no MAC address")]
pub struct Nobody;

/// `claimed` cleaned, within bounds, with the address that boots among the others.
pub fn whole(claimed: &Identity, boot: Option<Mac>) -> Identity {
    let mut claimed = claimed.normalised();
    let boot = boot.filter(|mac| mac.is_unicast());
    claimed.macs = boot
        .into_iter()
        .chain(claimed.macs.iter().copied())
        .take(MAX_MACS)
        .collect();
    claimed
}

/// Which machine `claimed` (as [`whole`] makes it) is; `boot` is the address that asked for the boot files.
/// `taken` are further names that a new machine must not get.
pub fn resolve(
    claimed: &Identity,
    boot: Option<Mac>,
    machines: &[Machine<'_>],
    taken: &BTreeSet<String>,
) -> Result<Resolved, Nobody> {
    let base = base_name(claimed, boot).ok_or(Nobody)?;
    let fits = machines.iter().filter_map(|machine| {
        let score = score(claimed, boot, machine)?;
        let shared = claimed.macs.intersection(&machine.identity.macs).count();
        Some((score, shared, Reverse(machine.name)))
    });
    if let Some((_, _, Reverse(name))) = fits.max() {
        return Ok(Resolved {
            name: name.to_owned(),
            new: false,
        });
    }
    let numbered = (2_u64..).map(|number| format!("{base}-{number}"));
    let owner = |name: &String| machines.iter().find(|machine| machine.name == name);
    // A Server of which nothing is known was made by an enrolment that got no further, or by hand for this machine.
    let blank = |machine: &Machine<'_>| {
        let is_free = !machine.live && !machine.in_use && machine.seen != Seen::WithLessTrust;
        machine.identity.is_empty() && is_free
    };
    let name = std::iter::once(base.clone())
        .chain(numbered)
        .find(|name| !taken.contains(name) && owner(name).is_none_or(blank))
        .expect("numbers do not end");
    let new = owner(&name).is_none();
    Ok(Resolved { name, new })
}

/// What follows when the Server called `name`, known as `known` until now, claims `claimed`.
pub fn settle(
    name: &str,
    known: &Identity,
    claimed: &Identity,
    boot: Option<Mac>,
    machines: &[Machine<'_>],
    word: Word,
) -> Settled {
    // An older version may have stored what is known by now to say nothing.
    let known = &known.normalised();
    let mut settled = Settled::default();
    let mut withheld = BTreeSet::new();
    for other in machines.iter().filter(|other| other.name != name) {
        let relation = Relation::of(claimed, other.identity);
        let shared = meeting(claimed, boot, other.identity);
        let keeps = word == Word::Report || other.live || other.in_use || other.seen == Seen::WithLessTrust;
        let clash = relation.serial == Signal::Same
            || relation.uuid == Signal::Same
            || relation.board == Signal::Same
            || (keeps && !shared.is_empty());
        if clash {
            settled.clashes.insert(other.name.to_owned());
        }
        if keeps {
            withheld.extend(shared);
        } else {
            settled
                .moved
                .extend(shared.into_iter().map(|mac| (other.name.to_owned(), mac)));
        }
    }
    // Always the same ones: none comes and goes with the order in which the machines are looked at.
    settled.clashes = settled.clashes.into_iter().take(MAX_CLASHES).collect();
    settled.moved.retain(|(_, mac)| !withheld.contains(mac));
    // A machine that enrols says what it is now; a report only fills gaps.
    let pick = |claimed: &Option<String>, known: &Option<String>| match word {
        Word::Enrolment => claimed.clone().or_else(|| known.clone()),
        Word::Report => known.clone().or_else(|| claimed.clone()),
    };
    let granted = claimed.macs.difference(&withheld);
    settled.identity = Identity {
        system_uuid: pick(&claimed.system_uuid, &known.system_uuid),
        system_serial: pick(&claimed.system_serial, &known.system_serial),
        board_serial: pick(&claimed.board_serial, &known.board_serial),
        macs: match word {
            Word::Enrolment => bounded(granted.chain(&known.macs)),
            Word::Report => bounded(known.macs.iter().chain(granted)),
        },
    };
    settled
}

/// Adds those of `more` to `clashes` that are not among them, as long as there are fewer than [`MAX_CLASHES`], in order.
pub(super) fn add_clashes<'a>(clashes: &mut Vec<String>, more: impl IntoIterator<Item = &'a String>) {
    for name in more {
        if clashes.len() < MAX_CLASHES && !clashes.contains(name) {
            clashes.push(name.clone());
        }
    }
    clashes.sort_unstable();
}

/// The first [`MAX_MACS`] different addresses.
fn bounded<'a>(macs: impl Iterator<Item = &'a Mac>) -> BTreeSet<Mac> {
    let mut out = BTreeSet::new();
    for mac in macs {
        if out.len() == MAX_MACS {
            break;
        }
        out.insert(*mac);
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Same,
    Differs,
    /// Unusable on one side.
    Unknown,
}

struct Relation {
    uuid: Signal,
    serial: Signal,
    board: Signal,
}

impl Relation {
    fn of(one: &Identity, other: &Identity) -> Relation {
        type IsSame = fn(&str, &str) -> bool;
        let signal = |one: &Option<String>, other: &Option<String>, is_same: IsSame| match (one, other) {
            (Some(one), Some(other)) if is_same(one, other) => Signal::Same,
            (Some(_), Some(_)) => Signal::Differs,
            _ => Signal::Unknown,
        };
        let is_same = str::eq_ignore_ascii_case;
        Relation {
            // Updated firmware may tell it in the other byte order.
            uuid: signal(&one.system_uuid, &other.system_uuid, text::is_same_uuid),
            serial: signal(&one.system_serial, &other.system_serial, is_same),
            board: signal(&one.board_serial, &other.board_serial, is_same),
        }
    }
}

/// The shared addresses that mean anything: see the head of this module.
fn meeting(claimed: &Identity, boot: Option<Mac>, known: &Identity) -> BTreeSet<Mac> {
    let only_local = |identity: &Identity| identity.macs.iter().all(|mac| mac.is_local());
    let any = only_local(claimed) || only_local(known);
    let shared = claimed.macs.intersection(&known.macs).copied();
    shared
        .filter(|mac| any || !mac.is_local() || Some(*mac) == boot)
        .collect()
}

/// How strongly `claimed` looks like `machine`; `None` if it is another one.
fn score(claimed: &Identity, boot: Option<Mac>, machine: &Machine<'_>) -> Option<u32> {
    if machine.keeps_its_place(boot) {
        return None;
    }
    let Relation { uuid, serial, .. } = Relation::of(claimed, machine.identity);
    if machine.is_out_of_reach(uuid) {
        return None;
    }
    let had = boot.is_some_and(|boot| machine.identity.macs.contains(&boot));
    let booted = boot.is_some() && boot == machine.booted;
    let has_uuid = machine.identity.system_uuid.is_some();
    let is_hidden = has_uuid && claimed.system_uuid.is_none();
    let has_another = (uuid == Signal::Differs && serial != Signal::Same) || is_hidden;
    let is_out_of_place = machine.live && !booted && has_another;
    let is_a_stranger = machine.in_use && !had && !booted && uuid != Signal::Same;
    if is_out_of_place || is_a_stranger {
        return None;
    }
    let shared = meeting(claimed, boot, machine.identity);
    let vendors = shared.iter().any(|mac| !mac.is_local());
    let same = if vendors {
        !(serial == Signal::Differs && uuid == Signal::Differs)
    } else if !shared.is_empty() {
        serial != Signal::Differs || uuid == Signal::Same
    } else {
        let no_macs = claimed.macs.is_empty() || machine.identity.macs.is_empty();
        let by_uuid = uuid == Signal::Same && serial == Signal::Unknown && no_macs;
        let by_serial = serial == Signal::Same && uuid != Signal::Differs;
        (!machine.live || booted) && (by_serial || by_uuid)
    };
    let points = [
        (serial == Signal::Same, 8),
        (vendors, 5),
        // Of one without any NIC it is all there is: less than an address.
        (uuid == Signal::Same, if shared.is_empty() { 1 } else { 4 }),
        (!shared.is_empty(), 2),
    ];
    // Rather the Server that was told apart by its UUID before.
    let is_doubtful = machine.in_use && uuid == Signal::Differs && serial != Signal::Same;
    let points = points
        .into_iter()
        .filter_map(|(holds, points)| (holds && !is_doubtful).then_some(points));
    same.then(|| points.sum())
}

/// What a new machine is called, before a number is added: after the address that boots, else the lowest one, else the serial, else
/// the UUID.
pub(super) fn base_name(claimed: &Identity, boot: Option<Mac>) -> Option<String> {
    let mac = boot
        .filter(|mac| mac.is_unicast())
        .or_else(|| claimed.macs.first().copied());
    if let Some(mac) = mac {
        return Some(format!("mac-{}", mac.hex()));
    }
    let named = |kind: &str, value: &Option<String>| {
        let label = text::dns_label(value.as_deref()?, 40);
        (!label.is_empty()).then(|| format!("{kind}-{label}"))
    };
    named("serial", &claimed.system_serial)
        .or_else(|| named("uuid", &claimed.system_uuid))
        .or_else(|| named("board", &claimed.board_serial))
}

#[cfg(test)]
mod tests;
