use muster_proto::{
    inventory::Inventory,
    kinds::{
        BareMetalHostSpec, BareMetalHostStatus, BmcDetails, HostReference, IN_BAND_ANNOTATION,
        INSPECT_ANNOTATION, Image, InspectionMode, Job, JobStatus, PAUSED_ANNOTATION, PROTECTED_ANNOTATION,
        SegmentSpec, ServerSpec, ServerStatus,
    },
};

use super::*;

mod jobs;

const POLICIES: [UnknownPolicy; 3] = [
    UnknownPolicy::Ignore,
    UnknownPolicy::Discover,
    UnknownPolicy::Hold,
];

#[derive(Debug, PartialEq)]
enum Boots {
    Nothing,
    Ramdisk,
    Disk,
}
use Boots::{Disk, Nothing, Ramdisk};

fn boots(policy: UnknownPolicy, server: Option<&Server>, host: Option<&BareMetalHost>) -> Boots {
    boots_by(verdict, policy, server, host)
}

fn boots_by(
    verdict: fn(&Segment, Option<&Server>, Option<&BareMetalHost>) -> Verdict,
    policy: UnknownPolicy,
    server: Option<&Server>,
    host: Option<&BareMetalHost>,
) -> Boots {
    let segment = Segment::new(
        "rack",
        SegmentSpec {
            unknown: policy,
            ..SegmentSpec::default()
        },
    );
    match verdict(&segment, server, host) {
        Verdict::Silence(_) => Nothing,
        Verdict::Ramdisk(_) => Ramdisk,
        Verdict::Disk(_) => Disk,
    }
}

/// Under ignore, discover and hold.
fn row(server: Option<&Server>, host: Option<&BareMetalHost>) -> [Boots; 3] {
    POLICIES.map(|policy| boots(policy, server, host))
}

fn a_server() -> Server {
    let mut server = Server::new("dell-1", ServerSpec::default());
    server.status = Some(ServerStatus::default());
    server
}

fn inventoried() -> Server {
    let mut server = a_server();
    server.status.as_mut().unwrap().inventory = Some(Inventory::default().into());
    server
}

fn with_job(action: JobAction, done: bool) -> Server {
    let mut server = inventoried();
    server.spec.job = Some(Box::new(Job {
        id: "7".to_owned(),
        action,
        ..Job::default()
    }));
    server.status.as_mut().unwrap().job = Some(JobStatus {
        id: "7".to_owned(),
        done,
        ..JobStatus::default()
    });
    server
}

fn a_host(state: &str) -> BareMetalHost {
    let mut host = BareMetalHost::new("dell-1", BareMetalHostSpec::default());
    host.metadata.namespace = Some("metal".to_owned());
    let mut status = BareMetalHostStatus::default();
    status.provisioning.state = state.to_owned();
    host.status = Some(status);
    host
}

fn annotated(mut host: BareMetalHost, name: &str, value: &str) -> BareMetalHost {
    host.metadata
        .annotations
        .get_or_insert_default()
        .insert(name.to_owned(), value.to_owned());
    host
}

fn discovered(state: &str) -> BareMetalHost {
    annotated(a_host(state), SERVER_ANNOTATION, "dell-1")
}

fn specified(mut host: BareMetalHost, change: impl FnOnce(&mut BareMetalHostSpec)) -> BareMetalHost {
    change(&mut host.spec);
    host
}

fn an_image() -> Option<Image> {
    Some(Image {
        url: "http://x/y.raw".to_owned(),
        ..Image::default()
    })
}

fn a_bmc() -> Option<BmcDetails> {
    Some(BmcDetails {
        address: "redfish://192.0.2.1".to_owned(),
        ..BmcDetails::default()
    })
}

#[test]
fn unknown_machines_follow_the_segments_policy() {
    assert_eq!(row(None, None), [Nothing, Ramdisk, Ramdisk]);
    assert_eq!(row(Some(&a_server()), None), [Nothing, Ramdisk, Ramdisk]);
    assert_eq!(
        row(Some(&a_server()), Some(&discovered("unmanaged"))),
        [Nothing, Ramdisk, Ramdisk]
    );
}

