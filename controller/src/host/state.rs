//! The states of a host's life, with upstream's names. Pure.

use std::fmt;

use muster_proto::kinds::BareMetalHost;

use super::draft::bounded;
use crate::hosts;

/// Where a host is in its life: `status.provisioning.state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Nobody has written a status yet.
    #[default]
    New,
    /// Without a BMC and without permission to use its ramdisk instead: shown, not touched.
    Unmanaged,
    /// Its BMC, or the session of its ramdisk, is asked for the first time.
    Registering,
    /// Its hardware is found out.
    Inspecting,
    /// RAID and firmware would be set up.
    Preparing,
    /// Ready to be given an image.
    Available,
    /// An image is written.
    Provisioning,
    /// It runs its image.
    Provisioned,
    /// Somebody else installed it: only its power is managed.
    ExternallyProvisioned,
    /// Its image is taken away.
    Deprovisioning,
    /// It is being deleted and switched off for that.
    PoweringOffBeforeDelete,
    /// It is being deleted and nothing is left but to let go.
    Deleting,
    /// A name that this version does not know: nothing is done.
    Foreign,
}

impl State {
    /// Every state with a name, in the order of a host's life.
    pub const ALL: [State; 12] = [
        State::New,
        State::Unmanaged,
        State::Registering,
        State::Inspecting,
        State::Preparing,
        State::Available,
        State::Provisioning,
        State::Provisioned,
        State::ExternallyProvisioned,
        State::Deprovisioning,
        State::PoweringOffBeforeDelete,
        State::Deleting,
    ];

    /// The state that upstream's word means; `match profile` and `ready` are words of older versions.
    pub fn parse(word: &str) -> State {
        match word {
            "" => State::New,
            "unmanaged" => State::Unmanaged,
            "registering" => State::Registering,
            "inspecting" => State::Inspecting,
            "match profile" | "preparing" => State::Preparing,
            "ready" | "available" => State::Available,
            "provisioning" => State::Provisioning,
            "provisioned" => State::Provisioned,
            "externally provisioned" => State::ExternallyProvisioned,
            "deprovisioning" => State::Deprovisioning,
            "powering off before delete" => State::PoweringOffBeforeDelete,
            "deleting" => State::Deleting,
            _ => State::Foreign,
        }
    }

    /// True if the way to the host's machine was found once.
    pub(crate) fn is_registered(self) -> bool {
        !matches!(self, State::New | State::Unmanaged | State::Registering)
    }

    /// The state of `host`.
    pub fn of(host: &BareMetalHost) -> State {
        State::parse(hosts::state_word(host))
    }

    /// Upstream's word.
    pub fn name(self) -> &'static str {
        match self {
            State::New => "",
            State::Unmanaged => "unmanaged",
            State::Registering => "registering",
            State::Inspecting => "inspecting",
            State::Preparing => "preparing",
            State::Available => "available",
            State::Provisioning => "provisioning",
            State::Provisioned => "provisioned",
            State::ExternallyProvisioned => "externally provisioned",
            State::Deprovisioning => "deprovisioning",
            State::PoweringOffBeforeDelete => "powering off before delete",
            State::Deleting => "deleting",
            State::Foreign => "unknown",
        }
    }

    /// What it means, for the page about states.
    pub fn meaning(self) -> &'static str {
        match self {
            State::New => "no status has been written yet",
            State::Unmanaged => {
                "it has no BMC, and Muster is not allowed to use its ramdisk instead: shown, but not touched"
            }
            State::Registering => "its BMC, or its ramdisk's session, is contacted for the first time",
            State::Inspecting => "its hardware is being inspected",
            State::Preparing => "RAID and firmware would be set up here",
            State::Available => "ready for an image",
            State::Provisioning => "its disks are being cleaned and an image is being written",
            State::Provisioned => "it runs its image; only its power is managed",
            State::ExternallyProvisioned => "it was installed by somebody else; only its power is managed",
            State::Deprovisioning => "its image is being removed: its disks are cleaned",
            State::PoweringOffBeforeDelete => "it is being deleted, and is powered off first",
            State::Deleting => {
                "it is being deleted, and only its Secrets and finalizers remain to be released"
            }
            State::Foreign => "a state that this version does not know: nothing is done",
        }
    }

    /// True if a machine whose host is in this state, and asks for nothing that forbids it, boots its ramdisk.
    pub fn boots_ramdisk(self) -> bool {
        matches!(
            self,
            State::Registering
                | State::Inspecting
                | State::Preparing
                | State::Available
                | State::Provisioning
                | State::Deprovisioning
        )
    }

    /// True if a host in this state takes one of the slots of hosts that are busy at once.
    pub fn is_busy(self) -> bool {
        matches!(
            self,
            State::Inspecting | State::Provisioning | State::Deprovisioning
        )
    }

    /// True if an operating system that somebody uses may run on the host.
    pub fn is_provisioned(self) -> bool {
        matches!(self, State::Provisioned | State::ExternallyProvisioned)
    }

    /// True if nobody has done anything with the machine of the host yet.
    pub fn is_young(self) -> bool {
        matches!(self, State::New | State::Unmanaged)
    }

    /// True if somebody's data may be on the machine of a host in this state.
    pub fn may_carry_data(self) -> bool {
        let carries_nothing = [
            State::New,
            State::Unmanaged,
            State::Registering,
            State::Inspecting,
            State::Preparing,
            State::Available,
        ];
        !carries_nothing.contains(&self)
    }

    /// True if the host rests in this state and its power follows `spec.online`.
    pub fn is_steady(self) -> bool {
        self == State::Available || self.is_provisioned()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// That the state that is called `word` is none of this version's.
pub(super) fn unknown(word: &str) -> String {
    bounded(&format!(
        "the state `{word}` of the host is unknown to this version"
    ))
}

/// What is wrong with the state of `host`, for people; none: it is a known one.
pub(super) fn unreadable(host: &BareMetalHost) -> Option<String> {
    (State::of(host) == State::Foreign).then(|| {
        bounded(&format!(
            "{}; next: Muster does nothing to the host until a version that knows this state has moved it on; if the host is deleted, it is released as it is",
            unknown(hosts::state_word(host))
        ))
    })
}
