//! FAT volumes: EFI system partitions and config drives.

use std::io::{Cursor, Write};

use anyhow::{Context, Result};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// The bytes of a FAT volume of `bytes` bytes with these files, by their paths. The same files make the same bytes.
pub fn volume(bytes: usize, label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut padded = [b' '; 11];
    for (to, from) in padded.iter_mut().zip(label.bytes()) {
        *to = from;
    }
    let mut disk = Cursor::new(vec![0; bytes]);
    let options = FormatVolumeOptions::new()
        .volume_label(padded)
        .volume_id(0x5a1e_0a52);
    fatfs::format_volume(&mut disk, options).context("format a FAT volume")?;
    let volume = FileSystem::new(&mut disk, FsOptions::new()).context("open a new FAT volume")?;
    for (path, content) in files {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        for parent in parents {
            volume
                .root_dir()
                .create_dir(parent)
                .with_context(|| format!("make {parent}"))?;
        }
        let written = volume.root_dir().create_file(path).and_then(|mut file| {
            file.write_all(content)?;
            file.flush()
        });
        written.with_context(|| format!("write {path} of {} bytes", content.len()))?;
    }
    volume.unmount().context("finish a FAT volume")?;
    Ok(disk.into_inner())
}

/// A config drive as OpenStack lays it out, for a machine called `name`.
pub fn config_drive(name: &str, user_data: &str) -> Result<Vec<u8>> {
    let meta_data =
        serde_json::json!({"uuid": "5a1e0a52-6c1e-4b7a-9e2d-000000000000", "name": name}).to_string();
    let files = [
        ("openstack/latest/meta_data.json", meta_data.as_bytes()),
        ("openstack/latest/network_data.json", b"{}"),
        ("openstack/latest/user_data", user_data.as_bytes()),
    ];
    volume(CONFIG_DRIVE, muster_os::LABEL, &files)
}

/// The size of a config drive, in bytes.
pub const CONFIG_DRIVE: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn files_are_where_they_were_put_and_the_label_is_known() {
        let volume = config_drive("name", "#cloud-config\n").unwrap();
        assert_eq!(volume.len(), CONFIG_DRIVE);
        assert_eq!(volume, config_drive("name", "#cloud-config\n").unwrap());
        assert_eq!(muster_os::file_system(&volume), Some("vfat"));
        let volume = FileSystem::new(Cursor::new(volume), FsOptions::new()).unwrap();
        let read = |path: &str| {
            let mut text = String::new();
            let mut file = volume.root_dir().open_file(path).unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read("openstack/latest/user_data"), "#cloud-config\n");
        let meta_data = read("openstack/latest/meta_data.json");
        assert_eq!(muster_os::name(meta_data.as_bytes()).as_deref(), Some("name"));
    }
}
