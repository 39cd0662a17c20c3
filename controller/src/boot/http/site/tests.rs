use std::net::Ipv4Addr;

use kube::runtime::{
    reflector::{self, store::Writer},
    watcher,
};
use muster_proto::kinds::{
    BareMetalHost, DhcpMode, Enrolment, Profile, Segment as SegmentObject, Server, UnknownPolicy,
};
use muster_ramdisk::cpio;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::{
    boot::{
        files::{self, Extras},
        http::body,
        segment::{self, Link, Ports},
    },
    events::Happened,
    log::said::Said,
    token::TokenKey,
};

mod urls;

const MAC: &str = "525400123456";

fn a_segment() -> SegmentObject {
    let mut segment = SegmentObject::new("lab", Default::default());
    segment.metadata.namespace = Some("muster-system".into());
    segment.spec.interface = Some("lo".into());
    segment.spec.subnet = "127.0.0.0/8".into();
    segment.spec.unknown = UnknownPolicy::Discover;
    segment.spec.profile = Profile::Lab;
    segment.spec.dhcp.mode = DhcpMode::Proxy;
    segment
}

fn plan() -> Plan {
    plan_of(&a_segment())
}

fn plan_of(segment: &SegmentObject) -> Plan {
    let links = [Link {
        name: "lo".into(),
        addresses: vec![Ipv4Addr::LOCALHOST],
    }];
    segment::plan(
        [segment],
        &links,
        Ports {
            http: 8080,
            agents: 8443,
        },
    )
}

/// The segment `muster-system/lab` on the loopback interface.
pub(crate) fn a_net() -> Net {
    plan().remove("muster-system/lab").unwrap().unwrap()
}

struct Fixture {
    site: Site,
    segments: Writer<SegmentObject>,
    servers: Writer<Server>,
    hosts: Writer<BareMetalHost>,
    secrets: watch::Sender<Option<Arc<BootSecrets>>>,
    told: mpsc::Receiver<Happened>,
    _directory: tempfile::TempDir,
}

fn known<K>(writer: &mut Writer<K>, objects: Vec<K>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + 'static,
{
    writer.apply_watcher_event(&watcher::Event::Init);
    for object in objects {
        writer.apply_watcher_event(&watcher::Event::InitApply(object));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
}

/// A site with one release of the lab profile, to which no machine is known.
fn site() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    files::tests::write(directory.path(), Profile::Lab, "first");
    site_over(directory, Extras::default())
}

fn site_over(directory: tempfile::TempDir, extras: Extras) -> Fixture {
    let (segments, mut segments_writer) = reflector::store();
    let (servers, mut servers_writer) = reflector::store();
    let (hosts, mut hosts_writer) = reflector::store();
    let (enrolments, _) = reflector::store::<Enrolment>();
    known(&mut segments_writer, vec![a_segment()]);
    known(&mut servers_writer, vec![]);
    known(&mut hosts_writer, vec![]);
    let secrets = BootSecrets {
        ca_pem: "PEM".into(),
        token_key: TokenKey::new(&[7; 32]),
    };
    let (tell, secrets) = watch::channel(Some(Arc::new(secrets)));
    let (queue, told) = mpsc::channel(8);
    let site = Site {
        world: World {
            segments,
            servers,
            written: Arc::default(),
            hosts,
            enrolments,
            hardware: reflector::store().0,
            machines: Arc::default(),
            unreadable: Arc::default(),
            watches: crate::watches::Watches::default(),
        },
        plan: watch::channel(Arc::new(plan())).1,
        files: Arc::new(Files::open(directory.path(), extras, &std::env::temp_dir())),
        secrets,
        anew: Anew::new(|path| panic!("{path} is read though the copy is not old")),
        events: Events::new(queue),
        said: Refusals::default(),
    };
    Fixture {
        site,
        segments: segments_writer,
        servers: servers_writer,
        hosts: hosts_writer,
        secrets: tell,
        told,
        _directory: directory,
    }
}

fn ends(peer: &str) -> Ends {
    Ends {
        peer: format!("{peer}:4000").parse().unwrap(),
        local: "127.0.0.1:8080".parse().unwrap(),
    }
}

/// The answer of a site that asks nobody.
fn ask(site: &Site, target: &str, ends: Ends) -> Response {
    let answer = site.answer(target, ends).now_or_never();
    answer.expect("it waits for nothing")
}

fn get(site: &Site, target: &str) -> Response {
    ask(site, target, ends("127.0.0.9"))
}

fn bytes(body: &Body) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut all = Vec::new();
    for segment in body.segments() {
        match segment {
            body::Segment::Bytes(bytes) => all.extend(bytes),
            body::Segment::File { file, offset, len } => {
                let mut part = vec![0; usize::try_from(*len).unwrap()];
                file.read_exact_at(&mut part, *offset).unwrap();
                all.extend(part);
            }
        }
    }
    all
}

