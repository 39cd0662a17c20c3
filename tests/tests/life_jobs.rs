//! Jobs that are placed on a Server, as the control role and people do: over the edge to an agent and back.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use muster_agent::steps::{Failed, Job};
use muster_proto::{
    job::{ConfigDrive, DiskId, Failure, MachineId},
    kinds::{JobStatus, Server, UnknownPolicy},
    seal::{self, Bound},
};
use muster_tests::{
    sim::{
        agent::{SimServer, Step},
        hardware::mac,
        rack::Rack,
        work::Pace,
    },
    stage::{Stage, server_name},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(90);

/// A machine in the ramdisk, ready for a job.
async fn ready(purpose: &str) -> (Stage, Rack, SimServer) {
    let (stage, rack) = Stage::holding(purpose).await;
    let mut server = rack.servers([1]).remove(0);
    server.power_on();
    stage.discovered(&server, SOON).await.expect("a host");
    (stage, rack, server)
}

fn name() -> String {
    server_name(mac(1, 0))
}

/// Patches the Server's spec as `kubectl patch --type merge` does.
async fn place(stage: &Stage, mut job: Value) {
    for details in ["clean", "write"] {
        if job[details].is_null() {
            job[details] = Value::Null;
        }
    }
    let patch = json!({ "spec": { "job": job } });
    stage
        .api::<Server>()
        .patch(&name(), &PatchParams::default(), &Patch::Merge(patch))
        .await
        .expect("a patched Server");
}

fn write(server: &SimServer, id: &str, epoch: i64, drive: Option<&str>) -> Value {
    let hardware = server.hardware();
    json!({
        "id": id, "epoch": epoch, "action": "write",
        "write": {
            "machine": MachineId::from(&hardware.identity()),
            "disk": DiskId::from(&hardware.inventory.disks[0]),
            "image": { "url": "http://images.example/os.raw.zst", "checksum": "00", "algorithm": "sha256" },
            "configDrive": drive,
        },
    })
}

fn clean(server: &SimServer, id: &str, epoch: i64) -> Value {
    let hardware = server.hardware();
    let disks: Vec<_> = hardware.inventory.disks.iter().map(DiskId::from).collect();
    let machine = MachineId::from(&hardware.identity());
    json!({ "id": id, "epoch": epoch, "action": "clean", "clean": { "machine": machine, "disks": disks } })
}

/// The job's status once `test` holds for it.
async fn shows(stage: &Stage, what: &str, test: impl Fn(&JobStatus) -> bool) -> JobStatus {
    let found = stage.until(what, SOON, async || {
        let server = stage.api::<Server>().get(&name()).await?;
        let job = server.status.and_then(|status| status.job);
        Ok(job.filter(|job| test(job)))
    });
    found.await.expect("a job's status")
}

async fn ended(stage: &Stage, id: &str) -> JobStatus {
    shows(stage, &format!("the end of {id}"), |job| job.id == id && job.done).await
}

async fn half_done(stage: &Stage, id: &str) -> JobStatus {
    shows(stage, &format!("{id} half done"), |job| {
        job.id == id
            && job
                .progress
                .as_ref()
                .is_some_and(|progress| progress.percent == 50)
    })
    .await
}

fn waits() -> Pace {
    Pace {
        waits_at: Some(50),
        ..Pace::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_placed_on_a_server_are_carried_out_and_their_outcome_arrives() {
    let (stage, _rack, server) = ready("jobs").await;
    place(&stage, json!({ "id": "op-1", "action": "inspect" })).await;
    assert_eq!(ended(&stage, "op-1").await.error, "");

    place(&stage, clean(&server, "op-2", 1)).await;
    assert_eq!(ended(&stage, "op-2").await.error, "");

    let known = stage.api::<Server>().get(&name()).await.unwrap();
    let session = known.status.unwrap().session.unwrap();
    let drive = ConfigDrive {
        meta_data: [("hostname".to_owned(), json!("node-1"))].into_iter().collect(),
        user_data: Some(b"#cloud-config\n".to_vec()),
        ..ConfigDrive::default()
    };
    let bound = Bound {
        job: "op-3",
        epoch: 1,
        session: &session.key,
    };
    let sealed = seal::config_drive(&session.seal_key, &bound, &drive).unwrap();
    server.works(waits());
    place(&stage, write(&server, "op-3", 1, Some(&sealed))).await;
    let halfway = half_done(&stage, "op-3").await;
    assert!(halfway.summary.contains("write image 50 %"), "{halfway:?}");
    server.works(Pace::default());
    let done = ended(&stage, "op-3").await;
    assert_eq!((done.error.as_str(), done.summary.as_str()), ("", "done"));

    // In another job the same secret does not open.
    place(&stage, write(&server, "op-4", 1, Some(&sealed))).await;
    let refused = ended(&stage, "op-4").await;
    assert_eq!(refused.failure, Some(Failure::Outdated), "{refused:?}");
    assert!(!refused.log.is_empty(), "why can be read with kubectl");

    let worked = server.worked();
    assert_eq!(worked.len(), 3, "{worked:?}");
    assert!(matches!(&worked[0].job, Job::Clean(clean) if clean.disks.len() == 2));
    assert_eq!(worked[1].drive.as_ref(), Some(&drive));
    assert_eq!(worked[2].drive, None);

    place(&stage, json!({ "id": "op-5", "action": "poweroff" })).await;
    assert_eq!(ended(&stage, "op-5").await.error, "");
    let off = server.shows("switch itself off", SOON, |seen| seen.step == Step::Off);
    assert_eq!(off.await.unwrap().boots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_cleans_writes_and_switches_off_and_the_machines_next_session_gets_nothing_of_it() {
    let (stage, _rack, mut server) = ready("jobs-whole").await;
    let known = stage.api::<Server>().get(&name()).await.unwrap();
    let key = known.status.unwrap().session.unwrap().key;
    let write = &write(&server, "op-write", 1, None)["write"];
    let mut job = clean(&server, "op-clean", 1);
    job["then"] = json!({ "id": "op-write", "session": key, "write": write });
    job["leave"] = json!({ "id": "op-leave", "session": key, "action": "poweroff" });
    place(&stage, job).await;
    let off = server.shows("switch itself off", SOON, |seen| seen.step == Step::Off);
    assert_eq!(off.await.unwrap().boots, 1);
    let left = |job: &JobStatus| job.leaving.as_ref().is_some_and(|leaving| leaving.said);
    let told = shows(&stage, "that it left", left).await;
    assert_eq!(
        (told.id.as_str(), told.done, told.error.as_str()),
        ("op-write", true, "")
    );
    assert_eq!(server.worked().len(), 2, "{:?}", server.worked());
    server.power_on();
    let held = server.shows("wait for a job", SOON, |seen| {
        seen.boots == 2 && seen.step == Step::Reported
    });
    held.await.unwrap();
    // What it is given, it is given in the order in which it was placed.
    place(
        &stage,
        json!({ "id": "op-2", "action": "inspect", "clean": null, "then": null, "leave": null }),
    )
    .await;
    assert_eq!(ended(&stage, "op-2").await.error, "");
    assert_eq!(server.worked().len(), 2, "{:?}", server.worked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_another_machine_or_disk_is_refused_for_good() {
    let (stage, _rack, server) = ready("jobs-other").await;
    let mut other = write(&server, "op-1", 1, None);
    other["write"]["machine"] = json!({ "systemSerial": "SIM0000002" });
    place(&stage, other).await;
    let refused = ended(&stage, "op-1").await;
    assert_eq!(refused.failure, Some(Failure::Final), "{refused:?}");
    let mut other = write(&server, "op-2", 1, None);
    other["write"]["disk"]["serial"] = json!("another");
    place(&stage, other).await;
    assert!(ended(&stage, "op-2").await.error.contains("another"));
    // What the job lacks is nothing that could be guessed.
    place(&stage, json!({ "id": "op-3", "epoch": 1, "action": "write" })).await;
    assert_eq!(ended(&stage, "op-3").await.failure, Some(Failure::Final));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_outlives_a_controller_that_is_killed_in_the_middle_of_it() {
    let (mut stage, _rack, server) = ready("jobs-kill").await;
    server.works(waits());
    place(&stage, write(&server, "op-1", 1, None)).await;
    half_done(&stage, "op-1").await;
    stage.controller.kill();
    stage.controller.start().expect("a controller");
    server.works(Pace {
        waits_at: Some(70),
        ..Pace::default()
    });
    shows(&stage, "progress after the kill", |job| {
        job.progress
            .as_ref()
            .is_some_and(|progress| progress.percent == 70)
    })
    .await;
    // And the end of it while nobody listens.
    stage.controller.kill();
    server.works(Pace::default());
    let there = stage.until("the end of the work", SOON, async || {
        Ok((!server.worked().is_empty()).then_some(()))
    });
    there.await.unwrap();
    stage.controller.start().expect("a controller");
    assert_eq!(ended(&stage, "op-1").await.error, "");
    assert_eq!((server.worked().len(), server.seen().boots), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_term_is_refused_while_the_write_of_the_newer_one_goes_on() {
    let (stage, _rack, server) = ready("jobs-term").await;
    server.works(waits());
    place(&stage, write(&server, "op-1", 5, None)).await;
    half_done(&stage, "op-1").await;
    place(&stage, clean(&server, "op-2", 4)).await;
    let refused = ended(&stage, "op-2").await;
    assert_eq!(refused.failure, Some(Failure::Outdated), "{refused:?}");
    assert!(refused.error.contains("term 4"), "{refused:?}");
    // The leader of the newer term puts its job back.
    place(&stage, write(&server, "op-1", 5, None)).await;
    half_done(&stage, "op-1").await;
    server.works(Pace::default());
    assert_eq!(ended(&stage, "op-1").await.error, "");
    assert_eq!(server.worked().len(), 1);

    // One of the same term is a decision against what runs.
    server.works(waits());
    place(&stage, write(&server, "op-3", 5, None)).await;
    half_done(&stage, "op-3").await;
    place(&stage, write(&server, "op-4", 5, None)).await;
    let stopped = stage.until("the end of op-3", SOON, async || {
        Ok(server.worked().get(1).map(|worked| worked.end.clone()))
    });
    assert!(stopped.await.unwrap().is_err());
    server.works(Pace::default());
    assert_eq!(ended(&stage, "op-4").await.error, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_lost_its_power_comes_back_to_its_job_and_does_it_again() {
    let lit = Stage::with_rack("jobs-power", UnknownPolicy::Discover).await;
    let (stage, rack) = lit.expect("a controller that serves");
    let mut server = rack.servers([1]).remove(0);
    server.power_on();
    // Its inventory is all that was wanted: it was sent to its own disk, and boots again because that is empty.
    server
        .shows("be released", SOON, |seen| seen.boots > 1)
        .await
        .unwrap();
    let free = stage.until("the job to leave is gone", SOON, async || {
        let server = stage.api::<Server>().get(&name()).await?;
        Ok(server.spec.job.is_none().then_some(()))
    });
    free.await.unwrap();
    server.works(waits());
    place(&stage, write(&server, "op-1", 1, None)).await;
    half_done(&stage, "op-1").await;
    server.power_off();
    server.works(Pace {
        fails: Some(Failed {
            message: "write the disk: EIO".to_owned(),
            failure: Failure::Temporary,
        }),
        ..Pace::default()
    });
    server.power_on();
    let failed = ended(&stage, "op-1").await;
    assert_eq!(
        (failed.error.as_str(), failed.failure),
        ("write the disk: EIO", Some(Failure::Temporary))
    );
    // Switched on once more, it is given nothing that has ended.
    server.works(Pace::default());
    server.power_off();
    server.power_on();
    let boots = server.seen().boots;
    server
        .shows("boot and be sent away", SOON, |seen| seen.boots > boots + 1)
        .await
        .unwrap();
    // One that the power ended and one that failed.
    assert_eq!(server.worked().len(), 2, "{:?}", server.worked());
}
