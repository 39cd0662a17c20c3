//! What agent and controller say to each other, and the Kubernetes kinds they are about.
//!
//! This crate does no IO, starts no runtime and knows no client: it is plain data, its JSON and its rules.
//! The kinds sit behind the feature `kinds`, so that the agent pulls in no Kubernetes crate; what seals secrets behind `seal`.

#![forbid(unsafe_code)]

pub mod chain;
pub mod config;
pub mod identity;
pub mod inventory;
pub mod job;
#[cfg(feature = "kinds")]
pub mod kinds;
pub mod list;
pub mod mac;
#[cfg(feature = "seal")]
pub mod seal;
pub mod session;
pub mod text;

pub use chain::Chain;
pub use mac::Mac;
