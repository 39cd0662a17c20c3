use super::*;
use crate::{
    boot::{
        dhcp::{
            corpus::{all, request},
            fixtures::a_net,
        },
        pass::PassKey,
    },
    token::TokenKey,
};

const RELEASE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const RAMDISK: Verdict = Verdict::Ramdisk("nobody has described it");

fn passes() -> Maker {
    Maker::new(PassKey::of(&TokenKey::new(&[7; 32])), 0x6a00_0000, [0xab; 4])
}

fn decided(name: &str, mode: DhcpMode, verdict: Verdict) -> Result<File, &'static str> {
    decide(
        &request(name),
        &Circumstances {
            net: &a_net(mode),
            verdict,
            release: Some(RELEASE),
            passes: Some(&passes()),
        },
    )
}

#[test]
fn each_client_gets_its_file() {
    let path = format!("/boot/{RELEASE}/metal/rack/525400123456");
    let uki = format!("http://10.77.0.1:8080{path}/{}/uki.efi", passes().pass(&path));
    let path = "/ipxe/metal/rack/525400123456/4c4c4544-0035-4b10-8032-cac04f583933";
    let script = format!("http://10.77.0.1:8080{path}/{}", passes().pass(path));
    for mode in [DhcpMode::Server, DhcpMode::Proxy] {
        for (name, file) in [
            ("pxe-rom-bios-discover", File::Tftp("undionly.kpxe")),
            ("ovmf-pxe-discover", File::Tftp("snponly.efi")),
            ("uefi-pxe-4011-request", File::Tftp("snponly.efi")),
            ("utf8-junk-host-name", File::Tftp("snponly.efi")),
            ("ipxe-rom-bios-discover", File::Script(script.clone())),
            ("ipxe-rom-bios-no-http-discover", File::Tftp("undionly.kpxe")),
            ("ovmf-http-discover", File::Uki(uki.clone())),
        ] {
            assert_eq!(decided(name, mode, RAMDISK), Ok(file), "{name} {mode:?}");
        }
    }
}

#[test]
fn ipxe_runs_a_script_unless_it_lists_what_it_has_and_lacks_http_or_the_kernels_format() {
    const TFTP: u8 = 0x15;
    let (bios, uefi, arm64) = (0, 7, 11);
    let table: &[(u16, &[u8], Client)] = &[
        (bios, &[], Client::Ipxe),
        (bios, &[HTTP, TFTP, BZIMAGE], Client::Ipxe),
        (bios, &[TFTP, BZIMAGE], Client::Firmware),
        (bios, &[HTTP, TFTP, EFI], Client::Firmware),
        (uefi, &[], Client::Ipxe),
        (uefi, &[HTTP, TFTP, EFI], Client::Ipxe),
        (uefi, &[TFTP, EFI], Client::Firmware),
        (uefi, &[HTTP, TFTP, BZIMAGE], Client::Firmware),
        (arm64, &[TFTP], Client::Ipxe),
    ];
    for &(architecture, features, client) in table {
        let request = Request {
            architectures: vec![architecture],
            features: features.to_vec(),
            ..request("ipxe-rom-bios-discover")
        };
        assert_eq!(Client::of(&request), client, "{architecture}: {features:x?}");
    }
}

/// What the binaries in Debian 12's package `ipxe` list: without HTTP and their kernel's format there, they would load themselves for ever.
#[test]
fn the_ipxe_that_is_served_runs_a_script() {
    let undionly: &[u8] = &[
        0x17, 0x22, 0x13, 0x11, 0x27, 0x19, 0x29, 0x10, 0x21, 0x15, 0x18, 0x12,
    ];
    let snponly: &[u8] = &[0x17, 0x24, 0x13, 0x11, 0x27, 0x29, 0x15, 0x12];
    for (firmware, features) in [
        ("pxe-rom-bios-discover", undionly),
        ("ovmf-pxe-discover", snponly),
    ] {
        let request = Request {
            ipxe: true,
            features: features.to_vec(),
            ..request(firmware)
        };
        assert_eq!(Client::of(&request), Client::Ipxe, "{firmware}");
    }
}

#[test]
fn who_boots_its_own_disk_hears_of_no_boot_file() {
    let (silence, disk) = (Verdict::Silence("it is nobody"), Verdict::Disk("it has no job"));
    for name in [
        "pxe-rom-bios-discover",
        "ovmf-pxe-discover",
        "ovmf-http-discover",
        "ipxe-rom-bios-discover",
        "ipxe-rom-bios-request",
        "ipxe-efi-arm64-discover",
        "relayed-discover",
    ] {
        let own_disk = Ok(File::OwnDisk("it has no job"));
        assert_eq!(decided(name, DhcpMode::Server, disk), own_disk, "{name}");
        // The other server gives it an address, and that is all it is to hear.
        assert_eq!(
            decided(name, DhcpMode::Proxy, disk),
            Err("it has no job"),
            "{name}"
        );
        for mode in [DhcpMode::Server, DhcpMode::Proxy] {
            assert_eq!(
                decided(name, mode, silence),
                Err("it is nobody"),
                "{name} {mode:?}"
            );
        }
    }
}

