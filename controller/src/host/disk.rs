//! Which disk the image goes to, and which disks are cleaned. Pure.
//!
//! All hints must hold. Several disks may match: then it is the first by kernel name, as upstream takes it; but where a hint is a disk's
//! number, and several have that, it is none. Without hints it is the smallest disk of at least 4 GiB that is neither removable, read-only
//! nor zoned, nor one of several paths to the same disk, and one behind iSCSI or Fibre Channel, or of an array behind SAS, only where the
//! machine has no other: it may be another machine's as well. One behind USB and an SD card somebody may have left there, and few of them
//! say that they are removable, and a member of a firmware RAID is half of something: they are taken only where hints leave no other.
//! Upstream would take `/dev/sda` there, whatever that is; a profile that says so counts only where somebody set it.

use std::collections::BTreeMap;

use muster_proto::{
    inventory::{Disk, Transport},
    job::DiskId,
    kinds::{HardwareStorage, RootDeviceHints},
};

/// What a disk is called that takes writes only where the one before ended.
const ZONED: &str = "a host-managed zoned disk (SMR or ZNS)";

/// The least size of a disk that is chosen without hints, in bytes.
const LEAST: u64 = 4 << 30;

/// The hints that a hardware profile stands for, as upstream has them.
pub(super) fn profile_hints(profile: Option<&str>) -> Option<RootDeviceHints> {
    let named = |name: &str| {
        Some(RootDeviceHints {
            device_name: Some(name.to_owned()),
            ..RootDeviceHints::default()
        })
    };
    let located = |hctl: &str| {
        Some(RootDeviceHints {
            hctl: Some(hctl.to_owned()),
            ..RootDeviceHints::default()
        })
    };
    match profile? {
        "unknown" => named("/dev/sda"),
        "libvirt" => named("/dev/vda"),
        "openstack" => named("/dev/vdb"),
        "dell" => located("0:0:0:0"),
        "dell-raid" => located("0:2:0:0"),
        _ => None,
    }
}

/// True for the hints of any profile: upstream stores them for hosts that have none of their own.
pub(super) fn is_profile_default(hints: &RootDeviceHints) -> bool {
    ["unknown", "libvirt", "openstack", "dell", "dell-raid"]
        .into_iter()
        .any(|profile| profile_hints(Some(profile)).as_ref() == Some(hints))
}

/// The disk that the image goes to; else why there is none.
pub(super) fn choose<'a>(hints: Option<&RootDeviceHints>, disks: &'a [Disk]) -> Result<&'a Disk, String> {
    let Some(hints) = hints
        .map(said)
        .filter(|hints| *hints != RootDeviceHints::default())
    else {
        let paths = paths(disks);
        return disks
            .iter()
            .filter(|disk| disk.size_bytes >= LEAST && is_writable(disk) && !is_path(&paths, disk))
            .filter(|disk| Seat::of(disk) != Seat::Plug && disk.firmware_raid.is_empty())
            .min_by_key(|disk| (Seat::of(disk), disk.size_bytes))
            .ok_or_else(|| {
                let members = members(disks).map(|members| format!("; {members}"));
                format!(
                    "none of the {} disks can be chosen without hints (at least 4 GiB; not removable, USB, SD card, read-only, zoned, part of a \
                     firmware RAID or one of several paths): set spec.rootDeviceHints{}",
                    disks.len(),
                    members.unwrap_or_default()
                )
            });
    };
    let meant: Vec<&Disk> = disks.iter().filter(|disk| matches(&hints, disk)).collect();
    let first = *meant.first().ok_or_else(|| {
        format!(
            "none of the {} disks matches the root device hints: {}; next: correct spec.rootDeviceHints to match a disk in the host's HardwareData",
            disks.len(),
            words(&hints)
        )
    })?;
    // As the agent has it, which would refuse any other.
    let writable = writable(&hints, disks);
    refuse_shared_number(&hints, &writable)?;
    // Of those that the hints do not tell apart, the machine's own come first.
    let first_choice = |disk: &&Disk| (!disk.firmware_raid.is_empty(), Seat::of(disk));
    writable.into_iter().min_by_key(first_choice).ok_or_else(|| {
        let what = match first {
            Disk { read_only: true, .. } => "read-only",
            Disk { zoned: true, .. } => ZONED,
            _ => "removable",
        };
        format!(
            "the disk {} chosen by the root device hints is {what}, so no image is written to it; next: choose another in spec.rootDeviceHints",
            first.name
        )
    })
}

