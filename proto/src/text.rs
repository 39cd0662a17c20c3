//! Text that hardware or a stranger on the network wrote, made fit to show, store and name things with.
//!
//! Everything that comes from firmware, a packet or an agent passes through here before it reaches a log,
//! a terminal, an iPXE script, a label or an object's name.

/// The longest hardware string that is kept, in bytes; SMBIOS strings are at most 64 by the specification.
pub const MAX: usize = 256;

/// `raw` without control characters (ANSI escapes, newlines, NULs), trimmed, inner white space folded, at most [`MAX`] bytes.
///
/// Bytes that are no UTF-8 become U+FFFD, so that nothing is silently dropped.
pub fn clean(raw: &[u8]) -> String {
    clean_to(raw, MAX)
}

/// The same with at most `max` bytes.
pub fn clean_to(raw: &[u8], max: usize) -> String {
    let decoded = String::from_utf8_lossy(raw);
    let mut out = String::with_capacity(decoded.len().min(max));
    for c in decoded.chars() {
        let c = if c.is_control() || c.is_whitespace() || is_invisible(c) {
            ' '
        } else {
            c
        };
        if c == ' ' && (out.is_empty() || out.ends_with(' ')) {
            continue;
        }
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out
}

/// What is shown as nothing, or changes how the text around it is shown, so that two texts look the same: Unicode's
/// `Default_Ignorable_Code_Point` (DerivedCoreProperties), which has all of `Bidi_Control` in it.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Values that firmware carries when nobody filled them in: their letters and digits in lower case, since vendors write them with all
/// kinds of signs between.
const PLACEHOLDERS: &[&str] = &[
    "tobesetbyoem",
    "filledbyoem",
    "fillbyoem",
    "setbyoem",
    "tbd",
    "defaultstring",
    "default",
    "systemserialnumber",
    "systemproductname",
    "systemmanufacturer",
    "systemversion",
    "baseboardserialnumber",
    "boardserialnumber",
    "chassisserialnumber",
    "serialnumber",
    "notspecified",
    "notapplicable",
    "notavailable",
    "notsettable",
    "notset",
    "notpresent",
    "noassettag",
    "assettag",
    "none",
    "null",
    "undefined",
    "na",
    "oem",
    "oemnotspecify",
    "unknown",
    "unknow",
    "nullstring",
    "invalid",
    "empty",
    "eval",
    "iatpass",
    "0123456789abcdef",
    "123456789abcdef",
];

/// How further such values begin, of which the rest differs.
const PLACEHOLDER_STARTS: &[&str] = &["tobefilledbyoem", "serialnumberx", "type1", "type2"];

/// What vendors write before digits that only count: `SYS-1234567890`.
const COUNTED: &[&str] = &["chassis", "ssn", "sys", "nb", "mb", "sn"];

/// `value` if it says something about this one machine: `None` for what vendors ship unfilled (`To Be Filled By O.E.M.`,
/// all zeros, one character repeated, digits that only count, two digits at most, empty).
pub fn usable(value: &str) -> Option<&str> {
    let value = value.trim();
    let signs = value.chars().filter(|sign| sign.is_alphanumeric());
    let signs: String = signs.flat_map(char::to_lowercase).collect();
    let first = signs.chars().next()?;
    let repeated = signs.chars().all(|sign| sign == first);
    let unfilled = PLACEHOLDERS.contains(&signs.as_str())
        || PLACEHOLDER_STARTS.iter().any(|start| signs.starts_with(start));
    (!repeated && !unfilled && !is_mere_number(&signs)).then_some(value)
}

/// True if `signs` are two digits at most, or five or more that count up or down, 0 after 9; in front of these may stand one of [`COUNTED`].
fn is_mere_number(signs: &str) -> bool {
    let bare = COUNTED.iter().find_map(|start| signs.strip_prefix(start));
    let digits = bare.unwrap_or(signs).as_bytes();
    if !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let steps = |step: u8| {
        let mut pairs = digits.windows(2);
        pairs.all(|pair| matches!(pair, [one, next] if (*next + 10 - *one) % 10 == step))
    };
    let is_short = bare.is_none() && digits.len() < 3;
    is_short || (digits.len() >= 5 && (steps(1) || steps(9)))
}

/// The usable form of an SMBIOS system UUID: lower case, 36 characters.
///
/// All zeros and all ones mean "not set" (SMBIOS 3.x, 7.2.1); some vendors ship one UUID on every board, in either byte order.
pub fn usable_uuid(value: &str) -> Option<String> {
    const SHIPPED_ON_EVERY_BOARD: &[&str] = &[
        "03000200-0400-0500-0006-000700080009",
        "12345678-1234-5678-90ab-cddeefaabbcc",
        "02000100-0300-0400-0005-000600070008",
        "03020100-0504-0706-0809-0a0b0c0d0e0f",
        "07090201-0103-0301-0807-060504030201",
        "10000000-0000-8000-0040-000000000000",
        "11111111-2222-3333-4444-555555555555",
        // Dell's, of a replaced board into which nobody wrote the service tag: in its place are spaces.
        "4c4c4544-0000-2010-8020-80c04f202020",
    ];
    let lower = value.trim().to_lowercase();
    let shape = lower.len() == 36
        && lower.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if !shape {
        return None;
    }
    let digits = lower.replace('-', "");
    let digits = digits.as_bytes();
    let repeated = digits.chunks(2).all(|byte| digits.starts_with(byte));
    let swapped = swapped_uuid(&lower)?;
    let shipped = [lower.as_str(), swapped.as_str()]
        .iter()
        .any(|uuid| SHIPPED_ON_EVERY_BOARD.contains(uuid))
        // Only the first field was filled in.
        || lower.ends_with("-ffff-ffff-ffff-ffffffffffff");
    (!repeated && !shipped).then_some(lower)
}

/// True if `one` and `other`, both in their usable form, mean the same system: firmware, BMCs and kernels disagree about the byte order of
/// the first three fields (SMBIOS 3.x, 7.2.1).
pub fn is_same_uuid(one: &str, other: &str) -> bool {
    one == other || swapped_uuid(one).as_deref() == Some(other)
}

/// `uuid` with its first three fields in the other byte order (SMBIOS 3.x, 7.2.1).
pub fn swapped_uuid(uuid: &str) -> Option<String> {
    let mut fields = uuid.split('-');
    let mut out = String::with_capacity(uuid.len());
    for _ in 0..3 {
        let field = fields.next()?;
        let mut at = field.len();
        while at >= 2 {
            out.push_str(field.get(at - 2..at)?);
            at -= 2;
        }
        out.push('-');
    }
    out.push_str(&fields.collect::<Vec<_>>().join("-"));
    Some(out)
}

/// `value` as part of a DNS-1123 label: lower case, every run of other characters one `-`, none at the ends, at most `max` bytes.
/// Empty if nothing is left.
pub fn dns_label(value: &str, max: usize) -> String {
    let mut out = String::new();
    for c in value.chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => out.push(c),
            _ if out.is_empty() || out.ends_with('-') => {}
            _ => out.push('-'),
        }
    }
    out.truncate(max);
    out.truncate(out.trim_end_matches('-').len());
    out
}

