//! Network boot: DHCP, TFTP and HTTP, and what each machine is given.

pub mod decide;
pub mod dhcp;
pub mod policy;
pub mod segment;
pub mod status;
