//! Images and cleaning on block devices that the kernel made of files, looked at by Debian's own tools.

// The helpers below are parts of tests.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use muster_agent::{
    clock::Clock,
    disk::{self, CleanError, Refused},
    image::{self, After, Contents, Environment, Failure, LayoutError},
    net::dns::NameServers,
    sys::Root,
    work::Work,
};
use muster_proto::job::{Clean, ConfigDrive, DigestAlgorithm, DiskId, ImageSource, MachineId, Write};
use muster_tests::{files::FileServer, loops::LoopDisk, scratch::Scratch};
use serde_json::json;

const MIB: u64 = 1 << 20;
const SERIAL: &str = "LAB-7";

/// What a program says; it must succeed.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {said}");
    said
}

/// A machine with one disk, and what it needs to write to it.
struct Bench {
    scratch: Scratch,
    disk: LoopDisk,
}

impl Bench {
    fn new(bytes: u64, block: u32) -> Bench {
        let scratch = Scratch::new().unwrap();
        let disk = LoopDisk::new(&scratch.path().join("disk"), bytes, block).unwrap();
        disk.machine(&scratch.sub("root").unwrap(), SERIAL).unwrap();
        Bench { scratch, disk }
    }

    fn root(&self) -> Root {
        Root::new(self.scratch.path().join("root"))
    }

    fn machine(&self) -> MachineId {
        MachineId {
            system_serial: Some(SERIAL.to_owned()),
            ..MachineId::default()
        }
    }

    fn disk_id(&self) -> DiskId {
        DiskId {
            serial: "LOOP-1".to_owned(),
            size_bytes: self.disk.bytes(),
            ..DiskId::default()
        }
    }

    fn device(&self) -> String {
        self.disk.path().display().to_string()
    }

    /// A GPT image of 32 MiB for blocks of `block`, with an ext4 file system on its partition, made by Debian's tools.
    fn image(&self, block: u32) -> PathBuf {
        let path = self.scratch.path().join("image.raw");
        if path.exists() {
            fs::remove_file(&path).unwrap();
        }
        // sgdisk asks a device for its block size; a file has 512.
        let medium = LoopDisk::new(&path, 32 * MIB, block).unwrap();
        let device = medium.path().display().to_string();
        let mib = MIB / u64::from(block);
        let part = format!("1:{mib}:{}", 24 * mib);
        run("sgdisk", &["-n", &part, "-t", "1:8300", "-c", "1:root", &device]);
        drop(medium);
        let text = path.display().to_string();
        run(
            "mkfs.ext4",
            &["-q", "-F", "-L", "lab-root", "-E", "offset=1048576", &text, "16M"],
        );
        path
    }

    fn packed(&self, block: u32) -> (PathBuf, Vec<u8>) {
        let mut image = fs::read(self.image(block)).unwrap();
        // Where a BIOS's program is, without which no BIOS machine takes it.
        image[..440].fill(0x90);
        let path = self.scratch.path().join("image.zst");
        fs::write(&path, zstd::stream::encode_all(&image[..], 3).unwrap()).unwrap();
        (path, image)
    }

    fn job(&self, url: &str, checksum: String) -> Write {
        Write {
            machine: self.machine(),
            disk: self.disk_id(),
            image: ImageSource {
                url: url.to_owned(),
                checksum,
                algorithm: DigestAlgorithm::Auto,
            },
            config_drive: None,
            config_drive_optional: false,
        }
    }

    fn write(&self, job: &Write, config: Option<&ConfigDrive>) -> Result<image::Written, image::WriteError> {
        self.write_watched(job, config, &Work::unwatched())
    }

    fn write_watched(
        &self,
        job: &Write,
        config: Option<&ConfigDrive>,
        work: &Work,
    ) -> Result<image::Written, image::WriteError> {
        let environment = Environment {
            root: self.root(),
            clock: Clock::told(1_800_000_000),
            name_servers: NameServers::new(Vec::new),
            proxy: None,
        };
        let config = config.map(|config| config as &dyn Contents);
        image::write(job, config, &environment, work)
    }

    fn bytes(&self) -> Vec<u8> {
        // Through the device, and not from any cache of the file.
        fs::read(self.disk.path()).unwrap()
    }
}

fn sha256(path: &Path) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &fs::read(path).unwrap());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where on `device`, with blocks of so many bytes, the second partition begins, in bytes.
fn start_of_config_drive(device: &str, block: u64) -> u64 {
    let table = run("sgdisk", &["-i", "2", device]);
    assert!(table.contains("Partition name: 'config-2'"), "{table}");
    let first = table.lines().find_map(|line| line.strip_prefix("First sector: "));
    block * first.unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
}

