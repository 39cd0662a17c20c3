//! What an image is, told by its first bytes and never by its name. Pure.

/// As many bytes tell every format: an ISO's descriptor is the farthest.
pub const SNIFF: usize = 0x8006;

/// How the bytes from the network become those of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// They are the same.
    None,
    /// Zstandard frames (RFC 8878).
    Zstd,
    /// Gzip members (RFC 1952).
    Gzip,
}

/// The bytes are of a format that is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A known one.
    #[error("it is {name}; {instead}")]
    Other {
        /// What it is called.
        name: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// Neither a known one nor a disk.
    #[error(
        "it does not begin with a boot sector, so it is neither a raw image of a whole disk nor in any known format"
    )]
    Unknown,
    /// There is next to nothing.
    #[error("{0} bytes are too few for a disk")]
    Short(usize),
}

const CONVERT: &str = "convert it to raw (qemu-img convert -O raw) and compress that with zstd";
const REPACK: &str = "compress it with zstd or gzip instead";
const UNPACK: &str = "use the disk image inside it";

/// A format, and the bytes by which it is known, at an offset.
type Magic = (usize, &'static [u8], &'static str, &'static str);

/// What is recognised only to say why it is refused.
const REFUSED: &[Magic] = &[
    (0, b"QFI\xfb", "a qcow2 image", CONVERT),
    (0, b"QED\0", "a QED image", CONVERT),
    (0, b"KDMV", "a VMDK image", CONVERT),
    (0, b"COWD", "a VMDK image", CONVERT),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor", CONVERT),
    (64, b"\x7f\x10\xda\xbe", "a VDI image", CONVERT),
    (0, b"vhdxfile", "a VHDX image", CONVERT),
    (0, b"conectix", "a VHD image", CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels image", CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels image", CONVERT),
    (0, b"LUKS\xba\xbe", "an encrypted volume", UNPACK),
    (0, b"\xfd7zXZ\0", "compressed with xz", REPACK),
    (0, b"BZh", "compressed with bzip2", REPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", REPACK),
    (0, b"LZIP", "compressed with lzip", REPACK),
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"MSWIM\0\0\0", "a WIM image", UNPACK),
    (0, b"hsqs", "a SquashFS file system", UNPACK),
    (0, b"\x7fELF", "a program", UNPACK),
    (0, b"<!DOCTYPE", "a web page", "check the URL"),
    (0, b"<html", "a web page", "check the URL"),
    (
        0x8001,
        b"CD001",
        "an ISO 9660 image",
        "use an image of an installed disk",
    ),
];

fn has(bytes: &[u8], offset: usize, magic: &[u8]) -> bool {
    bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic))
}

/// How the bytes are packed that begin with `first`, of at least 4 bytes if there are as many.
pub fn packing(first: &[u8]) -> Packing {
    // A skippable frame may come before the others (RFC 8878, 3.1.2): 0x184D2A50 to 0x184D2A5F.
    let skippable = has(first, 1, b"\x2a\x4d\x18") && first[0] & 0xf0 == 0x50;
    if has(first, 0, b"\x28\xb5\x2f\xfd") || skippable {
        Packing::Zstd
    } else if has(first, 0, b"\x1f\x8b") {
        Packing::Gzip
    } else {
        Packing::None
    }
}

/// Whether the unpacked bytes that begin with `first`, of at least [`SNIFF`] bytes if there are as many, are a disk.
///
/// # Errors
/// [`FormatError`], one variant for each way to fail.
pub fn check(first: &[u8]) -> Result<(), FormatError> {
    if let Some((_, _, name, instead)) = REFUSED
        .iter()
        .find(|(offset, magic, ..)| has(first, *offset, magic))
    {
        return Err(FormatError::Other { name, instead });
    }
    if packing(first) != Packing::None {
        let (name, instead) = ("compressed twice", "compress it once");
        return Err(FormatError::Other { name, instead });
    }
    if first.len() < 512 {
        return Err(FormatError::Short(first.len()));
    }
    if crate::disk::mbr::is_boot_sector(first) {
        Ok(())
    } else {
        Err(FormatError::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot_sector() -> Vec<u8> {
        let mut bytes = vec![0; SNIFF];
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes
    }

    #[test]
    fn packing_is_told_by_the_first_bytes() {
        assert_eq!(packing(b"\x28\xb5\x2f\xfd..."), Packing::Zstd);
        assert_eq!(packing(b"\x5f\x2a\x4d\x18..."), Packing::Zstd);
        assert_eq!(packing(b"\x1f\x8b\x08"), Packing::Gzip);
        for bytes in [&b""[..], b"\x28", b"\x60\x2a\x4d\x18", &boot_sector()] {
            assert_eq!(packing(bytes), Packing::None);
        }
    }

    #[test]
    fn every_other_format_is_refused_with_a_reason() {
        assert_eq!(check(&boot_sector()), Ok(()));
        for (offset, magic, name, _) in REFUSED {
            let mut bytes = boot_sector();
            bytes[*offset..offset + magic.len()].copy_from_slice(magic);
            let refused = check(&bytes).unwrap_err();
            assert!(refused.to_string().contains(name), "{refused}");
            // Also without a boot sector, and cut off behind it.
            let short = &bytes[..offset + magic.len()];
            assert!(check(short).unwrap_err().to_string().contains(name), "{name}");
        }
    }

    #[test]
    fn what_is_nothing_known_is_refused() {
        assert_eq!(check(&[]), Err(FormatError::Short(0)));
        assert_eq!(check(&vec![0; SNIFF]), Err(FormatError::Unknown));
        assert!(matches!(check(b"\x1f\x8b\x08"), Err(FormatError::Other { .. })));
    }
}
