//! The firmware's boot entries (UEFI specification 2.10, section 3.1), written through efivarfs below the injected root.
//!
//! Ours is put behind the network entries if the machine came in by one of them: the controller keeps the first word at every
//! boot, and without its answer the machine goes on to its disk. Otherwise ours is the first. `BootNext` is never set.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::AsRawFd,
    path::Path,
};

use muster_proto::{Chain, text};
use nix::{
    errno::Errno,
    libc::c_long,
    mount::{MsFlags, mount},
};

use super::gpt::Guid;
use crate::sys::{self, ReadError, Root};

/// How our entries are called; older ones of this name are replaced.
pub const LABEL: &str = "Muster image";

/// `EFI_GLOBAL_VARIABLE`, as efivarfs ends names with it.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// `LINUX_EFI_CRASH_GUID` (`include/linux/efi.h`): what a kernel leaves of itself when it dies.
const CRASH: &str = "cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0";

/// Kept over a reset, and there for both boot and operating system.
const ATTRIBUTES: [u8; 4] = [7, 0, 0, 0];

/// `LOAD_OPTION_ACTIVE`, and the bits that tell boot options from applications (3.1.3).
const ACTIVE: u32 = 1;
const CATEGORY: u32 = 0x1f00;

/// A boot entry could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EfiError {
    /// Variables cannot be read.
    #[error("read the firmware's boot entries")]
    Read {
        /// Why.
        source: ReadError,
    },
    /// The firmware or kernel refuses a variable.
    #[error("write the EFI variable {name}")]
    Write {
        /// Which, as efivarfs calls it.
        name: String,
        /// Why: `ENOSPC` if the firmware has no room left.
        source: io::Error,
    },
    /// There is no number left.
    #[error("add the disk to the boot order: all 65536 boot entries are in use")]
    Full,
}

/// How the firmware knows a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// By the disk's signature and the partition's number.
    Mbr([u8; 4]),
    /// By the partition's GUID.
    Gpt(Guid),
}

/// A partition with a boot loader; blocks are logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemPartition {
    /// From 1.
    pub number: u32,
    /// Its first block.
    pub first: u64,
    /// How many blocks.
    pub blocks: u64,
    /// Which one it is.
    pub signature: Signature,
}

/// The bytes of an `EFI_LOAD_OPTION` for the file `path`, such as `\EFI\BOOT\BOOTX64.EFI`, on `partition`.
pub fn load_option(partition: &SystemPartition, path: &str) -> Vec<u8> {
    let mut nodes = vec![4, 1, 42, 0];
    nodes.extend(partition.number.to_le_bytes());
    nodes.extend(partition.first.to_le_bytes());
    nodes.extend(partition.blocks.to_le_bytes());
    match partition.signature {
        Signature::Mbr(signature) => {
            nodes.extend(signature);
            nodes.extend([0; 12]);
            nodes.extend([1, 1]);
        }
        Signature::Gpt(guid) => {
            nodes.extend(guid.0);
            nodes.extend([2, 2]);
        }
    }
    let name = wide(path);
    nodes.extend([4, 4]);
    nodes.extend(length(name.len() + 4));
    nodes.extend(name);
    nodes.extend([0x7f, 0xff, 4, 0]);
    [
        &ACTIVE.to_le_bytes()[..],
        &length(nodes.len()),
        &wide(LABEL),
        &nodes,
    ]
    .concat()
}

fn length(len: usize) -> [u8; 2] {
    u16::try_from(len).expect("paths are short").to_le_bytes()
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// What matters of an entry.
#[derive(Debug, PartialEq, Eq)]
struct LoadOption<'a> {
    attributes: u32,
    label: String,
    nodes: &'a [u8],
}

