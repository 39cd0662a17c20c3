//! Network boot: DHCP, TFTP and HTTP, and what each machine is given. Writes Segment status.
//!
//! ```text
//! lookup             which machine asks
//! policy             who boots what (pure)
//!   decide           what a DHCP request is answered with (pure)
//!   ipxe, config     the script; where the controller is, whom to trust, the token (pure)
//!   pass             what shows that a boot URL is ours
//! segment, status    a Segment as it is used; what is told of how serving goes
//! dhcp, tftp, http   the services
//!   files, uki       the ramdisks on disk, one boot's UKI
//!   workers, peers   their threads; which machine has which address, and what was said, for the log
//! wake               Wake-on-LAN
//! ```

pub mod config;
pub mod decide;
pub mod dhcp;
pub mod files;
pub mod http;
pub mod ipxe;
pub mod lookup;
pub mod pass;
pub mod peers;
pub mod policy;
pub mod segment;
pub mod status;
pub mod tftp;
pub mod uki;
pub mod wake;
mod workers;
