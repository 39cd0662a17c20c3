//! SCSI vital product data pages as sysfs shows them (SPC-4 7.8, SAT-3 12.4.2). Total: any bytes give a value or none.

use muster_proto::text;

/// A world wide name: NAA 2, 3 or 5 in 8 bytes, NAA 6 in 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Naa {
    first: u64,
    /// The vendor's part of NAA 6.
    extension: Option<u64>,
}

/// What a SATA disk says of itself behind a SCSI translation, whose own fields are too short for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identify {
    pub(super) model: String,
    pub(super) serial: String,
    pub(super) firmware: String,
    pub(super) wwn: Option<Naa>,
}

/// The payload of a page, if it is the page asked for.
fn page(raw: &[u8], code: u8) -> Option<&[u8]> {
    let [_, found, high, low, rest @ ..] = raw else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    (*found == code).then(|| rest.get(..length).unwrap_or(rest))
}

/// Page 0x80, the unit's serial number; empty if it is none.
pub(super) fn serial(raw: &[u8]) -> String {
    text::clean(page(raw, 0x80).unwrap_or_default())
}

/// The world wide name of the unit in page 0x83: of several the longest form, as udev chooses.
pub(super) fn naa(raw: &[u8]) -> Option<Naa> {
    const BINARY: u8 = 1;
    const NAA: u8 = 3;
    const UNIT: u8 = 0;
    let mut rest = page(raw, 0x83)?;
    let mut best: Option<(u8, Naa)> = None;
    while let [code_set, kind, _, length, after @ ..] = rest {
        let Some((value, next)) = after.split_at_checked((*length).into()) else {
            break;
        };
        rest = next;
        // Other associations name the port or the target, which several disks share.
        let of_unit = (kind >> 4) & 3 == UNIT;
        if code_set & 0xf == BINARY && kind & 0xf == NAA && of_unit {
            let Some(naa) = Naa::from_bytes(value) else {
                continue;
            };
            let rank = naa.rank();
            if best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, naa));
            }
        }
    }
    best.map(|(_, naa)| naa)
}

/// Page 0x89: the IDENTIFY DEVICE data of an ATA disk.
pub(super) fn identify(raw: &[u8]) -> Option<Identify> {
    const IDENTIFY_DEVICE: u8 = 0xec;
    let payload = page(raw, 0x89)?;
    // Offsets of SAT count the page's 4 bytes of header.
    if *payload.get(56 - 4)? != IDENTIFY_DEVICE {
        return None;
    }
    let words = payload.get(60 - 4..60 - 4 + 512)?;
    // ATA strings have the first character in the high byte of a little-endian word (ACS-4 3.4.9).
    let string = |first: usize, last: usize| {
        let swapped: Vec<u8> = words[first * 2..=last * 2 + 1]
            .chunks_exact(2)
            .flat_map(|pair| [pair[1], pair[0]])
            .collect();
        text::clean(&swapped)
    };
    let word = |at: usize| u16::from_le_bytes([words[at * 2], words[at * 2 + 1]]);
    // Word 87 bit 8 says that words 108 to 111 hold a name, bits 15:14 = 01 that word 87 is valid (ACS-4 7.12.7).
    let named = word(87) & 0xc100 == 0x4100;
    let first = (108..=111).fold(0, |name, at| (name << 16) | u64::from(word(at)));
    Some(Identify {
        serial: string(10, 19),
        firmware: string(23, 26),
        model: string(27, 46),
        wwn: (named && first != 0).then_some(Naa {
            first,
            extension: None,
        }),
    })
}

impl Naa {
    fn from_bytes(bytes: &[u8]) -> Option<Naa> {
        let (first, rest) = bytes.split_first_chunk::<8>()?;
        let first = u64::from_be_bytes(*first);
        match first >> 60 {
            6 => Some(Naa {
                first,
                extension: Some(u64::from_be_bytes(*rest.first_chunk()?)),
            }),
            2 | 3 | 5 => Some(Naa {
                first,
                extension: None,
            }),
            _ => None,
        }
    }

