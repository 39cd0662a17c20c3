use proptest::prelude::*;

use super::*;

/// A relocatable object with these sections, each named and aligned to eight bytes.
pub(crate) fn object(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = vec![0];
    let mut out = vec![0; HEADER];
    let mut table = vec![0; SECTION_HEADER];
    let own_names = (".shstrtab", &[][..]);
    for (at, (name, data)) in sections.iter().chain([&own_names]).enumerate() {
        let name_at = u32::try_from(names.len()).unwrap();
        names.extend(name.bytes().chain([0]));
        let data = if at == sections.len() { &names } else { *data };
        out.resize(out.len().next_multiple_of(8), 0);
        let mut header = [0; SECTION_HEADER];
        header[..4].copy_from_slice(&name_at.to_le_bytes());
        header[4..8].copy_from_slice(&1u32.to_le_bytes());
        header[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(data.len() as u64).to_le_bytes());
        header[48..56].copy_from_slice(&8u64.to_le_bytes());
        table.extend(header);
        out.extend(data);
    }
    let count = u16::try_from(sections.len() + 2).unwrap();
    let table_at = out.len() as u64;
    out[..6].copy_from_slice(b"\x7fELF\x02\x01");
    out[40..48].copy_from_slice(&table_at.to_le_bytes());
    out[58..60].copy_from_slice(&64u16.to_le_bytes());
    out[60..62].copy_from_slice(&count.to_le_bytes());
    out[62..64].copy_from_slice(&(count - 1).to_le_bytes());
    out.extend(table);
    out
}

const MODULE: &[(&str, &[u8])] = &[
    (".text", b"code"),
    (".rela.text", b"relocations"),
    (".BTF", &[7; 4000]),
    (".orc_unwind_ip", &[7; 4000]),
    (".rela.orc_unwind_ip", &[7; 4000]),
    (".modinfo", b"name=x\0"),
    (".debug_info", &[7; 4000]),
    (".symtab", b"symbols"),
];

#[test]
fn sections_are_found_by_name() {
    let object = object(MODULE);
    let elf = Elf::parse(&object).unwrap();
    assert_eq!(elf.section(".modinfo"), Some(b"name=x\0".as_slice()));
    assert_eq!(elf.section(".nothing"), None);
}

#[test]
fn stripping_drops_ballast_and_signature_and_keeps_every_index() {
    let signed = [object(MODULE), b"signature~Module signature appended~\n".to_vec()].concat();
    let before = Elf::parse(&signed).unwrap();
    let bytes = before.stripped();
    let after = Elf::parse(&bytes).unwrap();
    assert!(bytes.len() < 1500, "{}", bytes.len());
    assert!(!bytes.windows(9).any(|window| window == b"signature"));
    assert_eq!(after.sections.len(), before.sections.len());
    for (old, new) in before.sections.iter().zip(&after.sections) {
        assert_eq!(old.name, new.name);
        let expected = if is_ballast(old.name) {
            &[][..]
        } else {
            &signed[old.data.clone()]
        };
        assert_eq!(&bytes[new.data.clone()], expected, "{}", old.name);
        assert_eq!(new.data.start % new.align, 0, "{}", old.name);
    }
    assert_eq!(after.stripped(), bytes, "nothing is left to strip");
}

#[test]
fn foreign_files_are_refused() {
    assert_eq!(Elf::parse(b"").unwrap_err(), ElfError::NotElf64);
    assert_eq!(Elf::parse(&[0; 100]).unwrap_err(), ElfError::NotElf64);
    let mut big_endian = object(MODULE);
    big_endian[5] = 2;
    assert_eq!(Elf::parse(&big_endian).unwrap_err(), ElfError::NotElf64);
    let whole = object(MODULE);
    assert_eq!(
        Elf::parse(&whole[..whole.len() - 1]).unwrap_err(),
        ElfError::Table
    );
}

proptest! {
    #[test]
    fn random_objects_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut object = object(MODULE);
        for (at, value) in damage {
            // Half of the damage goes where it hurts: the header and the section table.
            let at = at.index(object.len());
            let near_end = object.len() - 1 - at % (10 * SECTION_HEADER);
            object[if value % 2 == 0 { near_end } else { at % HEADER }] = value;
        }
        object.truncate(object.len() - cut.index(object.len()) / 64);
        if let Ok(elf) = Elf::parse(&object) {
            let _ = elf.section(".modinfo");
            let _ = Elf::parse(&elf.stripped());
        }
    }
}
