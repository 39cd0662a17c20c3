use std::io::Read;

use super::*;
use crate::cpio::{self, Node};
use crate::elf::tests::object;
use crate::modules::Catalogue;
use crate::profile::LAB;

fn kernel() -> Kernel {
    // What the lab profile needs, with a dependency and firmware; drivers for NVMe and vfat are inside.
    let modules = [
        ("virtio/virtio_pci", "depends=virtio\0alias=pci:v00001AF4d*\0"),
        ("virtio/virtio", "depends=\0"),
        ("net/virtio_net", "depends=virtio\0firmware=virtio/*.bin\0"),
        ("block/virtio_blk", "depends=virtio\0"),
        ("scsi/virtio_scsi", "depends=virtio\0"),
        ("char/virtio-rng", "depends=virtio\0"),
        ("scsi/sd_mod", "depends=\0softdep=pre: crc\0"),
        ("lib/crc", "depends=\0"),
        ("fs/efivarfs", "depends=\0"),
        ("sound/unwanted", "depends=\0"),
    ];
    let files = modules.map(|(path, info)| {
        let ko = object(&[
            (".text", path.as_bytes()),
            (".modinfo", info.as_bytes()),
            (".BTF", &[9; 5000]),
        ]);
        (format!("kernel/{path}.ko"), ko)
    });
    let builtin = b"kernel/nvme.ko\nkernel/vfat.ko\nkernel/nls_cp437.ko\nkernel/nls_ascii.ko\n".to_vec();
    let builtin = ("modules.builtin".to_owned(), builtin);
    let modules = Catalogue::index(files.into_iter().chain([builtin])).unwrap();
    Kernel {
        version: "6.1.0-test".to_owned(),
        image: b"kernel".to_vec(),
        modules,
        source: Some(source("linux-image-6.1.0-test", "6.1.1-1")),
    }
}

fn source(name: &str, version: &str) -> Source {
    Source {
        name: name.to_owned(),
        version: version.to_owned(),
    }
}

fn agent() -> Vec<u8> {
    object(&[(".text", b"agent")])
}

fn built() -> Content {
    let stub = Stub {
        image: b"MZ".to_vec(),
        source: Some(source("systemd-boot-efi", "252.1-1")),
    };
    build(&LAB, kernel(), agent(), stub).unwrap()
}

fn unpacked(content: &Content) -> Vec<u8> {
    zstd::decode_all(content.initramfs.as_slice()).unwrap()
}

#[test]
fn same_input_gives_same_bytes() {
    assert_eq!(built().initramfs, built().initramfs);
}

#[test]
fn a_release_names_the_packages_that_it_is_of() {
    let packages: Vec<_> = built().packages.into_iter().collect();
    let named = [
        ("linux-image-6.1.0-test", "6.1.1-1"),
        ("systemd-boot-efi", "252.1-1"),
    ];
    assert_eq!(
        packages,
        named.map(|(name, version)| (name.to_owned(), version.to_owned()))
    );
}

#[test]
fn the_archive_holds_agent_modules_and_tables_and_ends_with_the_sentinel() {
    let content = built();
    let bytes = unpacked(&content);
    assert_eq!(bytes.len() as u64, content.unpacked);
    let (entries, _) = cpio::read(&bytes).unwrap();
    let file = |path: &str| {
        let entry = entries
            .iter()
            .find(|entry| entry.path == path)
            .unwrap_or_else(|| panic!("no {path}"));
        let Node::File(content) = &entry.node else {
            panic!("{path} is no file")
        };
        (entry.permissions, content.clone())
    };
    assert_eq!(file("init"), (0o755, agent()));
    assert_eq!(entries.last().unwrap().path, muster_proto::config::SENTINEL);
    let text = |name: &str| String::from_utf8(file(&format!("lib/modules/6.1.0-test/{name}")).1).unwrap();
    assert!(text("modules.dep").contains("kernel/net/virtio_net.ko: kernel/virtio/virtio.ko\n"));
    assert_eq!(text("modules.alias"), "alias pci:v00001AF4d* virtio_pci\n");
    assert_eq!(text("modules.softdep"), "softdep sd_mod pre: crc\n");
    assert_eq!(content.firmware["virtio_net"], ["virtio/*.bin"]);
    let modules = entries.iter().filter(|entry| entry.path.ends_with(".ko")).count();
    assert_eq!((modules, content.modules), (9, 9), "all but the unwanted one");
    let device = |path: &str| {
        entries
            .iter()
            .find(|entry| entry.path == path)
            .unwrap()
            .node
            .clone()
    };
    assert_eq!(device("dev/console"), Node::CharDevice { major: 5, minor: 1 });
    assert_eq!(device("dev/null"), Node::CharDevice { major: 1, minor: 3 });
}

#[test]
fn modules_are_stored_without_ballast() {
    let bytes = unpacked(&built());
    assert!(!bytes.windows(16).any(|window| window == [9; 16]));
}

#[test]
fn the_frame_is_one_the_kernel_takes() {
    let content = built();
    let frame = content.initramfs.as_slice();
    // RFC 8878, 3.1.1.1: magic, then the descriptor: bit 2 is the checksum, bit 5 a single segment.
    assert_eq!(frame[..4], [0x28, 0xb5, 0x2f, 0xfd]);
    assert_eq!(frame[4] & 0b100, 0, "no checksum");
    let mut decoder = zstd::Decoder::new(frame).unwrap().single_frame();
    decoder.window_log_max(23).unwrap();
    let mut bytes = Vec::new();
    decoder.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, unpacked(&content), "one frame, no larger window");
}

#[test]
fn a_dynamic_agent_is_refused() {
    let dynamic = object(&[(".interp", b"/lib64/ld-linux-x86-64.so.2\0")]);
    assert!(matches!(
        build(&LAB, kernel(), dynamic, Stub::default()),
        Err(BuildError::Dynamic)
    ));
    assert!(matches!(
        build(&LAB, kernel(), b"#!/bin/sh".to_vec(), Stub::default()),
        Err(BuildError::Agent(_))
    ));
}