/// An address and nothing that could be booted: no file, no server, and for iPXE no word against waiting for other offers, of which one
/// with a boot file wins.
#[test]
fn who_boots_its_own_disk_is_offered_an_address_alone() {
    let net = a_net(DhcpMode::Server);
    let address = Ipv4Addr::new(10, 77, 0, 150);
    for name in [
        "ovmf-pxe-discover",
        "ovmf-http-discover",
        "ipxe-rom-bios-discover",
    ] {
        let offer = reply(
            &request(name),
            &net,
            &File::OwnDisk("it has no job"),
            Grant::Offer(address),
        );
        assert_eq!((offer.yiaddr, offer.siaddr), (address, Ipv4Addr::UNSPECIFIED));
        assert_eq!(offer.file, None);
        for code in [43, 60, 66, 67, 175] {
            assert_eq!(option(&offer, code), None, "{name}: option {code}");
        }
    }
}

#[test]
fn in_server_mode_systems_and_agents_get_an_address_whatever_the_verdict() {
    for verdict in [Verdict::Silence(""), Verdict::Disk(""), RAMDISK] {
        for name in [
            "dhclient-discover",
            "dhclient-renew",
            "networkd-init-reboot",
            "agent-discover",
        ] {
            assert_eq!(decided(name, DhcpMode::Server, verdict), Ok(File::None), "{name}");
            assert!(decided(name, DhcpMode::Proxy, verdict).is_err(), "{name}");
        }
    }
}

#[test]
fn with_dhcp_off_nobody_hears_anything() {
    for (name, bytes) in all() {
        if Request::parse(&bytes).is_ok() {
            assert!(decided(name, DhcpMode::Off, RAMDISK).is_err(), "{name}");
        }
    }
}

#[test]
fn architectures_without_boot_files_are_told_apart() {
    let with = |architectures: &[u16]| {
        let request = Request {
            architectures: architectures.to_vec(),
            ..request("ovmf-pxe-discover")
        };
        let net = a_net(DhcpMode::Server);
        decide(
            &request,
            &Circumstances {
                net: &net,
                verdict: RAMDISK,
                release: Some(RELEASE),
                passes: Some(&passes()),
            },
        )
    };
    assert_eq!(with(&[]), Ok(File::Tftp("undionly.kpxe")));
    assert_eq!(with(&[9]), Ok(File::Tftp("snponly.efi")));
    assert_eq!(with(&[0xffff, 7]), Ok(File::Tftp("snponly.efi")));
    for (arm, word) in [
        (11, "arm64"),
        (19, "arm64"),
        (6, "32-bit"),
        (15, "32-bit"),
        (27, "architecture"),
    ] {
        let why = with(&[arm]).unwrap_err();
        assert!(why.contains(word), "{arm}: {why}");
    }
    assert!(
        decided("ipxe-efi-arm64-discover", DhcpMode::Server, RAMDISK)
            .unwrap_err()
            .contains("arm64")
    );
}

/// Another edge on the machine's network may have one.
#[test]
fn without_a_ramdisk_no_boot_begins() {
    let net = a_net(DhcpMode::Server);
    let circumstances = Circumstances {
        net: &net,
        verdict: RAMDISK,
        release: None,
        passes: Some(&passes()),
    };
    for name in [
        "pxe-rom-bios-discover",
        "ovmf-pxe-discover",
        "ipxe-rom-bios-discover",
        "ovmf-http-discover",
    ] {
        let why = decide(&request(name), &circumstances).unwrap_err();
        assert!(why.contains("no ramdisk"), "{name}: {why}");
    }
}

#[test]
fn without_the_key_for_its_url_no_boot_begins() {
    let net = a_net(DhcpMode::Server);
    let at = Circumstances {
        net: &net,
        verdict: RAMDISK,
        release: Some(RELEASE),
        passes: None,
    };
    for name in [
        "pxe-rom-bios-discover",
        "ipxe-rom-bios-discover",
        "ovmf-http-discover",
    ] {
        assert!(decide(&request(name), &at).unwrap_err().contains("key"), "{name}");
    }
    assert_eq!(decide(&request("dhclient-discover"), &at), Ok(File::None));
}