/// True if `text` can be the name of a Kubernetes object: a DNS-1123 subdomain (RFC 1123, 2.1), 253 bytes at most.
pub fn is_dns_subdomain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
            ends(label.bytes().next())
                && ends(label.bytes().last())
                && label
                    .bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        })
}

/// `value` as a Kubernetes label value: `[A-Za-z0-9._-]`, at most 63 bytes, ends alphanumeric. Empty if nothing is left.
pub fn label_value(value: &str) -> String {
    let mut out = String::new();
    for c in value.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' => out.push(c),
            _ if out.is_empty() => {}
            '.' | '_' | '-' => out.push(c),
            _ if out.ends_with('-') => {}
            _ => out.push('-'),
        }
    }
    out.truncate(63);
    out.truncate(out.trim_end_matches(['.', '_', '-']).len());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_uuid_in_the_other_byte_order_is_the_same() {
        let (one, other) = (
            "4c4c4544-0035-4b10-8032-cac04f583933",
            "44454c4c-3500-104b-8032-cac04f583933",
        );
        assert!(is_same_uuid(one, other) && is_same_uuid(other, one));
        assert!(is_same_uuid(one, one));
        assert!(!is_same_uuid(one, "4c4c4544-0035-4b10-8032-cac04f583934"));
        assert!(!is_same_uuid("4c4c4544", one));
    }

    #[test]
    fn what_vendors_ship_unfilled_is_not_usable() {
        for junk in [
            "",
            "  ",
            "To Be Filled By O.E.M.",
            "To Be Filled By O.E.M",
            "to be filled by OEM",
            "Not-Specified",
            "N/A",
            "0123456789ABCDEF",
            "00000000",
            "0000-0000",
            "FFFFFFFF",
            "Default string",
            "None",
            ".......",
            "System Serial Number",
            "To be filled by O.E.M. by More String",
            "Serial Number xxxxxx",
            "Type1 - Serial Number0",
            "Type2 - Board Serial Number",
            "(null string)",
            "Unknow",
            "EVAL",
            "IATPASS",
            "OEM not specify",
            "-64",
            "12345",
            "0123456789",
            "12345678901234567",
            "SYS-1234567890",
            "SYS-9876543210",
            "MB-1234567890",
            "SN-12345",
            "SSN12345678901234567890",
            "NB-1234567890",
            "Chassis-1234567890",
        ] {
            assert_eq!(usable(junk), None, "{junk:?}");
        }
        assert_eq!(usable(" J5K2X93 "), Some("J5K2X93"));
        for real in [
            "CZ3415ABCD",
            "S123456X0123456",
            "MB1234567891",
            "SN12346",
            "SN1",
            "1234",
            "13579",
            "A1",
            "HP",
            "640",
            "TYPEX1",
            "LAB-7",
            "SIM0000001",
        ] {
            assert_eq!(usable(real), Some(real));
        }
    }

    #[test]
    fn placeholder_uuids_are_not_usable() {
        for junk in [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "fefefefe-fefe-fefe-fefe-fefefefefefe",
            "58585858-5858-5858-5858-585858585858",
            "56f49712-ffff-ffff-ffff-ffffffffffff",
            "03000200-0400-0500-0006-000700080009",
            "00020003-0004-0005-0006-000700080009",
            "12345678-1234-5678-90ab-cddeefaabbcc",
            "02000100-0300-0400-0005-000600070008",
            "03020100-0504-0706-0809-0a0b0c0d0e0f",
            "07090201-0103-0301-0807-060504030201",
            "10000000-0000-8000-0040-000000000000",
            "11111111-2222-3333-4444-555555555555",
            "4C4C4544-0000-2010-8020-80C04F202020",
            "Not Settable",
            "",
        ] {
            assert_eq!(usable_uuid(junk), None, "{junk:?}");
            let swapped = swapped_uuid(junk).unwrap_or_default();
            assert_eq!(usable_uuid(&swapped), None, "{junk:?} in the other byte order");
        }
        assert_eq!(
            usable_uuid("4C4C4544-0035-4B10-8032-CAC04F583933").as_deref(),
            Some("4c4c4544-0035-4b10-8032-cac04f583933")
        );
    }

    #[test]
    fn escapes_and_newlines_never_survive() {
        assert_eq!(clean(b"\x1b[31mevil\x1b[0m\n#!ipxe\0"), "[31mevil [0m #!ipxe");
        assert_eq!(clean("a\u{202e}b".as_bytes()), "a b");
        assert_eq!(clean(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn nothing_that_hides_or_turns_text_round_survives() {
        let bidi_controls = ['\u{61c}', '\u{200e}', '\u{200f}']
            .into_iter()
            .chain('\u{202a}'..='\u{202e}')
            .chain('\u{2066}'..='\u{2069}');
        let others = [
            '\u{ad}', '\u{34f}', '\u{180e}', '\u{200b}', '\u{2060}', '\u{3164}', '\u{fe0f}', '\u{feff}',
        ];
        let tags = '\u{e0000}'..='\u{e007f}';
        for c in bidi_controls.chain(others).chain(tags) {
            let text = clean(format!("SN{c}1").as_bytes());
            assert_eq!(text, "SN 1", "{:x}", u32::from(c));
        }
    }

    proptest! {
        #[test]
        fn clean_text_is_clean(raw: Vec<u8>) {
            let text = clean(&raw);
            prop_assert!(text.len() <= MAX);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(clean(text.as_bytes()), text);
        }

        #[test]
        fn names_are_dns_labels(value: String, max in 1_usize..63) {
            let name = dns_label(&value, max);
            prop_assert!(name.len() <= max);
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'));
            prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        }

        #[test]
        fn labels_are_valid(value: String) {
            let label = label_value(&value);
            prop_assert!(label.len() <= 63);
            prop_assert!(label.is_empty() || label.starts_with(|c: char| c.is_ascii_alphanumeric()));
            prop_assert!(label.is_empty() || label.ends_with(|c: char| c.is_ascii_alphanumeric()));
        }
    }
}