#[test]
fn an_unmanaged_machine_whose_server_was_deleted_boots_its_ramdisk_where_its_host_is_asked_to_be_inspected() {
    // Nobody has described what nobody laid a hand on.
    assert_eq!(
        row(None, Some(&discovered("unmanaged"))),
        [Nothing, Ramdisk, Ramdisk]
    );
    assert_eq!(row(None, Some(&a_host("unmanaged"))), [Disk, Disk, Disk]);
    for host in [discovered("unmanaged"), a_host("unmanaged")] {
        let asked = annotated(host, INSPECT_ANNOTATION, "");
        assert_eq!(row(None, Some(&asked)), [Ramdisk, Ramdisk, Ramdisk]);
    }
}

#[test]
fn a_known_uuid_behind_an_unknown_nic_is_looked_at_unless_data_is_at_stake() {
    let row = |host: &BareMetalHost| {
        let known = inventoried();
        POLICIES.map(|policy| boots_by(verdict_by_uuid, policy, Some(&known), Some(host)))
    };
    assert_eq!(row(&discovered("unmanaged")), [Nothing, Ramdisk, Ramdisk]);
    for host in [
        discovered("provisioned"),
        discovered("available"),
        a_host("unmanaged"),
        annotated(discovered("unmanaged"), PAUSED_ANNOTATION, ""),
    ] {
        assert_eq!(row(&host), [Disk, Disk, Disk]);
    }
    let mut dismissed = inventoried();
    dismissed.spec.dismissed = true;
    let boots = POLICIES.map(|policy| boots_by(verdict_by_uuid, policy, Some(&dismissed), None));
    assert_eq!(boots, [Disk, Disk, Disk]);
}

#[test]
fn an_inventoried_machine_boots_its_disk_unless_it_is_held() {
    assert_eq!(row(Some(&inventoried()), None), [Disk, Disk, Ramdisk]);
    for state in ["", "unmanaged"] {
        assert_eq!(
            row(Some(&inventoried()), Some(&discovered(state))),
            [Disk, Disk, Ramdisk],
            "{state}"
        );
    }
}

#[test]
fn a_host_with_a_job_a_user_or_data_is_not_held() {
    for host in [
        discovered("available"),
        discovered("provisioned"),
        discovered("externally provisioned"),
        discovered("deleting"),
        discovered("powering off before delete"),
        discovered("a state of tomorrow"),
        specified(discovered("unmanaged"), |spec| spec.bmc = a_bmc()),
        specified(discovered("unmanaged"), |spec| {
            spec.consumer_ref = Some(Default::default());
        }),
        specified(discovered(""), |spec| spec.image = an_image()),
        specified(discovered(""), |spec| {
            spec.custom_deploy = Some(Default::default());
        }),
        specified(discovered(""), |spec| spec.externally_provisioned = Some(true)),
    ] {
        assert_eq!(
            row(Some(&inventoried()), Some(&host)),
            [Disk, Disk, Disk],
            "{host:?}"
        );
        assert_eq!(
            row(Some(&a_server()), Some(&host)),
            [Disk, Disk, Disk],
            "{host:?}"
        );
        assert_eq!(row(None, Some(&host)), [Disk, Disk, Disk], "{host:?}");
    }
}

/// As Go clients write a host that has none.
#[test]
fn a_host_with_an_empty_bmc_is_held_like_one_without() {
    let host = specified(discovered("unmanaged"), |spec| {
        spec.bmc = Some(BmcDetails::default());
    });
    assert_eq!(row(Some(&inventoried()), Some(&host)), [Disk, Disk, Ramdisk]);
    assert_eq!(row(Some(&a_server()), Some(&host)), [Nothing, Ramdisk, Ramdisk]);
}

