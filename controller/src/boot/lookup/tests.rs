use kube::runtime::{
    reflector::{self, ObjectRef, store::Writer},
    watcher,
};

use super::*;
use crate::watches::Watches;

/// A cluster without objects, and how Servers and hosts come into it.
fn empty() -> (World, Writer<Server>, Writer<BareMetalHost>) {
    let (servers, servers_writer) = reflector::store();
    let (hosts, hosts_writer) = reflector::store();
    let world = World {
        segments: reflector::store().0,
        servers,
        written: Arc::default(),
        hosts,
        enrolments: reflector::store().0,
        hardware: reflector::store().0,
        machines: Arc::default(),
        unreadable: Arc::default(),
        watches: Watches::default(),
    };
    (world, servers_writer, hosts_writer)
}

/// Adds a Server, and the host in this state that was discovered with it.
fn add(
    (world, servers, hosts): &mut (World, Writer<Server>, Writer<BareMetalHost>),
    name: &str,
    uuid: &str,
    macs: &[&str],
    state: &str,
) {
    let server: Server = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "namespace": "muster-system"},
        "spec": {"host": {"namespace": "metal", "name": name, "uid": name}},
        "status": {"identity": {"macs": macs, "systemUuid": uuid}},
    }))
    .unwrap();
    let host: BareMetalHost = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "namespace": "metal", "uid": name,
            "annotations": {"muster.dev/server": name}},
        "spec": {"online": true, "bootMACAddress": macs[0]},
        "status": {"errorMessage": "", "operationalStatus": "OK", "poweredOn": true,
            "provisioning": {"ID": "", "state": state}},
    }))
    .unwrap();
    world.machines.server(&server, false);
    servers.apply_watcher_event(&watcher::Event::Apply(server));
    world.machines.host(&host, false);
    hosts.apply_watcher_event(&watcher::Event::Apply(host));
}

fn segment(unknown: &str) -> Segment {
    let spec = serde_json::json!({"subnet": "192.0.2.0/24", "unknown": unknown});
    Segment::new("lab", serde_json::from_value(spec).unwrap())
}

const UUID: &str = "4c4c4544-0035-4b10-8032-cac04f583933";

#[tokio::test]
async fn a_machine_with_the_uuid_of_one_in_use_and_an_unseen_nic_is_told_of_on_that_server() {
    for state in ["provisioned", "externally provisioned"] {
        let mut cluster = empty();
        add(&mut cluster, "mine", UUID, &["02:00:00:00:00:01"], state);
        let (world, _servers, mut hosts) = cluster;
        let seen = |mac: Mac| {
            let known = Known::of(&world, mac, Some(UUID));
            let verdict = known.verdict(&segment("discover"));
            (verdict, known.shared_uuid(mac, verdict))
        };
        let (own, other) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 9]));
        let in_use = Verdict::Disk("it is known and has no job");
        assert_eq!(seen(own), (in_use, None));
        let (verdict, event) = seen(other);
        assert_eq!(verdict, Verdict::Disk(SHARED_UUID));
        let event = event.unwrap();
        let about = (event.about.kind.as_deref(), event.about.name.as_deref());
        assert_eq!(about, (Some("Server"), Some("mine")));
        assert!(event.warning);
        for words in [
            "Server mine,",
            "bootMACAddress 02:00:00:00:00:09",
            "its host metal/mine with inspect.metal3.io",
        ] {
            assert!(event.message.contains(words), "{words}: {}", event.message);
        }
        // Whoever declares the NIC has seen it.
        let mut declared = BareMetalHost::new("declared", muster_proto::kinds::BareMetalHostSpec::default());
        declared.metadata.namespace = Some("metal".to_owned());
        declared.spec.boot_mac_address = Some(other.to_string());
        world.machines.host(&declared, false);
        hosts.apply_watcher_event(&watcher::Event::Apply(declared));
        let by_hand = Verdict::Disk("its host was declared by a user and has no job");
        assert_eq!(seen(other), (by_hand, None));
    }
}

#[tokio::test]
async fn of_two_servers_with_the_uuid_of_an_unseen_nic_the_one_in_use_counts_whatever_their_names() {
    for (used, idle) in [("a", "b"), ("b", "a")] {
        let mut cluster = empty();
        add(&mut cluster, used, UUID, &["02:00:00:00:00:01"], "provisioned");
        add(&mut cluster, idle, UUID, &["02:00:00:00:00:02"], "unmanaged");
        let (world, ..) = cluster;
        let known = |last| Known::of(&world, Mac([2, 0, 0, 0, 0, last]), Some(UUID));
        assert_eq!(known(9).server.as_ref().unwrap().name_any(), used);
        assert_eq!(known(9).verdict(&segment("discover")), Verdict::Disk(SHARED_UUID));
        assert_eq!(known(2).server.unwrap().name_any(), idle);
    }
}

