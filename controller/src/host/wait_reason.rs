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
    Clean: "the ramdisk to clean the disks",
    Contested: "**a person**: two clients presented the machine's one-time boot token; look for a foreign device on the segment, then reboot the machine",
    Delay: "the end of the pause before the next attempt to provision; a change of the spec ends it early",
    Detached: "the annotation `baremetalhost.metal3.io/detached` to be removed",
    HeldOff: "the annotations `reboot.metal3.io/KEY` that the message names to be removed: they keep the machine off",
    Inputs: "a Secret that the host names and that could not be read so far; the message says why (one that does not exist, or lacks a key, is `Refused`)",
    Inspection: "the ramdisk to report the hardware, or the HardwareData to be written; the message says what prevents that",
    Inventory: "the ramdisk to report the disks, or to load the drivers for all of the machine's hardware",
    Leave: "the machine to leave its ramdisk and boot its own system",
    Management: "**a person** to make the machine manageable: set `spec.bmc`, or `muster.dev/in-band` (`docs/provision.md`)",
    Online: "`spec.online` to be true: no image is written to a machine that should be off",
    Place: "a free provisioning slot: as many hosts are busy as `--provisioning-limit` allows",
    PowerByHand: "**a person** to power the machine on or off: it has no BMC",
    PowerCycleByHand: "**a person** to power-cycle the machine: it has no BMC, and boots the ramdisk when it starts (\"Hosts without a BMC\")",
    PoweringOff: "the machine to power off",
    PoweringOn: "the machine to power on",
    Ramdisk: "the ramdisk to call in, at most 15 minutes after the machine was booted; if only a person can boot it, Muster then asks for that",
    Rebooting: "the ramdisk to call in again after it was told to reboot the machine",
    Refused: "**a person** to correct what the message names: the request cannot be fulfilled, a Secret that the host names does not exist or lacks a key, or the API server does not let Muster mark the BMC's Secret",
    Retry: "the end of the pause before the next attempt; the message says what failed",
    Trust: "**a person**: the session is not trusted with secrets; the message says what would allow it (`SECURITY.md`); in `available`, before anything has begun, the same is a `provisioning error` with the reason `Refused`",
    Write: "the ramdisk to write the image; its Server shows the progress",
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
