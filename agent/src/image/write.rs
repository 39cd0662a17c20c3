//! The order of a write: look, transfer, verify, add, commit.

use std::{io, ops::Range};

use muster_proto::{
    Chain,
    inventory::Disk as Described,
    job::{DiskId, Write},
};
use zeroize::Zeroizing;

use super::{
    After, Contents, Environment, Failure, WriteError, Written,
    boot::{self, Loader},
    checksum::{Mismatch, Wanted},
    config_drive, format,
    held::{HEAD, Held, LEAST},
    layout::{Layout, LayoutError, Part},
    other_disks, pipeline,
    source::{self, Got, Patience, Sink, SourceError},
    url,
};
use crate::{
    disk::{
        Disk,
        aligned::Aligned,
        efi::{self, SystemPartition},
        guard::{self, shown_id},
        mbr,
    },
    net,
    sys::Root,
    work::{Stopped, Work},
};

/// The largest list of digests that is read, in bytes.
const LARGEST_LIST: u64 = 1 << 20;

/// As many zeros are written at once, in bytes: a disk that writes them out takes a moment, in which nobody hears of progress.
const MOST_ZEROS: u64 = 256 << 20;

/// So often in all a write begins, where the file becomes another one in the middle of it.
const BEGINNINGS: u32 = 3;

/// Where the transfer begins and ends within the whole, in percent.
const TRANSFER: (u8, u8) = (2, 92);

pub(super) fn run(
    job: &Write,
    config_drive: Option<&dyn Contents>,
    environment: &Environment,
    work: &Work,
) -> Result<Written, WriteError> {
    let mut after = After::Untouched;
    let mut disk = shown_id(&job.disk);
    let result = (|| {
        work.step("check disk", 0);
        let token = guard::allow(&environment.root, &job.machine, &job.disk)
            .map_err(|source| Failure::Refused { source })?;
        let target = token.disk().clone();
        disk.clone_from(&target.name);
        let mut open = token.open().map_err(|source| Failure::Refused { source })?;
        anew(|| {
            // That of another file may be another one, too.
            work.step("fetch checksum", 1);
            let wanted = wanted(job, environment, work)?;
            let writing = Writing {
                wanted,
                config_drive,
                is_drive_optional: job.config_drive_optional,
                root: &environment.root,
                target: &target,
                work,
            };
            let fetch = |sink: &mut dyn Sink| {
                source::get(&job.image.url, environment, Patience::default(), work, sink)
            };
            writing.write(&mut open, fetch, &mut after)
        })
    })();
    match result {
        Ok(written) => Ok(Written { disk, ..written }),
        Err(source) => Err(WriteError {
            url: url::shown(&job.image.url),
            disk,
            after,
            source: Box::new(source),
        }),
    }
}

/// Does `write` from the beginning again where the file became another one in the middle, such as on another mirror: until all of it is
/// verified the disk boots nothing.
fn anew(mut write: impl FnMut() -> Result<Written, Failure>) -> Result<Written, Failure> {
    for _ in 1..BEGINNINGS {
        match write() {
            Err(Failure::Source { source }) if source.is_another_file() => {
                tracing::warn!("{}: writing the image from its beginning", Chain(&source));
            }
            ended => return ended,
        }
    }
    write()
}

/// The digest that the job gives, or the one in the list that it gives.
fn wanted(job: &Write, environment: &Environment, work: &Work) -> Result<Wanted, Failure> {
    let image = &job.image;
    let given = image.checksum.trim();
    let checksum = |source| Failure::Checksum { source };
    // Nor is a list fetched that says nothing.
    Wanted::can_be_by(image.algorithm).map_err(checksum)?;
    if !given.contains("://") {
        return Wanted::parse(given, image.algorithm).map_err(checksum);
    }
    let (list, got) = source::get_small(given, LARGEST_LIST, environment, Patience::default(), work)
        .map_err(|source| Failure::ChecksumList { source })?;
    let url = url::Url::parse(&image.url).map_err(|source| Failure::Source {
        source: SourceError::Url { source },
    })?;
    let listed = |source| Failure::Listed {
        list: url::shown(given),
        source,
    };
    Wanted::from_file(&list, &url.file_names(), image.algorithm).map_err(|source| listed(source).given(&got))
}

/// What is wrong with `got`, whose digest is another one than is wanted.
fn mismatch(source: Mismatch, got: &Got) -> Failure {
    if got.bytes == 0 && got.is_told {
        return Failure::Empty;
    }
    let bytes = got.bytes;
    Failure::Mismatch { bytes, source }.given(got)
}

