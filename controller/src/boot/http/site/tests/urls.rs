//! Which URLs are answered: those that were handed out, to whom, and for how long.

use std::path::Path;

use super::*;
use crate::boot::{
    decide::{Circumstances, File, decide},
    dhcp::corpus::request,
};

#[test]
fn a_machine_on_another_network_gets_no_token() {
    let fixture = site();
    let [kernel, initramfs] = paths(&script(&fixture.site)).try_into().unwrap();
    let uki = initramfs.replace("/initramfs", "/uki.efi");
    let script = script_url();
    for target in [&initramfs, &uki, &script] {
        assert_eq!(
            ask(&fixture.site, target, ends("10.0.0.1")).status,
            Status::Forbidden,
            "{target}"
        );
        assert_eq!(
            ask(&fixture.site, target, ends("[::1]")).status,
            Status::Forbidden,
            "{target}"
        );
        assert_eq!(
            ask(&fixture.site, target, ends("[::ffff:127.0.0.9]")).status,
            Status::Ok,
            "{target}"
        );
    }
    assert_eq!(
        ask(&fixture.site, &kernel, ends("10.0.0.1")).status,
        Status::Ok,
        "the kernel is no secret"
    );
}

#[test]
fn a_machine_that_was_told_to_boot_and_comes_from_elsewhere_is_told_of_and_who_forges_its_url_is_not() {
    let mut fixture = site();
    let initramfs = paths(&script(&fixture.site)).remove(1);
    let elsewhere = |site: &Site, target: &str| ask(site, target, ends("10.0.0.1")).status;
    let without_pass = format!("/ipxe/muster-system/lab/{MAC}/-");
    for forged in [
        without_pass.clone(),
        format!("{without_pass}/{}", "A".repeat(32)),
        script_url().replace(MAC, "525400999999"),
        initramfs.replace(MAC, "525400999999"),
    ] {
        assert_eq!(elsewhere(&fixture.site, &forged), Status::Forbidden);
        assert!(fixture.told.try_recv().is_err(), "{forged}");
    }
    for target in [script_url(), initramfs] {
        assert_eq!(elsewhere(&fixture.site, &target), Status::Forbidden);
    }
    let Happened { event, .. } = fixture.told.try_recv().unwrap();
    let about = (event.about.kind.as_deref(), event.about.name.as_deref());
    assert_eq!(about, (Some("Segment"), Some("lab")));
    assert_eq!((event.reason, event.warning), ("OutsideSubnet", true));
    for words in ["52:54:00:12:34:56", "from 10.0.0.1,", "127.0.0.0/8", "next: "] {
        assert!(event.message.contains(words), "{words}: {}", event.message);
    }
    assert!(fixture.told.try_recv().is_err(), "one that repeats is told once");
    // Where another DHCP server names the script, anybody can write its URL.
    let mut segment = a_segment();
    segment.spec.dhcp.mode = DhcpMode::Off;
    fixture.site.plan = watch::channel(Arc::new(plan_of(&segment))).1;
    let other = ask(&fixture.site, &without_pass, ends("10.0.0.2"));
    assert_eq!(other.status, Status::Forbidden);
    assert!(fixture.told.try_recv().is_err());
}

#[test]
fn what_dhcp_hands_out_leads_to_the_ramdisk() {
    let fixture = site();
    let release = fixture.site.files.current(Profile::Lab).unwrap().name.clone();
    let at = Circumstances {
        net: &a_net(),
        verdict: Verdict::Ramdisk("nobody has described it"),
        release: Some(&release),
        passes: Some(&passes(0)),
    };
    for client in ["ipxe-rom-bios-discover", "ovmf-http-discover"] {
        let (File::Script(url) | File::Uki(url)) = decide(&request(client), &at).unwrap() else {
            panic!("{client}")
        };
        let target = url.strip_prefix("http://127.0.0.1:8080").unwrap();
        let answer = get(&fixture.site, target);
        assert_eq!(answer.status, Status::Ok, "{client}: {}", text(&answer));
        assert_eq!(answer.step.unwrap().mac, Some(request(client).mac));
    }
}

