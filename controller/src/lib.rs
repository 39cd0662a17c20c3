//! Boot services, enrolment and discovery: everything that one Muster controller does.
//!
//! See `ARCHITECTURE.md` for the map. Effects are thin loops around pure functions; [`world`] is what the loops read.

pub mod admin;
pub mod agents;
pub mod api_clock;
mod api_error;
pub mod args;
pub mod bind;
pub mod bmc;
pub mod boot;
mod bounded;
pub mod bucket;
pub mod discovery;
pub mod events;
#[cfg(test)]
pub(crate) mod fake_api;
mod fenced_stream;
pub mod hardware;
pub mod host;
mod hosts;
pub mod lease;
pub mod lenient;
mod log;
pub mod machines;
mod manager;
pub mod manifests;
pub mod metrics;
mod multimap;
mod patch;
pub mod path;
mod places;
mod quota;
mod retry;
pub mod round;
pub mod run;
mod salvage;
mod segments;
mod sync;
mod time;
pub mod token;
mod token_file;
pub mod watches;
pub mod world;
pub mod written;
