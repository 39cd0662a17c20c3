//! From Server to BareMetalHost. Writes BareMetalHost, HardwareData and Server spec.
//!
//! [`next`](next::next) decides, alone and without IO; [`reconcile`] shows it the world, [`execute`] does what it says.

pub mod execute;
pub mod hardware;
pub mod host;
mod index;
mod jobs;
mod link;
mod memory;
pub mod name;
pub mod next;
mod notices;
pub mod reconcile;
mod report;
mod twins;

pub use link::declared_with;
pub use reconcile::{Metrics, run};
