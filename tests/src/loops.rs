//! Disks made of files, as the kernel's loop driver shows them. They need root.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};

/// How often another program may take the free device that we were told.
const TRIES: usize = 50;

/// Who sets one up. Trying a device that another thread has just taken claims it for a moment, in which nobody else can open it alone.
static SETTING_UP: Mutex<()> = Mutex::new(());

/// The driver's major number (`Documentation/admin-guide/devices.txt`).
const MAJOR: u64 = 7;

/// `LO_FLAGS_AUTOCLEAR` and `LO_FLAGS_PARTSCAN` (`include/uapi/linux/loop.h`): gone with its last user, even if that is killed;
/// and with partitions.
const FLAGS: u32 = 4 | 8;

/// The ioctls of `include/uapi/linux/loop.h`.
#[allow(unsafe_code)] // nix makes unsafe functions of the calls' numbers.
mod calls {
    /// `struct loop_config`, with `struct loop_info64` in it.
    #[repr(C)]
    pub(super) struct Config {
        pub(super) fd: u32,
        pub(super) block_size: u32,
        pub(super) numbers: [u64; 5],
        pub(super) kinds: [u32; 3],
        pub(super) flags: u32,
        pub(super) names: [u8; 160],
        pub(super) init: [u64; 2],
        pub(super) reserved: [u64; 8],
    }

    const _: () = assert!(size_of::<Config>() == 8 + 232 + 64);

    nix::ioctl_none_bad!(get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(configure, 0x4c0a, Config);
}

/// A block device over a file. Dropping it takes it away.
#[derive(Debug)]
pub struct LoopDisk {
    device: File,
    path: PathBuf,
    number: u64,
    bytes: u64,
    block: u32,
}

impl LoopDisk {
    /// A disk of `bytes` bytes with logical blocks of `block`, over `file`, which is made.
    pub fn new(file: &Path, bytes: u64, block: u32) -> Result<LoopDisk> {
        let backing = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(file)
            .with_context(|| format!("make {}", file.display()))?;
        backing.set_len(bytes).context("size a disk")?;
        let _turn = SETTING_UP.lock().unwrap_or_else(PoisonError::into_inner);
        let control = File::open("/dev/loop-control").context("open the loop driver: only root may")?;
        for _ in 0..TRIES {
            let number = free(&control).context("ask for a free loop device")?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            if !path.exists() {
                // Without udev nobody makes it.
                let mode = Mode::S_IRUSR | Mode::S_IWUSR;
                match mknod(&path, SFlag::S_IFBLK, mode, makedev(MAJOR, number)) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(error) => bail!("make {}: {error}", path.display()),
                }
            }
            let open = OpenOptions::new().read(true).write(true).open(&path);
            let device = open.with_context(|| format!("open {}", path.display()))?;
            match configure(&device, &backing, block) {
                Ok(()) => {
                    return Ok(LoopDisk {
                        device,
                        path,
                        number,
                        bytes,
                        block,
                    });
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error).with_context(|| format!("set up {}", path.display())),
            }
        }
        bail!("every free loop device was taken by somebody else");
    }

    /// Its device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps others away, as a mount would, for as long as the result lives.
    pub fn hold(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&self.path)
    }

    /// A root in `directory` in which this is the one disk, `vda`, of a machine with the serial number `serial`.
    pub fn machine(&self, directory: &Path, serial: &str) -> Result<()> {
        let device = self.device.metadata().context("look at a loop device")?.rdev();
        let place = "sys/devices/pci0000:00/0000:00:04.0/virtio1";
        let block = format!("{place}/block/vda");
        for (file, content) in [
            ("sys/class/dmi/id/product_serial".to_owned(), serial.to_owned()),
            (format!("{place}/vendor"), "0x1af4".to_owned()),
            (format!("{block}/size"), (self.bytes / 512).to_string()),
            (format!("{block}/ro"), "0".to_owned()),
            (format!("{block}/removable"), "0".to_owned()),
            (format!("{block}/serial"), "LOOP-1".to_owned()),
            (
                format!("{block}/dev"),
                format!("{}:{}", major(device), minor(device)),
            ),
            (
                format!("{block}/queue/logical_block_size"),
                self.block.to_string(),
            ),
        ] {
            let path = directory.join(file);
            let parent = path.parent().context("a path without a parent")?;
            std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            std::fs::write(&path, content + "\n").with_context(|| format!("write {}", path.display()))?;
        }
        for (link, target) in [
            (
                "sys/block/vda",
                Path::new("../devices/pci0000:00/0000:00:04.0/virtio1/block/vda"),
            ),
            ("dev/vda", &self.path),
        ] {
            let link = directory.join(link);
            let parent = link.parent().context("a path without a parent")?;
            std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            std::os::unix::fs::symlink(target, &link).with_context(|| format!("link {}", link.display()))?;
        }
        Ok(())
    }

    /// The number of the device.
    pub fn number(&self) -> u64 {
        self.number
    }
}

#[allow(unsafe_code)]
fn free(control: &File) -> Result<u64> {
    // SAFETY: the call takes no argument, and the descriptor is open.
    let number = unsafe { calls::get_free(control.as_raw_fd()) }?;
    u64::try_from(number).context("a negative number")
}

#[allow(unsafe_code)]
fn configure(device: &File, backing: &File, block: u32) -> io::Result<()> {
    let config = calls::Config {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size: block,
        numbers: [0; 5],
        kinds: [0; 3],
        flags: FLAGS,
        names: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: the call reads a structure of the kernel's layout, which it is given, and the descriptors are open.
    unsafe { calls::configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}
