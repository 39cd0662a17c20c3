//! What can be asked of a BMC, one narrow trait for each thing, and the plain data that goes in and comes out.
//! A driver has a capability or it has not: there is none that only says no.

use futures::future::BoxFuture;
use muster_proto::mac::Mac;

use super::{Access, BmcError, Permission};

/// The result of a call.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BmcError>>;

/// The power of a system, as its BMC tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerState {
    /// On.
    On,
    /// Off.
    Off,
    /// On its way; on for all that matters, but nothing to act upon.
    PoweringOn,
    /// On its way; an operating system may still take its time.
    PoweringOff,
    /// The BMC answers and does not say, or says what we do not know. Never "off".
    Unknown {
        /// Its word, [cleaned](muster_proto::text::clean); empty if there was none.
        reported: String,
    },
}

/// The health of a system and of what is in it, as its BMC tells it (DSP0268, `Status.HealthRollup` and `Status.Health`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// The BMC does not say, or says what we do not know.
    #[default]
    Unknown,
    /// Normal.
    Ok,
    /// Somebody should look.
    Warning,
    /// Somebody should look at once.
    Critical,
}

/// What a look at a system shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemState {
    /// The power.
    pub power: PowerState,
    /// The health.
    pub health: Health,
}

/// A change of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reset {
    /// Switch on.
    On,
    /// Cut the power.
    ForceOff,
    /// Ask the operating system to shut down, which it may ignore.
    GracefulShutdown,
    /// Restart at once; of a system that is off: switch on.
    ForceRestart,
    /// Ask the operating system to restart, which it may ignore; of a system that is off: switch on.
    GracefulRestart,
}

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was so already, and nothing was sent.
    Already,
    /// The BMC accepted it. It says nothing about when it happens, or if: ask again.
    Accepted,
}

/// What the firmware boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Boot {
    /// From where.
    pub device: Device,
    /// As what.
    pub mode: WantedMode,
    /// For how long.
    pub lasting: Lasting,
}

/// Where the firmware boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Its own order: an override that is armed is taken back.
    None,
    /// The network, by PXE.
    Pxe,
    /// The first disk.
    Hdd,
    /// The network, by UEFI HTTP boot with what DHCP says.
    UefiHttp,
}

/// As what the firmware boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// UEFI.
    Uefi,
    /// PC BIOS.
    Legacy,
}

/// Which mode somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WantedMode {
    /// The one that it is in.
    Any,
    /// This one, where the system says that it takes it, else the one that it is in.
    Preferred(Mode),
    /// This one and no other.
    Required(Mode),
}

/// For how long an override counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lasting {
    /// The next boot. Every BMC should know it; arm it before each reboot.
    Once,
    /// Until it is taken back. Some BMCs refuse it.
    Continuous,
}

/// Which machine a BMC says that it belongs to, in the words that the agent's inventory uses too. Unfilled values are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The SMBIOS UUID, lower case.
    pub uuid: Option<String>,
    /// The system's serial number.
    pub serial: Option<String>,
    /// Its `SKU`, where some vendors keep what SMBIOS calls the serial number.
    pub sku: Option<String>,
    /// Its maker.
    pub manufacturer: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// The MAC addresses of its NICs, sorted; none if the BMC did not tell, which is not "there are none".
    pub macs: Option<Vec<Mac>>,
}

/// What a first look tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How it is now.
    pub state: SystemState,
    /// Whose it is.
    pub identity: Identity,
}

/// Reads and changes the power of one system.
pub trait Power: Send {
    /// How it is now.
    fn power<'a>(&'a mut self, access: &'a Access) -> Answer<'a, SystemState>;
    /// Changes it, as long as `permission` lasts.
    fn reset<'a>(&'a mut self, access: &'a Access, permission: Permission, reset: Reset) -> Answer<'a, Done>;
}

/// Says what one system boots.
pub trait BootDevice: Send {
    /// Arms `boot`, as long as `permission` lasts.
    fn set_boot<'a>(&'a mut self, access: &'a Access, permission: Permission, boot: Boot)
    -> Answer<'a, Done>;
}

/// Tells which machine it is.
pub trait Identify: Send {
    /// Reads it, and the power with it.
    fn probe<'a>(&'a mut self, access: &'a Access) -> Answer<'a, Probe>;
}

/// One system behind one BMC: what its driver remembers between calls, and what it can do.
pub trait Connection: Send {
    /// Its power.
    fn power(&mut self) -> &mut dyn Power;
    /// Its boot device, if that can be set.
    fn boot_device(&mut self) -> Option<&mut dyn BootDevice>;
    /// Its identity, if it can be read.
    fn identify(&mut self) -> Option<&mut dyn Identify>;
    /// Ends what is open at the BMC, as far as that works.
    fn close(&mut self) -> BoxFuture<'_, ()>;
}