impl<'a> LoadOption<'a> {
    fn parse(bytes: &'a [u8]) -> Option<LoadOption<'a>> {
        let attributes = u32::from_le_bytes(*bytes.first_chunk()?);
        let nodes_len = usize::from(u16::from_le_bytes(*bytes.get(4..)?.first_chunk()?));
        let rest = bytes.get(6..)?;
        let units = rest
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let label: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        let start = 2 * (label.len() + 1);
        Some(LoadOption {
            attributes,
            label: String::from_utf16_lossy(&label),
            nodes: rest.get(start..start.checked_add(nodes_len)?)?,
        })
    }

    /// True for what the firmware passes over when it boots by the order: applications such as its own menu.
    fn is_passed_over(&self) -> bool {
        self.attributes & ACTIVE == 0 || self.attributes & CATEGORY != 0
    }

    /// The GUID of a path that begins with vendor hardware (UEFI 2.10, 10.3.2.4): Dell's network entries have nothing else.
    fn vendor(&self) -> Option<&[u8]> {
        match *self.nodes {
            [1, 4, _, _, ..] => self.nodes.get(4..20),
            _ => None,
        }
    }

    /// True if it goes through a network interface: a MAC address, IP address or URI in its path (10.3.4).
    fn is_network(&self) -> bool {
        let mut rest = self.nodes;
        while let [kind, subtype, low, high, ..] = *rest {
            if kind == 3 && [11, 12, 13, 24].contains(&subtype) {
                return true;
            }
            let len = usize::from(u16::from_le_bytes([low, high]));
            match rest.get(len..) {
                Some(after) if len >= 4 => rest = after,
                _ => return false,
            }
        }
        false
    }
}

/// The variables that matter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Variables {
    /// By their numbers; empty is one that cannot be read.
    entries: BTreeMap<u16, Vec<u8>>,
    order: Vec<u16>,
    /// By which entry the machine came in.
    current: Option<u16>,
}

impl Variables {
    fn option(&self, number: u16) -> Option<LoadOption<'_>> {
        LoadOption::parse(self.entries.get(&number)?)
    }

    /// Behind how many entries of the order ours belongs: none, or those that lead, up to the last one of the network.
    /// An older one of ours is a disk as any other here: whoever put it before the network wants it there.
    fn ahead(&self) -> usize {
        // The ramdisk comes by the network alone, so an entry of the vendor's that brought it here is one of it, and so are those of its kind.
        let brought = self.current.and_then(|current| self.option(current));
        let vendor = brought.as_ref().and_then(|entry| entry.vendor());
        let is_network =
            |entry: &LoadOption<'_>| entry.is_network() || (vendor.is_some() && entry.vendor() == vendor);
        let leads = |other: &u16| {
            self.option(*other)
                .is_none_or(|entry| entry.is_passed_over() || is_network(&entry))
        };
        let count = self.order.iter().take_while(|other| leads(other)).count();
        let leading = &self.order[..count];
        let came_by_network = self.current.is_some_and(|current| {
            leading.contains(&current) && self.option(current).is_some_and(|entry| is_network(&entry))
        });
        // Behind the last network entry of those that lead, not behind a menu that follows them.
        let last = leading
            .iter()
            .rposition(|other| self.option(*other).is_some_and(|entry| is_network(&entry)));
        last.filter(|_| came_by_network).map_or(0, |last| last + 1)
    }
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    number: u16,
    /// Whether the entry is already as it must be.
    is_there: bool,
    order: Vec<u16>,
    remove: Vec<u16>,
}

/// How `option` gets into the variables; `None` if there is no number left.
fn plan(variables: &Variables, option: &[u8]) -> Option<Plan> {
    let ours: Vec<u16> = variables
        .entries
        .keys()
        .copied()
        .filter(|number| {
            variables
                .option(*number)
                .is_some_and(|entry| entry.label == LABEL)
        })
        .collect();
    let same = ours.iter().find(|number| variables.entries[number] == option);
    let free = || (0..=u16::MAX).find(|number| !variables.entries.contains_key(number));
    let number = same.or(ours.first()).copied().or_else(free)?;
    let others = |part: &[u16]| -> Vec<u16> {
        let is_other = |other: &u16| !ours.contains(other) && *other != number;
        part.iter().copied().filter(is_other).collect()
    };
    let (ahead, behind) = variables.order.split_at(variables.ahead());
    let order = [others(ahead), vec![number], others(behind)].concat();
    Some(Plan {
        number,
        is_there: same.is_some(),
        order,
        remove: ours.into_iter().filter(|other| *other != number).collect(),
    })
}

/// Enters `option` into the boot order in the place of older entries of ours. Doing so again changes nothing.
///
/// # Errors
/// [`EfiError`], one variant for each way to fail.
pub fn enter(root: &Root, option: &[u8]) -> Result<u16, EfiError> {
    let directory = root.sys("firmware/efi/efivars");
    let variables = read(&directory).map_err(|source| EfiError::Read { source })?;
    let plan = plan(&variables, option).ok_or(EfiError::Full)?;
    if !plan.is_there {
        write(&directory, &entry_name(plan.number), option)?;
    }
    if plan.order != variables.order {
        let bytes: Vec<u8> = plan
            .order
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        write(&directory, "BootOrder", &bytes)?;
    }
    for number in plan.remove {
        remove(&directory, &global(&entry_name(number)))?;
    }
    Ok(plan.number)
}

