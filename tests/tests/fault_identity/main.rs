//! Machines whose hardware moved, machines that cannot be told apart, and machines that lie about who they are.

mod reports;

use std::time::Duration;

use kube::{
    ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use muster_proto::kinds::{
    BareMetalHost, BareMetalHostSpec, HardwareData, Image, SessionState, UnknownPolicy,
};
use muster_tests::{
    sim::{
        agent::{SimServer, Step},
        hand::Hand,
        hardware::{Hardware, disk, mac},
        rack::Rack,
    },
    stage::{Stage, macs, memory_mib, server_name},
};
use serde_json::json;

pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) async fn lit(purpose: &str, unknown: UnknownPolicy) -> (Stage, Rack) {
    let lit = Stage::with_rack(purpose, unknown).await;
    lit.expect("a controller that serves")
}

pub(crate) async fn discovered(stage: &Stage, server: &mut SimServer) -> BareMetalHost {
    server.power_on();
    stage
        .discovered(server, SOON)
        .await
        .expect("a host with hardware")
}

pub(crate) fn disks(host: &BareMetalHost) -> Vec<String> {
    let hardware = host.status.as_ref().and_then(|status| status.hardware.as_ref());
    let disks = hardware.map(|hardware| hardware.unpack().storage.clone());
    disks
        .unwrap_or_default()
        .iter()
        .filter_map(|disk| disk.serial_number.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_with_swapped_nics_keeps_its_object() {
    let (stage, rack) = lit("id-nic", UnknownPolicy::Hold).await;
    let mut server = rack.server(Hardware::number(1));
    let first = discovered(&stage, &mut server).await;

    // The other one is still there. Who changes a NIC takes longer than Muster to notice that the machine is off.
    server.power_off();
    stage.forgets(&server_name(mac(1, 0)), SOON).await.unwrap();
    server.change(|hardware| hardware.replace_nic(0, mac(2, 0)));
    let second = discovered(&stage, &mut server).await;
    assert_eq!(second.uid(), first.uid());
    assert_eq!(macs(&second), [mac(2, 0), mac(1, 1)]);

    // None of them is: the serial number is left.
    server.power_off();
    stage.forgets(&server_name(mac(1, 0)), SOON).await.unwrap();
    server.change(|hardware| {
        hardware.replace_nic(0, mac(3, 0));
        hardware.replace_nic(1, mac(3, 1));
    });
    let third = discovered(&stage, &mut server).await;
    assert_eq!(third.uid(), first.uid());
    assert_eq!(macs(&third), [mac(3, 0), mac(3, 1)]);
    assert_eq!(stage.hosts().await.unwrap().len(), 1);
    assert_eq!(stage.servers().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_with_a_swapped_board_keeps_its_object() {
    let (stage, rack) = lit("id-board", UnknownPolicy::Hold).await;
    let mut server = rack.server(Hardware::number(1));
    let first = discovered(&stage, &mut server).await;
    server.power_off();
    server.change(|hardware| {
        let system = &mut hardware.inventory.system;
        "SPARE0001".clone_into(&mut system.board_serial);
        "5a1e0a52-6c1e-4b7a-9e2d-00000000beef".clone_into(&mut system.uuid);
        // Nobody wrote the system's own number into the spare part.
        "To Be Filled By O.E.M.".clone_into(&mut system.serial);
    });
    server.power_on();
    server.reaches(Step::Reported, SOON).await.unwrap();
    let servers = stage.servers().await.unwrap();
    let identity = &servers[&server_name(mac(1, 0))].status.as_ref().unwrap().identity;
    assert_eq!(identity.board_serial.as_deref(), Some("SPARE0001"));
    assert_eq!(servers.len(), 1);
    let hosts = stage.hosts().await.unwrap();
    assert_eq!((hosts.len(), hosts[0].uid()), (1, first.uid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_moves_to_another_machine_changes_two_hosts() {
    let (stage, rack) = lit("id-disk", UnknownPolicy::Hold).await;
    let mut servers = rack.servers([1, 2]);
    let mut before = Vec::new();
    for server in &mut servers {
        before.push(discovered(&stage, server).await.uid());
    }
    let mut moved = disk(1, 0);
    servers[0].change(|hardware| {
        hardware
            .inventory
            .disks
            .retain(|disk| disk.serial != moved.serial);
    });
    "/dev/nvme2n1".clone_into(&mut moved.name);
    servers[1].change(|hardware| hardware.inventory.disks.push(moved.clone()));

    let left = stage
        .host(mac(1, 0), SOON, |host| disks(host).len() == 1)
        .await
        .unwrap();
    let came = stage
        .host(mac(2, 0), SOON, |host| disks(host).len() == 3)
        .await
        .unwrap();
    assert_eq!(disks(&left), [disk(1, 1).serial]);
    assert_eq!(
        disks(&came),
        [disk(2, 0).serial, disk(2, 1).serial, disk(1, 0).serial]
    );
    assert_eq!([left.uid(), came.uid()], before[..]);
    assert_eq!(stage.hosts().await.unwrap().len(), 2);
    stage
        .hears(&left.name_any(), "HardwareChanged", SOON)
        .await
        .unwrap();
    stage
        .hears(&came.name_any(), "HardwareChanged", SOON)
        .await
        .unwrap();
}

async fn two_machines_with_one_uuid(purpose: &str, unknown: UnknownPolicy) {
    let (stage, rack) = lit(purpose, unknown).await;
    let [mut one, mut other] = [1, 2].map(|number| rack.server(Hardware::number(number)));
    let uuid = one.hardware().inventory.system.uuid;
    other.change(|hardware| uuid.clone_into(&mut hardware.inventory.system.uuid));
    one.power_on();
    let first = stage.host(mac(1, 0), SOON, |_| true).await.expect("a host");
    other.power_on();
    let second = stage.host(mac(2, 0), SOON, |_| true).await.expect("a host");
    assert_ne!(first.uid(), second.uid());
    assert_eq!(macs(&first), [mac(1, 0), mac(1, 1)]);
    assert_eq!(macs(&second), [mac(2, 0), mac(2, 1)]);
    for (host, own, theirs) in [(&first, 1, 2), (&second, 2, 1)] {
        let told = stage
            .hears(&host.name_any(), "IdentityClash", SOON)
            .await
            .expect("an Event");
        assert!(told.note.contains(&server_name(mac(theirs, 0))), "{}", told.note);
        let servers = stage.servers().await.expect("the Servers");
        let status = servers[&server_name(mac(own, 0))]
            .status
            .clone()
            .expect("a status");
        assert_eq!(status.clashes, [server_name(mac(theirs, 0))]);
    }
    assert_eq!(stage.hosts().await.expect("the hosts").len(), 2);
    assert_eq!(stage.servers().await.expect("the Servers").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_machines_with_one_uuid_stay_two_and_both_are_told() {
    two_machines_with_one_uuid("id-uuid", UnknownPolicy::Hold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovered_machines_with_one_uuid_stay_two_and_both_are_told() {
    two_machines_with_one_uuid("id-uuid-d", UnknownPolicy::Discover).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_whose_smbios_is_junk_are_told_apart_by_their_nics() {
    let (stage, rack) = lit("id-junk", UnknownPolicy::Hold).await;
    let mut servers = rack.servers([1, 2, 3]);
    let junk = [
        ("To Be Filled By O.E.M.", "00000000-0000-0000-0000-000000000000"),
        ("0000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
        ("", "Not Settable"),
    ];
    for (server, (serial, uuid)) in servers.iter_mut().zip(junk) {
        server.change(|hardware| {
            let system = &mut hardware.inventory.system;
            for text in [
                &mut system.serial,
                &mut system.board_serial,
                &mut system.chassis_serial,
                &mut system.manufacturer,
                &mut system.product,
            ] {
                serial.clone_into(text);
            }
            uuid.clone_into(&mut system.uuid);
        });
        server.power_on();
    }
    for (server, number) in servers.iter().zip([1, 2, 3]) {
        let host = stage.discovered(server, SOON).await.unwrap();
        assert_eq!(host.name_any(), server_name(mac(number, 0)));
    }
    assert_eq!(stage.hosts().await.unwrap().len(), 3);
    let servers = stage.servers().await.unwrap();
    assert_eq!(servers.len(), 3);
    for server in servers.values() {
        let status = server.status.as_ref().unwrap();
        assert_eq!(status.clashes, Vec::<String>::new());
        assert_eq!(
            (&status.identity.system_serial, &status.identity.system_uuid),
            (&None, &None)
        );
    }
}

/// A host that somebody made by hand, in the state that an operator would have given it.
async fn hand_made(stage: &Stage, number: u32, state: &str) -> BareMetalHost {
    let hosts = stage.api::<BareMetalHost>();
    // What is provisioned stays so as long as its image is wished.
    let image = (state == "provisioned").then(|| Image {
        url: "http://images.example/os.raw".to_owned(),
        checksum: Some("0".repeat(64)),
        ..Image::default()
    });
    let spec = BareMetalHostSpec {
        online: true,
        boot_mac_address: Some(mac(number, 0).to_string()),
        image: image.clone(),
        ..BareMetalHostSpec::default()
    };
    let name = format!("by-hand-{number}");
    let made = BareMetalHost::new(&name, spec);
    hosts
        .create(&PostParams::default(), &made)
        .await
        .expect("an object");
    let system = Hardware::number(number).inventory.system;
    let status = json!({"status": {
        "errorCount": 0, "errorMessage": "", "operationalStatus": "OK", "poweredOn": true,
        "provisioning": {"state": state, "ID": "", "image": image},
        "hardware": {"systemVendor": {"manufacturer": system.manufacturer, "serialNumber": system.serial}},
    }});
    let patch = Patch::Merge(&status);
    hosts
        .patch_status(&name, &PatchParams::default(), &patch)
        .await
        .expect("a status")
}

#[tokio::test(flavor = "multi_thread")]
async fn report_that_claims_a_hand_made_host_changes_nothing_of_it() {
    let (stage, rack) = lit("id-claim", UnknownPolicy::Hold).await;
    // The real machine of this one was inspected once: its UUID is known.
    let inspecting = hand_made(&stage, 4, "inspecting").await;
    let mut real = rack.server(Hardware::number(4));
    real.power_on();
    real.reaches(Step::Reported, SOON).await.unwrap();
    let mut owned = [
        hand_made(&stage, 1, "provisioned").await,
        hand_made(&stage, 2, "provisioned").await,
    ];
    owned.sort_by_key(ResourceExt::name_any);

    let mut liars = rack.servers([11, 12, 14]);
    let serial = Hardware::number(1).inventory.system.serial;
    liars[0].change(|hardware| serial.clone_into(&mut hardware.inventory.system.serial));
    liars[1].change(|hardware| hardware.replace_nic(1, mac(2, 0)));
    let uuid = Hardware::number(4).inventory.system.uuid;
    liars[2].change(|hardware| uuid.clone_into(&mut hardware.inventory.system.uuid));
    for liar in &mut liars {
        liar.power_on();
        liar.reaches(Step::Reported, SOON).await.unwrap();
    }
    stage.hears("by-hand-1", "ClaimedByReport", SOON).await.unwrap();
    stage.hears("by-hand-2", "ReportNotApplied", SOON).await.unwrap();
    stage.hears("by-hand-4", "IdentityClash", SOON).await.unwrap();

    let now = stage.hosts().await.unwrap();
    // The operator marks as its own what has no BMC, and says what it lacks; a report is to change nothing of these.
    let reported = |host: &BareMetalHost| {
        let status = host.status.clone().unwrap_or_default();
        let metadata = host.metadata.clone();
        let state = status.provisioning.state;
        (
            metadata.labels,
            metadata.annotations,
            host.spec.clone(),
            status.hardware,
            state,
        )
    };
    let find = |name: &str| now.iter().find(|host| host.name_any() == name).unwrap();
    for before in &owned {
        let after = find(&before.name_any());
        assert_eq!(reported(after), reported(before), "{after:#?}");
    }
    // The one that is inspected shows its own machine, or nothing yet.
    let after = find(&inspecting.name_any());
    let lie = mac(14, 0);
    assert!(!macs(after).contains(&lie), "{after:#?}");
    let data = stage.api::<HardwareData>();
    for name in ["by-hand-1", "by-hand-2"] {
        assert!(
            data.get_opt(name).await.unwrap().is_none(),
            "{name} has HardwareData"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_connects_twice_is_one_session() {
    let (stage, rack) = lit("id-twice", UnknownPolicy::Hold).await;
    let mut first = rack.server(Hardware::number(1));
    let config = first.steal_config(SOON).await.unwrap();
    // One certificate, two connections at once: one is heard, the other at the latest when it asks again.
    let mut hand = Hand::new(rack.clients(), config).unwrap();
    let identity = Hardware::number(1).identity();
    assert!(hand.enrol(identity).await.unwrap().status.is_success());
    let report = Hardware::number(1).report();
    let (one, other) = tokio::join!(
        hand.call("/v1/inventory", report.clone()),
        hand.call("/v1/inventory", report.clone())
    );
    let statuses = [one.unwrap().status, other.unwrap().status];
    assert!(statuses.iter().any(|status| status.is_success()), "{statuses:?}");
    assert!(
        statuses
            .iter()
            .all(|status| status.is_success() || status.as_u16() == 503),
        "{statuses:?}"
    );
    let again = hand.call("/v1/inventory", report.clone()).await.unwrap();
    assert!(again.status.is_success(), "{:?}", again.status);

    // Two boots: the later one speaks for the machine.
    first.power_on();
    first.reaches(Step::Reported, SOON).await.unwrap();
    let refused = hand
        .call("/v1/inventory", report)
        .await
        .unwrap()
        .problem()
        .unwrap();
    assert!(refused.message.contains("newer session"), "{refused}");
    let mut second = rack.server(Hardware::number(1));
    second.power_on();
    second.reaches(Step::Reported, SOON).await.unwrap();
    let over = first
        .shows("be refused", SOON, |seen| seen.step == Step::Refused)
        .await;
    let over = over.unwrap();
    assert!(over.trouble.contains("newer session"), "{over:?}");

    let servers = stage.servers().await.unwrap();
    assert_eq!(servers.len(), 1);
    let session = servers[&server_name(mac(1, 0))]
        .status
        .clone()
        .unwrap()
        .session
        .unwrap();
    assert_eq!(session.state, SessionState::Connected);
    assert_eq!(stage.hosts().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_of_one_machine_does_not_speak_for_another() {
    let (stage, rack) = lit("id-cert", UnknownPolicy::Hold).await;
    let mut victim = rack.server(Hardware::number(1));
    let host = discovered(&stage, &mut victim).await;
    let before = stage.servers().await.unwrap()[&server_name(mac(1, 0))].clone();

    let other = rack.server(Hardware::number(2));
    let config = other.steal_config(SOON).await.unwrap();
    let mut hand = Hand::new(rack.clients(), config.clone()).unwrap();
    assert!(
        hand.enrol(Hardware::number(2).identity())
            .await
            .unwrap()
            .status
            .is_success()
    );
    // It says that it is the victim, with other disks.
    let mut lie = Hardware::number(1);
    lie.inventory.disks.clear();
    assert!(
        hand.call("/v1/inventory", lie.report())
            .await
            .unwrap()
            .status
            .is_success()
    );
    // Its certificate with another key is no certificate.
    let mut thief = Hand::new(rack.clients(), config).unwrap();
    thief.take_certificate(hand.certificate().unwrap().to_owned());
    let stolen = thief.call("/v1/inventory", lie.report()).await;
    assert!(stolen.is_err(), "{stolen:?}");

    let clash = stage
        .hears(&server_name(mac(1, 0)), "IdentityClash", SOON)
        .await
        .unwrap();
    assert!(clash.note.contains(&server_name(mac(2, 0))), "{}", clash.note);
    let after = stage.servers().await.unwrap()[&server_name(mac(1, 0))].clone();
    let [before, after] = [before, after].map(|server| server.status.unwrap());
    assert_eq!(
        (&after.inventory, &after.session),
        (&before.inventory, &before.session)
    );
    assert_eq!(after.identity, before.identity);
    let now = stage.api::<BareMetalHost>().get(&host.name_any()).await.unwrap();
    assert_eq!(now.status, host.status);
    victim.change(|hardware| hardware.inventory.memory.installed_mib = 1024);
    let honest = |host: &BareMetalHost| memory_mib(host) == Some(1024);
    stage.host(mac(1, 0), SOON, honest).await.unwrap();
}
