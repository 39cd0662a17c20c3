//! How an image divides the disk, and how that must change for the disk that it is written to. Pure.

use crate::disk::{
    efi::{Signature, SystemPartition},
    gpt::{Gpt, GptError, Guid},
    mbr::{self, MbrError},
};

/// An image cannot be written to this disk, or would not boot from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Its partition table counts in other blocks.
    #[error(
        "fit the image to the disk: it is made for {image}-byte blocks, but the disk has {disk}-byte blocks"
    )]
    BlockSize {
        /// Of the image, in bytes.
        image: u32,
        /// Of the disk, in bytes.
        disk: u32,
    },
    /// Its GPT is unsound, or too large for the disk.
    #[error("fit the image's partition table to the disk")]
    Gpt(#[source] GptError),
    /// Its GPT has no place for the config drive.
    #[error("place the config drive")]
    Place(#[source] GptError),
    /// Its MBR has no place for the config drive.
    #[error("place the config drive")]
    Mbr(#[source] MbrError),
    /// A partition of an MBR ends behind the disk.
    #[error(
        "fit the image to the disk: partition {number} ends at byte {end}, but the disk has only {disk} bytes"
    )]
    TooSmall {
        /// Its number.
        number: u32,
        /// In bytes.
        end: u64,
        /// In bytes.
        disk: u64,
    },
    /// A UEFI machine cannot boot it.
    #[error("boot the image: this machine boots in UEFI mode, but the image has no EFI system partition")]
    NoSystemPartition,
    /// A BIOS cannot boot it.
    #[error(
        "boot the image: this machine boots in BIOS mode, but the image's boot sector contains no boot code"
    )]
    NoProgram,
    /// It was cut off.
    #[error("read the image: it ends after {image} bytes, but its partition {number} extends to byte {end}")]
    Truncated {
        /// Its number.
        number: u32,
        /// Where the partition ends, in bytes.
        end: u64,
        /// How long the image is, in bytes.
        image: u64,
    },
    /// The partition that the image has for the config drive is too small.
    #[error(
        "write the config drive: it needs {needed} bytes, but partition {number}, which the image provides for it, has {len}"
    )]
    ConfigTooSmall {
        /// Its number.
        number: u32,
        /// In bytes.
        needed: u64,
        /// In bytes.
        len: u64,
    },
}

/// A partition, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub len: u64,
    /// Its label in the partition table; empty where there is none.
    pub name: String,
    /// True for an EFI system partition.
    is_esp: bool,
    signature: Signature,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Table {
    Gpt(Gpt),
    /// The first block.
    Mbr(Vec<u8>),
}

/// The partition table of an image, fitted to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    table: Table,
    block: u32,
    disk: u64,
}

impl Layout {
    /// The table in `head`, the image's first MiB, for a disk of `disk` bytes with blocks of `block`. `head` begins with a boot
    /// sector.
    ///
    /// # Errors
    /// [`LayoutError`] if the image cannot be written to the disk.
    pub fn fit(head: &[u8], disk: u64, block: u32) -> Result<Layout, LayoutError> {
        let other = if block == 512 { 4096 } else { 512 };
        let has_gpt = |block: usize| {
            head.get(block..)
                .is_some_and(|rest| rest.starts_with(b"EFI PART"))
        };
        let index = |block: u32| usize::try_from(block).unwrap_or(usize::MAX);
        let wrong = LayoutError::BlockSize {
            image: other,
            disk: block,
        };
        // Without its record in the MBR a GPT is an old one, and counts to nobody.
        let is_gpt = mbr::is_protective(head);
        let table = if is_gpt && (has_gpt(index(block)) || !has_gpt(index(other))) {
            let mut gpt = Gpt::primary(head, block).map_err(LayoutError::Gpt)?;
            gpt.fit(disk / u64::from(block)).map_err(LayoutError::Gpt)?;
            Table::Gpt(gpt)
        } else if is_gpt {
            return Err(wrong);
        } else if block != 512 {
            // An MBR does not say in which blocks it counts; nobody makes one for others than 512.
            return Err(wrong);
        } else {
            Table::Mbr(head[..512].to_vec())
        };
        let layout = Layout { table, block, disk };
        let beyond = layout.parts().into_iter().find(|part| part.end() > disk);
        beyond.map_or(Ok(layout), |part| {
            Err(LayoutError::TooSmall {
                number: part.number,
                end: part.end(),
                disk,
            })
        })
    }