/// An error where `hints` give the number of one disk, and it is that of several of `disks`: HPE's Smart Array says the controller's serial
/// number of each of its volumes, and the names of an array's volumes begin alike. Several paths to a disk show one world wide name; those
/// without one are as many disks.
fn refuse_shared_number(hints: &RootDeviceHints, disks: &[&Disk]) -> Result<(), String> {
    /// How many of them are named.
    const NAMED: usize = 4;
    let named = |disk: &&Disk| match world_wide_name(disk) {
        Some(wwn) => (wwn.to_owned(), format!("{} ({wwn})", disk.name)),
        None => (disk.name.clone(), disk.name.clone()),
    };
    let all: BTreeMap<String, String> = disks.iter().map(named).collect();
    let has_number = hints.serial_number.is_some() || hints.wwn.is_some();
    if !has_number || all.len() < 2 {
        return Ok(());
    }
    let some: Vec<String> = all.values().take(NAMED).cloned().collect();
    let next = match disks.iter().any(|disk| world_wide_name(disk).is_some()) {
        true => "wwnWithExtension or deviceName",
        false => "deviceName",
    };
    Err(format!(
        "{} different disks match the root device hints: {}, such as {}, so no image is written to any; next: add {next} to \
         spec.rootDeviceHints",
        all.len(),
        words(hints),
        some.join(", ")
    ))
}

/// Those of `disks` that match `hints` and can be written.
fn writable<'a>(hints: &RootDeviceHints, disks: &'a [Disk]) -> Vec<&'a Disk> {
    let meant = disks.iter().filter(|disk| matches(hints, disk));
    meant.filter(|disk| is_writable(disk)).collect()
}

/// An error where `hints` do not tell one of `disks` from others, as far as more disks would not either.
pub(super) fn tell_one(hints: &RootDeviceHints, disks: &[Disk]) -> Result<(), String> {
    let hints = said(hints);
    refuse_shared_number(&hints, &writable(&hints, disks))
}

/// Those behind a network that match `hints`, by which an image was written, as other disks do by now: nobody knows which of them it is on,
/// so none of them is cleaned. Each with why, for people; of the LUNs of an array behind SAS [`left_out`] tells.
pub(super) fn ambiguous(hints: &RootDeviceHints, disks: &[Disk]) -> Vec<String> {
    if tell_one(hints, disks).is_ok() {
        return Vec::new();
    }
    writable(&said(hints), disks)
        .into_iter()
        .filter(|disk| matches!(disk.transport, Transport::Iscsi | Transport::Fc))
        .map(|disk| {
            format!(
                "{} is one of several disks that match the root device hints, and the image may be on any of them",
                disk.name
            )
        })
        .collect()
}

/// True if `disk` is the one that was called `id`, wherever it hangs now, unless nothing else tells it from others.
pub(super) fn is_meant(id: &DiskId, disk: &Disk) -> bool {
    let is = DiskId::from(disk);
    let is_anonymous = id.serial.is_empty() && id.wwn.is_empty() && id.wwn_with_extension.is_empty();
    (!is_anonymous || id.by_path == is.by_path) && anywhere(id.clone()) == anywhere(is)
}

/// What `id` says of the disk itself, wherever it hangs.
fn anywhere(id: DiskId) -> DiskId {
    DiskId {
        name: String::new(),
        by_path: String::new(),
        has_twin: false,
        ..id
    }
}