#[test]
fn a_hand_made_host_boots_its_disk_until_it_is_to_be_inspected() {
    for host in [a_host(""), a_host("unmanaged"), a_host("available")] {
        assert_eq!(row(None, Some(&host)), [Disk, Disk, Disk], "{host:?}");
        assert_eq!(
            row(Some(&a_server()), Some(&host)),
            [Disk, Disk, Disk],
            "{host:?}"
        );
        let asked = annotated(host, INSPECT_ANNOTATION, "");
        assert_eq!(row(None, Some(&asked)), [Ramdisk, Ramdisk, Ramdisk], "{asked:?}");
    }
    let inspecting = specified(a_host("inspecting"), |spec| spec.bmc = a_bmc());
    assert_eq!(row(None, Some(&inspecting)), [Ramdisk, Ramdisk, Ramdisk]);
}

/// The job by which the hosts of these tests, which have neither a UID nor a history, are told to leave.
const LEAVE: &str = "host-provision--9-0-leave";

#[test]
fn a_host_that_the_operator_works_on_boots_the_ramdisk() {
    for host in [
        discovered("registering"),
        discovered("inspecting"),
        discovered("preparing"),
        specified(discovered("available"), |spec| spec.online = true),
        discovered("provisioning"),
        discovered("deprovisioning"),
        specified(a_host("registering"), |spec| spec.bmc = a_bmc()),
    ] {
        for server in [None, Some(&a_server()), Some(&inventoried())] {
            assert_eq!(row(server, Some(&host)), [Ramdisk, Ramdisk, Ramdisk], "{host:?}");
        }
        let paused = annotated(host.clone(), PAUSED_ANNOTATION, "");
        assert_eq!(row(None, Some(&paused)), [Disk, Disk, Disk], "{paused:?}");
    }
    // The image is written: the machine is on its way out of the ramdisk.
    let mut leaving = with_job(JobAction::Reboot, true);
    leaving.spec.job.as_mut().unwrap().id = LEAVE.to_owned();
    assert_eq!(
        row(Some(&leaving), Some(&discovered("provisioning"))),
        [Disk, Disk, Disk]
    );
}

#[test]
fn a_protected_host_whose_machine_may_already_run_its_image_boots_its_disk() {
    let asks = specified(a_host("registering"), |spec| {
        (spec.bmc, spec.image) = (a_bmc(), an_image());
    });
    assert_eq!(row(None, Some(&asks)), [Ramdisk, Ramdisk, Ramdisk]);
    let protected = annotated(asks, PROTECTED_ANNOTATION, "");
    let in_band = specified(protected.clone(), |spec| spec.bmc = None);
    let in_band = annotated(in_band, IN_BAND_ANNOTATION, "segment");
    for host in [&protected, &in_band] {
        for server in [None, Some(&a_server()), Some(&inventoried())] {
            assert_eq!(row(server, Some(host)), [Disk, Disk, Disk], "{host:?}");
        }
    }
    let asks_for_nothing = specified(protected, |spec| spec.image = None);
    assert_eq!(row(None, Some(&asks_for_nothing)), [Ramdisk, Ramdisk, Ramdisk]);
}

#[test]
fn a_hand_made_host_that_took_the_twins_place_is_held_like_it() {
    let mut server = inventoried();
    server.spec.host = Some(HostReference {
        namespace: "metal".to_owned(),
        name: "dell-1".to_owned(),
        uid: String::new(),
    });
    assert_eq!(
        row(Some(&server), Some(&a_host("unmanaged"))),
        [Disk, Disk, Ramdisk]
    );
    server.spec.host.as_mut().unwrap().name = "dell-2".to_owned();
    assert_eq!(row(Some(&server), Some(&a_host("unmanaged"))), [Disk, Disk, Disk]);
}

#[test]
fn the_inspect_annotation_never_reaches_a_users_data() {
    for host in [
        discovered("provisioned"),
        discovered("externally provisioned"),
        specified(discovered("available"), |spec| spec.image = an_image()),
        specified(discovered(""), |spec| spec.externally_provisioned = Some(true)),
    ] {
        let asked = annotated(host, INSPECT_ANNOTATION, "");
        assert_eq!(
            row(Some(&inventoried()), Some(&asked)),
            [Disk, Disk, Disk],
            "{asked:?}"
        );
    }
}

