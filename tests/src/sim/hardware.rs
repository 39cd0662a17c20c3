//! What simulated servers are made of: generated, each number unlike any other.

use muster_proto::{
    Mac,
    identity::Identity,
    inventory::{
        Boot, BootMode, Cpu, Disk, Driverless, Firmware, Inventory, Memory, MemoryModule, Nic, System,
        Transport,
    },
};

/// What kind of large server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Model {
    /// 26 disks.
    #[default]
    Storage,
    /// 12 disks, which is as many as most servers of two units have room for.
    Compute,
}

impl Model {
    /// How many disks it has.
    pub fn disks(self) -> u32 {
        match self {
            Model::Storage => 26,
            Model::Compute => 12,
        }
    }
}

/// A server's hardware, as its agent will report it. Change [`Hardware::inventory`] at will: the identity follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Hardware {
    /// Everything but the identity.
    pub inventory: Inventory,
}

impl Hardware {
    /// Server number `number` (below 2^20): two NICs with a vendor's addresses, the first of which boots, two disks, two modules
    /// of memory, an SMBIOS that its vendor filled in.
    pub fn number(number: u32) -> Hardware {
        let mac = mac(number, 0);
        let inventory = Inventory {
            system: System {
                manufacturer: "Example Servers".to_owned(),
                product: "Simulated Box".to_owned(),
                serial: format!("SIM{number:07}"),
                uuid: format!("5a1e0a52-6c1e-4b7a-9e2d-{number:012x}"),
                board: "Example Servers Board One".to_owned(),
                board_serial: format!("BRD{number:07}"),
                chassis_serial: format!("CHS{number:07}"),
                ..System::default()
            },
            firmware: Firmware {
                vendor: "Example Firmware".to_owned(),
                version: "1.2.3".to_owned(),
                date: "01/31/2026".to_owned(),
            },
            cpu: Cpu {
                arch: "x86_64".to_owned(),
                model: "Example Processor 64".to_owned(),
                max_mhz: 3200.0,
                threads: 32,
                cores: 16,
                sockets: 1,
                numa_nodes: 1,
                flags: ["aes", "avx2", "fpu", "lm", "sse4_2", "vmx"]
                    .map(str::to_owned)
                    .to_vec(),
            },
            memory: Memory {
                installed_mib: 65_536,
                usable_bytes: 67_000_000_000,
                modules: (0..2).map(|slot| module(number, slot)).collect(),
            },
            disks: (0..2).map(|at| disk(number, at)).collect(),
            nics: (0..2).map(|at| nic(number, at)).collect(),
            boot: Boot {
                mode: BootMode::Bios,
                mac: Some(mac),
                uptime_ms: 4000,
            },
            kernel: "6.1.0-sim".to_owned(),
            ..Inventory::default()
        };
        Hardware { inventory }
    }

    /// Server number `number` (below 2^20) as a large one: its report has more than 20 KiB of JSON.
    pub fn laden(number: u32, model: Model) -> Hardware {
        let mut hardware = Hardware::number(number);
        let Inventory {
            system,
            cpu,
            memory,
            disks,
            nics,
            driverless,
            ..
        } = &mut hardware.inventory;
        // The devices stand for whatever makes a report large: what processors have on their buses, which the agent leaves out.
        let (product, devices) = match model {
            Model::Storage => ("Simulated Storage Box", 90),
            Model::Compute => ("Simulated Compute Box", 155),
        };
        product.clone_into(&mut system.product);
        (cpu.sockets, cpu.cores, cpu.threads, cpu.numa_nodes) = (2, 64, 128, 2);
        cpu.flags = (0..160).map(|flag| format!("flag{flag:03}")).collect();
        memory.modules = (0..32).map(|slot| module(number, slot)).collect();
        memory.installed_mib = memory.modules.iter().map(|module| module.size_mib).sum();
        *disks = (0..model.disks()).map(|at| disk(number, at)).collect();
        *nics = (0..6).map(|at| nic(number, at)).collect();
        *driverless = (0..devices).map(uncore).collect();
        hardware
    }

    /// The same with so many disks that its report has at least `bytes` bytes of JSON.
    #[must_use]
    pub fn of_size(mut self, bytes: usize) -> Hardware {
        let number = self.boot_mac().0[5];
        while self.report().len() < bytes {
            let at = u32::try_from(self.inventory.disks.len()).unwrap_or(u32::MAX);
            self.inventory.disks.push(disk(u32::from(number), at));
        }
        self
    }

    /// The address that its firmware boots from.
    pub fn boot_mac(&self) -> Mac {
        self.inventory.boot.mac.unwrap_or(Mac([0; 6]))
    }

    /// Replaces the NIC at `at` by one with the address `mac`; the firmware boots from it if it did from the former one.
    pub fn replace_nic(&mut self, at: usize, mac: Mac) {
        let former = self.inventory.nics[at].mac.replace(mac);
        if former == self.inventory.boot.mac {
            self.inventory.boot.mac = Some(mac);
        }
    }