fn text(response: &Response) -> String {
    String::from_utf8(bytes(&response.body)).unwrap()
}

/// Passes as replicas of this installation make them, `ago` seconds ago.
fn passes(ago: i64) -> Maker {
    let key = PassKey::of(&TokenKey::new(&[7; 32]));
    Maker::fresh(key, Timestamp::now().as_second() - ago).unwrap()
}

/// `path` with our pass.
fn passed(path: &str) -> String {
    format!("{path}/{}", passes(0).pass(path))
}

/// The URL of the script that [`MAC`] is led to.
fn script_url() -> String {
    passed(&format!("/ipxe/muster-system/lab/{MAC}/-"))
}

fn script(site: &Site) -> String {
    let response = get(site, &script_url());
    assert_eq!(response.status, Status::Ok, "{}", text(&response));
    text(&response)
}

/// The URLs' paths in a script.
fn paths(script: &str) -> Vec<String> {
    let after = script.split("http://127.0.0.1:8080").skip(1);
    after
        .map(|rest| rest.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn an_unknown_machine_is_led_from_script_to_ramdisk() {
    let fixture = site();
    let paths = paths(&script(&fixture.site));
    let [kernel, initramfs] = paths.as_slice() else {
        panic!("{paths:?}")
    };
    assert!(bytes(&get(&fixture.site, kernel).body).starts_with(b"first kernel"));
    let initrd = bytes(&get(&fixture.site, initramfs).body);
    let (entries, len) = cpio::read(&initrd).unwrap();
    assert_eq!(entries.last().unwrap().path, muster_proto::config::PATH);
    assert!(
        initrd[len..].starts_with(b"first initramfs"),
        "the ramdisk follows the configuration"
    );
    assert!(
        bytes(&get(&fixture.site, initramfs).body) == initrd,
        "the same URL, the same bytes"
    );
}

#[test]
fn two_scripts_are_two_boots() {
    let fixture = site();
    assert_ne!(paths(&script(&fixture.site))[1], paths(&script(&fixture.site))[1]);
}

#[test]
fn a_uki_is_stub_kernel_and_initrd() {
    let fixture = site();
    let initramfs = paths(&script(&fixture.site)).remove(1);
    let initrd = bytes(&get(&fixture.site, &initramfs).body);
    let uki = get(&fixture.site, &initramfs.replace("/initramfs", "/uki.efi"));
    assert_eq!((uki.status, uki.kind), (Status::Ok, Kind::Efi));
    let image = bytes(&uki.body);
    let section = |name: &[u8]| {
        // Section table (Microsoft PE format): name, virtual size, address, raw size, raw offset.
        let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        let at = (0..0x400).find(|at| image[*at..].starts_with(name)).unwrap();
        let (size, offset) = (number(at + 8), number(at + 20));
        &image[offset..offset + size]
    };
    assert!(section(b".initrd") == initrd);
    assert!(section(b".linux").starts_with(b"first kernel"));
    assert_eq!(section(b".cmdline"), ipxe::PARAMETERS.as_bytes());
}

#[test]
fn firmware_stands_between_configuration_and_ramdisk() {
    let directory = tempfile::tempdir().unwrap();
    files::tests::write(directory.path(), Profile::Lab, "first");
    let firmware = tempfile::tempdir().unwrap();
    std::fs::create_dir(firmware.path().join("bnx2")).unwrap();
    std::fs::write(firmware.path().join("bnx2/a.fw"), b"blob").unwrap();
    let extras = Extras {
        firmware: vec![firmware.path().to_owned()],
        authorities: Vec::new(),
    };
    let fixture = site_over(directory, extras);
    let initramfs = paths(&script(&fixture.site)).remove(1);
    let initrd = bytes(&get(&fixture.site, &initramfs).body);
    let (_, config) = cpio::read(&initrd).unwrap();
    let (entries, extras) = cpio::read(&initrd[config..]).unwrap();
    assert_eq!(entries.last().unwrap().path, "lib/firmware/bnx2/a.fw");
    assert!(initrd[config + extras..].starts_with(b"first initramfs"));
}

#[test]
fn a_machine_that_began_with_one_release_ends_with_it() {
    let fixture = site();
    let before = paths(&script(&fixture.site));
    files::tests::write(fixture._directory.path(), Profile::Lab, "second");
    fixture.site.files.reload();
    let after = paths(&script(&fixture.site));
    assert!(bytes(&get(&fixture.site, &before[0]).body).starts_with(b"first kernel"));
    assert!(bytes(&get(&fixture.site, &after[0]).body).starts_with(b"second kernel"));
    let unknown = get(&fixture.site, "/boot/00112233445566ff/vmlinuz");
    assert_eq!(unknown.status, Status::NotFound);
    assert!(text(&unknown).contains("release"));
}

#[test]
fn a_script_that_leaves_a_machine_to_its_disk_for_anothers_uuid_is_told_of() {
    let mut fixture = site();
    let uuid = "4c4c4544-0035-4b10-8032-cac04f583933";
    let server: Server = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "s", "namespace": "muster-system"},
        "spec": {"dismissed": true},
        "status": {"identity": {"macs": ["02:00:00:00:00:01"], "systemUuid": uuid}},
    }))
    .unwrap();
    fixture.site.world.machines.server(&server, false);
    known(&mut fixture.servers, vec![server]);
    let script = get(
        &fixture.site,
        &passed(&format!("/ipxe/muster-system/lab/{MAC}/{uuid}")),
    );
    assert!(
        text(&script).contains("a NIC that nobody has seen"),
        "{}",
        text(&script)
    );
    let Happened { event, .. } = fixture.told.try_recv().unwrap();
    assert_eq!(
        (event.reason, event.about.name.as_deref()),
        ("SharedUuid", Some("s"))
    );
    assert!(
        event
            .message
            .contains("annotate the Server with muster.dev/approve"),
        "{}",
        event.message
    );
}

