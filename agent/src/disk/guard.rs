//! The few rules that stand between a job and the loss of data.
//!
//! A job names the machine and the disk that it means. [`allow`] compares both with what is here and gives a [`Token`], which
//! nobody else can make; [`Token::open`] opens that disk, exclusively, and compares once more.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt};

use muster_proto::{
    identity::Identity,
    inventory::Disk as Described,
    job::{DiskId, MachineId},
};
use nix::libc;

use super::{BlockDisk, Disk, held};
use crate::{
    inventory,
    sys::{self, ReadError, Root},
};

/// Why a disk must not be written to.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The job does not say which machine it means.
    #[error("identify the machine: the job names no usable UUID or serial number of its system or board")]
    NoMachine,
    /// The job means another machine.
    #[error("identify the machine: its {what} is {found}, but the job is for {meant}")]
    OtherMachine {
        /// Which of its marks.
        what: &'static str,
        /// What it is here; `none` if it has none.
        found: String,
        /// What the job says.
        meant: String,
    },
    /// The job does not say which disk it means.
    #[error("find the disk: the job gives no size for it, or no serial number, WWN, path or name")]
    NoDisk,
    /// No disk has what the job says of it.
    #[error("find disk {meant}: none of {seen} disks matches{hint}")]
    NotFound {
        /// What the job says.
        meant: String,
        /// How many disks there are.
        seen: usize,
        /// What the disk of that name is instead, with a semicolon before it; or nothing.
        hint: String,
    },
    /// Several disks have what the job says, such as two paths to one disk.
    #[error("find disk {meant}: several disks match: {found}")]
    Ambiguous {
        /// What the job says.
        meant: String,
        /// The disks.
        found: String,
    },
    /// It cannot be written to.
    #[error("write to {disk}: it is read-only")]
    ReadOnly {
        /// Device node.
        disk: String,
    },
    /// It takes writes only where the one before ended.
    #[error("write to {disk}: it is a host-managed zoned disk (SMR or ZNS)")]
    Zoned {
        /// Device node.
        disk: String,
    },
    /// A stick or card that someone left.
    #[error("write to {disk}: it is removable")]
    Removable {
        /// Device node.
        disk: String,
    },
    /// Someone uses it.
    #[error("write to {disk}: {holder}")]
    Held {
        /// Device node.
        disk: String,
        /// Who, in words.
        holder: String,
    },
    /// What is known of it cannot be read.
    #[error("examine {disk}")]
    Look {
        /// Device node.
        disk: String,
        /// Why.
        source: ReadError,
    },
    /// It cannot be opened; `EBUSY` if someone began to use it.
    #[error("open {disk}")]
    Open {
        /// Device node.
        disk: String,
        /// Why.
        source: io::Error,
    },
    /// Between the comparison and the opening it became another.
    #[error("open {disk}: {what} has just changed")]
    Changed {
        /// Device node.
        disk: String,
        /// What.
        what: &'static str,
    },
}

/// Permission to destroy what is on one disk. Only [`allow`] makes it.
#[derive(Debug)]
pub struct Token {
    root: Root,
    kernel_name: String,
    number: (u64, u64),
    disk: Described,
}

/// Permission to write to the disk that `disk` means, if this is the machine that `machine` means.
///
/// # Errors
/// [`Refused`], every variant but those of [`Token::open`].
pub fn allow(root: &Root, machine: &MachineId, disk: &DiskId) -> Result<Token, Refused> {
    compare_machine(machine, &inventory::machine(root))?;
    let found = choose(disk, inventory::disks(root))?;
    let name = found.name.clone();
    let kernel_name = inventory::kernel_name(&found);
    if found.read_only {
        return Err(Refused::ReadOnly { disk: name });
    }
    if found.removable {
        return Err(Refused::Removable { disk: name });
    }
    if found.zoned {
        return Err(Refused::Zoned { disk: name });
    }
    let look = |source| Refused::Look {
        disk: name.clone(),
        source,
    };
    if let Some(holder) = held::holder(root, &kernel_name).map_err(look)? {
        return Err(Refused::Held { disk: name, holder });
    }
    let number = number(root, &kernel_name).map_err(look)?;
    Ok(Token {
        root: root.clone(),
        kernel_name,
        number,
        disk: found,
    })
}

/// The number of the block device of this kernel name.
fn number(root: &Root, kernel_name: &str) -> Result<(u64, u64), ReadError> {
    let path = root.sys("block").join(kernel_name).join("dev");
    let found = sys::text(&path)?;
    parse_number(&found).ok_or(ReadError::Number { path, found })
}

impl Token {
    /// The disk, as the inventory describes it.
    pub fn disk(&self) -> &Described {
        &self.disk
    }

