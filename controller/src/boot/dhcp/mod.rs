//! DHCPv4: one engine for server and proxy mode.
//!
//! ```text
//! Segments --segment::plan--> serve --doors--> door (sockets of an interface) --requests--> dispatch
//!                               |                 \--frames--> probe answers, other servers    | engine::step (pure)
//!                               \--facts--> status::write --> Segment status                   v
//!                                                                                            replies
//! ```
//!
//! `wire` and `engine`, `leases`, `answerers`, `rogue`, and `boot::decide` are pure; `door` and `frames` hold the sockets; `dispatch`
//! joins the two; `serve` is the loop that follows the Segments, and `doors` keeps open what they need. Leases live in memory: after a
//! restart they are learnt again from the known Servers, from the clients' own claims, and by asking the network before an address is
//! offered.

pub mod answerers;
#[cfg(test)]
pub(crate) mod corpus;
mod dispatch;
mod door;
mod doors;
pub mod engine;
#[cfg(test)]
pub(crate) mod fixtures;
mod frames;
pub mod leases;
mod links;
mod metrics;
pub mod rogue;
mod serve;
pub mod wire;

pub use links::links;
pub use metrics::Metrics;
pub use serve::{ClosedByService, Dhcp};
