//! The compressions that packages, kernel modules and firmware come in, told by the end of the name.

use std::io::{self, Read};

/// A compression, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Stored as it is.
    Plain,
    /// gzip, RFC 1952.
    Gzip,
    /// The xz format with LZMA2.
    Xz,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl Packing {
    /// Splits `name` into what it is called unpacked and how it is packed.
    pub fn of(name: &str) -> (&str, Self) {
        let known = [(".gz", Self::Gzip), (".xz", Self::Xz), (".zst", Self::Zstd)];
        known
            .into_iter()
            .find_map(|(end, packing)| Some((name.strip_suffix(end)?, packing)))
            .unwrap_or((name, Self::Plain))
    }

    /// A reader of the unpacked bytes.
    pub fn reader<'r>(self, packed: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
        Ok(match self {
            Self::Plain => Box::new(packed),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new(packed, true)),
            Self::Zstd => Box::new(zstd::Decoder::new(packed)?),
        })
    }

    /// The unpacked bytes, or an error if there are more than `limit`.
    pub fn unpack(self, packed: Vec<u8>, limit: u64) -> io::Result<Vec<u8>> {
        if self == Self::Plain {
            return Ok(packed);
        }
        let mut out = Vec::new();
        self.reader(packed.as_slice())?
            .take(limit + 1)
            .read_to_end(&mut out)?;
        if out.len() as u64 > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("more than {limit} bytes unpacked"),
            ));
        }
        Ok(out)
    }
}
