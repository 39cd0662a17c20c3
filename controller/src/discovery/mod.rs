//! From Server to BareMetalHost. Writes BareMetalHost, HardwareData and Server spec.
//!
//! [`next`](next::next) decides, alone and without IO; [`reconcile`] shows it the world, [`execute`] does what it says.
//!
//! ```text
//! reconcile         the loop: who is looked at, and when
//!   index, memory   who has to do with whom, and what only this process knows
//!   execute         a plan is carried out
//! next              the decision (pure, with all below)
//!   link, twins     which host stands for a machine; one machine, two hosts
//!   report, jobs    what a report changes in its host; what the ramdisk is told
//!   host, name      the shape of a discovered host, what it is called
//!   notices         what people are told
//! ```

pub mod execute;
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
