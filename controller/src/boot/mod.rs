//! Network boot: DHCP, TFTP and HTTP, and what each machine is given.

pub mod config;
pub mod decide;
pub mod dhcp;
pub mod files;
pub mod http;
pub mod ipxe;
pub mod log;
pub mod pass;
pub mod peers;
pub mod policy;
pub mod segment;
pub mod slots;
pub mod status;
pub mod tftp;
pub mod uki;
pub mod wake;
mod workers;
