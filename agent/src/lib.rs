//! The agent: inventories a server, reports it, and does what the controller orders. The library serves the binary, the
//! simulated fleet and the tests alike.

pub mod inventory;
pub mod sys;
