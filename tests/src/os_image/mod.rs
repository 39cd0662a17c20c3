//! A disk image with an operating system on it: Debian's kernel and the one program of `muster-os`.
//!
//! One file boots under SeaBIOS and under OVMF. UEFI starts `EFI/BOOT/BOOTX64.EFI`, a unified kernel image; the BIOS starts the
//! boot sector and its second stage, which load kernel and initrd out of that same file. It is made without root and without loop
//! devices, and the same input makes the same bytes.
//!
//! ```text
//! sector 0        boot code, protective MBR      \
//! sectors 1-33    GPT                             | the first MiB: a writer that puts it down last leaves nothing that boots
//! sectors 34-     BIOS boot partition: stage 2   /
//! 1 MiB           EFI system partition, FAT: the unified kernel image
//! 33 MiB          the system's files, an archive; in the large variant with all modules of the kernel
//! the last 33     the second GPT
//! ```

pub mod fat;
pub mod gpt;
mod loader;
pub mod published;
pub mod server;
pub mod told;

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use gpt::{BACKUP, FIRST_USABLE, Kind, Partition, SECTOR};
use loader::Place;
use muster_ramdisk::{
    cpio::Archive,
    initramfs,
    kernel::Kernel,
    uki::{Parts, Uki},
};

pub use muster_os as os;
pub use published::{Flavour, Form, Image};

/// Where the EFI system partition begins: everything before it is what a BIOS needs.
const ESP_AT: u64 = 1 << 20;
const ESP_BYTES: u64 = 32 << 20;
/// The partition of files in the small variant.
const FILES_BYTES: u64 = 4 << 20;
/// The large variant as a whole.
const LARGE: u64 = 320 << 20;

/// Drivers for the lab's disks, file systems of config drives, and the power button; the kernel has some of them inside.
const MODULES: &[&str] = &[
    "ahci",
    "button",
    "evdev",
    "isofs",
    "nls_ascii",
    "nls_cp437",
    "nls_iso8859_1",
    "nls_utf8",
    "nvme",
    "sd_mod",
    "sr_mod",
    "vfat",
    "virtio_blk",
    "virtio_pci",
    "virtio_scsi",
];

/// `no_timer_check`: an emulated timer misses the kernel's check of it where the computer is busy.
const COMMAND_LINE: &str = "console=ttyS0,115200 no_timer_check quiet loglevel=4 panic=10";

const OS_RELEASE: &str =
    "ID=muster-lab\nNAME=\"Muster lab OS\"\nPRETTY_NAME=\"Muster lab OS\"\nVERSION_ID=1\n";

/// How much an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// What it needs to boot.
    Small,
    /// 320 MiB with all modules of the kernel: a third of it is data, as on the disk images of distributions.
    Large,
}

/// What images are made of.
#[derive(Debug)]
pub struct Ingredients {
    /// The kernel and its modules.
    pub kernel: Kernel,
    /// The UEFI stub.
    pub stub: Vec<u8>,
    /// The program `muster-os`, static.
    pub init: Vec<u8>,
}