#[test]
fn segments_that_are_not_served_have_no_files() {
    let mut fixture = site();
    let target = passed(&format!("/ipxe/muster-system/other/{MAC}/-"));
    assert_eq!(get(&fixture.site, &target).status, Status::NotFound);
    let mut broken = a_segment();
    broken.spec.subnet = "nonsense".into();
    let plan = segment::plan(
        [&broken],
        &[],
        Ports {
            http: 8080,
            agents: 8443,
        },
    );
    fixture.site.plan = watch::channel(Arc::new(plan)).1;
    assert_eq!(get(&fixture.site, &script_url()).status, Status::NotFound);
}

#[test]
fn without_a_ramdisk_machines_go_on_to_their_disks() {
    let empty = tempfile::tempdir().unwrap();
    let fixture = site_over(empty, Extras::default());
    let said = Said::listen();
    let script = script(&fixture.site);
    assert!(script.contains("no ramdisk") && script.contains("exit 1 || exit 0"));
    assert!(paths(&script).is_empty());
    for _ in 0..100 {
        get(&fixture.site, &script_url());
    }
    let error = ["ERROR", "there is no ramdisk to boot", "client=127.0.0.9"];
    assert_eq!(said.count(&error), 1, "{}", said.text());
}

#[test]
fn the_policy_says_who_gets_the_ramdisk() {
    let mut fixture = site();
    let mut ignoring = a_segment();
    ignoring.spec.unknown = UnknownPolicy::Ignore;
    known(&mut fixture.segments, vec![ignoring]);
    assert!(paths(&script(&fixture.site)).is_empty());
    let mut host = BareMetalHost::new("h", Default::default());
    host.metadata.namespace = Some("default".into());
    host.spec.boot_mac_address = Some("52:54:00:12:34:56".into());
    host.status = Some(Default::default());
    if let Some(status) = &mut host.status {
        status.provisioning.state = "inspecting".into();
    }
    fixture.site.world.machines.host(&host, false);
    known(&mut fixture.hosts, vec![host]);
    assert_eq!(paths(&script(&fixture.site)).len(), 2);
}

