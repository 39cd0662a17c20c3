use proptest::prelude::*;

use super::*;
use crate::sys::tree::Tree;

/// A table in the making.
#[derive(Clone, Default)]
pub(in crate::inventory) struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// With a structure whose formatted area is `length` bytes, zero but for `fields` (offset and content).
    pub(in crate::inventory) fn with(
        mut self,
        kind: u8,
        handle: u16,
        length: u8,
        fields: &[(usize, &[u8])],
        strings: &[&str],
    ) -> Self {
        let mut area = vec![0; length.into()];
        area[0] = kind;
        area[1] = length;
        area[2..4].copy_from_slice(&handle.to_le_bytes());
        for (offset, content) in fields {
            area[*offset..offset + content.len()].copy_from_slice(content);
        }
        self.bytes.extend(area);
        for string in strings {
            self.bytes.extend(string.as_bytes());
            self.bytes.push(0);
        }
        self.bytes
            .extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        self
    }

    /// With a memory module of `size` as type 17 writes it.
    pub(in crate::inventory) fn module(self, size: u16, extended: u32, locator: &str) -> Self {
        self.with(
            17,
            0x1100,
            0x28,
            &[
                (0x04, &0x1000_u16.to_le_bytes()),
                (0x0c, &size.to_le_bytes()),
                (0x10, &[1]),
                (0x12, &[0x1a]),
                (0x15, &3200_u16.to_le_bytes()),
                (0x17, &[2, 3, 0, 4]),
                (0x1c, &extended.to_le_bytes()),
                (0x20, &2933_u16.to_le_bytes()),
            ],
            &[locator, "Example", "12BDC045", "18ASF2G72PDZ"],
        )
    }

    /// Closed by type 127.
    pub(in crate::inventory) fn end(self) -> Vec<u8> {
        self.with(127, 0xfeff, 4, &[], &[]).bytes
    }
}

/// Types 0 to 4 of a server with one processor.
pub(in crate::inventory) fn a_server() -> Builder {
    let uuid: Vec<u8> = (0..16).collect();
    Builder::default()
        .with(
            0,
            0,
            0x18,
            &[(4, &[1, 2]), (8, &[3])],
            &["Acme BIOS", "2.3.4", "11/08/2024"],
        )
        .with(
            1,
            1,
            0x1b,
            &[(4, &[1, 2, 0, 3]), (8, &uuid), (0x19, &[4, 5])],
            &["Acme", "Rocket  9", "J5K2X93", "SKU-1", "Rockets"],
        )
        .with(
            2,
            2,
            0x0f,
            &[(4, &[1, 2, 0, 3])],
            &["Acme", "02C2CP", ".J5K2X93.CN7."],
        )
        .with(3, 3, 0x15, &[(4, &[1]), (7, &[2, 3])], &["Acme", "CH-1", "TAG-1"])
        .with(
            4,
            4,
            0x30,
            &[
                (5, &[3]),
                (0x10, &[1]),
                (0x14, &4000_u16.to_le_bytes()),
                (0x16, &2400_u16.to_le_bytes()),
                (0x18, &[0x41]),
            ],
            &["Example Xeon @ 2.40GHz"],
        )
        .with(
            4,
            5,
            0x30,
            &[(5, &[3]), (0x14, &4000_u16.to_le_bytes())],
            &["empty"],
        )
        .with(16, 0x1000, 0x17, &[(4, &[3, 3])], &[])
}

#[test]
fn identification_is_read_from_types_0_to_3() {
    let raw = a_server().end();
    let table = parse(&raw);
    assert_eq!(table.damage, None);
    let id = table.identification();
    assert_eq!(
        (id.bios_vendor.as_str(), id.bios_version.as_str()),
        ("Acme BIOS", "2.3.4")
    );
    assert_eq!(id.bios_date, "11/08/2024");
    assert_eq!(
        (id.sys_vendor.as_str(), id.product_name.as_str()),
        ("Acme", "Rocket 9")
    );
    assert_eq!(
        (id.product_serial.as_str(), id.product_sku.as_str()),
        ("J5K2X93", "SKU-1")
    );
    assert_eq!(
        (id.board_name.as_str(), id.board_serial.as_str()),
        ("02C2CP", ".J5K2X93.CN7.")
    );
    assert_eq!(
        (id.chassis_serial.as_str(), id.chassis_asset_tag.as_str()),
        ("CH-1", "TAG-1")
    );
}