    /// From the kernel's `wwid`, such as `naa.5000c500a0b1c2d3`; `None` for other kinds of it.
    pub(super) fn from_wwid(wwid: &str) -> Option<Naa> {
        let digits = wwid.strip_prefix("naa.")?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let bytes: Vec<u8> = (0..digits.len() / 2)
            .filter_map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).ok())
            .collect();
        Naa::from_bytes(&bytes)
    }

    fn rank(self) -> u8 {
        match self.first >> 60 {
            6 => 3,
            5 => 2,
            2 => 1,
            _ => 0,
        }
    }

    /// `0x` and 16 digits.
    pub(super) fn name(self) -> String {
        format!("{:#018x}", self.first)
    }

    /// `0x` and 16 digits; empty without an extension.
    pub(super) fn vendor_extension(self) -> String {
        self.extension
            .map_or_else(String::new, |extension| format!("{extension:#018x}"))
    }

    /// `0x` and 32 digits, or [`Naa::name`] without an extension.
    pub(super) fn with_extension(self) -> String {
        let extension = self.extension.map(|extension| format!("{extension:016x}"));
        self.name() + &extension.unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page of `code` around `payload`.
    pub(in super::super) fn page_of(code: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0, code, length[0], length[1]], payload].concat()
    }

    /// A designator of page 0x83, binary.
    pub(in super::super) fn designator(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[1, kind, 0, u8::try_from(value.len()).unwrap()], value].concat()
    }

    /// Page 0x89 of a SATA disk.
    pub(in super::super) fn ata_page(model: &str, serial: &str, firmware: &str, wwn: u64) -> Vec<u8> {
        let mut words = [0_u8; 512];
        let mut put = |at: usize, text: &str, width: usize| {
            let padded = format!("{text:width$}");
            for (index, byte) in padded.bytes().take(width).enumerate() {
                words[at * 2 + (index ^ 1)] = byte;
            }
        };
        put(10, serial, 20);
        put(23, firmware, 8);
        put(27, model, 40);
        words[87 * 2 + 1] = 0x41;
        for (index, pair) in wwn.to_be_bytes().chunks_exact(2).enumerate() {
            words[(108 + index) * 2] = pair[1];
            words[(108 + index) * 2 + 1] = pair[0];
        }
        let mut payload = vec![0; 56];
        payload[52] = 0xec;
        payload.extend(words);
        page_of(0x89, &payload)
    }

    #[test]
    fn naa_6_keeps_its_extension_and_wins() {
        let long = *b"\x60\x05\x07\x68\x0c\x80\x00\x00\x11\x22\x33\x44\x55\x66\x77\x88";
        let raw = page_of(
            0x83,
            &[
                designator(0x03, b"\x50\x00\xc5\x00\xa0\xb1\xc2\xd3"),
                designator(0x03, &long),
                designator(0x01, b"VENDOR  text"),
            ]
            .concat(),
        );
        let found = naa(&raw).unwrap();
        assert_eq!(found.name(), "0x600507680c800000");
        assert_eq!(found.vendor_extension(), "0x1122334455667788");
        assert_eq!(found.with_extension(), "0x600507680c8000001122334455667788");
    }

    #[test]
    fn the_name_of_the_port_is_not_the_disk_s() {
        let port = designator(0x13, b"\x50\x00\xc5\x00\xa0\xb1\xc2\xd2");
        let disk = designator(0x03, b"\x50\x00\xc5\x00\xa0\xb1\xc2\xd3");
        assert_eq!(naa(&page_of(0x83, &port)), None);
        let found = naa(&page_of(0x83, &[port, disk].concat())).unwrap();
        assert_eq!(found.with_extension(), "0x5000c500a0b1c2d3");
        assert_eq!(found.vendor_extension(), "");
    }

    #[test]
    fn wwid_gives_the_name_where_there_is_no_page() {
        let name = |wwid| Naa::from_wwid(wwid).map(Naa::with_extension);
        assert_eq!(
            name("naa.5000c500a0b1c2d3").as_deref(),
            Some("0x5000c500a0b1c2d3")
        );
        assert_eq!(
            name("naa.600507680c8000001122334455667788").as_deref(),
            Some("0x600507680c8000001122334455667788")
        );
        for other in [
            "t10.ATA QEMU",
            "naa.",
            "naa.5000",
            "naa.x000c500a0b1c2d3",
            "naa.é000c500a0b1c2d3",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn ata_strings_are_whole_and_in_order() {
        let raw = ata_page(
            "Samsung SSD 860 EVO 500GB",
            "S3Z2NB0K",
            "RVT01B6Q",
            0x5002_538e_4000_0001,
        );
        let found = identify(&raw).unwrap();
        assert_eq!(found.model, "Samsung SSD 860 EVO 500GB");
        assert_eq!(
            (found.serial.as_str(), found.firmware.as_str()),
            ("S3Z2NB0K", "RVT01B6Q")
        );
        assert_eq!(found.wwn.unwrap().name(), "0x5002538e40000001");
        assert_eq!(identify(&raw[..raw.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_none(code in prop::sample::select(vec![0x80_u8, 0x83, 0x89]), payload in prop::collection::vec(any::<u8>(), 0..600)) {
            let raw = page_of(code, &payload);
            for raw in [&raw[..], &payload] {
                let _ = serial(raw);
                let _ = naa(raw).map(Naa::with_extension);
                let _ = identify(raw);
            }
        }

        #[test]
        fn any_wwid_gives_a_value_or_none(wwid: String) {
            let _ = Naa::from_wwid(&wwid);
            let _ = Naa::from_wwid(&format!("naa.{wwid}"));
        }
    }
}
