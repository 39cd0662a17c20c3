//! BIOS machines, from power-on to BareMetalHost.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use muster_proto::{
    Mac,
    kinds::{
        BOOT_MODE_LABEL, BareMetalHost, DiskType, HardwareDetails, INSPECT_ANNOTATION, Profile, SessionState,
        UnknownPolicy,
    },
};
use muster_tests::{
    bridges::BR0,
    machine::{Bus, Disk, Machine, MachineSpec, Smbios},
    slots::Slots,
    stage::Stage,
};
use serde_json::json;

/// Generous: it takes 6 s on a quiet machine.
const SOON: Duration = Duration::from_secs(120);
const GIB: i64 = 1 << 30;

fn spec(number: u8) -> MachineSpec {
    let smbios = Smbios::of("Example Servers", "Pizza Box", &format!("SN{number:04}"))
        .with_uuid(&format!("8d1f0a52-6c1e-4b7a-9e2d-0000000000{number:02x}"));
    MachineSpec::bios(&format!("m{number}"), mac(number), BR0.name)
        .with_smbios(smbios)
        .with_disk(Disk::new(Bus::Nvme, 20, &format!("NVME{number:04}")))
        .with_disk(Disk::new(Bus::Virtio, 10, &format!("VIRT{number:04}")))
}

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0xb1, 0, number])
}

async fn lit(purpose: &str, unknown: UnknownPolicy) -> Stage {
    Stage::lit(purpose, &[(BR0, Profile::Lab, unknown)])
        .await
        .expect("a controller that serves")
}

fn hardware(host: &muster_proto::kinds::BareMetalHost) -> Arc<HardwareDetails> {
    let status = host.status.as_ref().expect("a status");
    status.hardware.as_ref().expect("hardware").unpack()
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_machine_appears_with_its_hardware() {
    let _slots = Slots::take(1).await.unwrap();
    let stage = lit("bios-new", UnknownPolicy::Hold).await;
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec(1)).unwrap();
    machine.power_on().unwrap();
    let host = stage
        .host(mac(1), SOON, |host| host.status.is_some())
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", machine.console().last(20).join("\n")));

    assert_eq!(host.name_any(), "example-servers-sn0001");
    assert!(host.spec.online);
    assert_eq!(host.spec.bmc, None);
    assert_eq!(host.spec.boot_mac_address.as_deref(), Some("52:54:00:b1:00:01"));
    assert_eq!(
        host.labels().get(BOOT_MODE_LABEL).map(String::as_str),
        Some("bios")
    );
    assert_eq!(host.status.as_ref().unwrap().provisioning.state, "unmanaged");

    let found = hardware(&host);
    let disk = |serial: &str| {
        let of = |disk: &&_| {
            let disk: &muster_proto::kinds::HardwareStorage = disk;
            disk.serial_number.as_deref() == Some(serial)
        };
        found
            .storage
            .iter()
            .find(of)
            .unwrap_or_else(|| panic!("no disk {serial}"))
    };
    assert_eq!(found.storage.len(), 2);
    assert_eq!(disk("NVME0001").size_bytes, Some(20 * GIB));
    assert_eq!(disk("NVME0001").type_, Some(DiskType::Nvme));
    assert_eq!(disk("VIRT0001").size_bytes, Some(10 * GIB));
    assert_eq!(found.nics.len(), 1);
    assert_eq!(found.nics[0].pxe, Some(true));
    // As udev names it, by its slot or its place; the kernel calls it `eth0`.
    assert!(found.nics[0].name.as_ref().unwrap().starts_with("en"));
    assert!(found.nics[0].ip.as_ref().unwrap().starts_with("10.77.0.1"));
    assert_eq!(found.nics[0].model.as_deref(), Some("0x1af4 0x1000"));
    let cpu = found.cpu.as_ref().unwrap();
    assert_eq!((cpu.arch.as_deref(), cpu.count), (Some("x86_64"), Some(1)));
    assert_eq!(found.ram_mebibytes, Some(256));
    let vendor = found.system_vendor.as_ref().unwrap();
    assert_eq!(vendor.serial_number.as_deref(), Some("SN0001"));
    assert_eq!(vendor.product_name.as_deref(), Some("Pizza Box"));

    let servers = stage.servers().await.unwrap();
    let (_, server) = servers.first_key_value().expect("a Server");
    let session = server.status.as_ref().unwrap().session.as_ref().unwrap();
    assert_eq!(session.state, SessionState::Connected);
    assert_eq!(session.segment, format!("{}/{}", stage.namespace, BR0.name));
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_that_boots_again_updates_its_object() {
    let _slots = Slots::take(1).await.unwrap();
    let stage = lit("bios-again", UnknownPolicy::Hold).await;
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec(2)).unwrap();
    machine.power_on().unwrap();
    let first = stage.host(mac(2), SOON, |_| true).await.unwrap();
    assert_eq!(hardware(&first).ram_mebibytes, Some(256));

    machine.power_off();
    machine
        .rebuild(|spec| {
            spec.memory_mib = 384;
            "NVME9999".clone_into(&mut spec.disks[0].serial);
        })
        .unwrap();
    machine.power_on().unwrap();
    let changed = |host: &_| hardware(host).ram_mebibytes == Some(384);
    let second = stage.host(mac(2), SOON, changed).await.unwrap();
    assert_eq!(second.uid(), first.uid());
    let second = hardware(&second);
    let serials: Vec<_> = second
        .storage
        .iter()
        .filter_map(|disk| disk.serial_number.as_deref())
        .collect();
    assert!(
        serials.contains(&"NVME9999") && !serials.contains(&"NVME0002"),
        "{serials:?}"
    );
    assert_eq!(stage.hosts().await.unwrap().len(), 1);
    assert_eq!(stage.servers().await.unwrap().len(), 1);
}

