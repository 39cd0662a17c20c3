//! From BareMetalHost to what is done about it: the operator. Writes BareMetalHost (status, finalizer, consumed annotations),
//! HardwareData, the jobs of Servers, labels and holds on Secrets.
//!
//! [`next`](next::next) decides, alone and without IO. What it looks at is an [`Observed`]; what it says is a [`Plan`]; where the
//! host is in its life is a [`State`]; `docs/states.md` is made of [`table`].
//!
//! ```text
//! reconcile                 the loop: who is looked at, and when
//!   index, slots, rivals    who has to do with whom, who may be busy, which hosts declare one machine
//!   observe, memory         what a round looks at, and what only this process knows
//!   execute, bmcs           a plan is carried out: the API server's part, the BMC's part
//!   vault, content, drive   Secrets: found and held, looked into, sealed as a config drive
//!   counts, metrics         what is counted
//! next                      the decision (pure, with all below)
//!   observed, draft, plan   what it looks at, the plan while it is made, the plan
//!   state, table, reasons   states, ways between them, reasons of Events: as data
//!   conditions, wait_reason what people wait for
//!   owner, detached,        whose the host is, and when it is left alone or restored
//!     restore
//!   registration, access,   the BMC is reached, and is the machine's own
//!     bmc_identity
//!   inspection, preparing,  the states of a life, one file each
//!     available, provisioning, provisioned, deprovisioning, deletion
//!   power, in_band, reboot  the power, with a BMC and without
//!   ramdisk, netboot, jobs  the machine in its ramdisk, what boots it, what it is told
//!   ramdisk/presence,       whether it is there, how a BMC boots it, and one that does not
//!     ramdisk/starting, ramdisk/unbooted
//!   interrupted             ramdisks that were lost in the middle of it
//!   disk, image, secrets    which disk, which image, which Secrets
//!   guard                   permission to destroy data
//!   slots, slot_state,      the slots of hosts that are busy at once, pauses after
//!     backoff               failures
//! ```

mod access;
mod available;
mod backoff;
mod bmc_identity;
pub mod bmcs;
pub mod boot_mode;
pub mod conditions;
mod counts;
mod deletion;
mod deprovisioning;
mod detached;
mod disk;
mod draft;
mod drive;
pub mod execute;
pub mod guard;
mod image;
pub mod in_band;
pub mod index;
mod inspection;
pub mod interrupted;
mod jobs;
pub mod memory;
pub mod metrics;
pub mod netboot;
pub mod next;
pub mod observe;
pub mod observed;
pub mod owner;
pub mod plan;
mod power;
mod preparing;
mod provisioned;
mod provisioning;
mod ramdisk;
pub mod reasons;
mod reboot;
pub mod reconcile;
mod registration;
mod report;
mod restore;
mod rivals;
mod secret_content;
mod secrets;
mod slot_state;
pub mod slots;
pub mod state;
pub mod table;
pub mod vault;
mod wait_reason;

pub use bmcs::Bmcs;
pub use jobs::is_for_another;
pub use metrics::Metrics;
pub use next::next;
pub use observed::Observed;
pub use owner::{Owner, owner};
pub use plan::{BmcCall, Effect, Plan};
pub use reconcile::{Config, run};
pub(crate) use rivals::precedence;
pub use rivals::rivals;
pub use secrets::bmc_secret;
pub use state::State;
pub use wait_reason::WaitReason;

#[cfg(test)]
mod tests;
