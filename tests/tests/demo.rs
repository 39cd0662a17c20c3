//! What a new user runs first, as that user sees it.

use std::process::Stdio;

use muster_tests::slots::Slots;
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn demo_shows_two_servers_and_takes_one_through_its_life() {
    let _slots = Slots::take(2).await.unwrap();
    let demo = Command::new(env!("CARGO_BIN_EXE_muster-lab"))
        .args(["demo", "--once"])
        // Nothing is tried on the cluster that somebody works with.
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
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
        "power-cycle the machine by hand",
        // What the server's own operating system says, and that it is free again.
        "OS| hostname: mustered",
        "its disks are clean",
    ] {
        assert!(said.contains(shown), "no {shown} in\n{said}");
    }
}