#[test]
fn the_uuid_s_byte_order_follows_the_version() {
    let raw = a_server().end();
    let uuid = |version| {
        Table {
            version,
            ..parse(&raw)
        }
        .identification()
        .product_uuid
    };
    assert_eq!(uuid(Some((2, 8))), "03020100-0504-0706-0809-0a0b0c0d0e0f");
    assert_eq!(uuid(None), "03020100-0504-0706-0809-0a0b0c0d0e0f");
    assert_eq!(uuid(Some((2, 5))), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    assert_eq!(version(b"_SM3_\x00\x18\x03\x04"), Some((3, 4)));
    assert_eq!(version(b"_SM_\x00\x1f\x02\x05"), Some((2, 5)));
    assert_eq!(version(b"_SM_"), None);
}

#[test]
fn empty_sockets_are_no_processors() {
    let raw = a_server().end();
    let expected = Processor {
        version: "Example Xeon @ 2.40GHz".to_owned(),
        current_mhz: 2400,
        max_mhz: 4000,
    };
    assert_eq!(parse(&raw).processors(), [expected]);
}

#[test]
fn module_sizes_come_in_three_units() {
    let raw = a_server()
        .module(16384, 0, "A1")
        .module(0, 0, "empty")
        .module(0x8000 | 512, 0, "A2")
        .module(0x7fff, 0x8000_0000 | 65536, "A3")
        .module(0xffff, 0, "A4")
        .module(0x8000, 0, "A5")
        // A table of before version 2.7, which ends where the larger size would stand.
        .with(17, 0x1106, 0x1b, &[(0x0c, &[0xff, 0x7f]), (0x10, &[1])], &["A6"])
        .end();
    let devices = parse(&raw).memory_devices();
    let sizes: Vec<_> = devices
        .iter()
        .map(|device| (device.locator.as_str(), device.size_kib))
        .collect();
    let gib = 1024 * 1024;
    assert_eq!(
        sizes,
        [
            ("A1", Some(16 * gib)),
            ("A2", Some(512)),
            ("A3", Some(64 * gib)),
            ("A4", None),
            ("A5", None),
            ("A6", Some(32767 * 1024)),
        ]
    );
    assert_eq!(devices[0].speed_mts, 2933);
    assert_eq!(
        (devices[0].serial.as_str(), devices[0].part.as_str()),
        ("12BDC045", "18ASF2G72PDZ")
    );
}

#[test]
fn video_memory_and_flash_are_not_main_memory() {
    let in_array = |builder: Builder, array: u16, kind: u8| {
        let fields: [(usize, &[u8]); 3] = [
            (0x04, &array.to_le_bytes()),
            (0x0c, &8_u16.to_le_bytes()),
            (0x12, &[kind]),
        ];
        builder.with(17, 0x1101, 0x28, &fields, &[])
    };
    let builder = a_server().with(16, 0x1001, 0x17, &[(4, &[3, 4])], &[]);
    let raw = in_array(in_array(builder, 0x1001, 0x1a), 0x1000, 0x09).end();
    assert_eq!(parse(&raw).memory_devices(), []);
}

#[test]
fn of_persistent_memory_counts_what_serves_as_main_memory() {
    const DDR4: u8 = 0x1a;
    const LOGICAL: u8 = 0x1f;
    const REGISTERED: u16 = 1 << 13;
    const NON_VOLATILE: u16 = 1 << 12;
    let gib = 1_u64 << 30;
    let counted = |length: u8, kind: u8, detail: u16, technology: u8, volatile: u64| {
        let fields: [(usize, &[u8]); 5] = [
            (0x0c, &16384_u16.to_le_bytes()),
            (0x12, &[kind]),
            (0x13, &detail.to_le_bytes()),
            (0x28, &[technology]),
            (0x3c, &volatile.to_le_bytes()),
        ];
        // Tables of older versions end before the technology.
        let fields = if length > 0x28 { &fields[..] } else { &fields[..3] };
        let raw = a_server().with(17, 0x1101, length, fields, &[]).end();
        let devices = parse(&raw).memory_devices();
        devices.first().map(|device| device.size_kib.unwrap() << 10)
    };
    let cases = [
        ("an NVDIMM", (0x5c, DDR4, NON_VOLATILE, 4, 0), None),
        ("one without details", (0x5c, DDR4, REGISTERED, 4, 0), None),
        (
            "one whose parts are unknown",
            (0x5c, DDR4, NON_VOLATILE, 4, u64::MAX),
            None,
        ),
        ("one of an older table", (0x28, DDR4, NON_VOLATILE, 0, 0), None),
        ("Optane as storage", (0x5c, LOGICAL, NON_VOLATILE, 7, 0), None),
        (
            "Optane as memory",
            (0x5c, LOGICAL, NON_VOLATILE, 7, 12 * gib),
            Some(12 * gib),
        ),
        ("a DIMM", (0x5c, DDR4, REGISTERED, 3, 16 * gib), Some(16 * gib)),
        (
            "a DIMM whose parts are not filled in",
            (0x5c, DDR4, REGISTERED, 3, 0),
            Some(16 * gib),
        ),
        (
            "a DIMM of an older table",
            (0x28, DDR4, REGISTERED, 0, 0),
            Some(16 * gib),
        ),
    ];
    for (name, (length, kind, detail, technology, volatile), expected) in cases {
        assert_eq!(
            counted(length, kind, detail, technology, volatile),
            expected,
            "{name}"
        );
    }
}

#[test]
fn what_stands_before_the_damage_is_kept() {
    let whole = a_server().end();
    for (cut, damage) in [
        (&whole[..whole.len() - 7], "strings"),
        (&whole[..0x18 + 30], "header"),
        (
            &[&whole[..whole.len() - 6], &[9, 2, 0, 0, 0, 0]].concat()[..],
            "shorter",
        ),
    ] {
        let table = parse(cut);
        assert_eq!(table.identification().bios_version, "2.3.4", "{damage}");
        assert!(
            table.damage.is_some_and(|text| text.contains(damage)),
            "{damage}: {:?}",
            table.damage
        );
    }
}

#[test]
fn damage_costs_a_warning() {
    let mut raw = a_server().end();
    raw.truncate(raw.len() - 7);
    let tree = Tree::new().file("sys/firmware/dmi/tables/DMI", raw);
    let mut warnings = Warnings::default();
    let raw = read(&tree.root(), &mut warnings);
    assert_eq!(raw.table().identification().product_serial, "J5K2X93");
    assert_eq!(warnings.finish().len(), 1);
}

fn read_everything(raw: &[u8]) {
    let table = parse(raw);
    let _ = (table.identification(), table.processors(), table.memory_devices());
}

proptest! {
    #[test]
    fn any_bytes_give_some_table(raw: Vec<u8>) {
        read_everything(&raw);
    }

    #[test]
    fn any_flipped_byte_gives_some_table(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let mut raw = a_server().module(16384, 0, "A1").end();
        let at = at.index(raw.len());
        raw[at] = byte;
        read_everything(&raw);
        raw.truncate(cut.index(raw.len()));
        read_everything(&raw);
    }

    #[test]
    fn any_area_of_a_known_type_is_read(kind in prop::sample::select(vec![0_u8, 1, 2, 3, 4, 16, 17]), area in prop::collection::vec(any::<u8>(), 0..100)) {
        let length = u8::try_from(area.len() + 4).unwrap();
        read_everything(&[&[kind, length, 0, 0], &area[..], b"one\0\xff\xfe\0\0"].concat());
    }
}
