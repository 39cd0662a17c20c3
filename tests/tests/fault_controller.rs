//! A controller that is killed, moves, loses its Segment or its disk while machines come in.

use std::{collections::BTreeMap, time::Duration};

use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use muster_proto::kinds::{
    BareMetalHost, Enrolment, HardwareData, Profile, Segment, SegmentSpec, Server, SessionState,
    UnknownPolicy,
};
use muster_tests::{
    bridges::BR0,
    cluster::{Cluster, Role},
    controller::{Controller, Setup},
    sim::{
        agent::{SimServer, Step},
        dhcp::{Asker, Client},
        hardware::mac,
    },
    stage::{Stage, memory_mib, segment, server_name},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(90);

fn held() -> SegmentSpec {
    segment(BR0, Profile::Lab, UnknownPolicy::Hold).expect("a Segment")
}

fn boots(servers: &[SimServer]) -> Vec<u32> {
    servers.iter().map(|server| server.seen().boots).collect()
}

/// All that is stored of machine `number`, without what differs between any two machines and any two runs.
async fn end_state(stage: &Stage, number: u32) -> Value {
    let name = server_name(mac(number, 0));
    let host = stage.host(mac(number, 0), SOON, |_| true).await.expect("a host");
    let server = stage.api::<Server>().get(&name).await.expect("the object");
    let data = stage
        .api::<HardwareData>()
        .get(&host.name_any())
        .await
        .expect("the object");
    let enrolments = stage
        .api::<Enrolment>()
        .list(&ListParams::default())
        .await
        .expect("a list");
    let spent: Vec<_> = enrolments
        .items
        .iter()
        .filter(|one| one.spec.server == name)
        .collect();
    let of_server = stage.hosts().await.expect("the hosts");
    let of_server = of_server.iter().filter(|other| {
        let made_for = other.annotations().get("muster.dev/server");
        made_for == Some(&name)
    });
    let mut state = json!({
        "hosts": of_server.count(),
        "labels": host.labels(),
        "annotations": host.annotations(),
        "host": host.spec,
        "status": host.status,
        "data": data.spec,
        "data belongs to the host": data.owner_references().iter().any(|owner| Some(&owner.uid) == host.uid().as_ref()),
        "server": server.spec,
        "server status": server.status,
        "enrolments": spent.len(),
        "contested": spent.iter().any(|one| one.spec.contested),
    });
    forget(&mut state);
    // Numbers stand in addresses and serials in several forms.
    let text = state.to_string();
    let [_, a, b, c] = (number << 4).to_be_bytes();
    let forms = [
        (format!("{a:02x}:{b:02x}:{c:02x}"), "NIC0"),
        (format!("{a:02x}:{b:02x}:{:02x}", c + 1), "NIC1"),
        (format!("{a:02x}{b:02x}{c:02x}"), "NIC0"),
        (format!("{number:012x}"), "NUMBER"),
        (format!("{number:08x}"), "NUMBER"),
        (format!("{number:07}"), "NUMBER"),
    ];
    let text = forms
        .iter()
        .fold(text, |text, (form, word)| text.replace(form, word));
    serde_json::from_str(&text).expect("JSON")
}

/// Takes times, keys and identifiers of objects out of `value`.
fn forget(value: &mut Value) {
    const PASSING: [&str; 10] = [
        "uid",
        "sealKey",
        "since",
        "key",
        "inventoried",
        "lastUpdated",
        "lastTransitionTime",
        "start",
        "end",
        "job",
    ];
    match value {
        Value::Object(map) => {
            map.retain(|name, _| !PASSING.contains(&name.as_str()));
            map.values_mut().for_each(forget);
        }
        Value::Array(values) => values.iter_mut().for_each(forget),
        // Since when a host waits stands behind what for.
        Value::String(text) => text.truncate(text.rfind(" (since ").unwrap_or(text.len())),
        _ => {}
    }
}

/// Names only the parts that differ: the whole would fill pages.
fn assert_same(state: &Value, expected: &Value, killed_at: &str) {
    for (part, value) in expected.as_object().expect("an object") {
        assert_eq!(state[part], *value, "{part}, killed at {killed_at}");
    }
}

async fn settled(stage: &Stage, server: &SimServer) {
    stage
        .discovered(server, SOON)
        .await
        .expect("a host with hardware");
    let name = server_name(server.hardware().boot_mac());
    // The last thing that a round writes.
    let marked = |host: &BareMetalHost| host.annotations().contains_key("muster.dev/trust");
    let host = stage
        .host(server.hardware().boot_mac(), SOON, marked)
        .await
        .expect("a marked host");
    stage
        .until("HardwareData and a link", SOON, async || {
            let data = stage.api::<HardwareData>().get_opt(&host.name_any()).await?;
            let server = stage.api::<Server>().get(&name).await?;
            Ok((data.is_some() && server.spec.host.is_some()).then_some(()))
        })
        .await
        .expect("both objects");
    stage
        .until("a connected session", SOON, async || {
            let server = stage.api::<Server>().get(&name).await?;
            let session = server.status.and_then(|status| status.session);
            Ok(session.filter(|session| session.state == SessionState::Connected))
        })
        .await
        .expect("a session");
}

async fn again(stage: &mut Stage) {
    stage.controller.kill();
    stage.controller.start().expect("a controller");
}

#[tokio::test(flavor = "multi_thread")]
async fn controller_killed_at_any_step_reaches_the_same_end() {
    let (mut stage, rack) = Stage::holding("kill").await;
    // Large numbers, so that nothing else in an object looks like one of them.
    let mut untouched = rack.servers([70_001]).remove(0);
    untouched.power_on();
    settled(&stage, &untouched).await;
    let expected = end_state(&stage, 70_001).await;
    assert_eq!(expected["enrolments"], 1, "{expected:#}");

    // While the machine waits at a step.
    let steps = [
        Step::Leased,
        Step::Scripted,
        Step::Configured,
        Step::Enrolled,
        Step::Reported,
    ];
    for (step, number) in steps.into_iter().zip(70_002..) {
        let mut server = rack.servers([number]).remove(0);
        server.stop_at(step);
        server.power_on();
        server.reaches(step, SOON).await.unwrap();
        again(&mut stage).await;
        server.go_on();
        settled(&stage, &server).await;
        assert_same(&end_state(&stage, number).await, &expected, &format!("{step:?}"));
    }
    // As soon as a written object shows that the next step is under way.
    for number in 70_010..70_014 {
        let mut server = rack.servers([number]).remove(0);
        server.power_on();
        let (mac, name) = (mac(number, 0), server_name(mac(number, 0)));
        let seen = stage.until("the object", SOON, async || {
            let host = stage
                .hosts()
                .await?
                .into_iter()
                .find(|host| host.spec.boot_mac_address.as_deref() == Some(&mac.to_string()));
            let Some(host) = host else { return Ok(None) };
            let linked = async || {
                let server = stage.api::<Server>().get(&name).await?;
                anyhow::Ok(server.spec.host.is_some())
            };
            let there = match number {
                70_010 => true,
                70_011 => linked().await?,
                70_012 => stage
                    .api::<HardwareData>()
                    .get_opt(&host.name_any())
                    .await?
                    .is_some(),
                _ => host.status.is_some(),
            };
            Ok(there.then_some(()))
        });
        seen.await.unwrap();
        again(&mut stage).await;
        settled(&stage, &server).await;
        assert_eq!(
            end_state(&stage, number).await,
            expected,
            "killed at object {number}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inventory_that_was_accepted_becomes_a_host_after_a_kill() {
    let (mut stage, rack) = Stage::holding("kill-between").await;
    let mut server = rack.servers([1]).remove(0);
    server.stop_at(Step::Enrolled);
    server.power_on();
    let boots = server.reaches(Step::Enrolled, SOON).await.unwrap().boots;

    // The edge alone stores the inventory and makes no host.
    stage.controller.kill();
    let cluster = Cluster::shared().await.unwrap();
    let mut setup = Setup::new(&stage.namespace).unwrap();
    setup.role = Role::Edge;
    setup.extra = ["--watch-namespace", &stage.namespace]
        .map(str::to_owned)
        .to_vec();
    let dir = stage.scratch.path();
    let mut edge = Controller::new(cluster, &stage.network.net, dir, setup)
        .await
        .unwrap();
    edge.start().unwrap();
    server.go_on();
    server.reaches(Step::Reported, SOON).await.unwrap();
    edge.kill();
    assert!(stage.hosts().await.unwrap().is_empty());

    stage.controller.start().unwrap();
    settled(&stage, &server).await;
    let seen = server.seen();
    assert_eq!(
        (seen.boots, seen.reports),
        (boots, 1),
        "nothing was asked of the machine again: {seen:?}"
    );
    assert_eq!(stage.hosts().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_follow_a_controller_whose_address_changed() {
    let mut stage = Stage::dark("moved", &[BR0]).await.unwrap();
    let spec = SegmentSpec {
        agent_endpoints: vec!["10.77.0.1:9443".to_owned(), "10.77.0.5:9443".to_owned()],
        ..held()
    };
    stage.controller.start().unwrap();
    stage.serve(BR0.name, spec).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut servers = rack.servers([1, 2]);
    servers[0].power_on();
    stage.discovered(&servers[0], SOON).await.unwrap();
    servers[1].stop_at(Step::Configured);
    servers[1].power_on();
    servers[1].reaches(Step::Configured, SOON).await.unwrap();

    let booted = boots(&servers);
    stage.controller.kill();
    let net = &stage.network.net;
    net.ip("address del 10.77.0.1/24 dev br0").unwrap();
    net.ip("address add 10.77.0.5/24 dev br0").unwrap();
    stage.controller.start().unwrap();
    servers[1].go_on();
    stage.discovered(&servers[1], SOON).await.unwrap();
    servers[0].change(|hardware| hardware.inventory.memory.installed_mib = 4096);
    let grown = |host: &BareMetalHost| memory_mib(host) == Some(4096);
    stage.host(mac(1, 0), SOON, grown).await.unwrap();
    assert_eq!(boots(&servers), booted, "nobody had to boot again");
    let enrolments = stage
        .api::<Enrolment>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(enrolments.items.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_machines_at_once_become_eight_hosts() {
    let (stage, rack) = Stage::holding("eight").await;
    let mut servers = rack.servers(1..=8);
    servers.iter_mut().for_each(SimServer::power_on);
    for server in &servers {
        settled(&stage, server).await;
        assert_eq!(server.seen().reports, 1);
    }
    let names: Vec<_> = stage
        .hosts()
        .await
        .unwrap()
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    let expected: Vec<_> = (1..=8)
        .map(|number| format!("example-servers-sim{number:07}"))
        .collect();
    assert_eq!(names, expected);
    let servers: BTreeMap<_, _> = stage.servers().await.unwrap();
    assert_eq!(servers.len(), 8);
    assert!(
        servers
            .values()
            .all(|server| server.status.as_ref().unwrap().clashes.is_empty())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_outlive_the_segment_they_came_by() {
    let (mut stage, rack) = Stage::holding("segment").await;
    let mut servers = rack.servers([1, 2]);
    for server in &mut servers {
        server.power_on();
        stage.discovered(server, SOON).await.unwrap();
    }
    let before = stage.hosts().await.unwrap();
    let keys = |servers: BTreeMap<String, Server>| -> Vec<_> {
        let key = |server: Server| server.status.unwrap().session.unwrap().key;
        servers.into_values().map(key).collect()
    };
    let booted = boots(&servers);
    let sessions = keys(stage.servers().await.unwrap());
    stage
        .api::<Segment>()
        .delete(BR0.name, &DeleteParams::default())
        .await
        .unwrap();
    stage
        .controller
        .log()
        .wait_for("no longer served", 0, SOON)
        .await
        .unwrap();
    // Whoever comes now is nobody's business.
    let newcomer = Client::new(rack.clients(), mac(9, 0), Asker::Ipxe(0));
    assert!(newcomer.meets_silence(Duration::from_secs(4)).await.unwrap());
    let still = stage.hosts().await.unwrap();
    let ids = |hosts: &[BareMetalHost]| hosts.iter().map(ResourceExt::uid).collect::<Vec<_>>();
    assert_eq!(ids(&still), ids(&before));
    assert_eq!(stage.servers().await.unwrap().len(), 2);
    assert!(stage.controller.is_running());
    assert!(servers.iter().all(|server| server.seen().step == Step::Reported));

    stage.serve(BR0.name, held()).await.unwrap();
    for (server, number) in servers.iter().zip([1, 2]) {
        server.change(|hardware| hardware.inventory.memory.installed_mib = 4096);
        let grown = |host: &BareMetalHost| memory_mib(host) == Some(4096);
        stage.host(mac(number, 0), SOON, grown).await.unwrap();
    }
    assert_eq!(boots(&servers), booted, "nobody had to boot again");
    assert_eq!(
        keys(stage.servers().await.unwrap()),
        sessions,
        "the same sessions"
    );
}

/// Starts the controller with a temporary directory on a file system of its own that has no byte left.
const FULL_DISK: &str = r#"mount -t tmpfs -o size=64k none "$TMPDIR" || exit 99
head -c 1M /dev/zero >"$TMPDIR/filler" 2>/dev/null
exec "$@""#;

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_said_and_machines_come_in_nevertheless() {
    let extra = tempfile::NamedTempFile::new().unwrap();
    let authority = rcgen::generate_simple_self_signed(["site.example".to_owned()]).unwrap();
    std::fs::write(extra.path(), authority.cert.pem()).unwrap();
    let full = tempfile::tempdir().unwrap();
    let mut stage = Stage::dark_with("disk", &[BR0], |setup| {
        let words = ["unshare", "--mount", "sh", "-c", FULL_DISK, "sh"];
        setup.wrapper = words.map(str::to_owned).to_vec();
        let at = full.path().to_string_lossy().into_owned();
        setup.environment.push(("TMPDIR".to_owned(), at));
        let path = extra.path().to_string_lossy().into_owned();
        setup.extra.extend(["--extra-ca".to_owned(), path]);
    })
    .await
    .unwrap();
    stage.controller.start().unwrap();
    stage.serve(BR0.name, held()).await.unwrap();
    let rack = stage.rack().unwrap();
    let mut server = rack.servers([1]).remove(0);
    server.power_on();
    stage.discovered(&server, SOON).await.unwrap();
    let (_, said) = stage
        .controller
        .log()
        .wait_for("keep firmware for the ramdisk", 0, SOON)
        .await
        .unwrap();
    assert!(said.text.contains("No space left on device"), "{}", said.text);
    assert!(
        said.text.contains(&*full.path().to_string_lossy()),
        "{}",
        said.text
    );
}