/// The agent trusts no clock but the controller's: certificates hold from now to an hour from now, whatever the machine believes.
#[tokio::test(flavor = "multi_thread")]
async fn machines_whose_clocks_are_decades_off_appear() {
    let _slots = Slots::take(2).await.unwrap();
    let stage = lit("bios-clock", UnknownPolicy::Hold).await;
    let mut machines = Vec::new();
    for (number, year) in [(6, "1970"), (7, "2040")] {
        let mut spec = spec(number);
        spec.extra = vec!["-rtc".to_owned(), format!("base={year}-01-02T00:00:00")];
        let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec).unwrap();
        machine.power_on().unwrap();
        machines.push(machine);
    }
    for number in [6, 7] {
        stage.host(mac(number), SOON, |_| true).await.unwrap();
    }
}

/// A disk is plugged in while the machine is held: the inspection that somebody asks for finds it, and people are told.
#[tokio::test(flavor = "multi_thread")]
async fn held_machine_is_inspected_again_when_asked() {
    let _slots = Slots::take(1).await.unwrap();
    let stage = lit("bios-inspect", UnknownPolicy::Hold).await;
    let mut spec = spec(5);
    // A bay into which devices go while the machine runs.
    spec.extra = ["-device", "pcie-root-port,id=bay"].map(str::to_owned).to_vec();
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec).unwrap();
    machine.power_on().unwrap();
    let first = stage.host(mac(5), SOON, |_| true).await.unwrap();
    let (sent, _) = machine
        .console()
        .wait_for("step=inventory-sent", 0, SOON)
        .await
        .unwrap();

    let image = stage.scratch.path().join("late.img");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(1 << 30))
        .unwrap();
    let mut qmp = machine.qmp().unwrap();
    let drive = json!({"driver": "raw", "node-name": "late", "file": {"driver": "file", "filename": image}});
    qmp.execute("blockdev-add", &drive).unwrap();
    let device = json!({"driver": "virtio-blk-pci", "bus": "bay", "id": "late", "drive": "late", "serial": "LATE0005"});
    qmp.execute("device_add", &device).unwrap();
    let ask = json!({"metadata": {"annotations": {INSPECT_ANNOTATION: ""}}});
    stage
        .api::<BareMetalHost>()
        .patch(&first.name_any(), &PatchParams::default(), &Patch::Merge(&ask))
        .await
        .unwrap();

    machine
        .console()
        .wait_for("the controller orders: inspect", sent, SOON)
        .await
        .unwrap();
    let serials = |host: &BareMetalHost| -> Vec<_> {
        let disks = &hardware(host).storage;
        disks
            .iter()
            .filter_map(|disk| disk.serial_number.clone())
            .collect()
    };
    let done = |host: &BareMetalHost| {
        !host.annotations().contains_key(INSPECT_ANNOTATION) && serials(host).contains(&"LATE0005".to_owned())
    };
    let again = stage.host(mac(5), SOON, done).await.unwrap();
    assert_eq!(again.uid(), first.uid());
    assert_eq!(serials(&again).len(), 3);
    let told = |event: &Event| {
        event.reason.as_deref() == Some("HardwareChanged")
            && event.note.as_ref().is_some_and(|note| note.contains("LATE0005"))
    };
    let events: Api<Event> = stage.api();
    let mut news = watcher(events, watcher::Config::default())
        .applied_objects()
        .boxed();
    let heard = async {
        while let Some(event) = news.next().await {
            if event.is_ok_and(|event| told(&event)) {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(SOON, heard).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn discovered_machine_goes_on_to_its_own_disk() {
    let _slots = Slots::take(1).await.unwrap();
    let stage = lit("bios-discover", UnknownPolicy::Discover).await;
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec(3)).unwrap();
    machine.power_on().unwrap();
    stage.host(mac(3), SOON, |_| true).await.unwrap();
    let (at, _) = machine
        .console()
        .wait_for("step=inventory-sent", 0, SOON)
        .await
        .unwrap();
    machine
        .console()
        .wait_for("from Hard Disk", at, SOON)
        .await
        .unwrap();
    // Not because it was tired of waiting.
    let log = stage.controller.log();
    log.wait_for("and no boot file: it is known and has no job", 0, SOON)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_boots_its_own_disk_when_the_controller_is_down() {
    let _slots = Slots::take(1).await.unwrap();
    let mut stage = lit("bios-down", UnknownPolicy::Hold).await;
    stage.controller.kill();
    let mut machine = Machine::new(&stage.network.net, stage.scratch.path(), spec(4)).unwrap();
    machine.power_on().unwrap();
    machine
        .console()
        .wait_for("from Hard Disk", 0, SOON)
        .await
        .unwrap();
    assert!(stage.hosts().await.unwrap().is_empty());
}