/// A write to a disk that is open.
pub(super) struct Writing<'a> {
    pub(super) wanted: Wanted,
    pub(super) config_drive: Option<&'a dyn Contents>,
    /// The image is written without it where that has no room.
    pub(super) is_drive_optional: bool,
    pub(super) root: &'a Root,
    /// The disk, as the inventory describes it.
    pub(super) target: &'a Described,
    pub(super) work: &'a Work,
}

impl Writing<'_> {
    /// Writes what `fetch` brings to `disk`. `after` follows what is on it.
    pub(super) fn write(
        &self,
        disk: &mut dyn Disk,
        fetch: impl FnOnce(&mut dyn Sink) -> Result<Got, SourceError> + Send,
        after: &mut After,
    ) -> Result<Written, Failure> {
        let (size, block) = (disk.size(), disk.block());
        if size < LEAST {
            return Err(Failure::SmallDisk { disk: size });
        }
        if self.config_drive.is_some() {
            config_drive::check(block).map_err(|source| Failure::ConfigDrive { source })?;
        }

        self.work.step("write image", TRANSFER.0);
        let mut writer = Writer {
            state: State::Looking(disk),
            at: 0,
            zeros: 0,
            has_place: self.config_drive.is_none() || self.is_drive_optional,
        };
        let percent = |share: u8| {
            let span = u16::from(TRANSFER.1 - TRANSFER.0);
            TRANSFER.0 + u8::try_from(u16::from(share) * span / 100).unwrap_or(0)
        };
        let transfer = pipeline::run(fetch, &self.wanted, size, self.work, percent, |buffer, len| {
            writer.next(buffer, len, |head| self.look(head, size, block), after)?;
            writer.look_for_place()
        })?;
        self.wanted
            .compare(&transfer.digest)
            .map_err(|source| mismatch(source, &transfer.got))?;
        let (mut held, layout) = writer.finish()?;
        layout
            .check_len(transfer.image)
            .map_err(|source| Failure::Layout { source })?;
        let written = Written {
            transferred: transfer.got.bytes,
            image: transfer.image,
            digest: transfer.digest.to_string(),
            ..Written::default()
        };
        let loader = self.loader(&mut held, &layout)?;
        let (layout, drive) = self.add_config_drive(&mut held, layout)?;
        let finished = self
            .finish(&mut held, &layout, loader)
            .and_then(|()| self.commit(&mut held, after));
        if let Err(failure) = finished {
            if let Some(drive) = drive {
                take_back(&mut held, &drive);
            }
            return Err(failure);
        }
        if let Err(error) = held.reread_table() {
            // Only this ramdisk does not see the partitions.
            self.work.warn(format!(
                "the kernel did not accept the new partition table: {error}"
            ));
        }
        self.look_at_other_disks(&layout);
        self.work.step("written", 100);
        Ok(written)
    }

    /// All but the first MiB, with which the disk boots.
    fn finish(
        &self,
        held: &mut Held<'_>,
        layout: &Layout,
        loader: Option<(SystemPartition, Loader)>,
    ) -> Result<(), Failure> {
        self.go_on()?;
        self.work.step("add to boot order", 96);
        let backup = layout.render(held.head(), !self.root.is_uefi());
        let end = held.size() - backup.len() as u64;
        if !backup.is_empty() {
            held.write_at(end, &backup)
                .map_err(disk_failed("write the backup partition table"))?;
        }
        held.sync().map_err(disk_failed("sync it"))?;
        if let Some((system, loader)) = loader {
            self.enter(&system, &loader)?;
        }
        self.go_on()
    }

    /// Makes the disk bootable, or as unbootable as it was.
    fn commit(&self, held: &mut Held<'_>, after: &mut After) -> Result<(), Failure> {
        self.work.step("make it bootable", 98);
        let Err(failure) = held.commit(self.work) else {
            return Ok(());
        };
        *after = After::Unknown;
        match held.withdraw() {
            Ok(()) => *after = After::Unbootable,
            Err(error) => tracing::error!("the disk may still boot: {}", Chain(&error)),
        }
        Err(disk_failed("make it bootable")(failure))
    }

    fn go_on(&self) -> Result<(), Failure> {
        self.work
            .go_on()
            .map_err(|source: Stopped| Failure::Stopped { source })
    }

    /// Whether the image whose first bytes are `head` can be written to the disk, before that is touched.
    fn look(&self, head: &[u8], size: u64, block: u32) -> Result<Layout, Failure> {
        format::check(head).map_err(|source| Failure::Format { source })?;
        let mut whole = head.to_vec();
        whole.resize(HEAD, 0);
        let layout = Layout::fit(&whole, size, block).map_err(|source| Failure::Layout { source })?;
        // Nothing follows less than that: it was cut off.
        if head.len() < HEAD {
            layout
                .check_len(head.len() as u64)
                .map_err(|source| Failure::Layout { source })?;
        }
        let boots = if self.root.is_uefi() {
            layout.system_partition().map(drop)
        } else if is_zero(&whole[..mbr::PROGRAM]) {
            Err(LayoutError::NoProgram)
        } else {
            Ok(())
        };
        boots.map_err(|source| Failure::Layout { source })?;
        Ok(layout)
    }

    /// The layout with the config drive, and where that lies, in bytes.
    fn add_config_drive(
        &self,
        held: &mut Held<'_>,
        mut layout: Layout,
    ) -> Result<(Layout, Option<Range<u64>>), Failure> {
        let Some(drive) = self.config_drive else {
            return Ok((layout, None));
        };
        self.work.step("write config drive", 94);
        // Now that the image is the one that was meant, and not before.
        let open = drive.contents().map_err(|source| Failure::Drive { source })?;
        let config =
            config_drive::image(&open, held.block()).map_err(|source| Failure::ConfigDrive { source })?;
        drop(open);
        let mut config = Zeroizing::new(config);
        let found = kept_for_config_drive(held, &layout)?;
        let random = u128::from(net::random()) << 64 | u128::from(net::random());
        let at = match layout.place_config_drive(found, config_drive::LABEL, config.len() as u64, random) {
            Err(why) if self.is_drive_optional => {
                self.work.warn(format!(
                    "the system gets no config drive, so it does not learn its host name from that: {}; next: make an image with room for it",
                    Chain(&why)
                ));
                return Ok((layout, None));
            }
            placed => placed.map_err(|source| Failure::Layout { source })?,
        };
        let block = usize::try_from(held.block()).unwrap_or(HEAD);
        let len = config.len().next_multiple_of(block);
        config.resize(len, 0);
        let drive = at..at + len as u64;
        if let Err(error) = held.write_at(at, &config) {
            // Its beginning may be there.
            take_back(held, &drive);
            return Err(disk_failed("write the config drive")(error));
        }
        Ok((layout, Some(drive)))
    }

    /// What the firmware is to start by UEFI; none: this machine boots by BIOS, whose program was looked for.
    fn loader(
        &self,
        held: &mut Held<'_>,
        layout: &Layout,
    ) -> Result<Option<(SystemPartition, Loader)>, Failure> {
        if !self.root.is_uefi() {
            return Ok(None);
        }
        let (system, part) = layout
            .system_partition()
            .map_err(|source| Failure::Layout { source })?;
        let mut read = within(held, part.start, part.len);
        let loader = boot::loader(&mut read).map_err(|source| Failure::Boot { source })?;
        Ok(Some((system, loader)))
    }

    /// Warns of config drives and partitions on other disks that may be taken for the new ones: the system looks for its own by label, and
    /// the firmware and it by GUID or signature, wherever those are.
    fn look_at_other_disks(&self, layout: &Layout) {
        for (disk, what) in other_disks::find(self.root, self.target, layout) {
            self.work.warn(format!(
                "another disk {what}: {}; next: if that is this machine's own disk and no other machine uses it, clean the host or wipe the disk",
                shown_id(&DiskId::from(&disk))
            ));
        }
    }

    /// Enters the image into the firmware's boot order.
    fn enter(&self, system: &SystemPartition, loader: &Loader) -> Result<(), Failure> {
        if let Some(program) = &loader.reorders {
            self.work.warn(format!(
                "the image's boot loader runs {program}, which may put a boot entry before those of the network, so that a machine without a \
                 BMC never boots from the network again; next: add a BOOT.CSV that names the boot loader to its directory in the image"
            ));
        }
        match efi::enter(self.root, &efi::load_option(system, &loader.path)) {
            Ok(_) => Ok(()),
            // The firmware finds the loader by itself, if nothing before it boots.
            Err(error) if loader.has_fallback => {
                self.work.warn(format!(
                    "no boot entry was made, so the machine boots only if its firmware finds the disk by itself; next: check its boot order: {}",
                    Chain(&error)
                ));
                Ok(())
            }
            Err(source) => Err(Failure::Entry { source }),
        }
    }
}