#[test]
fn a_url_that_was_not_handed_out_gives_no_token() {
    let fixture = site();
    let [_, initramfs] = paths(&script(&fixture.site)).try_into().unwrap();
    let pass_of = |url: &str| url.split('/').find(|part| part.len() == 32).unwrap().to_owned();
    let ours = script_url();
    let foreign = Maker::fresh(
        PassKey::of(&TokenKey::new(&[8; 32])),
        Timestamp::now().as_second(),
    );
    let foreign = foreign.unwrap().pass(&format!("/ipxe/muster-system/lab/{MAC}/-"));
    let other_boot = initramfs.replace(&pass_of(&initramfs), &pass_of(&script_url()));
    for (what, target) in [
        ("no pass", format!("/ipxe/muster-system/lab/{MAC}/-")),
        ("a guess", ours.replace(&pass_of(&ours), &"A".repeat(32))),
        (
            "another installation's pass",
            ours.replace(&pass_of(&ours), &foreign.to_string()),
        ),
        ("the script of another machine", ours.replace(MAC, "525400999999")),
        (
            "the script of another UUID",
            ours.replace("/-/", "/4c4c4544-0035-4b10-8032-cac04f583933/"),
        ),
        (
            "the files of another machine",
            initramfs.replace(MAC, "525400999999"),
        ),
        ("the script's pass for the files", other_boot.clone()),
        (
            "the same as one file",
            other_boot.replace("/initramfs", "/uki.efi"),
        ),
    ] {
        let answer = get(&fixture.site, &target);
        assert_eq!(answer.status, Status::Forbidden, "{what}: {target}");
        assert!(
            text(&answer).contains("not issued by this installation"),
            "{what}"
        );
    }
}

#[test]
fn where_another_dhcp_server_names_the_script_it_needs_no_pass_and_the_files_do() {
    let mut fixture = site();
    let mut segment = a_segment();
    segment.spec.dhcp.mode = DhcpMode::Off;
    fixture.site.plan = watch::channel(Arc::new(plan_of(&segment))).1;
    let script = get(&fixture.site, &format!("/ipxe/muster-system/lab/{MAC}/-"));
    assert_eq!(script.status, Status::Ok);
    let [_, initramfs] = paths(&text(&script)).try_into().unwrap();
    assert_eq!(get(&fixture.site, &initramfs).status, Status::Ok);
    let forged = initramfs.replace(MAC, "525400999999");
    assert_eq!(get(&fixture.site, &forged).status, Status::Forbidden);
}

#[test]
fn the_url_of_one_segment_is_none_on_another() {
    let mut fixture = site();
    let [_, initramfs] = paths(&script(&fixture.site)).try_into().unwrap();
    let mut other = a_segment();
    other.metadata.name = Some("other".into());
    fixture.site.plan = watch::channel(Arc::new(plan_of(&other))).1;
    for target in [script_url(), initramfs] {
        let moved = target.replace("/lab/", "/other/");
        assert_eq!(get(&fixture.site, &moved).status, Status::Forbidden, "{moved}");
    }
}

#[test]
fn urls_end_after_an_hour() {
    let fixture = site();
    let release = paths(&script(&fixture.site))[0]
        .split('/')
        .nth(2)
        .unwrap()
        .to_owned();
    let at = |ago: i64| {
        let path = format!("/boot/{release}/muster-system/lab/{MAC}");
        let initramfs = format!("{path}/{}/initramfs", passes(ago).pass(&path));
        let path = format!("/ipxe/muster-system/lab/{MAC}/-");
        let script = format!("{path}/{}", passes(ago).pass(&path));
        let status = get(&fixture.site, &initramfs).status;
        assert_eq!(get(&fixture.site, &script).status, status);
        status
    };
    assert_eq!(at(0), Status::Ok);
    assert_eq!(at(3500), Status::Ok);
    assert_eq!(at(3700), Status::Gone);
    assert_eq!(at(-120), Status::Forbidden);
}

#[test]
fn files_outside_the_site_are_out_of_reach() {
    let fixture = site();
    for target in [
        "/../../etc/passwd",
        "//etc/passwd",
        "/boot/..%2f..%2fetc/vmlinuz",
        "/boot/lab/current",
        "/",
    ] {
        assert_eq!(get(&fixture.site, target).status, Status::NotFound, "{target}");
    }
    assert!(Path::new("/etc/passwd").exists());
}
