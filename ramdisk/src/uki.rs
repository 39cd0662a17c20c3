//! A unified kernel image: an EFI program that carries kernel, command line and initrd, for UEFI HTTP boot.
//!
//! It is systemd's stub with PE sections appended, which the stub looks for by name (systemd-stub(7)).
//! Every boot gets its own configuration in front of the initramfs, so an image is never made as a whole: [`Uki`] is
//! the layout, known before the first byte goes out, and the caller streams the large parts from where they lie.

use std::ops::Range;

use crate::pe::{Pe, PeError};

/// Why no image can be laid out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UkiError {
    /// The stub is malformed or not fit to be appended to.
    #[error("lay out boot image")]
    Stub(#[from] PeError),
    /// The command line has bytes that the kernel would not take as they are.
    #[error("lay out boot image: {0:?} is not a plain ASCII command line")]
    Cmdline(String),
    /// An image without kernel or initrd boots nothing.
    #[error("lay out boot image: {0} is empty")]
    Empty(&'static str),
}

/// What goes into an image beside the stub.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Text in the form of os-release(5); firmware and boot menus show its names.
    pub os_release: &'a str,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Bytes of the kernel.
    pub kernel_len: u64,
    /// Bytes of the initrd: all of its archives together.
    pub initrd_len: u64,
}

/// Where the bytes of a stretch of the image come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// [`Uki::header`].
    Header,
    /// The kernel's file.
    Kernel,
    /// The initrd's archives, one after the other.
    Initrd,
    /// Zeros.
    Padding,
}

/// A stretch of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its bytes come from.
    pub source: Source,
    /// First byte within the source; of no meaning for padding.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// The layout of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uki {
    header: Vec<u8>,
    segments: Vec<Segment>,
}

impl Uki {
    /// Lays out the image that `stub` and `parts` make.
    pub fn new(stub: &[u8], parts: &Parts<'_>) -> Result<Self, UkiError> {
        if !parts
            .cmdline
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic())
        {
            return Err(UkiError::Cmdline(parts.cmdline.to_owned()));
        }
        for (len, what) in [(parts.kernel_len, "kernel"), (parts.initrd_len, "initrd")] {
            if len == 0 {
                return Err(UkiError::Empty(what));
            }
        }
        let small = [(".osrel", parts.os_release), (".cmdline", parts.cmdline)];
        let large = [(".linux", parts.kernel_len), (".initrd", parts.initrd_len)];
        let sections: Vec<_> = small
            .iter()
            .map(|(name, text)| (*name, text.len() as u64))
            .chain(large)
            .collect();
        let (mut header, placed) = Pe::parse(stub)?.append(&sections)?;
        let (small_placed, large_placed) = placed.split_at(small.len());
        for ((_, text), placed) in small.iter().zip(small_placed) {
            header.extend_from_slice(text.as_bytes());
            let padding = placed.end - placed.data.end;
            header.extend(std::iter::repeat_n(
                0,
                usize::try_from(padding).map_err(|_| PeError::Long)?,
            ));
        }
        let mut segments = vec![Segment {
            source: Source::Header,
            offset: 0,
            len: header.len() as u64,
        }];
        for (source, placed) in [Source::Kernel, Source::Initrd].into_iter().zip(large_placed) {
            let len = placed.data.end - placed.data.start;
            segments.push(Segment {
                source,
                offset: 0,
                len,
            });
            segments.push(Segment {
                source: Source::Padding,
                offset: 0,
                len: placed.end - placed.data.end,
            });
        }
        segments.retain(|segment| segment.len > 0);
        Ok(Self { header, segments })
    }

    /// The bytes before the kernel: stub, section table, os-release and command line.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes of the whole image.
    #[expect(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// The whole image from first to last byte.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The part of the image within `range`, as an HTTP range asks for it; what lies beyond the end is left out.
    pub fn slice(&self, range: Range<u64>) -> Vec<Segment> {
        let mut start = 0;
        let mut out = Vec::new();
        for segment in &self.segments {
            let end = start + segment.len;
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                let offset = segment.offset + (from - start);
                out.push(Segment {
                    source: segment.source,
                    offset,
                    len: to - from,
                });
            }
            start = end;
        }
        out
    }
}

#[cfg(test)]
mod tests;
