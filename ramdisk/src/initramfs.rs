//! The compressed archive that the kernel unpacks into its first root file system.

use std::io::Write;

use muster_proto::config::SENTINEL;

use crate::cpio::{AddError, Archive};
use crate::modules::{ModulesError, Set};

/// zstd's level; with this window, 22 takes twice the time and saves 0.05 %.
const LEVEL: i32 = 19;

/// How far the kernel must look back while it unpacks, and so what it allocates for it, as a power of two: 8 MiB.
///
/// A window over the whole archive would save 2 % and cost the smallest machine as much memory as the archive; the
/// kernel refuses more than 27 (`lib/zstd/decompress`, `ZSTD_WINDOWLOG_MAX`).
const WINDOW_LOG: u32 = 23;

/// Why an initramfs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// Two parts claim one path, or a path is malformed.
    #[error("lay out initramfs")]
    Layout(#[from] AddError),
    /// The modules cannot be brought into an order.
    #[error("write module tables")]
    Modules(#[from] ModulesError),
    /// The compressor failed.
    #[error("compress initramfs")]
    Compress(#[source] std::io::Error),
}

/// Lays out the archive: directories, devices, the agent as `/init`, modules with their tables, the sentinel.
pub fn layout(agent: Vec<u8>, kernel_version: &str, modules: &Set<'_>) -> Result<Archive, InitramfsError> {
    let mut archive = Archive::new();
    for dir in ["dev", "etc", "muster", "proc", "run", "sys"] {
        archive.dir(dir, 0o755)?;
    }
    archive.dir("tmp", 0o1777)?;
    // Before devtmpfs is mounted, the kernel opens these for the first process.
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.char_device("dev/null", 0o666, 1, 3)?;
    archive.file("init", 0o755, agent)?;
    let base = format!("lib/modules/{kernel_version}");
    let mut by_path: Vec<_> = modules.iter().map(|(_, module)| module).collect();
    by_path.sort_by(|one, other| one.path.cmp(&other.path));
    for module in by_path {
        archive.file(&format!("{base}/{}", module.path), 0o644, module.stripped())?;
    }
    let tables = [
        ("modules.alias", modules.alias_table()),
        ("modules.dep", modules.dep_table()?),
        ("modules.softdep", modules.softdep_table()),
    ];
    for (name, table) in tables {
        archive.file(&format!("{base}/{name}"), 0o644, table.into_bytes())?;
    }
    archive.file(SENTINEL, 0o644, Vec::new())?;
    Ok(archive)
}

/// The archive as one zstd frame; what carries it to the machine has checksums of its own.
pub fn compress(archive: &Archive) -> Result<Vec<u8>, InitramfsError> {
    let bytes = archive.to_vec();
    compressed(&bytes).map_err(InitramfsError::Compress)
}

fn compressed(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(false)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
    encoder.write_all(bytes)?;
    encoder.finish()
}
