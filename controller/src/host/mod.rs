//! From BareMetalHost to what is done about it: the operator. Writes BareMetalHost (status, finalizer, consumed annotations),
//! HardwareData, the jobs of Servers, labels and holds on Secrets.
//!
//! [`next`](next::next) decides, alone and without IO. What it looks at is an [`Observed`]; what it says is a [`Plan`]; where the
//! host is in its life is a [`State`]; `docs/states.md` is made of [`table`].

mod access;
mod available;
mod backoff;
pub mod conditions;
mod deletion;
mod deprovisioning;
mod detached;
mod disk;
mod draft;
pub mod guard;
mod image;
mod inspection;
mod jobs;
pub mod netboot;
pub mod next;
pub mod observed;
pub mod owner;
pub mod plan;
mod power;
mod preparing;
mod provisioned;
mod provisioning;
mod ramdisk;
mod reboot;
mod registration;
mod restore;
mod rivals;
mod secrets;
pub mod state;
pub mod table;

pub use next::next;
pub use observed::Observed;
pub use owner::{Owner, owner};
pub use plan::{Effect, Plan};
pub use rivals::rivals;
pub use secrets::bmc_secret;
pub use state::State;

#[cfg(test)]
mod tests;
