//! The agent: inventories a server, reports it, and does what the controller orders. The library serves the binary, the
//! simulated fleet and the tests alike.

pub mod clock;
pub mod config;
pub mod console;
pub mod descriptor;
pub mod dial;
pub mod disk;
pub mod image;
pub mod inventory;
pub mod kmod;
pub mod net;
pub mod pid1;
pub mod session;
pub mod steps;
mod sync;
pub mod sys;
pub mod work;
