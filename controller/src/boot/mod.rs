//! Network boot: DHCP, TFTP and HTTP, and what each machine is given.

pub mod bind;
pub mod peers;
pub mod policy;
pub mod slots;
pub mod tftp;
