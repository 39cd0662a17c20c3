//! Shell patterns as `modules.alias` uses them: `*`, `?`, `[set]`, `[!set]`, `\` before a literal (POSIX `fnmatch` without flags).

/// True if `pattern` matches all of `text`. Takes at most `pattern.len() * text.len()` steps, whatever the pattern.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where to take up again after the last `*`: the pattern behind it, and the first byte it does not yet cover.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(from) {
        match step(&pattern[at..], byte) {
            Step::Star => {
                at += 1;
                star = Some((at, from));
            }
            Step::Match(length) => {
                at += length;
                from += 1;
            }
            Step::Differ => {
                let Some((behind, covered)) = star else {
                    return false;
                };
                star = Some((behind, covered + 1));
                (at, from) = (behind, covered + 1);
            }
        }
    }
    pattern[at..].iter().all(|sign| *sign == b'*')
}

/// The bytes at the start of `pattern` that every match starts with.
pub fn literal_prefix(pattern: &[u8]) -> &[u8] {
    let end = pattern
        .iter()
        .position(|sign| matches!(sign, b'*' | b'?' | b'[' | b'\\'));
    &pattern[..end.unwrap_or(pattern.len())]
}

enum Step {
    Star,
    /// The next so many bytes of the pattern match this one byte of text.
    Match(usize),
    Differ,
}

fn step(pattern: &[u8], byte: u8) -> Step {
    let literal = |sign: u8, length: usize| {
        if sign == byte {
            Step::Match(length)
        } else {
            Step::Differ
        }
    };
    match pattern {
        [] => Step::Differ,
        [b'*', ..] => Step::Star,
        [b'?', ..] => Step::Match(1),
        [b'[', rest @ ..] => match set(rest, byte) {
            Some((true, length)) => Step::Match(1 + length),
            Some((false, _)) => Step::Differ,
            None => literal(b'[', 1),
        },
        [b'\\', sign, ..] => literal(*sign, 2),
        [sign, ..] => literal(*sign, 1),
    }
}

/// Whether the set behind a `[` holds `byte`, and how long the set is with its `]`; `None` if no `]` closes it.
fn set(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    let mut found = false;
    let mut at = start;
    loop {
        let low = *pattern.get(at)?;
        // A `]` that comes first stands for itself.
        if low == b']' && at > start {
            return Some((found != negated, at + 1));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            _ => {
                found |= low == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_in_fnmatch() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "pci:v1", true),
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
            ("virtio:d00000001v*", "virtio:d00000002v00001AF4", false),
            (
                "pci:v*d*sv*sd*bc01sc08i02*",
                "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02",
                true,
            ),
            (
                "pci:v*d*sv*sd*bc01sc08i02*",
                "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc06i02",
                false,
            ),
            ("acpi*:PNP0C0A:*", "acpi:PNP0C0A:", true),
            (
                "usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*",
                "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00",
                true,
            ),
            ("usb:v045Ep028[89A]d*", "usb:v045Ep028Ad0110", true),
            ("usb:v045Ep028[89A]d*", "usb:v045Ep028Bd0110", false),
            ("a[0-9]c", "a5c", true),
            ("a[!0-9]c", "a5c", false),
            ("a[^0-9]c", "axc", true),
            ("a[]x]c", "a]c", true),
            ("a[b-]c", "a-c", true),
            ("a[bc", "a[bc", true),
            ("a\\*c", "a*c", true),
            ("a\\*c", "abc", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*c", "abbcbc", true),
            ("*b*d", "abbcbc", false),
            ("dmi*:svn*:", "dmi:bvnSeaBIOS:svnQEMU:", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} on {text}"
            );
        }
    }

    /// The definition, without a thought for speed.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (step(pattern, text.first().copied().unwrap_or(0)), pattern, text) {
            (_, [], _) => text.is_empty(),
            (Step::Star, ..) => slow(&pattern[1..], text) || (!text.is_empty() && slow(pattern, &text[1..])),
            (_, _, []) => false,
            (Step::Match(length), ..) => slow(&pattern[length..], &text[1..]),
            (Step::Differ, ..) => false,
        }
    }

    proptest! {
        #[test]
        fn any_pattern_agrees_with_the_definition(pattern in "[ab*?\\[\\]!\\-\\\\]{0,10}", text in "[ab\\]\\-]{0,8}") {
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), slow(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(pattern: Vec<u8>, text: Vec<u8>) {
            matches(&pattern, &text);
        }

        #[test]
        fn what_matches_starts_with_the_literal_prefix(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assume!(matches(pattern, text));
            prop_assert!(text.starts_with(literal_prefix(pattern)));
        }
    }
}
