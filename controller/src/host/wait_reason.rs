//! Why a host waits: the reasons of the condition `Waiting` while it is true, as data. Deadlines hang on them. Pure.

/// The reasons, called as the API has them, each with what is waited for, as the page about states has it.
macro_rules! reasons {
    ($($name:ident: $waits_for:literal,)*) => {
        /// For what a host waits. The time of one that stands for an operation begins that, the time of `Retry` is that of the failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum WaitReason {
            $(#[doc = $waits_for] $name,)*
        }

        impl WaitReason {
            /// Every reason.
            pub const ALL: &[WaitReason] = &[$(WaitReason::$name,)*];

            /// The word of the API.
            pub fn name(self) -> &'static str {
                match self {
                    $(WaitReason::$name => stringify!($name),)*
                }
            }

            /// What is waited for, for the page about states.
            pub fn doc(self) -> &'static str {
                match self {
                    $(WaitReason::$name => $waits_for,)*
                }
            }
        }
    };
}

reasons! {
    Bmc: "the BMC's answer",
    Clean: "the ramdisk to clear the disks",
    Contested: "**a person**: two keys showed one boot token; look for a foreign device on the segment, then boot the machine again",
    Delay: "the pause before another provisioning is over; a change of the spec ends it",
    Detached: "the annotation `baremetalhost.metal3.io/detached` to be removed",
    HeldOff: "the annotations `reboot.metal3.io/KEY` that the message names to be removed: they hold the machine off",
    Inputs: "a Secret that is named and not there, or cannot be read now: make it, with the keys that the message names",
    Inspection: "the ramdisk to tell the hardware, or the HardwareData to be written; the message says what keeps it from that",
    Inventory: "the ramdisk to tell its disks, or to load the drivers of all that is in the machine",
    Leave: "the machine to leave its ramdisk for the system that it has",
    Management: "**a person** who manages the machine: set `spec.bmc`, or `muster.dev/in-band` (`docs/provision.md`)",
    Online: "`spec.online` to be true: no image is written to a machine that is to be off",
    Place: "a free provisioning slot: as many hosts are busy as `--provisioning-limit` allows",
    PowerByHand: "**a person** who switches the machine on or off: it has no BMC",
    PowerCycleByHand: "**a person** who power-cycles the machine: it has no BMC, and boots the ramdisk when it starts (\"Hosts without a BMC\")",
    PoweringOff: "the machine to go off",
    PoweringOn: "the machine to go on",
    Ramdisk: "the ramdisk to call in, 15 minutes at most after the machine was booted; where nobody but a person can boot it, they are asked to then",
    Rebooting: "the ramdisk to call in again after a reboot from within",
    Refused: "**a person** who corrects what the message names: what is asked for cannot be done",
    Retry: "the pause before another attempt is over; the message says what failed",
    Trust: "**a person**: the session may not be told secrets; the message says what allows it (`SECURITY.md`); before anything is begun, in `available`, the same is a `provisioning error` with the reason `Refused`",
    Write: "the ramdisk to write the image; its Server shows how far it is",
}

impl WaitReason {
    /// The reason that is called `word`; none: no such reason is known to this version.
    pub(super) fn parse(word: &str) -> Option<WaitReason> {
        WaitReason::ALL
            .iter()
            .copied()
            .find(|reason| reason.name() == word)
    }

    /// True if a person has to act, who is to be told at once.
    pub(super) fn needs_person(self) -> bool {
        matches!(
            self,
            WaitReason::Contested
                | WaitReason::PowerByHand
                | WaitReason::PowerCycleByHand
                | WaitReason::Trust
        )
    }

    /// True if what is waited for does not come before a person acts or changes something.
    pub(super) fn is_left_to_a_person(self) -> bool {
        self.needs_person() || matches!(self, WaitReason::Refused | WaitReason::Management)
    }
}