/// True if `hints` choose nothing: then the rule does.
pub(super) fn are_silent(hints: &RootDeviceHints) -> bool {
    said(hints) == RootDeviceHints::default()
}

/// `hints` without those that say nothing: clients write an empty text, or 0, where they mean none. What a disk is called has no blanks
/// around it (`proto::text::clean`); upstream takes none for part of a hint either.
fn said(hints: &RootDeviceHints) -> RootDeviceHints {
    let text = |hint: &Option<String>| {
        let hint = hint.as_deref().map(str::trim);
        hint.filter(|hint| !hint.is_empty()).map(str::to_owned)
    };
    RootDeviceHints {
        device_name: text(&hints.device_name),
        hctl: text(&hints.hctl),
        model: text(&hints.model),
        vendor: text(&hints.vendor),
        serial_number: text(&hints.serial_number),
        wwn: text(&hints.wwn),
        wwn_with_extension: text(&hints.wwn_with_extension),
        wwn_vendor_extension: text(&hints.wwn_vendor_extension),
        min_size_gigabytes: hints.min_size_gigabytes.filter(|size| *size > 0),
        rotational: hints.rotational,
    }
}

fn is_writable(disk: &Disk) -> bool {
    !disk.removable && !disk.read_only && !disk.zoned
}

/// Where a disk sits: the first is surely the machine's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Seat {
    /// In the machine.
    Built,
    /// Behind a network or on an array: other machines may reach it as well.
    Network,
    /// Where somebody may have put it in.
    Plug,
}

impl Seat {
    fn of(disk: &Disk) -> Seat {
        match disk.transport {
            // Several machines can be cabled to an array.
            Transport::Sas if disk.asymmetric_access => Seat::Network,
            Transport::Iscsi | Transport::Fc => Seat::Network,
            Transport::Usb | Transport::Sd => Seat::Plug,
            Transport::Nvme
            | Transport::Ata
            | Transport::Sas
            | Transport::Scsi
            | Transport::Virtio
            | Transport::Mmc
            | Transport::Unknown => Seat::Built,
        }
    }
}

/// How many disks show each world wide name.
fn paths(disks: &[Disk]) -> BTreeMap<&str, usize> {
    let mut paths = BTreeMap::new();
    for name in disks.iter().filter_map(world_wide_name) {
        *paths.entry(name).or_default() += 1;
    }
    paths
}

fn world_wide_name(disk: &Disk) -> Option<&str> {
    [&disk.wwn_with_extension, &disk.wwn]
        .into_iter()
        .map(String::as_str)
        .find(|name| !name.is_empty())
}

fn is_path(paths: &BTreeMap<&str, usize>, disk: &Disk) -> bool {
    world_wide_name(disk).is_some_and(|name| paths.get(name).is_some_and(|count| *count > 1))
}

/// Every disk whose partition tables and signatures are cleared: what is built into the machine, and `root`. Any other may be
/// somebody else's; it is cleaned only where the image goes to it. One that cannot be told from others is left out.
pub(super) fn to_clean<'a>(disks: &'a [Disk], root: Option<&'a Disk>) -> Vec<&'a Disk> {
    own(disks, root)
        .filter(|disk| root == Some(*disk) || can_be_told(disks, disk).is_ok())
        .collect()
}