    /// SMBIOS UUID as firmware sends it in DHCP's option 97, if it is one: the first three fields little-endian (SMBIOS 3.x, 7.2.1).
    pub fn uuid(&self) -> Option<[u8; 16]> {
        let digits: String = self
            .inventory
            .system
            .uuid
            .chars()
            .filter(|sign| *sign != '-')
            .collect();
        let number = u128::from_str_radix(&digits, 16).ok()?;
        let [a, b, c, d, e, f, g, h, rest @ ..] = number.to_be_bytes();
        let [i, j, k, l, m, n, o, p] = rest;
        (digits.len() == 32).then_some([d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p])
    }

    /// By what it is known again, exactly as the firmware has it: junk is the controller's to see through.
    pub fn identity(&self) -> Identity {
        let System {
            uuid,
            serial,
            board_serial,
            ..
        } = &self.inventory.system;
        let said = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Identity {
            system_uuid: said(uuid),
            system_serial: said(serial),
            board_serial: said(board_serial),
            macs: self.inventory.nics.iter().filter_map(|nic| nic.mac).collect(),
        }
    }

    /// What the agent reports.
    pub fn inventory(&self) -> Inventory {
        Inventory {
            identity: self.identity(),
            ..self.inventory.clone()
        }
    }

    /// The same as JSON.
    pub fn report(&self) -> Vec<u8> {
        serde_json::to_vec(&self.inventory()).expect("an inventory has only string keys")
    }
}

/// The address of NIC `at` (0 to 15) of server `number`: one that a vendor gave.
pub fn mac(number: u32, at: u32) -> Mac {
    let [_, a, b, c] = ((number << 4) | at).to_be_bytes();
    Mac([0x00, 0x16, 0x3e, a, b, c])
}

fn nic(number: u32, at: u32) -> Nic {
    Nic {
        name: format!("eth{at}"),
        mac: Some(mac(number, at)),
        speed_mbps: 25_000,
        carrier: true,
        vendor_id: "0x8086".to_owned(),
        device_id: "0x159b".to_owned(),
        pci_address: format!("0000:18:00.{at}"),
        driver: "ice".to_owned(),
        ..Nic::default()
    }
}

/// Disk `at` of server `number`.
pub fn disk(number: u32, at: u32) -> Disk {
    Disk {
        name: format!("/dev/nvme{at}n1"),
        by_path: format!("/dev/disk/by-path/pci-0000:5e:{at:02x}.0-nvme-1"),
        model: "Example Flash 1T".to_owned(),
        serial: format!("DSK{number:07}{at:04}"),
        wwn: format!("eui.{number:08x}{at:08x}"),
        firmware: "EF01".to_owned(),
        size_bytes: 960_197_124_096,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        transport: Transport::Nvme,
        ..Disk::default()
    }
}

fn uncore(at: u32) -> Driverless {
    Driverless {
        address: format!("0000:{:02x}:{:02x}.{}", 0x7e + at / 40, at / 8 % 5, at % 8),
        class: "0x088000".to_owned(),
        id: format!("0x8086:0x{:04x}", 0x3240 + at),
    }
}

fn module(number: u32, slot: u32) -> MemoryModule {
    MemoryModule {
        locator: format!("DIMM_A{slot}"),
        size_mib: 32_768,
        speed_mts: 4800,
        manufacturer: "Example Memory".to_owned(),
        part: "EM32G48".to_owned(),
        serial: format!("MEM{number:07}{slot:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_servers_share_a_signal() {
        let (one, other) = (Hardware::number(1).identity(), Hardware::number(2).identity());
        assert_eq!(one, one.normalised(), "all of it is usable");
        assert!(one.macs.is_disjoint(&other.macs));
        assert_ne!(one.system_uuid, other.system_uuid);
        assert_ne!(one.system_serial, other.system_serial);
        assert_ne!(one.board_serial, other.board_serial);
        assert!(!Hardware::number(1).boot_mac().is_local());
    }

    #[test]
    fn reports_grow_as_asked() {
        let report = Hardware::number(1).of_size(20 << 10).report();
        assert!((20 << 10..21 << 10).contains(&report.len()), "{}", report.len());
    }

    #[test]
    fn report_of_a_laden_server_has_more_than_20_kib() {
        for model in [Model::Storage, Model::Compute] {
            let hardware = Hardware::laden(3, model);
            let bytes = hardware.report().len();
            assert!((20 << 10..22 << 10).contains(&bytes), "{model:?}: {bytes}");
            assert_eq!(
                hardware.identity().system_serial,
                Hardware::number(3).identity().system_serial
            );
        }
    }

    #[test]
    fn the_uuid_on_the_wire_is_the_smbios_one() {
        let uuid = Hardware::number(0xabc).uuid().unwrap();
        assert_eq!((uuid[0], uuid[3], uuid[14], uuid[15]), (0x52, 0x5a, 0x0a, 0xbc));
    }
}