#[test]
fn the_inspect_annotation_with_disabled_asks_for_nothing() {
    for host in [
        annotated(discovered("unmanaged"), INSPECT_ANNOTATION, "disabled"),
        specified(
            annotated(discovered("unmanaged"), INSPECT_ANNOTATION, ""),
            |spec| {
                spec.inspection_mode = Some(InspectionMode::Disabled);
            },
        ),
    ] {
        assert_eq!(
            boots(UnknownPolicy::Discover, Some(&inventoried()), Some(&host)),
            Disk
        );
    }
}

#[test]
fn a_paused_host_is_left_alone_whatever_it_is_asked() {
    for state in [
        "",
        "unmanaged",
        "inspecting",
        "preparing",
        "available",
        "provisioning",
        "deprovisioning",
    ] {
        let host = annotated(discovered(state), PAUSED_ANNOTATION, "");
        let host = annotated(host, INSPECT_ANNOTATION, "");
        assert_eq!(row(Some(&a_server()), Some(&host)), [Disk, Disk, Disk], "{state}");
    }
}

#[test]
fn a_dismissed_machine_stays_away_until_approved() {
    for mut server in [a_server(), inventoried()] {
        server.spec.dismissed = true;
        assert_eq!(row(Some(&server), None), [Disk, Disk, Disk]);
        let known = server.status.as_ref().unwrap().inventory.is_some();
        server
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(APPROVE_ANNOTATION.to_owned(), String::new());
        let expected = if known {
            [Disk, Disk, Ramdisk]
        } else {
            [Nothing, Ramdisk, Ramdisk]
        };
        assert_eq!(row(Some(&server), None), expected);
    }
}

#[test]
fn an_inventory_that_two_keys_claim_is_taken_anew() {
    let mut server = inventoried();
    server.status.as_mut().unwrap().contested = true;
    assert_eq!(row(Some(&server), None), [Nothing, Ramdisk, Ramdisk]);
    assert_eq!(
        row(Some(&server), Some(&discovered("unmanaged"))),
        [Nothing, Ramdisk, Ramdisk]
    );
    assert_eq!(
        row(Some(&server), Some(&discovered("provisioned"))),
        [Disk, Disk, Disk]
    );
}

#[test]
fn a_host_that_is_not_seen_is_not_absent() {
    let mut server = inventoried();
    server.spec.host = Some(HostReference {
        namespace: "elsewhere".to_owned(),
        name: "database-1".to_owned(),
        uid: "1".to_owned(),
    });
    assert_eq!(row(Some(&server), None), [Nothing, Nothing, Nothing]);
    let by_uuid = POLICIES.map(|policy| boots_by(verdict_by_uuid, policy, Some(&server), None));
    assert_eq!(
        by_uuid,
        [Nothing, Ramdisk, Ramdisk],
        "behind a NIC that nobody has seen"
    );
    server.spec.host = None;
    assert_eq!(row(Some(&server), None), [Disk, Disk, Ramdisk]);
}

/// The states in which the operator works in the ramdisk.
const AT_WORK: [&str; 4] = ["inspecting", "preparing", "provisioning", "deprovisioning"];

#[test]
fn a_host_that_is_worked_on_boots_the_ramdisk_on_every_segment_known_to_a_server_or_not() {
    for state in AT_WORK {
        for host in [
            discovered(state),
            specified(a_host(state), |spec| spec.bmc = a_bmc()),
            specified(a_host(state), |spec| spec.image = an_image()),
            specified(a_host(state), |spec| spec.consumer_ref = Some(Default::default())),
        ] {
            for server in [None, Some(a_server()), Some(inventoried())] {
                assert_eq!(
                    row(server.as_ref(), Some(&host)),
                    [Ramdisk, Ramdisk, Ramdisk],
                    "{host:?}"
                );
            }
        }
    }
}
