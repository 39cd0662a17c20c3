use super::*;
use crate::disk::fat::tests::{Made, make, reader};

fn file() -> Made {
    Made::File(b"MZ".to_vec())
}

fn list(text: &str) -> Made {
    Made::File(text.encode_utf16().flat_map(u16::to_le_bytes).collect())
}

fn found(efi: Vec<(&'static str, Made)>) -> Result<Loader, BootError> {
    let bytes = make(5000, 512, vec![("EFI", Made::Directory(efi))]);
    loader(&mut reader(&bytes))
}

fn fallback() -> (&'static str, Made) {
    (
        "BOOT",
        Made::Directory(vec![("BOOTX64.EFI", file()), ("FBX64.EFI", file())]),
    )
}

#[test]
fn the_loader_that_the_distribution_names_is_taken() {
    let debian = Made::Directory(vec![
        ("shimx64.efi", file()),
        (
            "BOOTX64.CSV",
            list("\u{feff}shimx64.efi,debian,,This is the boot entry for debian\n"),
        ),
    ]);
    assert_eq!(
        found(vec![("debian", debian), fallback()]).unwrap(),
        Loader {
            path: "\\EFI\\debian\\shimx64.efi".to_owned(),
            has_fallback: true,
            reorders: None,
        }
    );
}

#[test]
fn a_list_may_be_named_without_the_architecture_and_its_first_line_that_leads_somewhere_counts() {
    let taken = |lists: Vec<(&'static str, &str)>| {
        let mut files = vec![("shim.efi", file()), ("grub.efi", file())];
        files.extend(lists.into_iter().map(|(name, text)| (name, list(text))));
        let loader = found(vec![("opensuse", Made::Directory(files)), fallback()]).unwrap();
        assert_eq!(
            loader.reorders.is_none(),
            loader.path.contains("opensuse"),
            "{loader:?}"
        );
        loader.path
    };
    let (shim, grub) = ("\\EFI\\opensuse\\shim.efi", "\\EFI\\opensuse\\grub.efi");
    // As openSUSE Leap 16 ships it.
    let opensuse = "shim.efi,opensuse-secureboot\n";
    assert_eq!(taken(vec![("boot.csv", opensuse)]), shim);
    assert_eq!(
        taken(vec![("BOOT.CSV", opensuse), ("bootx64.csv", "grub.efi,x\n")]),
        grub
    );
    assert_eq!(
        taken(vec![("BOOT.CSV", opensuse), ("BOOTX64.CSV", "gone.efi,x\n")]),
        shim
    );
    assert_eq!(
        taken(vec![("BOOTX64.CSV", "gone.efi,x\n\ngrub.efi,y\nshim.efi,z\n")]),
        grub
    );
    assert_eq!(
        taken(vec![("BOOTAA64.CSV", opensuse)]),
        "\\EFI\\BOOT\\BOOTX64.EFI"
    );
}

#[test]
fn without_a_usable_list_it_is_the_one_that_every_firmware_takes() {
    let expected = Loader {
        path: "\\EFI\\BOOT\\BOOTX64.EFI".to_owned(),
        has_fallback: true,
        reorders: Some("\\EFI\\BOOT\\FBX64.EFI".to_owned()),
    };
    for text in ["", ",", "gone.efi,x\n"] {
        let vendor = Made::Directory(vec![("BOOTX64.CSV", list(text)), ("grubx64.efi", file())]);
        assert_eq!(
            found(vec![("vendor", vendor), fallback()]).unwrap(),
            expected,
            "{text:?}"
        );
    }
    assert_eq!(found(vec![fallback()]).unwrap(), expected);
    for (beside, reorders) in [
        ("FALLBACK.EFI", Some("\\EFI\\BOOT\\FALLBACK.EFI".to_owned())),
        ("GRUBX64.EFI", None),
    ] {
        let boot = Made::Directory(vec![("BOOTX64.EFI", file()), (beside, file())]);
        let expected = Loader {
            reorders,
            ..expected.clone()
        };
        assert_eq!(found(vec![("BOOT", boot)]).unwrap(), expected);
    }
}

#[test]
fn a_partition_without_a_loader_is_refused() {
    let vendor = || Made::Directory(vec![("grubx64.efi", file())]);
    assert!(matches!(
        found(vec![("debian", vendor())]),
        Err(BootError::None(_))
    ));
    let nothing = make(5000, 512, vec![("README", file())]);
    assert!(matches!(loader(&mut reader(&nothing)), Err(BootError::None(_))));
    assert!(matches!(
        loader(&mut reader(&vec![0; 4096])),
        Err(BootError::Fat { .. })
    ));
}

#[test]
fn labels_are_read_of_fat_and_iso_and_of_nothing_else() {
    let label = |bytes: &[u8]| volume_label(&mut reader(bytes)).unwrap();
    for clusters in [5000, 66_000] {
        assert_eq!(
            label(&make(clusters, 512, Vec::new())).as_deref(),
            Some("CONFIG-X")
        );
    }
    let drive = super::super::config_drive::image(&Default::default(), 512).unwrap();
    assert_eq!(label(&drive).as_deref(), Some("config-2"));
    assert_eq!(label(&vec![0; 40_000]), None);
    assert_eq!(label(&vec![0; 600]), None);
    assert_eq!(label(&[]), None);
}
