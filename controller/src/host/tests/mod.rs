//! The decision, alone and in a small world.

mod annotations;
mod bmc_identity;
mod boot_mode;
mod capm3;
mod changes;
mod cold_boot;
mod counted;
mod doubts;
mod events;
mod faults;
mod in_band;
mod life;
mod metal;
mod parts;
mod refusals;
mod release;
mod takeover;
mod transitions;
mod world;