/// Removes what kernels left in the firmware's variables when they died (pstore): it tells of a former user, and takes up the firmware's
/// room. What stays is told in the log: no disk is less clean for it.
pub fn forget_crashes(root: &Root) {
    let directory = root.sys("firmware/efi/efivars");
    let names = sys::absent_as_none(sys::list(&directory)).unwrap_or_else(|error| {
        tracing::warn!(
            "{}; records of kernel crashes in EFI variables stay",
            Chain(&error)
        );
        None
    });
    // As efi-pstore names them.
    let is_record = |name: &String| name.starts_with("dump-type") && name.ends_with(CRASH);
    let mut removed = 0;
    for name in names.into_iter().flatten().filter(is_record) {
        match remove(&directory, &name) {
            Ok(()) => removed += 1,
            Err(error) => tracing::warn!("{}; this record of a kernel crash stays", Chain(&error)),
        }
    }
    if removed > 0 {
        tracing::info!("{removed} EFI variables with records of kernel crashes are removed");
    }
}

fn entry_name(number: u16) -> String {
    format!("Boot{number:04X}")
}

fn read(directory: &Path) -> Result<Variables, ReadError> {
    let mut variables = Variables::default();
    // Behind four bytes of attributes stands the value.
    let value = |name: &str| -> Result<Vec<u8>, ReadError> {
        let bytes = sys::absent_as_none(sys::bytes(&directory.join(name)))?.unwrap_or_default();
        Ok(bytes.get(4..).unwrap_or_default().to_vec())
    };
    let numbers = |bytes: &[u8]| -> Vec<u16> {
        let pairs = bytes.chunks_exact(2);
        pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    };
    for name in sys::list(directory)? {
        let Some(own) = name.strip_suffix(GLOBAL).and_then(|name| name.strip_suffix('-')) else {
            continue;
        };
        match own {
            "BootOrder" => variables.order = numbers(&value(&name)?),
            "BootCurrent" => variables.current = numbers(&value(&name)?).first().copied(),
            _ => {
                let digits = own.strip_prefix("Boot").filter(|digits| digits.len() == 4);
                if let Some(number) = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()) {
                    // Its number is taken, whatever it is, and the others do as well without it.
                    let option = value(&name).unwrap_or_else(|error| {
                        tracing::warn!("{}; this boot entry is left unchanged", Chain(&error));
                        Vec::new()
                    });
                    variables.entries.insert(number, option);
                }
            }
        }
    }
    Ok(variables)
}

/// The file of a variable of the specification's.
fn global(name: &str) -> String {
    format!("{name}-{GLOBAL}")
}

/// Runs `change` on a variable's `file`; once more after its protection, or that of the whole file system, was taken away.
fn change(directory: &Path, file: &str, change: impl Fn(&Path) -> io::Result<()>) -> Result<(), EfiError> {
    let path = directory.join(file);
    let failed = |source| EfiError::Write {
        name: text::clean(file.as_bytes()),
        source,
    };
    let error = match change(&path) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match error.raw_os_error().map(Errno::from_raw) {
        // The ramdisk mounts it so that nothing changes it by accident.
        Some(Errno::EROFS) => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
            mount(None::<&str>, directory, None::<&str>, flags, None::<&str>)
                .map_err(|errno| failed(errno.into()))?;
        }
        Some(Errno::EPERM | Errno::EACCES) => make_mutable(&path).map_err(failed)?,
        _ => return Err(failed(error)),
    }
    change(&path).map_err(failed)
}

fn write(directory: &Path, name: &str, value: &[u8]) -> Result<(), EfiError> {
    let whole = [&ATTRIBUTES[..], value].concat();
    change(directory, &global(name), |path| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        // One call is one variable.
        match file.write(&whole)? {
            len if len == whole.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    })
}

fn remove(directory: &Path, file: &str) -> Result<(), EfiError> {
    change(directory, file, |path| fs::remove_file(path))
}

/// The kernel guards variables that it does not know from being lost by accident (`fs/efivarfs/inode.c`).
#[allow(unsafe_code)]
fn make_mutable(path: &Path) -> io::Result<()> {
    /// `FS_IMMUTABLE_FL` (`include/uapi/linux/fs.h`).
    const IMMUTABLE: c_long = 0x10;
    nix::ioctl_read!(get_flags, b'f', 1, c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, c_long);

    let file = File::open(path)?;
    let mut flags: c_long = 0;
    // SAFETY: the call writes at most a long to where it is told to, and the descriptor is open.
    unsafe { get_flags(file.as_raw_fd(), &raw mut flags) }?;
    flags &= !IMMUTABLE;
    // SAFETY: the call reads at most a long from where it is told to, and the descriptor is open.
    unsafe { set_flags(file.as_raw_fd(), &raw const flags) }?;
    Ok(())
}

#[cfg(test)]
mod tests;
