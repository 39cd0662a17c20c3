use std::io::Read;

use serde_json::json;

use super::*;
use crate::image::iso9660::tests::files;

fn drive() -> ConfigDrive {
    let meta_data = json!({"local-hostname": "node-1", "uuid": "x"});
    ConfigDrive {
        meta_data: meta_data.as_object().unwrap().clone(),
        network_data: Some(json!({"links": []})),
        user_data: Some(b"#cloud-config\n\xff\0".to_vec()),
    }
}

#[test]
fn the_drive_has_openstacks_layout() {
    let made = files(&image(&drive(), 512).unwrap());
    let at = |name: &str| made[&format!("/openstack/latest/{name}")].clone();
    assert_eq!(made.len(), 3);
    assert_eq!(at("user_data"), b"#cloud-config\n\xff\0", "byte for byte");
    let meta_data: serde_json::Value = serde_json::from_slice(&at("meta_data.json")).unwrap();
    assert_eq!(meta_data["local-hostname"], "node-1");
    assert_eq!(at("network_data.json"), br#"{"links":[]}"#);
}

#[test]
fn what_was_not_given_is_not_there() {
    let made = files(&image(&ConfigDrive::default(), 512).unwrap());
    assert_eq!(
        made.into_keys().collect::<Vec<_>>(),
        ["/openstack/latest/meta_data.json"]
    );
}

#[test]
fn a_disk_with_large_blocks_has_it_as_fat() {
    for user_data in [13, 4096, 16 << 20] {
        let user_data = vec![b'#'; user_data];
        let drive = ConfigDrive {
            user_data: Some(user_data.clone()),
            ..drive()
        };
        let made = image(&drive, 4096).unwrap();
        assert_eq!(made.len() % 4096, 0);
        assert_eq!(
            made,
            image(&drive, 4096).unwrap(),
            "the same data, the same bytes"
        );
        let volume = FileSystem::new(Cursor::new(made), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), LABEL);
        assert_eq!(volume.read_volume_label_from_root_dir().unwrap().unwrap(), LABEL);
        let latest = volume.root_dir().open_dir("openstack/latest").unwrap();
        let mut found = Vec::new();
        latest
            .open_file("user_data")
            .unwrap()
            .read_to_end(&mut found)
            .unwrap();
        assert!(found == user_data, "byte for byte");
        assert!(latest.open_file("meta_data.json").is_ok() && latest.open_file("network_data.json").is_ok());
    }
}

#[test]
fn a_drive_that_could_not_be_mounted_or_is_too_large_is_refused() {
    assert!(matches!(
        image(&drive(), 8192),
        Err(ConfigDriveError::Block { block: 8192 })
    ));
    let large = ConfigDrive {
        user_data: Some(vec![0; 64 << 20]),
        ..drive()
    };
    for block in [512, 4096] {
        assert!(matches!(
            image(&large, block),
            Err(ConfigDriveError::TooLarge { .. })
        ));
    }
}