#[tokio::test]
async fn a_machine_is_known_by_any_alias_and_its_host_by_the_reference() {
    let (world, mut servers, mut hosts) = empty();
    let mac = |last| Mac([2, 0, 0, 0, 0, last]);
    let mut server = Server::new("s", muster_proto::kinds::ServerSpec::default());
    server.metadata.namespace = Some("muster-system".to_owned());
    server.spec.host = Some(muster_proto::kinds::HostReference {
        namespace: "metal".to_owned(),
        name: "h".to_owned(),
        uid: "1".to_owned(),
    });
    let identity = Identity {
        system_uuid: Some("4c4c4544-0035-4b10-8032-cac04f583933".to_owned()),
        macs: [mac(1), mac(2)].into(),
        ..Identity::default()
    };
    server.status = Some(muster_proto::kinds::ServerStatus {
        identity,
        ..Default::default()
    });
    let mut host = BareMetalHost::new("h", muster_proto::kinds::BareMetalHostSpec::default());
    host.metadata.namespace = Some("metal".to_owned());
    let mut declared = BareMetalHost::new("other", muster_proto::kinds::BareMetalHostSpec::default());
    declared.metadata.namespace = Some("metal".to_owned());
    declared.spec.boot_mac_address = Some("02-00-00-00-00-09".to_owned());
    world.machines.server(&server, false);
    servers.apply_watcher_event(&watcher::Event::Apply(server));
    for host in [host, declared] {
        world.machines.host(&host, false);
        hosts.apply_watcher_event(&watcher::Event::Apply(host));
    }
    let names = |known: Known| {
        (
            known.server.map(|one| one.name_any()),
            known.host.map(|one| one.name_any()),
        )
    };
    let both = (Some("s".to_owned()), Some("h".to_owned()));
    assert_eq!(names(Known::of(&world, mac(2), None)), both);
    assert_eq!(
        names(Known::of(
            &world,
            mac(7),
            Some("4c4c4544-0035-4b10-8032-cac04f583933")
        )),
        both
    );
    assert_eq!(
        names(Known::of(&world, mac(9), None)),
        (None, Some("other".to_owned()))
    );
    let by_uuid = |last, uuid| Known::of(&world, mac(last), uuid).by_uuid_alone;
    let uuid = Some("4c4c4544-0035-4b10-8032-cac04f583933");
    assert_eq!(
        [by_uuid(7, uuid), by_uuid(2, uuid), by_uuid(7, None)],
        [true, false, false]
    );
    assert_eq!(names(Known::of(&world, mac(7), None)), (None, None));
    let mut by_hand = BareMetalHost::new("database", muster_proto::kinds::BareMetalHostSpec::default());
    by_hand.metadata.namespace = Some("metal".to_owned());
    by_hand.spec.boot_mac_address = Some("02:00:00:00:00:02".to_owned());
    world.machines.host(&by_hand, false);
    hosts.apply_watcher_event(&watcher::Event::Apply(by_hand));
    let declared = (Some("s".to_owned()), Some("database".to_owned()));
    assert_eq!(
        names(Known::of(&world, mac(2), None)),
        declared,
        "no machine's report takes a NIC from a host that a person declared with it"
    );
    let mut registered = BareMetalHost::new("h", muster_proto::kinds::BareMetalHostSpec::default());
    registered.metadata.namespace = Some("metal".to_owned());
    let status = registered.status.get_or_insert_default();
    status.provisioning.state = "provisioned".to_owned();
    hosts.apply_watcher_event(&watcher::Event::Apply(registered));
    assert_eq!(
        names(Known::of(&world, mac(2), uuid)),
        both,
        "who declares a host with that NIC does not decide what another's machine boots, which is registered"
    );
    assert_eq!(
        names(Known::of(&world, mac(2), None)),
        declared,
        "the NIC may have moved"
    );
}