    /// The partitions, by number; of an MBR the primary ones.
    pub fn parts(&self) -> Vec<Part> {
        let block = u64::from(self.block);
        match &self.table {
            Table::Gpt(gpt) => gpt
                .partitions()
                .map(|partition| Part {
                    number: partition.number,
                    start: partition.first.saturating_mul(block),
                    len: (partition.last - partition.first)
                        .saturating_add(1)
                        .saturating_mul(block),
                    name: partition.name,
                    is_esp: partition.kind == Guid::ESP,
                    signature: Signature::Gpt(partition.guid),
                })
                .collect(),
            Table::Mbr(sector) => mbr::records(sector)
                .into_iter()
                .map(|record| Part {
                    number: record.number,
                    start: u64::from(record.first) * block,
                    len: u64::from(record.blocks) * block,
                    name: String::new(),
                    is_esp: record.kind == mbr::ESP,
                    signature: Signature::Mbr(mbr::disk_signature(sector)),
                })
                .collect(),
        }
    }

    /// By what the firmware and operating systems know its partitions; nothing tells those apart whose signature is zero.
    pub fn signatures(&self) -> Vec<Signature> {
        let zero = [Signature::Mbr([0; 4]), Signature::Gpt(Guid::default())];
        let signatures = self.parts().into_iter().map(|part| part.signature);
        signatures.filter(|signature| !zero.contains(signature)).collect()
    }

    /// The partition that a UEFI machine boots from, as the firmware knows it, and where it is.
    ///
    /// # Errors
    /// [`LayoutError::NoSystemPartition`].
    pub fn system_partition(&self) -> Result<(SystemPartition, Part), LayoutError> {
        let found = self.parts().into_iter().find(|part| part.is_esp);
        let part = found.ok_or(LayoutError::NoSystemPartition)?;
        let block = u64::from(self.block);
        let system = SystemPartition {
            number: part.number,
            first: part.start / block,
            blocks: part.len / block,
            signature: part.signature,
        };
        Ok((system, part))
    }

    /// Whether an image of `image` bytes has all of its partitions.
    ///
    /// # Errors
    /// [`LayoutError::Truncated`].
    pub fn check_len(&self, image: u64) -> Result<(), LayoutError> {
        let cut = self.parts().into_iter().find(|part| part.end() > image);
        cut.map_or(Ok(()), |part| {
            Err(LayoutError::Truncated {
                number: part.number,
                end: part.end(),
                image,
            })
        })
    }

    /// Where a config drive of `len` bytes goes: the partition `found` that the image has for it, or a new one at the end of the
    /// disk, labelled `label`. `random` names a new one.
    ///
    /// # Errors
    /// [`LayoutError`] if there is no room.
    pub fn place_config_drive(
        &mut self,
        found: Option<Part>,
        label: &str,
        len: u64,
        random: u128,
    ) -> Result<u64, LayoutError> {
        if let Some(part) = found {
            return if part.len >= len {
                Ok(part.start)
            } else {
                Err(LayoutError::ConfigTooSmall {
                    number: part.number,
                    needed: len,
                    len: part.len,
                })
            };
        }
        let block = u64::from(self.block);
        match &mut self.table {
            Table::Gpt(gpt) => {
                let added = gpt.add_at_end(len, label, Guid::LINUX, Guid::random(random));
                Ok(added.map_err(LayoutError::Place)?.first * block)
            }
            Table::Mbr(sector) => {
                let added = mbr::add_at_end(sector, mbr::LINUX, len, self.disk / block, self.block);
                Ok(u64::from(added.map_err(LayoutError::Mbr)?.first) * block)
            }
        }
    }

    /// Puts the table into `head`, the disk's first MiB, for a machine that boots by BIOS or by UEFI, and gives what belongs to the very end
    /// of the disk: the backup GPT.
    pub fn render(&self, head: &mut [u8], is_bios: bool) -> Vec<u8> {
        match &self.table {
            Table::Gpt(gpt) => {
                mbr::fit_protective(head, self.disk / u64::from(self.block), is_bios);
                gpt.write_primary(head);
                gpt.backup()
            }
            Table::Mbr(sector) => {
                head[..512].copy_from_slice(sector);
                Vec::new()
            }
        }
    }
}

impl Part {
    /// The byte behind it.
    fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

#[cfg(test)]
mod tests;
