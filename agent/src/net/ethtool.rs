//! The ethtool commands that no file of sysfs replaces (`include/uapi/linux/ethtool.h`).
#![allow(unsafe_code)] // ioctl(2) takes a pointer to a structure that holds another one.

use std::{ffi::c_char, os::fd::AsRawFd};

use muster_proto::text;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

const GDRVINFO: u32 = 0x0000_0003;
const GPERMADDR: u32 = 0x0000_0020;
const GWOL: u32 = 0x0000_0005;
const SWOL: u32 = 0x0000_0006;

/// `WAKE_MAGIC`: by a packet that repeats the NIC's address.
const MAGIC: u32 = 1 << 5;

/// `MAX_ADDR_LEN` of the kernel.
const MAX_ADDRESS: usize = 32;

/// `struct ethtool_perm_addr` with room for any address.
#[repr(C)]
struct PermanentAddress {
    command: u32,
    size: u32,
    data: [u8; MAX_ADDRESS],
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct Driver {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus_info: [u8; 32],
    expansion_rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// `struct ethtool_wolinfo`.
#[repr(C)]
struct Wake {
    command: u32,
    supported: u32,
    options: u32,
    password: [u8; 6],
}

/// `ETHTOOL_GDRVINFO`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverInfo {
    /// Name of the driver.
    pub driver: String,
    /// Version of the device's firmware.
    pub firmware: String,
}

/// A structure that `SIOCETHTOOL` reads and fills.
///
/// # Safety
/// It has the kernel's layout for the command in its first field, is at least as large as all that the kernel writes for that
/// command, and is valid with any bytes in it.
unsafe trait Command {}

// SAFETY: the layout is the kernel's, `size` tells it how much room there is, and integers take any bytes.
unsafe impl Command for PermanentAddress {}
// SAFETY: the layout and size (196 bytes) are the kernel's, and integers take any bytes.
unsafe impl Command for Driver {}
// SAFETY: the layout and size (20 bytes) are the kernel's, and integers take any bytes.
unsafe impl Command for Wake {}

const _: () = assert!(size_of::<Driver>() == 196);
const _: () = assert!(size_of::<Wake>() == 20);

/// The hardware's address, of whatever length its kind of network has; none where the driver does not tell.
pub(crate) fn permanent_address(interface: &str) -> Result<Option<Vec<u8>>, Errno> {
    let mut command = PermanentAddress {
        command: GPERMADDR,
        size: u32::try_from(MAX_ADDRESS).expect("32 fits"),
        data: [0; MAX_ADDRESS],
    };
    if !run(interface, &mut command)? {
        return Ok(None);
    }
    let size = usize::try_from(command.size).unwrap_or(MAX_ADDRESS);
    Ok(command.data.get(..size).map(<[u8]>::to_vec))
}

/// Driver and firmware version; empty where the driver does not tell.
pub(crate) fn driver_info(interface: &str) -> Result<DriverInfo, Errno> {
    let mut command = Driver {
        command: GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus_info: [0; 32],
        expansion_rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    run(interface, &mut command)?;
    let string = |raw: &[u8]| text::clean(raw.split(|byte| *byte == 0).next().unwrap_or_default());
    Ok(DriverInfo {
        driver: string(&command.driver),
        firmware: string(&command.firmware),
    })
}

/// True if the NIC can wake its machine at a magic packet, whether it would now or not; none where the driver does not tell.
pub(crate) fn wakes_on_magic(interface: &str) -> Result<Option<bool>, Errno> {
    Ok(wake(interface)?.as_ref().map(Wake::has_magic))
}

/// Makes the NIC wake its machine at a magic packet, beside what it wakes it at already; false where it cannot, or does not tell.
pub(crate) fn wake_on_magic(interface: &str) -> Result<bool, Errno> {
    let Some(mut command) = wake(interface)?.filter(Wake::has_magic) else {
        return Ok(false);
    };
    if command.options & MAGIC == 0 {
        command.command = SWOL;
        command.options |= MAGIC;
        // It said that it can.
        if !run(interface, &mut command)? {
            return Err(Errno::EOPNOTSUPP);
        }
    }
    Ok(true)
}

impl Wake {
    fn has_magic(&self) -> bool {
        self.supported & MAGIC != 0
    }
}

/// At what the NIC can wake its machine, and does; none where the driver does not tell.
fn wake(interface: &str) -> Result<Option<Wake>, Errno> {
    let mut command = Wake {
        command: GWOL,
        supported: 0,
        options: 0,
        password: [0; 6],
    };
    let tells = run(interface, &mut command)?;
    Ok(tells.then_some(command))
}

/// False where the driver has no such operation or the interface no such kind of answer; `command` is as it was then.
fn run<C: Command>(interface: &str, command: &mut C) -> Result<bool, Errno> {
    let mut name: [c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: std::ptr::from_mut(command).cast(),
        },
    };
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: `request` is an `ifreq` as SIOCETHTOOL takes it, and its `ifru_data` points to `command`, borrowed mutably
    // until the call returns and large enough for what the kernel writes, as `Command` promises. The kernel keeps no pointer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw const request) };
    match Errno::result(result) {
        Ok(_) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOTTY) => Ok(false),
        Err(errno) => Err(errno),
    }
}
