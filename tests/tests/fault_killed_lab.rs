//! A test that is killed leaves nothing behind.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use muster_proto::Mac;
use muster_tests::{
    cluster::Cluster,
    machine::{Machine, MachineSpec},
    netns::Netns,
    program::runs,
    scratch::Scratch,
};

const READY: &str = "everything runs:";

/// What [`killed_lab_leaves_nothing_behind`] starts and kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs until it is killed; another test starts it"]
async fn lab_that_is_killed() {
    let _cluster = Cluster::start().await.unwrap();
    let scratch = Scratch::new().unwrap();
    let net = Netns::new().unwrap();
    net.bridge("br0", None).unwrap();
    let spec = MachineSpec::bios("m", Mac([0x52, 0x54, 0, 0, 9, 1]), "br0");
    let mut machine = Machine::new(&net, scratch.path(), spec).unwrap();
    machine.power_on().unwrap();
    println!(
        "\n{READY} {} {}",
        machine.process().unwrap(),
        scratch.path().display()
    );
    std::future::pending::<()>().await;
}

/// A process that a test which fails does not leave behind.
struct Lab(Child);

impl Drop for Lab {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn killed_lab_leaves_nothing_behind() {
    let lab = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "lab_that_is_killed", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn();
    let mut guard = Lab(lab.unwrap());
    let lab = &mut guard.0;
    let lines = BufReader::new(lab.stdout.take().unwrap()).lines();
    let ready = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix(READY).map(str::to_owned))
        .expect("the lab starts");
    let (machine, dir) = ready.trim().split_once(' ').unwrap();
    let children = children(lab.id());
    assert!(children.iter().any(|child| child == machine), "{children:?}");
    assert!(
        children.len() >= 4,
        "a control plane, a machine and two removers: {children:?}"
    );
    assert!(Path::new(dir).exists());

    lab.kill().unwrap();
    assert_eq!(lab.wait().unwrap().signal(), Some(9));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let left: Vec<_> = children.iter().filter(|child| runs(*child)).collect();
        if left.is_empty() && !Path::new(dir).exists() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "still there: processes {left:?}, {dir}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The process's children, of all its threads.
fn children(process: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}