fn disk_failed(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::Disk { what, source }
}

/// Reads from the partition of `len` bytes that begins at `start`, and nothing of what follows it.
fn within(held: &mut Held<'_>, start: u64, len: u64) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> {
    move |at, into| {
        if at.saturating_add(into.len() as u64) > len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        held.read(start.saturating_add(at), into)
    }
}

/// The partition that the image has for the config drive, by its own name or by its file system's.
fn kept_for_config_drive(held: &mut Held<'_>, layout: &Layout) -> Result<Option<Part>, Failure> {
    for part in layout.parts() {
        let mut read = within(held, part.start, part.len);
        let label = boot::volume_label(&mut read).map_err(disk_failed("read it back"))?;
        // FAT has labels in upper case, as cloud-init knows.
        let is_its = |name: &str| name.eq_ignore_ascii_case(config_drive::LABEL);
        if is_its(&part.name) || label.as_deref().is_some_and(is_its) {
            return Ok(Some(part));
        }
    }
    Ok(None)
}

/// As many bytes of the image tell which partition it has for the config drive, or that it has none.
fn labelled(layout: &Layout) -> u64 {
    let parts = layout.parts().into_iter();
    let ends = parts.map(|part| part.start.saturating_add(boot::LABELLED));
    ends.max().unwrap_or(0)
}

