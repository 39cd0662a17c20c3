//! From what a machine is made of to QEMU's arguments.

use std::path::{Path, PathBuf};

use super::{Boot, Bus, Firmware, MachineSpec, Nic, NicModel, Smbios, UefiNet};
use crate::wire::Ends;

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

/// The files of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Control socket.
    pub qmp: PathBuf,
    /// Firmware variables, for UEFI.
    pub variables: Option<PathBuf>,
    /// One raw image per disk.
    pub disks: Vec<PathBuf>,
}

/// The cable in a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// A tap, by name.
    Tap(String),
    /// A [`crate::wire::Wire`].
    Wire(Ends),
}

impl Files {
    /// Their usual places below `dir`.
    pub fn below(dir: &Path, spec: &MachineSpec) -> Files {
        let disks = spec.disks.iter().enumerate();
        Files {
            qmp: dir.join("qmp"),
            variables: matches!(spec.firmware, Firmware::Uefi(_)).then(|| dir.join("vars.fd")),
            disks: disks
                .map(|(number, disk)| {
                    let own = || dir.join(format!("disk{number}.img"));
                    disk.file.clone().unwrap_or_else(own)
                })
                .collect(),
        }
    }
}

/// What QEMU calls NIC `number`.
pub(super) fn nic_id(number: usize) -> String {
    format!("nic{number}")
}

/// QEMU's arguments for `spec`, with one of `links` per NIC.
pub fn command_line(spec: &MachineSpec, files: &Files, links: &[Link]) -> Vec<String> {
    let mut line = Line::default();
    line.add("-name", &escape(&spec.name));
    line.add("-accel", "tcg,thread=multi");
    line.add("-m", &spec.memory_mib.to_string());
    line.add("-smp", &spec.cpus.to_string());
    line.add("-display", "none");
    // QEMU's older chipset describes interrupts by a program (ACPI's `_PRT`) that takes an emulated processor a third of a second
    // per device. Without a screen to write to, firmware and boot loaders write to the serial console.
    line.add("-machine", "q35,graphics=off,usb=off");
    line.add("-nodefaults", "");
    line.add("-vga", "none");
    line.add("-chardev", "stdio,id=console,signal=off");
    line.add("-serial", "chardev:console");
    line.add("-qmp", &format!("unix:{},server=on,wait=off", path(&files.qmp)));
    // Without entropy the first TLS handshake waits more than a second for the kernel's generator.
    line.add("-object", "rng-random,id=rng,filename=/dev/urandom");
    line.add("-device", "virtio-rng-pci,rng=rng");
    firmware(&mut line, spec, files);
    smbios(&mut line, &spec.smbios);
    for (number, (nic, link)) in spec.nics.iter().zip(links).enumerate() {
        network(&mut line, spec, number, nic, link);
    }
    disks(&mut line, spec, files);
    line.0.extend(spec.extra.iter().cloned());
    line.0
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn add(&mut self, option: &str, value: &str) {
        self.0.push(option.to_owned());
        if !value.is_empty() {
            self.0.push(value.to_owned());
        }
    }
}

/// In QEMU's option lists a comma is written twice.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

fn path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

fn firmware(line: &mut Line, spec: &MachineSpec, files: &Files) {
    let (Firmware::Uefi(net), Some(variables)) = (spec.firmware, &files.variables) else {
        return;
    };
    line.add(
        "-drive",
        &format!("if=pflash,unit=0,format=raw,readonly=on,file={OVMF_CODE}"),
    );
    line.add(
        "-drive",
        &format!("if=pflash,unit=1,format=raw,file={}", path(variables)),
    );
    // OVMF tries PXE over IPv4, then IPv6, then HTTP; each that nobody answers costs a minute.
    let off: &[&str] = match net {
        UefiNet::Pxe => &["IPv6PXESupport"],
        UefiNet::Http => &["IPv4PXESupport", "IPv6PXESupport"],
    };
    for name in off {
        line.add("-fw_cfg", &format!("name=opt/org.tianocore/{name},string=n"));
    }
}

fn smbios(line: &mut Line, smbios: &Smbios) {
    let tables: [(u8, &[(&str, &str)]); 3] = [
        (
            1,
            &[
                ("manufacturer", &smbios.manufacturer),
                ("product", &smbios.product),
                ("serial", &smbios.serial),
                ("uuid", &smbios.uuid),
            ],
        ),
        (2, &[("serial", &smbios.board_serial)]),
        (3, &[("asset", &smbios.asset)]),
    ];
    for (kind, fields) in tables {
        let set: String = fields
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!(",{name}={}", escape(value)))
            .collect();
        if !set.is_empty() {
            line.add("-smbios", &format!("type={kind}{set}"));
        }
    }
}

fn network(line: &mut Line, spec: &MachineSpec, number: usize, nic: &Nic, link: &Link) {
    let id = format!("n{number}");
    line.add(
        "-netdev",
        &match link {
            Link::Tap(name) => format!("tap,id={id},ifname={name},script=no,downscript=no"),
            Link::Wire(ends) => format!(
                "dgram,id={id},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                path(&ends.guest),
                path(&ends.wire)
            ),
        },
    );
    let model = match nic.model {
        NicModel::Virtio => "virtio-net-pci",
        NicModel::E1000 => "e1000",
        NicModel::E1000e => "e1000e",
    };
    let mut device = format!("{model},id={},netdev={id},mac={}", nic_id(number), nic.mac);
    let boots = number == 0;
    if boots {
        let index = match spec.boot {
            Boot::Network => 1,
            Boot::Disk => 1 + spec.disks.len(),
        };
        device += &format!(",bootindex={index}");
    }
    // OVMF drives virtio itself: a ROM would only add a second entry for the same NIC.
    let native = matches!(spec.firmware, Firmware::Uefi(_)) && nic.model == NicModel::Virtio;
    if native || !boots {
        device += ",romfile=";
    }
    line.add("-device", &device);
}

fn disks(line: &mut Line, spec: &MachineSpec, files: &Files) {
    let has = |bus| spec.disks.iter().any(|disk| disk.bus == bus);
    if has(Bus::Sata) {
        line.add("-device", "ich9-ahci,id=sata");
    }
    if has(Bus::Scsi) {
        line.add("-device", "virtio-scsi-pci,id=scsi");
    }
    let first = match spec.boot {
        Boot::Network => 2,
        Boot::Disk => 1,
    };
    for (number, (disk, file)) in spec.disks.iter().zip(&files.disks).enumerate() {
        let id = format!("d{number}");
        line.add(
            "-drive",
            &format!(
                "if=none,id={id},format=raw,cache=unsafe,discard=unmap,file={}",
                path(file)
            ),
        );
        let place = spec.disks[..number]
            .iter()
            .filter(|other| other.bus == disk.bus)
            .count();
        let mut device = match disk.bus {
            Bus::Virtio => "virtio-blk-pci".to_owned(),
            Bus::Nvme => "nvme".to_owned(),
            Bus::Sata => format!("ide-hd,bus=sata.{place}"),
            Bus::Scsi => format!("scsi-hd,bus=scsi.0,scsi-id={place}"),
        };
        device += &format!(",drive={id},bootindex={}", first + number);
        if !disk.serial.is_empty() {
            device += &format!(",serial={}", escape(&disk.serial));
        }
        if let Some(wwn) = disk.wwn.filter(|_| matches!(disk.bus, Bus::Sata | Bus::Scsi)) {
            device += &format!(",wwn={wwn:#018x}");
        }
        line.add("-device", &device);
    }
}

#[cfg(test)]
mod tests;