/// Writes an image to `path`.
pub fn write(path: &Path, ingredients: &Ingredients, size: Size) -> Result<()> {
    let Ingredients { kernel, stub, init } = ingredients;
    let wanted = MODULES.iter().filter(|name| kernel.modules.get(name).is_some());
    let modules = kernel
        .modules
        .closure(wanted.map(|name| (*name).to_owned()))
        .context("choose modules")?;
    let archive = initramfs::layout(init.clone(), &kernel.version, &modules)?;
    let initrd = initramfs::compress(&archive)?;
    let (uki, kernel_at, initrd_at) = unified(stub, &kernel.image, &initrd)?;
    let esp_bytes = usize::try_from(ESP_BYTES).context("the size of a partition")?;
    let esp = fat::volume(esp_bytes, "MUSTER-OS", &[("EFI/BOOT/BOOTX64.EFI", &uki)])?;
    // A new volume has no holes, so the file lies in one piece: the boot loader knows no FAT.
    let uki_at = esp
        .chunks(usize::try_from(SECTOR)?)
        .position(|sector| uki.starts_with(sector))
        .map(|sector| sector * 512)
        .filter(|at| esp.get(*at..at + uki.len()) == Some(&uki))
        .context("find the kernel image in one piece on its partition")?;
    let place = |at: usize, content: &[u8]| -> Result<Place> {
        let at = ESP_AT + u64::try_from(uki_at + at)?;
        ensure!(
            at.is_multiple_of(SECTOR),
            "the kernel image is not laid out in sectors"
        );
        Ok(Place {
            sector: u32::try_from(at / SECTOR)?,
            bytes: u32::try_from(content.len())?,
        })
    };
    let (sector, stage) = loader::loader(
        place(kernel_at, &kernel.image)?,
        place(initrd_at, &initrd)?,
        COMMAND_LINE,
    )?;

    let files_at = ESP_AT + ESP_BYTES;
    let (total, files) = match size {
        Size::Small => (files_at + FILES_BYTES + (1 << 20), files(kernel, false)?),
        Size::Large => (LARGE, files(kernel, true)?),
    };
    let last = (total / SECTOR) - BACKUP;
    ensure!(
        files_at + u64::try_from(files.len())? <= last * SECTOR,
        "the kernel's modules do not fit into the image"
    );
    let partitions = [
        (Kind::BiosBoot, "bios boot", FIRST_USABLE, ESP_AT / SECTOR),
        (Kind::Esp, "esp", ESP_AT / SECTOR, files_at / SECTOR),
        (Kind::Linux, "files", files_at / SECTOR, last),
    ]
    .map(|(kind, name, first, end)| Partition {
        kind,
        name,
        first,
        sectors: end - first,
    });
    let mut disk = File::create(path).with_context(|| format!("make {}", path.display()))?;
    let mut written = || -> std::io::Result<()> {
        disk.set_len(total)?;
        disk.write_all(&sector)?;
        gpt::write(&mut disk, total / SECTOR, 1, &partitions)?;
        let pieces = [
            (FIRST_USABLE * SECTOR, &stage),
            (ESP_AT, &esp),
            (files_at, &files),
        ];
        for (at, content) in pieces {
            disk.seek(SeekFrom::Start(at))?;
            disk.write_all(content)?;
        }
        disk.sync_all()
    };
    written().with_context(|| format!("write {}", path.display()))
}

/// A unified kernel image, and where in it kernel and initrd begin.
fn unified(stub: &[u8], kernel: &[u8], initrd: &[u8]) -> Result<(Vec<u8>, usize, usize)> {
    use muster_ramdisk::uki::Source;
    let parts = Parts {
        os_release: OS_RELEASE,
        cmdline: COMMAND_LINE,
        kernel_len: u64::try_from(kernel.len())?,
        initrd_len: u64::try_from(initrd.len())?,
    };
    let uki = Uki::new(stub, &parts)?;
    let mut image = Vec::with_capacity(usize::try_from(uki.len())?);
    let (mut kernel_at, mut initrd_at) = (0, 0);
    for segment in uki.segments() {
        match segment.source {
            Source::Header => image.extend_from_slice(uki.header()),
            Source::Kernel => {
                kernel_at = image.len();
                image.extend_from_slice(kernel);
            }
            Source::Initrd => {
                initrd_at = image.len();
                image.extend_from_slice(initrd);
            }
            Source::Padding => image.resize(image.len() + usize::try_from(segment.len)?, 0),
        }
    }
    Ok((image, kernel_at, initrd_at))
}

/// The system's files as an archive.
fn files(kernel: &Kernel, modules: bool) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.file("etc/os-release", 0o644, OS_RELEASE.as_bytes().to_vec())?;
    if modules {
        for (_, module) in kernel.modules.iter() {
            let path = format!("lib/modules/{}/{}", kernel.version, module.path);
            archive.file(&path, 0o644, module.object.clone())?;
        }
    }
    Ok(archive.to_vec())
}