#[tokio::test]
async fn who_says_that_it_has_anothers_nic_does_not_decide_what_that_machine_boots() {
    let mut cluster = empty();
    let (mine, other) = (UUID, "4c4c4544-0035-4b10-8032-cac04f583934");
    let (nic, others) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
    add(&mut cluster, "other", other, &[others, nic], "unmanaged");
    add(&mut cluster, "mine", mine, &["02:00:00:00:00:03"], "provisioned");
    let (world, _servers, mut hosts) = cluster;
    let name = |uuid| {
        let known = Known::of(&world, nic.parse().unwrap(), uuid);
        (known.host.unwrap().name_any(), known.by_uuid_alone)
    };
    assert_eq!(name(Some(mine)), ("mine".to_owned(), false));
    let swapped = "44454c4c-3500-104b-8032-cac04f583933";
    assert_eq!(name(Some(swapped)), ("mine".to_owned(), false));
    assert_eq!(name(Some(other)), ("other".to_owned(), false));
    let swapped = "44454c4c-3500-104b-8032-cac04f583934";
    assert_eq!(name(Some(swapped)), ("other".to_owned(), false));
    // A person declared that the NIC is that host's.
    let mut by_hand = world.hosts.get(&ObjectRef::new("other").within("metal")).unwrap();
    Arc::make_mut(&mut by_hand).metadata.annotations = None;
    Arc::make_mut(&mut by_hand).spec.boot_mac_address = Some(nic.to_owned());
    let status = Arc::make_mut(&mut by_hand).status.get_or_insert_default();
    status.provisioning.state = "provisioned".to_owned();
    world.machines.host(&by_hand, false);
    hosts.apply_watcher_event(&watcher::Event::Apply(Arc::unwrap_or_clone(by_hand)));
    let known = Known::of(&world, nic.parse().unwrap(), Some(mine));
    let names = (known.server.unwrap().name_any(), known.host.unwrap().name_any());
    assert_eq!(names, ("other".to_owned(), "other".to_owned()));
    // Of nobody: a board was replaced, or the NIC is in a machine that nobody knows.
    let unknown = "4c4c4544-0035-4b10-8032-cac04f583935";
    assert_eq!(name(Some(unknown)), ("other".to_owned(), false));
    assert_eq!(name(None), ("other".to_owned(), false));
}

#[tokio::test]
async fn a_machine_boots_by_what_this_replica_wrote_before_the_watch_shows_it() {
    let (world, mut servers, _hosts) = empty();
    let at = |version: u64, host: &str| -> Server {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "s", "namespace": "muster-system", "resourceVersion": version.to_string()},
            "spec": {"host": {"namespace": "metal", "name": host, "uid": "1"}},
            "status": {"identity": {"macs": ["02:00:00:00:00:01"]}},
        }))
        .unwrap()
    };
    let shown = || {
        let known = Known::of(&world, Mac([2, 0, 0, 0, 0, 1]), None);
        known.server.unwrap().spec.host.clone().unwrap().name
    };
    world.machines.server(&at(5, "watched"), false);
    servers.apply_watcher_event(&watcher::Event::Apply(at(5, "watched")));
    assert_eq!(shown(), "watched");
    world.written.remember(Arc::new(at(6, "ours")), None);
    assert_eq!(shown(), "ours");
    servers.apply_watcher_event(&watcher::Event::Apply(at(7, "later")));
    assert_eq!(shown(), "later");
}

#[tokio::test]
async fn a_provisioned_host_is_known_by_every_nic_that_its_inspection_found() {
    let (world, _servers, mut hosts) = empty();
    let host = |state: &str| -> BareMetalHost {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "left", "namespace": "metal"},
            "spec": {"online": true},
            "status": {"errorMessage": "", "operationalStatus": "OK", "poweredOn": true,
                "hardware": {"nics": [{"mac": "00:00:5E:00:53:01"}, {"mac": "00:00:5E:00:53:02"}]},
                "provisioning": {"ID": "", "state": state}},
        }))
        .unwrap()
    };
    let verdict = |hosts: &mut Writer<BareMetalHost>, state| {
        let host = host(state);
        world.machines.host(&host, false);
        hosts.apply_watcher_event(&watcher::Event::Apply(host));
        let known = Known::of(&world, Mac([0, 0, 0x5e, 0, 0x53, 2]), None);
        ["discover", "hold"].map(|unknown| known.verdict(&segment(unknown)))
    };
    for state in ["provisioned", "externally provisioned"] {
        let verdicts = verdict(&mut hosts, state);
        let disk = |verdict: &Verdict| matches!(verdict, Verdict::Disk(_));
        assert!(verdicts.iter().all(disk), "{state}: {verdicts:?}");
    }
    let verdicts = verdict(&mut hosts, "available");
    let ramdisk = |verdict: &Verdict| matches!(verdict, Verdict::Ramdisk(_));
    assert!(verdicts.iter().all(ramdisk), "nobody declared it: {verdicts:?}");
}