#[test]
fn other_tools_find_nothing_wrong_with_a_written_disk() {
    let bench = Bench::new(64 * MIB, 512);
    let (packed, image) = bench.packed(512);
    let server = FileServer::new(&packed, Some(1000)).unwrap();
    let config = ConfigDrive {
        meta_data: json!({"local-hostname": "node-1"}).as_object().unwrap().clone(),
        network_data: Some(json!({"links": []})),
        user_data: Some(b"#cloud-config\n".to_vec()),
    };
    let job = bench.job(&server.url("image.zst"), sha256(&packed));
    let written = bench.write(&job, Some(&config)).unwrap();
    assert_eq!((written.disk.as_str(), written.image), ("/dev/vda", 32 * MIB));
    assert_eq!(server.requests(), 2, "the first connection broke");

    let device = bench.device();
    let verified = run("sgdisk", &["-v", &device]);
    assert!(verified.contains("No problems found"), "{verified}");
    let found = bench.bytes();
    let (start, end) = (1 << 20, 25 << 20);
    assert!(
        found[start..end] == image[start..end],
        "what the image holds is on the disk"
    );
    let offset = start_of_config_drive(&device, 512);
    let label = run(
        "blkid",
        &["-p", "-O", &offset.to_string(), "-o", "export", &device],
    );
    assert!(
        label.contains("LABEL=config-2") && label.contains("TYPE=iso9660"),
        "{label}"
    );

    let drive = bench.scratch.path().join("drive.iso");
    fs::write(&drive, &found[usize::try_from(offset).unwrap()..]).unwrap();
    let drive = drive.display().to_string();
    let mut files: Vec<String> = run("isoinfo", &["-R", "-f", "-i", &drive])
        .lines()
        .map(str::to_owned)
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            "/openstack",
            "/openstack/latest",
            "/openstack/latest/meta_data.json",
            "/openstack/latest/network_data.json",
            "/openstack/latest/user_data",
        ]
    );
    let user_data = run(
        "isoinfo",
        &["-R", "-x", "/openstack/latest/user_data", "-i", &drive],
    );
    assert_eq!(user_data, "#cloud-config\n");
}

/// Each descriptor by which this process may write to `device`, with its flags of open(2) (proc(5)).
fn opened(device: &Path) -> Vec<(OsString, i32)> {
    let numbers = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let of_device = numbers.filter(|number| fs::read_link(number.path()).is_ok_and(|to| to == device));
    let flags = of_device.filter_map(|number| {
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(number.file_name())).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        Some((number.file_name(), i32::from_str_radix(flags.trim(), 8).ok()?))
    });
    flags
        .filter(|(_, flags)| flags & libc::O_ACCMODE != libc::O_RDONLY)
        .collect()
}

#[test]
fn an_image_is_written_past_the_page_cache() {
    let bench = Bench::new(64 * MIB, 512);
    let (packed, _) = bench.packed(512);
    let server = FileServer::new(&packed, None).unwrap();
    let job = bench.job(&server.url("image.zst"), sha256(&packed));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (device, see) = (bench.disk.path().to_owned(), Arc::clone(&seen));
    // The test's own.
    let before = opened(&device);
    let work = Work::new(move |_| {
        let now = opened(&device).into_iter();
        see.lock()
            .unwrap()
            .extend(now.filter(|one| !before.contains(one)));
    });
    bench.write_watched(&job, None, &work).unwrap();
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty(), "it was open while it was written");
    assert!(
        seen.iter().all(|(_, flags)| flags & libc::O_DIRECT != 0),
        "{seen:?}"
    );
}

#[test]
fn a_disk_with_blocks_of_4096_bytes_takes_an_image_made_for_it_and_no_other() {
    let bench = Bench::new(64 * MIB, 4096);
    let (packed, image) = bench.packed(4096);
    let server = FileServer::new(&packed, None).unwrap();
    let job = bench.job(&server.url("image.zst"), sha256(&packed));
    bench.write(&job, Some(&ConfigDrive::default())).unwrap();
    let device = bench.device();
    let verified = run("sgdisk", &["-v", &device]);
    assert!(verified.contains("No problems found"), "{verified}");
    let offset = start_of_config_drive(&device, 4096).to_string();
    let label = run("blkid", &["-p", "-O", &offset, "-o", "export", &device]);
    let is_known = |words: &[&str]| words.iter().all(|word| label.contains(word));
    assert!(
        is_known(&["LABEL=config-2", "TYPE=vfat", "BLOCK_SIZE=4096"]),
        "{label}"
    );
    let found = bench.bytes();
    assert!(found[1 << 20..25 << 20] == image[1 << 20..25 << 20]);

    let (packed, _) = bench.packed(512);
    let job = bench.job(&server.url("image.zst"), sha256(&packed));
    let refused = bench.write(&job, None).unwrap_err();
    assert_eq!(refused.after, After::Untouched);
    assert!(matches!(
        *refused.source,
        Failure::Layout {
            source: LayoutError::BlockSize {
                image: 512,
                disk: 4096
            }
        }
    ));
    assert!(bench.bytes() == found, "the disk is as it was");
}

