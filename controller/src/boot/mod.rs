//! Network boot: DHCP, TFTP and HTTP, and what each machine is given.

pub mod policy;