/// A host of [`MAC`] in this state.
fn a_host(state: &str) -> BareMetalHost {
    let mut host = BareMetalHost::new("h", Default::default());
    host.metadata.namespace = Some("default".into());
    host.spec.boot_mac_address = Some("52:54:00:12:34:56".into());
    let status = host.status.get_or_insert_default();
    status.provisioning.state = state.into();
    host
}

#[tokio::test(start_paused = true)]
async fn while_hosts_cannot_be_watched_a_boot_script_reads_its_host_anew() {
    let mut fixture = site();
    let old = a_host("provisioned");
    fixture.site.world.machines.host(&old, false);
    known(&mut fixture.hosts, vec![old]);
    assert!(paths(&script(&fixture.site)).is_empty());
    for kind in ["BareMetalHost", "Server"] {
        let watches = &fixture.site.world.watches;
        watches.failed(kind, &std::io::Error::other("gone"));
        let now = async |fixture: &Fixture| {
            let response = fixture.site.answer(&script_url(), ends("127.0.0.9")).await;
            assert_eq!(response.status, Status::Ok);
            paths(&text(&response)).len()
        };
        fixture.site.anew = Anew::new(|path| {
            assert_eq!(path.to_string(), "default/h");
            async { Ok(Some(a_host("inspecting"))) }.boxed()
        });
        assert_eq!(now(&fixture).await, 2, "{kind}");
        fixture.site.anew = Anew::new(|_| async { Err("forbidden".to_owned()) }.boxed());
        assert_eq!(now(&fixture).await, 0, "{kind}: the old copy decides");
        fixture.site.anew = Anew::new(|_| std::future::pending().boxed());
        let begun = tokio::time::Instant::now();
        assert_eq!(now(&fixture).await, 0, "{kind}: the old copy decides");
        assert_eq!(begun.elapsed().as_secs(), 2);
        fixture.site.world.watches.is_read(kind);
    }
}

#[test]
fn nothing_is_decided_before_the_cluster_is_known() {
    let mut fixture = site();
    let (servers, writer) = reflector::store();
    fixture.site.world.servers = servers;
    fixture.servers = writer;
    let target = script_url();
    assert_eq!(get(&fixture.site, &target).status, Status::Unavailable);
    known(&mut fixture.servers, vec![]);
    assert_eq!(get(&fixture.site, &target).status, Status::Ok);
}

#[test]
fn without_its_secrets_the_site_asks_for_patience() {
    let fixture = site();
    let initramfs = paths(&script(&fixture.site)).remove(1);
    fixture.secrets.send_replace(None);
    for target in [initramfs, script_url()] {
        assert_eq!(
            get(&fixture.site, &target).status,
            Status::Unavailable,
            "{target}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However the URL of one boot is cut into two ranges, they splice into what one GET gives.
    #[test]
    fn two_ranges_splice_into_one_get(at: prop::sample::Index, file in prop_oneof!["initramfs", "uki\\.efi"]) {
        thread_local! {
            static FIXTURE: Fixture = site();
        }
        FIXTURE.with(|fixture| {
            let target = paths(&script(&fixture.site)).remove(1).replace("initramfs", &file);
            let whole = bytes(&get(&fixture.site, &target).body);
            let cut = 1 + at.index(whole.len() - 1) as u64;
            let part = |range: String| {
                let request = crate::boot::http::head::Request {
                    method: crate::boot::http::head::Method::Get,
                    target: target.clone(),
                    range: Some(range.into()),
                    keep_alive: true,
                    old: false,
                };
                let part = get(&fixture.site, &target).ranged(&request);
                assert_eq!(part.status, Status::Partial);
                bytes(&part.body)
            };
            let spliced = [part(format!("bytes=0-{}", cut - 1)), part(format!("bytes={cut}-"))].concat();
            prop_assert!(spliced == whole);
            Ok(())
        })?;
    }
}