/// The end of the pipeline.
struct Writer<'d> {
    state: State<'d>,
    /// So many bytes came.
    at: u64,
    /// So many bytes before that are zeros and not written yet.
    zeros: u64,
    /// The shortest config drive has a place, or needs none.
    has_place: bool,
}

enum State<'d> {
    /// Nothing came yet, and nothing was written.
    Looking(&'d mut dyn Disk),
    Writing(Box<Held<'d>>, Layout),
    /// The image cannot be written.
    Refused,
}

impl<'d> Writer<'d> {
    /// Takes the next `len` bytes, in a buffer of [`HEAD`] bytes; `look` judges the first.
    fn next(
        &mut self,
        buffer: &mut Aligned,
        len: usize,
        look: impl FnOnce(&[u8]) -> Result<Layout, Failure>,
        after: &mut After,
    ) -> Result<(), Failure> {
        if let State::Looking(_) = self.state {
            let layout = look(&buffer[..len])?;
            if let State::Looking(disk) = std::mem::replace(&mut self.state, State::Refused) {
                let held = Held::begin(disk, after).map_err(disk_failed("make it unbootable"))?;
                self.state = State::Writing(Box::new(held), layout);
            }
        }
        let State::Writing(held, _) = &mut self.state else {
            unreachable!("what was refused is not continued");
        };
        let block = usize::try_from(held.block()).unwrap_or(HEAD);
        let whole = len.next_multiple_of(block);
        buffer[len..whole].fill(0);
        let end = self.at + whole as u64;
        if end > held.size() {
            return Err(Failure::TooLarge {
                image: self.at + len as u64,
                disk: held.size(),
            });
        }
        if is_zero(&buffer[..whole]) && self.zeros < MOST_ZEROS {
            self.zeros += whole as u64;
        } else {
            flush(held, self.at, &mut self.zeros)?;
            held.write_at(self.at, &buffer[..whole])
                .map_err(disk_failed("write to it"))?;
        }
        self.at = end;
        Ok(())
    }

    /// Whether the config drive will have a place: looked for as soon as the image has told where, which may be long before its end. How
    /// long the drive is nobody knows before it is opened, but one that says nothing must fit.
    fn look_for_place(&mut self) -> Result<(), Failure> {
        let State::Writing(held, layout) = &mut self.state else {
            return Ok(());
        };
        if self.has_place || self.at < labelled(layout) {
            return Ok(());
        }
        // Or what the disk had before would be read there.
        flush(held, self.at, &mut self.zeros)?;
        let found = kept_for_config_drive(held, layout)?;
        let least = config_drive::least(held.block()).map_err(|source| Failure::ConfigDrive { source })?;
        // Tried on a copy: what is added then has its own length and name.
        let mut tried = layout.clone();
        tried
            .place_config_drive(found, config_drive::LABEL, least, 0)
            .map_err(|source| Failure::Layout { source })?;
        self.has_place = true;
        Ok(())
    }

    fn finish(self) -> Result<(Held<'d>, Layout), Failure> {
        let (at, mut zeros) = (self.at, self.zeros);
        match self.state {
            State::Writing(mut held, layout) => {
                flush(&mut held, at, &mut zeros)?;
                Ok((*held, layout))
            }
            State::Looking(_) | State::Refused => Err(Failure::Format {
                source: format::FormatError::Short(0),
            }),
        }
    }
}

/// Zeroes the `zeros` bytes before `at`. They are never left as they are: nobody knows what a disk had there.
fn flush(held: &mut Held<'_>, at: u64, zeros: &mut u64) -> Result<(), Failure> {
    let len = std::mem::take(zeros);
    if len == 0 {
        return Ok(());
    }
    held.zero(at - len, len).map_err(disk_failed("write zeros to it"))
}

/// In steps that are compared at once.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| chunk == &ZEROS[..chunk.len()])
}

/// Zeroes a config drive to which no table leads: no cleaning would find what may be secret in it.
fn take_back(held: &mut Held<'_>, drive: &Range<u64>) {
    let zeroed = held.zero(drive.start, drive.end - drive.start);
    if let Err(error) = zeroed.and_then(|()| held.sync()) {
        tracing::error!("the config drive is still on the disk: {}", Chain(&error));
    }
}

#[cfg(test)]
mod tests;
