use proptest::prelude::*;

use super::*;
use crate::pe::{self, u32_at};

const COFF: usize = 0x84;
const OPTIONAL: usize = COFF + 20;
const TABLE: usize = OPTIONAL + 240;
const HEADERS: usize = 0x400;

/// The smallest program that passes for a stub: headers of 1 KiB and one section of code.
fn stub() -> Vec<u8> {
    let mut out = vec![0; HEADERS + 0x200];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(COFF, &0x8664u16.to_le_bytes());
    put(COFF + 2, &1u16.to_le_bytes());
    put(COFF + 16, &240u16.to_le_bytes());
    put(OPTIONAL, &0x20bu16.to_le_bytes());
    put(OPTIONAL + 32, &0x1000u32.to_le_bytes());
    put(OPTIONAL + 36, &0x200u32.to_le_bytes());
    put(OPTIONAL + 60, &0x400u32.to_le_bytes());
    put(OPTIONAL + 64, &0xdead_beefu32.to_le_bytes());
    put(OPTIONAL + 68, &10u16.to_le_bytes());
    put(OPTIONAL + 108, &16u32.to_le_bytes());
    put(TABLE, b".text\0\0\0");
    for (nth, value) in [0x1f0u32, 0x5000, 0x200, 0x400].into_iter().enumerate() {
        put(TABLE + 8 + nth * 4, &value.to_le_bytes());
    }
    out
}

const PARTS: Parts<'_> = Parts {
    os_release: "ID=muster\n",
    cmdline: "console=ttyS0 quiet",
    kernel_len: 5000,
    initrd_len: 777,
};

fn kernel(len: u64) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

fn initrd(len: u64) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 13 + 100).unwrap()).collect()
}

/// What a server that streams `segments` sends.
fn stream(uki: &Uki, parts: &Parts<'_>, segments: &[Segment]) -> Vec<u8> {
    let (kernel, initrd) = (kernel(parts.kernel_len), initrd(parts.initrd_len));
    let mut out = Vec::new();
    for segment in segments {
        let range =
            usize::try_from(segment.offset).unwrap()..usize::try_from(segment.offset + segment.len).unwrap();
        match segment.source {
            Source::Header => out.extend(&uki.header()[range]),
            Source::Kernel => out.extend(&kernel[range]),
            Source::Initrd => out.extend(&initrd[range]),
            Source::Padding => out.resize(out.len() + range.len(), 0),
        }
    }
    out
}

/// Name, bytes and address of each section, read anew from a finished image.
fn sections(image: &[u8]) -> Vec<(String, Vec<u8>, u32)> {
    let count = u16::from_le_bytes(image[COFF + 2..COFF + 4].try_into().unwrap());
    let entries = image[TABLE..].chunks_exact(pe::SECTION).take(count.into());
    let read = |entry: &[u8]| {
        let name = String::from_utf8(entry[..8].to_vec())
            .unwrap()
            .trim_end_matches('\0')
            .to_owned();
        let [len, address, _, at] = [8, 12, 16, 20].map(|field| u32_at(entry, field).unwrap());
        (name, image[at as usize..][..len as usize].to_vec(), address)
    };
    entries.map(read).collect()
}

#[test]
fn a_finished_image_has_every_section() {
    let uki = Uki::new(&stub(), &PARTS).unwrap();
    let image = stream(&uki, &PARTS, uki.segments());
    assert_eq!(image.len() as u64, uki.len());
    let expected = [
        (
            ".text".to_owned(),
            stub()[HEADERS..HEADERS + 0x1f0].to_vec(),
            0x5000,
        ),
        (".osrel".to_owned(), b"ID=muster\n".to_vec(), 0x6000),
        (".cmdline".to_owned(), b"console=ttyS0 quiet".to_vec(), 0x7000),
        (".linux".to_owned(), kernel(5000), 0x8000),
        (".initrd".to_owned(), initrd(777), 0xa000),
    ];
    assert_eq!(sections(&image), expected);
    assert_eq!(u32_at(&image, OPTIONAL + 56), Ok(0xb000), "size of image");
    assert_eq!(u32_at(&image, OPTIONAL + 64), Ok(0), "checksum");
}

#[test]
fn a_signed_stub_is_refused() {
    let mut signed = stub();
    signed[OPTIONAL + 112 + 4 * 8 + 4] = 1;
    assert_eq!(Uki::new(&signed, &PARTS), Err(UkiError::Stub(PeError::Signed)));
}

#[test]
fn a_finished_image_is_no_stub() {
    let uki = Uki::new(&stub(), &PARTS).unwrap();
    let image = stream(&uki, &PARTS, uki.segments());
    let error = Uki::new(&image, &PARTS).unwrap_err();
    assert_eq!(
        error,
        UkiError::Stub(PeError::Taken {
            name: ".osrel".to_owned()
        })
    );
}

#[test]
fn headers_without_room_are_an_error() {
    let mut full = stub();
    full[OPTIONAL + 60..OPTIONAL + 64].copy_from_slice(&0x200u32.to_le_bytes());
    assert_eq!(
        Uki::new(&full, &PARTS),
        Err(UkiError::Stub(PeError::Room { count: 4 }))
    );
}

#[test]
fn parts_that_boot_nothing_are_refused() {
    let with = |cmdline, kernel_len, initrd_len| {
        Uki::new(
            &stub(),
            &Parts {
                cmdline,
                kernel_len,
                initrd_len,
                ..PARTS
            },
        )
    };
    assert_eq!(with("", 0, 1), Err(UkiError::Empty("kernel")));
    assert_eq!(with("", 1, 0), Err(UkiError::Empty("initrd")));
    assert_eq!(with("a\nb", 1, 1), Err(UkiError::Cmdline("a\nb".to_owned())));
    assert_eq!(with("", u64::MAX, 1), Err(UkiError::Stub(PeError::Long)));
    assert_eq!(
        with("", 1, u64::from(u32::MAX) - 100),
        Err(UkiError::Stub(PeError::Long))
    );
}

#[test]
fn every_cut_of_the_headers_is_an_error() {
    let whole = stub();
    for len in 0..whole.len() {
        assert!(Uki::new(&whole[..len], &PARTS).is_err(), "{len}");
    }
}

proptest! {
    #[test]
    fn any_range_is_that_part_of_the_image(start in 0..9000u64, len in 0..9000u64, kernel_len in 1..3000u64) {
        let parts = Parts { kernel_len, ..PARTS };
        let uki = Uki::new(&stub(), &parts).unwrap();
        let image = stream(&uki, &parts, uki.segments());
        let [from, to] = [start, start + len].map(|at| usize::try_from(at).unwrap().min(image.len()));
        prop_assert_eq!(stream(&uki, &parts, &uki.slice(start..start + len)), &image[from..to]);
    }

    #[test]
    fn random_stubs_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(Uki::new(&bytes, &PARTS).is_err());
    }

    #[test]
    fn damaged_stubs_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = stub();
        for (at, value) in damage {
            bytes[at.index(TABLE + 80)] = value;
        }
        if let Ok(uki) = Uki::new(&bytes, &PARTS) {
            prop_assert!(uki.len() >= bytes.len() as u64 + PARTS.kernel_len + PARTS.initrd_len);
        }
    }
}
