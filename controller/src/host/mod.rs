//! From BareMetalHost to what is done about it: the operator. Writes BareMetalHost (status, finalizer, consumed annotations),
//! HardwareData, the jobs of Servers, labels and holds on Secrets.
//!
//! [`next`](next::next) decides, alone and without IO. What it looks at is an [`Observed`]; what it says is a [`Plan`]; where the
//! host is in its life is a [`State`]; `docs/states.md` is made of [`table`]. Around them: [`observe`] looks, [`execute`] acts,
//! [`reconcile`] says when, [`memory`] keeps what only this process knows, [`vault`] alone sees inside Secrets.

mod access;
mod available;
mod backoff;
pub mod bmcs;
pub mod conditions;
mod content;
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
mod in_band;
pub mod index;
mod inspection;
mod jobs;
pub mod memory;
pub mod metrics;
pub mod netboot;
pub mod next;
pub mod observe;
pub mod observed;
pub mod owner;
mod place;
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
mod restore;
mod rivals;
mod secrets;
pub mod slots;
pub mod state;
pub mod table;
pub mod vault;
mod whose;

pub use bmcs::Bmcs;
pub use jobs::is_for_another;
pub use metrics::Metrics;
pub use next::next;
pub use observed::Observed;
pub use owner::{Owner, owner};
pub use plan::{Effect, Plan};
pub use reconcile::{Config, run};
pub use rivals::rivals;
pub use secrets::bmc_secret;
pub use state::State;

#[cfg(test)]
mod tests;
