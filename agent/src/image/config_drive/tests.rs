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
fn a_drive_that_could_not_be_mounted_or_is_too_large_is_refused() {
    assert!(matches!(
        image(&drive(), 4096),
        Err(ConfigDriveError::Block { block: 4096 })
    ));
    let large = ConfigDrive {
        user_data: Some(vec![0; 64 << 20]),
        ..drive()
    };
    assert!(matches!(
        image(&large, 512),
        Err(ConfigDriveError::TooLarge { .. })
    ));
}