#[test]
fn the_digest_may_stand_in_a_list_beside_the_image() {
    let bench = Bench::new(64 * MIB, 512);
    let (packed, _) = bench.packed(512);
    let server = FileServer::new(&packed, None).unwrap();
    let list = bench.scratch.path().join("SHA256SUMS");
    let line = |digest: &str| format!("{digest}  image.zst\n");
    fs::write(&list, line(&sha256(&packed))).unwrap();
    let lists = FileServer::new(&list, None).unwrap();
    let job = bench.job(&server.url("image.zst"), lists.url("SHA256SUMS"));
    bench.write(&job, None).unwrap();

    fs::write(&list, line(&"0".repeat(64))).unwrap();
    let refused = bench.write(&job, None).unwrap_err();
    assert_eq!(refused.after, After::Unbootable);
    assert!(matches!(*refused.source, Failure::Mismatch { .. }));
    let found = bench.bytes();
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    assert!(is_zero(&found[..1 << 20]) && is_zero(&found[found.len() - 4096..]));
}

#[test]
fn a_clean_disk_shows_nothing_to_anyone() {
    for block in [512, 4096] {
        let bench = Bench::new(64 * MIB, block);
        fs::write(bench.disk.path(), fs::read(bench.image(block)).unwrap()).unwrap();
        let device = bench.device();
        let at = |offset: u64| {
            let probe = ["-p", "-O", &offset.to_string(), "-o", "export", &device];
            let output = Command::new("/usr/sbin/blkid").args(probe).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(at(0).contains("PTTYPE=gpt"), "{}", at(0));
        assert!(at(MIB).contains("TYPE=ext4"), "{}", at(MIB));
        let job = Clean {
            machine: bench.machine(),
            disks: vec![bench.disk_id(), bench.disk_id()],
        };
        let cleaned = disk::clean(&job, &bench.root(), &Work::unwatched()).unwrap();
        assert_eq!(cleaned.len(), 1, "named twice is cleaned once");
        assert_eq!((cleaned[0].table, cleaned[0].partitions), ("gpt", 1));
        assert_eq!([at(0), at(MIB)], ["", ""], "blocks of {block}");
        let again = disk::clean(&job, &bench.root(), &Work::unwatched()).unwrap();
        assert_eq!(again[0].table, "");
    }
}

#[test]
fn a_disk_that_is_in_use_or_of_another_machine_is_left_alone() {
    let bench = Bench::new(8 * MIB, 512);
    let clean = |machine: MachineId, disk: DiskId| {
        let job = Clean {
            machine,
            disks: vec![disk],
        };
        match disk::clean(&job, &bench.root(), &Work::unwatched()) {
            Err(CleanError::Refused { source }) => source,
            other => panic!("{other:?}"),
        }
    };
    let pattern = vec![0xa5; usize::try_from(8 * MIB).unwrap()];
    fs::write(bench.disk.path(), &pattern).unwrap();
    let held = bench.disk.hold().unwrap();
    let busy = clean(bench.machine(), bench.disk_id());
    assert!(
        matches!(&busy, Refused::Open { source, .. } if source.raw_os_error() == Some(libc::EBUSY)),
        "{busy:?}"
    );
    drop(held);
    let stranger = MachineId {
        system_serial: Some("LAB-8".to_owned()),
        ..MachineId::default()
    };
    assert!(matches!(
        clean(stranger, bench.disk_id()),
        Refused::OtherMachine { .. }
    ));

    // Between the look and the opening another disk took the name.
    let other = LoopDisk::new(&bench.scratch.path().join("other"), 8 * MIB, 512).unwrap();
    fs::write(other.path(), &pattern).unwrap();
    let link = bench.scratch.path().join("root/dev/vda");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(other.path(), &link).unwrap();
    let changed = clean(bench.machine(), bench.disk_id());
    assert!(matches!(changed, Refused::Changed { .. }), "{changed:?}");
    for disk in [bench.disk.path(), other.path()] {
        assert!(
            fs::read(disk).unwrap() == pattern,
            "{} was touched",
            disk.display()
        );
    }
}
