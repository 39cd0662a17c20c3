//! What the agent finds in a machine. Units stand in the field names or docs; sources are files of Linux's sysfs and procfs.
//!
//! A collector that fails leaves its part empty and says so in [`Inventory::warnings`]: a bad disk costs a warning, not the report.
//!
//! Whoever reads an inventory keeps no more entries of its lists than may be stored ([`crate::list`]): strangers send some, too.

use serde::{Deserialize, Serialize};

use crate::{Mac, identity::Identity, list::first};

/// The most disks and the most NICs that are stored of one machine; the rest is counted in a warning.
pub const MAX_DEVICES: usize = 1000;

/// The same of every other list of an inventory.
pub const MAX_ENTRIES: usize = 1000;

/// The most addresses of one NIC; the rest is left out.
pub const MAX_ADDRESSES: usize = 32;

/// One machine, as its agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Inventory {
    /// Signals by which the machine is known again.
    pub identity: Identity,
    /// SMBIOS types 1 to 3.
    pub system: System,
    /// SMBIOS type 0.
    pub firmware: Firmware,
    /// Processors.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Whole disks, sorted by kernel name.
    #[serde(deserialize_with = "first::<MAX_DEVICES, _, _>")]
    pub disks: Vec<Disk>,
    /// Network interfaces with hardware behind them, sorted by kernel name.
    #[serde(deserialize_with = "first::<MAX_DEVICES, _, _>")]
    pub nics: Vec<Nic>,
    /// How the machine started.
    pub boot: Boot,
    /// Host name, if DHCP gave one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Kernel release of the ramdisk (`uname -r`).
    pub kernel: String,
    /// Devices that no driver in the ramdisk claims.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "first::<MAX_ENTRIES, _, _>"
    )]
    pub driverless: Vec<Driverless>,
    /// Firmware files that drivers asked for and did not get.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "first::<MAX_ENTRIES, _, _>"
    )]
    pub missing_firmware: Vec<String>,
    /// What could not be read.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "first::<MAX_ENTRIES, _, _>"
    )]
    pub warnings: Vec<Warning>,
}

/// Who made the machine. Source: `/sys/class/dmi/id/*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct System {
    /// `sys_vendor`.
    pub manufacturer: String,
    /// `product_name`.
    pub product: String,
    /// `product_serial`, as it stands there, placeholders included.
    pub serial: String,
    /// `product_uuid`, as it stands there.
    pub uuid: String,
    /// `product_sku`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sku: String,
    /// `product_family`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub family: String,
    /// `board_vendor`, `board_name` joined by a blank.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub board: String,
    /// `board_serial`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub board_serial: String,
    /// `chassis_serial`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chassis_serial: String,
    /// `chassis_asset_tag`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub asset_tag: String,
}

/// The machine's firmware (BIOS or UEFI). Source: `/sys/class/dmi/id/bios_*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Firmware {
    /// `bios_vendor`.
    pub vendor: String,
    /// `bios_version`.
    pub version: String,
    /// `bios_date`, `MM/DD/YYYY` as SMBIOS has it.
    pub date: String,
}

/// Processors. Source: `/proc/cpuinfo`, `/sys/devices/system/cpu`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Cpu {
    /// `uname -m`, such as `x86_64`.
    pub arch: String,
    /// `model name`.
    pub model: String,
    /// The highest clock in MHz: `cpufreq/cpuinfo_max_freq`, else SMBIOS type 4, else what `/proc/cpuinfo` shows.
    pub max_mhz: f64,
    /// Hardware threads.
    pub threads: u32,
    /// Physical cores.
    pub cores: u32,
    /// Packages.
    pub sockets: u32,
    /// NUMA nodes with processors or memory.
    pub numa_nodes: u32,
    /// `flags`, sorted.
    #[serde(deserialize_with = "first::<MAX_ENTRIES, _, _>")]
    pub flags: Vec<String>,
}

/// Memory. Sources: SMBIOS type 17, `/proc/meminfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Memory {
    /// What is installed, in MiB: the sum of the modules, else what the kernel can use.
    pub installed_mib: u64,
    /// `MemTotal`, in bytes.
    pub usable_bytes: u64,
    /// One per populated slot.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "first::<MAX_ENTRIES, _, _>"
    )]
    pub modules: Vec<MemoryModule>,
}

/// One memory module (SMBIOS type 17).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct MemoryModule {
    /// Device locator, such as `DIMM_A1`.
    pub locator: String,
    /// Size in MiB.
    pub size_mib: u64,
    /// Configured speed in MT/s; 0 if unknown.
    pub speed_mts: u32,
    /// Manufacturer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub manufacturer: String,
    /// Part number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub part: String,
    /// Serial number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub serial: String,
}

