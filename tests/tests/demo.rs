//! What a new user runs first, as that user sees it.

use std::process::Stdio;

use muster_tests::slots::Slots;
use tokio::process::Command;

fn demo(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-lab"));
    command
        .arg("demo")
        .args(words)
        // Nothing is tried on the cluster that somebody works with.
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

#[tokio::test]
async fn demo_is_told_what_cannot_work_before_anything_is_built_for_it() {
    let gone = "/nowhere/of-an-earlier-demo.kubeconfig";
    for (words, variable, told) in [
        (&["--check", "--hosts", "0"][..], "", "0 is not in 1..=64"),
        (&["--check", "--kubeconfig", gone], "", gone),
        (&["--check"], gone, "the variable KUBECONFIG"),
        (&["--check", "--kubeconfig", "a:b"], "", "a list of files"),
    ] {
        let output = demo(words).env("KUBECONFIG", variable).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(told),
            "{words:?}: {said}"
        );
        assert!(output.stdout.is_empty(), "{words:?}");
    }
    let output = demo(&["--check", "--once"]).output().await.unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_shows_two_servers_and_takes_one_through_its_life() {
    let _slots = Slots::take(2).await.unwrap();
    let demo = demo(&["--once"]).output().await.unwrap();
    let said = String::from_utf8_lossy(&demo.stdout);
    let complaints = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success(), "{}\n{said}\n{complaints}", demo.status);
    for shown in [
        // The tables of kubectl and of what is in the servers.
        "discovered   unmanaged",
        "/dev/nvme0n1  NVMe",
        "52:54:00:00:01:00",
        // How far the image is, and what only a person can do.
        "write: write image",
        "power-cycle the machine manually",
        // What the server's own operating system says, and that it is free again.
        "OS| hostname: mustered",
        "its disks are clean",
    ] {
        assert!(said.contains(shown), "no {shown} in\n{said}");
    }
}
