//! Power and boot device of machines, by their BMCs.
//!
//! Whoever reconciles hosts holds one [`Bmcs`] and asks:
//!
//! ```text
//! let access = Access {
//!     host,                                       // for logs
//!     address: spec.bmc.address.parse()?,         // AddressError: a registration error
//!     credentials: Credentials::new(user, password),
//!     verify: Verify::from_spec(spec.bmc.disable_certificate_verification),
//! };
//! access.address.driver()?;                       // NoDriver: a registration error
//! bmcs.probe(&access).await?                      // Probe { state, identity }: proves address, certificate and credentials
//! bmcs.power(&access).await?                      // SystemState { power, health }
//! bmcs.set_power(&access, term, Reset::On).await?             // Done::{Already, Accepted}
//! bmcs.set_boot(&access, term, Boot { device: Device::Pxe, mode: WantedMode::Any, lasting: Lasting::Once }).await?
//! bmcs.forget(&access.host).await                 // the host is gone, or detached: ends the session
//! bmcs.fence(epoch)                               // nothing that was decided earlier changes anything from now on
//! bmcs.stop().await                               // ends all sessions
//! ```
//!
//! What the caller can rely on:
//!
//! - A failed call is a [`BmcError`], never a state. It comes within twice [`Config::call`] (the turn and the call), whatever
//!   the BMC does.
//! - One call at a time reaches one system of one BMC, also if several hosts have it; at most [`Config::concurrent`] calls run.
//!   A call that its caller gives up still ends in order.
//! - After a failure that more asking will not mend, the same answer comes without asking again, until a pause that grows is
//!   over ([`Bmcs::pause`] tells the rest of it). Other credentials, or another wish for verification, are tried at once.
//! - A changing call carries the [`Term`] of the leadership under which it was decided. One that is older than the newest that
//!   any call or [`Bmcs::fence`] brought is refused, also if it waited in line meanwhile; and nothing leaves for one that is over,
//!   not in the middle of a call either: each write to the network asks.
//! - [`Done::Accepted`] is the BMC's word that it heard. Ask for the power afterwards.
//!
//! [`address`], `pause`, and of [`redfish`] the modules `boot`, `choice`, `model`, `quirks` and `verdict` decide and are pure; `pool`
//! keeps the line in front of each system.

mod access;
pub mod address;
mod authorities;
mod capability;
mod error;
mod metrics;
mod pause;
mod pool;
pub mod redfish;
mod term;

pub use access::{Access, Credentials, HostRef, Verify};
pub use address::{Address, AddressError, Driver, NoDriver, Scheme, Transport};
pub use authorities::{AuthorityError, authorities};
pub use capability::{
    Answer, Boot, BootDevice, Connection, Device, Done, Health, Identify, Identity, Lasting, Mode, Power,
    PowerState, Probe, Reset, SystemState, WantedMode,
};
pub use error::BmcError;
pub use metrics::Metrics;
pub(crate) use pool::ENDING;
pub use pool::{Bmcs, Config};
pub use term::{Permission, Term};

/// Under which leadership something was decided; a later leader's is higher.
pub type Epoch = i64;