    /// Opens the disk for direct IO, with nobody else using it.
    ///
    /// # Errors
    /// [`Refused::Open`], [`Refused::Changed`].
    pub fn open(self) -> Result<BlockDisk, Refused> {
        let disk = self.disk.name.clone();
        let failed = |source| Refused::Open {
            disk: disk.clone(),
            source,
        };
        // Without O_CREAT, O_EXCL claims a block device: EBUSY if it or a partition is mounted or part of something (open(2)).
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_EXCL | libc::O_CLOEXEC)
            .open(self.root.dev(self.kernel_name.replace('!', "/")))
            .map_err(failed)?;
        let opened = BlockDisk::of(file).map_err(failed)?;
        let changed = if opened.number().map_err(failed)? != self.number {
            Some("its device number")
        } else if opened.size() != self.disk.size_bytes {
            Some("its size")
        } else if self.disk.logical_block_bytes != 0 && opened.block() != self.disk.logical_block_bytes {
            Some("its block size")
        } else if !self.is_still_there() {
            // While it is open nothing else can have its number, so what is read of it now is its own.
            Some("its identity")
        } else {
            None
        };
        changed.map_or(Ok(opened), |what| Err(Refused::Changed { disk, what }))
    }

    /// True if the name still leads to the disk that was chosen: disks that come back after their bus was reset share out names and numbers
    /// anew.
    fn is_still_there(&self) -> bool {
        let now = inventory::disk(&self.root, &self.kernel_name);
        let is_it = now.is_some_and(|now| DiskId::from(&now) == DiskId::from(&self.disk));
        is_it && number(&self.root, &self.kernel_name).is_ok_and(|number| number == self.number)
    }
}

/// `major:minor`.
fn parse_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether `found` is the machine that is meant: everything that the job names must be here and equal.
fn compare_machine(meant: &MachineId, found: &MachineId) -> Result<(), Refused> {
    // In the same form: lower case, no placeholders.
    let meant = Identity {
        system_uuid: meant.system_uuid.clone(),
        system_serial: meant.system_serial.clone(),
        board_serial: meant.board_serial.clone(),
        ..Identity::default()
    };
    let meant = MachineId::from(&meant.normalised());
    if meant == MachineId::default() {
        return Err(Refused::NoMachine);
    }
    for (what, meant, found) in [
        ("system UUID", meant.system_uuid, &found.system_uuid),
        ("system serial number", meant.system_serial, &found.system_serial),
        ("board serial number", meant.board_serial, &found.board_serial),
    ] {
        if let Some(meant) = meant
            && found.as_ref() != Some(&meant)
        {
            let found = found.clone().unwrap_or_else(|| "none".to_owned());
            return Err(Refused::OtherMachine { what, found, meant });
        }
    }
    Ok(())
}

/// The one disk of `disks` that is meant. Serial number and WWN decide; where the job has neither, the path; where it has not
/// even that, the name. Path, or else name, also chooses among several paths to the same disk; of twins, each is only at its path. The
/// size must be right in any case.
fn choose(meant: &DiskId, disks: Vec<Described>) -> Result<Described, Refused> {
    let marked = !meant.serial.is_empty() || !meant.wwn.is_empty();
    if meant.size_bytes == 0 || (!marked && meant.by_path.is_empty() && meant.name.is_empty()) {
        return Err(Refused::NoDisk);
    }
    let by_path = |disk: &Described| !meant.by_path.is_empty() && disk.by_path == meant.by_path;
    let by_name = |disk: &Described| disk.name == meant.name;
    let is_it = |disk: &Described| {
        let same = |meant: &str, found: &str| meant.is_empty() || meant == found;
        let marks = same(&meant.serial, &disk.serial)
            && same(&meant.wwn, &disk.wwn)
            && same(&meant.wwn_with_extension, &disk.wwn_with_extension);
        let place = if meant.has_twin {
            by_path(disk)
        } else if marked {
            true
        } else if meant.by_path.is_empty() {
            by_name(disk)
        } else {
            by_path(disk)
        };
        marks && place && disk.size_bytes == meant.size_bytes
    };
    let seen = disks.len();
    let hint = disks
        .iter()
        .find(|disk| by_path(disk) || by_name(disk))
        .map(shown);
    let mut found: Vec<Described> = disks.into_iter().filter(is_it).collect();
    // A name goes from one disk to another, so it says nothing where there is a path.
    let closer: &dyn Fn(&Described) -> bool = if meant.by_path.is_empty() {
        &by_name
    } else {
        &by_path
    };
    if found.len() > 1 && found.iter().any(closer) {
        found.retain(closer);
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Refused::NotFound {
            meant: shown_id(meant),
            seen,
            hint: hint
                .map(|hint| format!("; instead there is {hint}"))
                .unwrap_or_default(),
        }),
        _ => Err(Refused::Ambiguous {
            meant: shown_id(meant),
            found: found.iter().map(shown).collect::<Vec<_>>().join("; "),
        }),
    }
}

fn shown(disk: &Described) -> String {
    shown_id(&DiskId::from(disk))
}

/// A disk in words.
pub(crate) fn shown_id(disk: &DiskId) -> String {
    let mut text = if disk.name.is_empty() {
        disk.by_path.clone()
    } else {
        disk.name.clone()
    };
    for (what, value) in [("serial", &disk.serial), ("WWN", &disk.wwn)] {
        if !value.is_empty() {
            text += &format!(", {what} {value}");
        }
    }
    format!("{text}, {} bytes", disk.size_bytes)
}

#[cfg(test)]
pub(crate) mod tests;