/// How a disk is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub enum Transport {
    /// NVMe.
    Nvme,
    /// SATA or PATA behind libata.
    Ata,
    /// Serial-attached SCSI.
    Sas,
    /// Other SCSI, RAID controllers included.
    Scsi,
    /// USB.
    Usb,
    /// virtio-blk.
    Virtio,
    /// Fibre Channel.
    Fc,
    /// iSCSI.
    Iscsi,
    /// eMMC.
    Mmc,
    /// SD card.
    Sd,
    /// None of these.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One whole disk. Source: `/sys/block/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Disk {
    /// Device node, such as `/dev/sda`.
    pub name: String,
    /// The stable name that udev would give, such as `/dev/disk/by-path/pci-0000:00:04.0`; empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub by_path: String,
    /// Model.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Vendor.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vendor: String,
    /// Serial number: SCSI VPD page 0x80, NVMe identify, virtio.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// World wide name, `0x` and 16 hexadecimal digits (the first 8 bytes of an NAA), or `eui.…`/`nvme.…` for NVMe.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wwn: String,
    /// The last 8 bytes of a 16-byte NAA (type 6), `0x` and 16 digits; empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wwn_vendor_extension: String,
    /// Both together, `0x` and 32 digits; equals `wwn` without an extension.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub wwn_with_extension: String,
    /// Firmware revision.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub firmware: String,
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// `queue/logical_block_size`, bytes.
    pub logical_block_bytes: u32,
    /// `queue/physical_block_size`, bytes.
    pub physical_block_bytes: u32,
    /// `queue/rotational`. virtio-blk says 1 whatever is behind it.
    pub rotational: bool,
    /// `removable`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub removable: bool,
    /// `ro`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// `queue/zoned` is `host-managed` (SMR, ZNS): most of it takes writes only where the one before ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub zoned: bool,
    /// The inquiry data have a value in TPGS (SPC-4 6.4.2): asymmetric access, which LUNs of arrays have and disks do not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub asymmetric_access: bool,
    /// What the metadata at its end is, by which a controller in RAID mode takes the disk for part of a volume of its firmware: `IMSM`
    /// (Intel) or `DDF` (SNIA); empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub firmware_raid: String,
    /// SCSI `host:channel:target:lun`; empty for other buses.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hctl: String,
    /// How it is attached.
    pub transport: Transport,
}

/// One network interface. Sources: rtnetlink, ethtool ioctls, `/sys/class/net/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Nic {
    /// The name that systemd's udev would give it, such as `enp1s0`, by which templates and installed systems know it; where that is not
    /// certain the kernel's, such as `eth0`.
    pub name: String,
    /// Permanent MAC address (`ETHTOOL_GPERMADDR`), else the current one; none for an interface without an Ethernet address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kinds", schemars(with = "Option<String>"))]
    pub mac: Option<Mac>,
    /// Speed in Mbit/s; 0 if unknown or no link.
    pub speed_mbps: u32,
    /// `carrier`.
    pub carrier: bool,
    /// Addresses with prefix length, such as `10.0.0.7/24`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "first::<MAX_ADDRESSES, _, _>"
    )]
    pub addresses: Vec<String>,
    /// PCI vendor id, such as `0x8086`; empty behind other buses.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vendor_id: String,
    /// PCI device id, such as `0x1572`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device_id: String,
    /// PCI address, such as `0000:00:03.0`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pci_address: String,
    /// Kernel driver.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Firmware version (`ETHTOOL_GDRVINFO`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub firmware: String,
    /// A magic packet can switch the machine on through it (`ETHTOOL_GWOL`); none if the driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake_on_lan: Option<bool>,
}

/// How the machine started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Boot {
    /// BIOS or UEFI.
    pub mode: BootMode,
    /// The NIC the firmware booted from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kinds", schemars(with = "Option<String>"))]
    pub mac: Option<Mac>,
    /// Milliseconds from the kernel's start to this inventory.
    pub uptime_ms: u64,
}

/// Firmware interface. Source: `/sys/firmware/efi` exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub enum BootMode {
    /// PC BIOS.
    #[default]
    Bios,
    /// UEFI.
    Uefi,
}

/// A device that nothing drives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Driverless {
    /// PCI address.
    pub address: String,
    /// PCI class, such as `0x020000`.
    pub class: String,
    /// `0x8086:0x1572`.
    pub id: String,
}

/// One thing that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "kinds", derive(schemars::JsonSchema))]
pub struct Warning {
    /// Which collector: `disks`, `nics`, `cpu`, …
    pub collector: String,
    /// On what: a device or file.
    pub subject: String,
    /// What failed.
    pub message: String,
}

/// The [`Warning::collector`] of drivers that are still being loaded: what they find is missing, and comes with another inventory.
pub const LOADING: &str = "modules";

impl Inventory {
    /// True if drivers were still being loaded.
    pub fn is_early(&self) -> bool {
        self.warnings.iter().any(|warning| warning.collector == LOADING)
    }
}
