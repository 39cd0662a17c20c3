//! Images go to disks in a stream: however large they are, the agent takes little memory. Alone in its process, whose memory it measures.

// The helpers below are parts of tests.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use muster_agent::{
    clock::Clock,
    image::{self, Environment},
    net::dns::NameServers,
    sys::Root,
    work::Work,
};
use muster_proto::job::{DigestAlgorithm, DiskId, ImageSource, MachineId, Write};
use muster_tests::{files::FileServer, loops::LoopDisk, scratch::Scratch};
use ring::digest::{Context, SHA256};

const MIB: usize = 1 << 20;
/// The image, unpacked.
const IMAGE: usize = 512;
/// What a write may take in memory: the pipeline's buffers, and what the decompressor looks back at.
const MOST: usize = 32;
const SERIAL: &str = "LAB-7";

/// The image's MiB number `number`: none is like another, and none is zeros.
fn part(number: usize) -> Vec<u8> {
    let mut part = vec![u8::try_from(number % 251).unwrap() + 1; MIB];
    for (at, place) in part.chunks_mut(512).enumerate() {
        place[..8].copy_from_slice(&(number * MIB + at).to_le_bytes());
    }
    if number == 0 {
        // A program for a BIOS, and one partition (Linux) of all that follows.
        part[..446].fill(0x90);
        part[446..510].fill(0);
        part[450] = 0x83;
        part[454..458].copy_from_slice(&2048_u32.to_le_bytes());
        let blocks = u32::try_from((IMAGE - 1) * MIB / 512).unwrap();
        part[458..462].copy_from_slice(&blocks.to_le_bytes());
        part[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
    part
}

/// Packs the image into `path`.
fn pack(how: &str, path: &Path) {
    let file = BufWriter::new(File::create(path).unwrap());
    match how {
        "zstd" => {
            let mut packer = zstd::stream::Encoder::new(file, 1).unwrap();
            (0..IMAGE).for_each(|number| packer.write_all(&part(number)).unwrap());
            packer.finish().unwrap();
        }
        "gzip" => {
            let mut packer = GzEncoder::new(file, Compression::fast());
            (0..IMAGE).for_each(|number| packer.write_all(&part(number)).unwrap());
            packer.finish().unwrap();
        }
        _ => {
            let mut file = file;
            (0..IMAGE).for_each(|number| file.write_all(&part(number)).unwrap());
        }
    }
}

fn sha256(path: &Path) -> String {
    let mut context = Context::new(&SHA256);
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; MIB];
    loop {
        let length = std::io::Read::read(&mut file, &mut buffer).unwrap();
        if length == 0 {
            break;
        }
        context.update(&buffer[..length]);
    }
    let digest = context.finish();
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line of `/proc/self/status`, in MiB.
fn memory(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kib: usize = line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap();
    kib / 1024
}

#[test]
fn an_image_of_any_size_is_written_in_little_memory() {
    let scratch = Scratch::new().unwrap();
    let bytes = u64::try_from((IMAGE + 16) * MIB).unwrap();
    for how in ["zstd", "gzip", "raw"] {
        let disk = LoopDisk::new(&scratch.path().join("disk"), bytes, 512).unwrap();
        disk.machine(&scratch.sub(how).unwrap(), SERIAL).unwrap();
        let packed = scratch.path().join("image");
        pack(how, &packed);
        let server = FileServer::new(&packed, None).unwrap();
        let job = Write {
            machine: MachineId {
                system_serial: Some(SERIAL.to_owned()),
                ..MachineId::default()
            },
            disk: DiskId {
                serial: "LOOP-1".to_owned(),
                size_bytes: disk.bytes(),
                ..DiskId::default()
            },
            image: ImageSource {
                url: server.url("image"),
                checksum: sha256(&packed),
                algorithm: DigestAlgorithm::Auto,
            },
            config_drive: None,
            config_drive_optional: false,
        };
        let environment = Environment {
            root: Root::new(scratch.path().join(how)),
            clock: Clock::told(1_800_000_000),
            name_servers: NameServers::new(Vec::new),
            proxy: None,
        };
        // The highest begins anew (proc(5)).
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = memory("VmRSS");
        image::write(&job, None, &environment, &Work::unwatched()).unwrap();
        let took = memory("VmHWM").saturating_sub(before);
        assert!(took < MOST, "{how}: {took} MiB");

        let mut written = File::open(disk.path()).unwrap();
        let mut found = vec![0; MIB];
        for number in 0..IMAGE {
            std::io::Read::read_exact(&mut written, &mut found).unwrap();
            assert!(found == part(number), "{how}: MiB {number} is another one");
        }
        drop(disk);
        fs::remove_file(scratch.path().join("disk")).unwrap();
    }
}