/// Those that are left out though they may be the machine's own, each with why, for people.
pub(super) fn left_out(disks: &[Disk], root: Option<&Disk>) -> Vec<String> {
    let why = |disk: &Disk| match (Seat::of(disk), can_be_told(disks, disk)) {
        (_, Err(why)) if root == Some(disk) => Some(format!(
            "{}, chosen by the root device hints, has {why}",
            disk.name
        )),
        _ if root == Some(disk) => None,
        (Seat::Plug, _) => Some(format!("{} is a USB disk or SD card", disk.name)),
        (Seat::Built, Err(why)) => Some(format!("{} has {why}", disk.name)),
        (Seat::Network, _) if disk.transport == Transport::Sas => Some(format!(
            "{} is a LUN of an array, which other machines may share",
            disk.name
        )),
        (Seat::Network, _) | (Seat::Built, Ok(())) => None,
    };
    let cannot = |disk: &Disk| match disk {
        Disk { zoned: true, .. } => Some(format!("{} is {ZONED}", disk.name)),
        // One that takes no more writes at the end of its life can be read and booted all the same.
        Disk {
            read_only: true,
            removable: false,
            ..
        } if Seat::of(disk) == Seat::Built => Some(format!("{} is read-only", disk.name)),
        _ => None,
    };
    let hold = disks.iter().filter(|disk| disk.size_bytes > 0);
    let (clearable, others): (Vec<_>, Vec<_>) = hold.partition(|disk| is_writable(disk));
    let clearable = clearable.into_iter().filter_map(why);
    clearable.chain(others.into_iter().filter_map(cannot)).collect()
}

/// The members of firmware RAIDs among `disks`, and what is to be done about them, for people; none: there are none.
fn members(disks: &[Disk]) -> Option<String> {
    let names: Vec<String> = disks
        .iter()
        .filter(|disk| !disk.firmware_raid.is_empty())
        .map(|disk| format!("{} ({})", disk.name, disk.firmware_raid))
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "part of a firmware RAID, which Muster does not assemble (delete the volume in the firmware's setup, or name the disk in \
             spec.rootDeviceHints): {}",
            names.join(", ")
        )
    })
}

/// What the names of those contain that other machines have as well, or that somebody may have put in: those that are cleaned are none of them.
const ELSEWHERE: [&str; 6] = [
    "-fc-",
    "-iscsi-",
    "-usb-",
    "/dev/mmcblk",
    "/dev/dm-",
    "/dev/mapper/",
];

/// Those that a machine had, as they are `known`, and that are not among `disks`, for people. One without a number of its own may be any.
pub(super) fn gone(known: &[HardwareStorage], disks: &[Disk]) -> Vec<String> {
    let all: Vec<String> = disks.iter().flat_map(numbers).collect();
    let is_there = |number: &String| all.iter().any(|is| number.eq_ignore_ascii_case(is));
    let words = |was: &HardwareStorage| {
        let mut names = was.alternate_names.iter().chain(&was.name);
        let is_elsewhere = names.any(|name| ELSEWHERE.iter().any(|part| name.contains(part)));
        let is_empty = was.size_bytes.is_none_or(|size| size <= 0);
        let numbers = [&was.serial_number, &was.wwn, &was.wwn_with_extension];
        let mut numbers = numbers.into_iter().flatten().filter(|number| !number.is_empty());
        let number = numbers.next()?;
        if is_elsewhere || is_empty || is_there(number) || numbers.any(is_there) {
            return None;
        }
        let name = was.name.as_deref().unwrap_or("a disk");
        Some(format!(
            "{name} ({number}), which the machine had before, is missing"
        ))
    };
    known.iter().filter_map(words).collect()
}

fn own<'a>(disks: &'a [Disk], root: Option<&'a Disk>) -> impl Iterator<Item = &'a Disk> {
    let is_own = move |disk: &&Disk| root == Some(*disk) || Seat::of(disk) == Seat::Built;
    disks.iter().filter(|disk| holds(disk)).filter(is_own)
}

/// True if something may be on the disk that can be cleared.
fn holds(disk: &Disk) -> bool {
    disk.size_bytes > 0 && is_writable(disk)
}

/// True if another one of `disks` shows all that this one does, but for its name and its place.
pub(super) fn has_twin(disks: &[Disk], disk: &Disk) -> bool {
    let shown = |disk: &Disk| anywhere(DiskId::from(disk));
    let id = shown(disk);
    disks.iter().filter(|other| shown(other) == id).count() > 1
}

/// Whether the disk is known again among `disks` by more than its name and its size; else why not.
pub(super) fn can_be_told(disks: &[Disk], disk: &Disk) -> Result<(), &'static str> {
    if !disk.by_path.is_empty() {
        return Ok(());
    }
    if disk.serial.is_empty() && disk.wwn.is_empty() {
        return Err("no serial number, no world wide name and no device path");
    }
    match has_twin(disks, disk) {
        true => Err("no device path, and another disk has the same serial number, world wide name and size"),
        false => Ok(()),
    }
}