#[test]
fn the_longest_boot_url_fits_into_one_option() {
    let mut net = a_net(DhcpMode::Server);
    net.boot = Ipv4Addr::new(255, 255, 255, 254);
    net.http_port = 65535;
    net.key = format!("{}/{}", "n".repeat(50), "s".repeat(50));
    let circumstances = Circumstances {
        net: &net,
        verdict: RAMDISK,
        release: Some(RELEASE),
        passes: Some(&passes()),
    };
    for client in ["ovmf-http-discover", "ipxe-rom-bios-discover"] {
        let (File::Uki(url) | File::Script(url)) = decide(&request(client), &circumstances).unwrap() else {
            panic!("{client} gets a URL");
        };
        assert!(url.len() <= 255, "{client}: {}", url.len());
    }
}

fn option(reply: &Reply, code: u8) -> Option<&[u8]> {
    reply
        .required
        .iter()
        .chain(&reply.optional)
        .find(|(known, _)| *known == code)
        .map(|(_, value)| value.as_slice())
}

#[test]
fn a_server_offers_address_network_and_boot_file() {
    let net = a_net(DhcpMode::Server);
    let address = Ipv4Addr::new(10, 77, 0, 150);
    let firmware = request("ovmf-pxe-discover");
    let offer = reply(&firmware, &net, &File::Tftp("snponly.efi"), Grant::Offer(address));
    assert_eq!(
        (offer.kind, offer.yiaddr, offer.siaddr),
        (Kind::Offer, address, net.boot)
    );
    for (code, value) in [
        (54, &[10, 77, 0, 1][..]),
        (51, &[0, 0, 14, 16]),
        (1, &[255, 255, 255, 0]),
        (3, &[10, 77, 0, 254]),
        (6, &[10, 77, 0, 253]),
        (15, b"rack.example"),
        (66, b"10.77.0.1"),
        (67, b"snponly.efi\0"),
    ] {
        assert_eq!(option(&offer, code), Some(value), "option {code}");
    }
    // With class PXEClient in the answer, ROMs would go on to look for a boot server.
    assert_eq!(option(&offer, 60), None);
    assert_eq!(option(&offer, 43), None);
}

#[test]
fn a_proxy_gives_a_boot_file_and_no_address() {
    let net = a_net(DhcpMode::Proxy);
    let firmware = request("ovmf-pxe-discover");
    let offer = reply(&firmware, &net, &File::Tftp("snponly.efi"), Grant::ProxyOffer);
    assert_eq!((offer.kind, offer.yiaddr), (Kind::Offer, Ipv4Addr::UNSPECIFIED));
    assert_eq!(option(&offer, 60), Some(&b"PXEClient"[..]));
    assert_eq!(option(&offer, 43), Some(&[6, 1, 8, 255][..]));
    assert_eq!(option(&offer, 97), firmware.machine_id.as_deref());
    for code in [1, 3, 6, 15, 51] {
        assert_eq!(option(&offer, code), None, "option {code}");
    }
    let ipxe = request("ipxe-rom-bios-discover");
    let offer = reply(
        &ipxe,
        &net,
        &File::Script("http://x".to_owned()),
        Grant::ProxyOffer,
    );
    assert_eq!(option(&offer, 60), Some(&b"PXEClient"[..]));
    assert_eq!(option(&offer, 43), None);
    assert_eq!(option(&offer, 175), None);
}

#[test]
fn ipxe_need_not_wait_for_a_proxy_beside_a_server() {
    let net = a_net(DhcpMode::Server);
    let grant = Grant::Lease(Ipv4Addr::new(10, 77, 0, 150));
    let ack = reply(
        &request("ipxe-rom-bios-request"),
        &net,
        &File::Script("http://x".to_owned()),
        grant,
    );
    assert_eq!(option(&ack, 175), Some(&[176, 1, 1][..]));
    assert_eq!(option(&ack, 67), Some(&b"http://x"[..]));
}

#[test]
fn http_boot_is_answered_as_http_boot() {
    let net = a_net(DhcpMode::Server);
    let grant = Grant::Offer(Ipv4Addr::new(10, 77, 0, 150));
    let offer = reply(
        &request("ovmf-http-discover"),
        &net,
        &File::Uki("http://x".to_owned()),
        grant,
    );
    assert_eq!(option(&offer, 60), Some(&b"HTTPClient"[..]));
    assert_eq!(option(&offer, 66), None);
}

#[test]
fn a_refusal_carries_nothing_but_its_reason() {
    let net = a_net(DhcpMode::Server);
    let nak = reply(&request("dhclient-renew"), &net, &File::None, Grant::Refuse("no"));
    assert_eq!((nak.kind, nak.yiaddr), (Kind::Nak, Ipv4Addr::UNSPECIFIED));
    assert_eq!(option(&nak, 56), Some(&b"no"[..]));
    assert_eq!(option(&nak, 51), None);
    assert_eq!(option(&nak, 1), None);
}
