use std::path::PathBuf;

use muster_proto::Mac;

use crate::wire::Faults;

/// A server of any shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// Name in the lab; part of file names.
    pub name: String,
    /// Firmware.
    pub firmware: Firmware,
    /// What it boots first.
    pub boot: Boot,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// NICs; it boots from the first.
    pub nics: Vec<Nic>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// What its SMBIOS tables say.
    pub smbios: Smbios,
    /// Further arguments for QEMU.
    pub extra: Vec<String>,
}

/// Firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS with iPXE in the NIC's ROM.
    Bios,
    /// OVMF.
    Uefi(UefiNet),
}

/// What OVMF tries on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UefiNet {
    /// PXE over IPv4.
    Pxe,
    /// HTTP boot over IPv4.
    Http,
}

/// What a machine boots first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The first NIC, then the disks. OVMF takes minutes to get from a silent network to a disk.
    Network,
    /// The disks, then the first NIC: an empty disk leads to the network at once.
    Disk,
}

/// A NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Model.
    pub model: NicModel,
    /// MAC address.
    pub mac: Mac,
    /// The bridge at the other end of its cable.
    pub bridge: String,
    /// A cable with faults instead of a good one.
    pub faults: Option<Faults>,
}

/// Models of NICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicModel {
    /// Paravirtual.
    Virtio,
    /// Intel 82540EM.
    E1000,
    /// Intel 82574L.
    E1000e,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What it hangs on.
    pub bus: Bus,
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// Serial number; QEMU passes on 20 characters of it.
    pub serial: String,
    /// World wide name, for [`Bus::Sata`] and [`Bus::Scsi`].
    pub wwn: Option<u64>,
    /// An existing raw image instead of an empty disk.
    pub file: Option<PathBuf>,
}

/// What a disk hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    Virtio,
    /// NVMe.
    Nvme,
    /// AHCI.
    Sata,
    /// virtio-scsi.
    Scsi,
}

/// SMBIOS strings; empty ones are QEMU's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Smbios {
    /// Type 1, manufacturer.
    pub manufacturer: String,
    /// Type 1, product name.
    pub product: String,
    /// Type 1, serial number.
    pub serial: String,
    /// Type 1, UUID.
    pub uuid: String,
    /// Type 2, serial number.
    pub board_serial: String,
    /// Type 3, asset tag.
    pub asset: String,
}

const GIB: u64 = 1 << 30;

impl MachineSpec {
    /// A BIOS machine with one virtio NIC on `bridge`, made by nobody in particular.
    pub fn bios(name: &str, mac: Mac, bridge: &str) -> MachineSpec {
        MachineSpec {
            name: name.to_owned(),
            firmware: Firmware::Bios,
            boot: Boot::Network,
            memory_mib: 256,
            cpus: 1,
            nics: vec![Nic::new(NicModel::Virtio, mac, bridge)],
            disks: Vec::new(),
            smbios: Smbios::default(),
            extra: Vec::new(),
        }
    }

    /// A UEFI machine with one virtio NIC on `bridge`.
    pub fn uefi(name: &str, mac: Mac, bridge: &str, net: UefiNet) -> MachineSpec {
        MachineSpec {
            firmware: Firmware::Uefi(net),
            boot: Boot::Disk,
            memory_mib: 512,
            ..MachineSpec::bios(name, mac, bridge)
        }
    }

    /// With one more NIC.
    pub fn with_nic(mut self, nic: Nic) -> MachineSpec {
        self.nics.push(nic);
        self
    }

    /// With one more disk.
    pub fn with_disk(mut self, disk: Disk) -> MachineSpec {
        self.disks.push(disk);
        self
    }

    /// With these SMBIOS strings.
    pub fn with_smbios(mut self, smbios: Smbios) -> MachineSpec {
        self.smbios = smbios;
        self
    }
}

impl Nic {
    /// A NIC on a good cable.
    pub fn new(model: NicModel, mac: Mac, bridge: &str) -> Nic {
        Nic {
            model,
            mac,
            bridge: bridge.to_owned(),
            faults: None,
        }
    }
}

impl Disk {
    /// An empty disk of `gib` GiB; it takes no room until written.
    pub fn new(bus: Bus, gib: u64, serial: &str) -> Disk {
        Disk {
            bus,
            size_bytes: gib * GIB,
            serial: serial.to_owned(),
            wwn: None,
            file: None,
        }
    }

    /// With a world wide name.
    pub fn with_wwn(mut self, wwn: u64) -> Disk {
        self.wwn = Some(wwn);
        self
    }
}

impl Smbios {
    /// A machine that somebody made.
    pub fn of(manufacturer: &str, product: &str, serial: &str) -> Smbios {
        Smbios {
            manufacturer: manufacturer.to_owned(),
            product: product.to_owned(),
            serial: serial.to_owned(),
            ..Smbios::default()
        }
    }

    /// With a UUID.
    pub fn with_uuid(mut self, uuid: &str) -> Smbios {
        uuid.clone_into(&mut self.uuid);
        self
    }
}
