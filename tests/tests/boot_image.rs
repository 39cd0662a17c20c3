//! The lab's disk image, put on a disk by hand, boots under each firmware and from each kind of disk, and finds its config drive.
//!
//! What writes images in earnest is tested elsewhere with the same image: here it is shown that a disk with it boots.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::Mac;
use muster_tests::{
    bridges::BR0,
    machine::{Boot, Bus, Disk, Machine, MachineSpec, UefiNet},
    netns::Netns,
    os_image::{Flavour, Form, Image, fat, os, told},
    scratch::Scratch,
    slots::Slots,
};

/// Generous: it takes 5 to 15 s on a quiet machine.
const SOON: Duration = Duration::from_secs(120);
const USER_DATA: &str = "#cloud-config\nhostname: lab-host\n";
const MAC: Mac = Mac([0x52, 0x54, 0, 0xb1, 5, 1]);

/// A disk of `bytes` bytes that begins with the image.
fn disk(path: &Path, image: &Image, bytes: u64) -> PathBuf {
    fs::copy(image.file(Form::Raw), path).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(bytes).unwrap();
    path.to_owned()
}

/// A machine boots from a disk on `bus`, says what its config drive tells it, and ends when its power button is pressed.
async fn boots(spec: MachineSpec, bus: Bus, flavour: Flavour, config_on: Bus) {
    let _slots = Slots::take(1).await.unwrap();
    let scratch = Scratch::new().unwrap();
    let net = Netns::new().unwrap();
    net.bridge(BR0.name, None).unwrap();
    let image = Image::find(flavour).unwrap();
    let mut system = Disk::new(bus, 1, "SYSTEM");
    let file = disk(&scratch.path().join("system.img"), &image, system.size_bytes);
    assert_eq!(image.first_difference(&file).unwrap(), None);
    system.file = Some(file);
    let mut drive = Disk::new(config_on, 1, "CONFIG");
    let file = scratch.path().join("config.img");
    fs::write(&file, fat::config_drive("lab-host", USER_DATA).unwrap()).unwrap();
    drive.file = Some(file);
    let mut spec = spec.with_disk(system).with_disk(drive);
    spec.boot = Boot::Disk;
    let mut machine = Machine::new(&net, scratch.path(), spec).unwrap();
    machine.power_on().unwrap();
    let console = machine.console();
    let (last, told) = told::told(console, 0, SOON).await.unwrap();
    assert_eq!(told.name, "lab-host");
    assert_eq!(told.user_data, USER_DATA.lines().collect::<Vec<_>>());
    assert_eq!(told.files, ["meta_data.json", "network_data.json", "user_data"]);

    machine.qmp().unwrap().run("system_powerdown").unwrap();
    console.wait_for(os::POWERS_OFF, last, SOON).await.unwrap();
    let off = async {
        while machine.is_on() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, off)
        .await
        .expect("a machine that is off");
}

fn bios() -> MachineSpec {
    MachineSpec::bios("bios", MAC, BR0.name)
}

fn uefi() -> MachineSpec {
    MachineSpec::uefi("uefi", MAC, BR0.name, UefiNet::Http)
}

#[tokio::test(flavor = "multi_thread")]
async fn bios_machine_boots_it_from_a_virtio_disk() {
    boots(bios(), Bus::Virtio, Flavour::Cloud, Bus::Virtio).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bios_machine_boots_it_from_an_nvme_disk() {
    boots(bios(), Bus::Nvme, Flavour::Cloud, Bus::Virtio).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uefi_machine_boots_it_from_a_scsi_disk() {
    boots(uefi(), Bus::Scsi, Flavour::Cloud, Bus::Scsi).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uefi_machine_boots_the_full_kernel_from_a_sata_disk() {
    boots(uefi(), Bus::Sata, Flavour::Full, Bus::Sata).await;
}

#[test]
fn published_sums_are_those_of_the_files() {
    let image = Image::find(Flavour::Cloud).unwrap();
    for form in [Form::Raw, Form::Zstd, Form::Gzip] {
        let facts = muster_ramdisk::release::FileFacts::of(&fs::read(image.file(form)).unwrap());
        assert_eq!(image.sha256(form).unwrap(), facts.sha256, "{form:?}");
        assert_eq!(image.sha512(form).unwrap().len(), 128);
    }
}