fn matches(hints: &RootDeviceHints, disk: &Disk) -> bool {
    let same = |hint: &Option<String>, value: &str| {
        hint.as_ref().is_none_or(|hint| hint.eq_ignore_ascii_case(value))
    };
    let within = |hint: &Option<String>, value: &str| {
        hint.as_ref()
            .is_none_or(|hint| value.to_ascii_lowercase().contains(&hint.to_ascii_lowercase()))
    };
    let any = |hint: &Option<String>, values: &[String]| {
        let is = |hint: &String| values.iter().any(|value| hint.eq_ignore_ascii_case(value));
        hint.as_ref().is_none_or(is)
    };
    let is_name = |name: &String| *name == disk.name || paths_of(disk).any(|path| *name == path);
    let named = hints.device_name.as_ref().is_none_or(is_name);
    let least = hints.min_size_gigabytes.unwrap_or(0).max(0);
    let large = u64::try_from(least).is_ok_and(|least| disk.size_bytes >> 30 >= least);
    named
        && large
        && same(&hints.hctl, &disk.hctl)
        && any(&hints.serial_number, &serials(disk))
        && any(&hints.wwn, &world_wide_names(disk))
        && same(&hints.wwn_vendor_extension, &disk.wwn_vendor_extension)
        && same(&hints.wwn_with_extension, &disk.wwn_with_extension)
        && within(&hints.model, &disk.model)
        && within(&hints.vendor, &disk.vendor)
        && hints
            .rotational
            .is_none_or(|rotational| rotational == disk.rotational)
}

fn world_wide_names(disk: &Disk) -> [String; 2] {
    [disk.wwn.clone(), disk.wwn_with_extension.clone()]
}

/// All by which `disk` may be known again.
fn numbers(disk: &Disk) -> Vec<String> {
    let mut all = serials(disk);
    all.extend(world_wide_names(disk));
    all
}

/// The links to `disk` below `/dev/disk/by-path`: on ATA and of virtio there are two (`60-persistent-storage.rules` of udev), of which Metal3
/// shows either.
fn paths_of(disk: &Disk) -> impl Iterator<Item = String> {
    let path = Some(disk.by_path.clone()).filter(|path| !path.is_empty());
    let port = |path: &String| {
        let (_, port) = path.rsplit_once("-ata-")?;
        port.bytes()
            .all(|sign| sign.is_ascii_digit())
            .then(|| format!("{path}.0"))
    };
    let longer = path.as_ref().and_then(port);
    let slot = disk.by_path.strip_prefix("/dev/disk/by-path/pci-");
    let virtio = slot
        .filter(|_| disk.name.starts_with("/dev/vd"))
        .map(|slot| format!("/dev/disk/by-path/virtio-pci-{slot}"));
    path.into_iter().chain(longer).chain(virtio)
}

/// The serial numbers that `disk` has for Metal3, each of which may be in a hint: the one that the disk says, and udev's short and long
/// form, which on SCSI are its world wide name (`scsi_id`), and with other disks model and number.
fn serials(disk: &Disk) -> Vec<String> {
    let mut all = vec![disk.serial.clone()];
    if let Some(name) = disk.wwn_with_extension.strip_prefix("0x") {
        // 3 is the kind of a name that an authority gave (SPC-4, 7.8.6.6: NAA).
        all.extend([name.to_owned(), format!("3{name}")]);
    }
    if !disk.serial.is_empty() {
        let model: Vec<&str> = disk.model.split_whitespace().collect();
        all.push(format!("{}_{}", model.join("_"), disk.serial));
    }
    all
}

/// The hints for people.
fn words(hints: &RootDeviceHints) -> String {
    serde_json::to_string(hints).unwrap_or_default()
}
