//! Shell patterns as the kernel's modules use them in aliases and firmware names: `*`, `?` and `[...]` (fnmatch(3)
//! without special treatment of slashes).

/// Whether `text` matches `pattern` as a whole.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on if the last star must take one byte more.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        if let Some(taken) = match_one(&pattern[p..], text[t]) {
            p += taken;
            t += 1;
            continue;
        }
        let Some((star, from)) = retry else { return false };
        p = star;
        t = from + 1;
        retry = Some((star, t));
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Whether `text` has any character that [`matches`] treats specially.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// How many bytes of `pattern` the byte `c` satisfies, if it does.
fn match_one(pattern: &[u8], c: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let Some((inside, len)) = class(pattern) else {
                // An unclosed bracket is an ordinary character.
                return (c == b'[').then_some(1);
            };
            let (negated, inside) = match inside {
                [b'!' | b'^', rest @ ..] => (true, rest),
                inside => (false, inside),
            };
            (in_class(inside, c) != negated).then_some(len)
        }
        b'\\' if pattern.len() > 1 => (pattern[1] == c).then_some(2),
        own => (*own == c).then_some(1),
    }
}

/// What stands between the brackets at the start of `pattern`, and the length with both brackets.
fn class(pattern: &[u8]) -> Option<(&[u8], usize)> {
    // A closing bracket right after the opening one, or its negation, stands for itself.
    let first = if matches!(pattern.get(1), Some(b'!' | b'^')) {
        2
    } else {
        1
    };
    let close = pattern.iter().skip(first + 1).position(|byte| *byte == b']')? + first + 1;
    Some((&pattern[1..close], close + 1))
}

fn in_class(mut inside: &[u8], c: u8) -> bool {
    while let Some((&low, rest)) = inside.split_first() {
        if let [b'-', high, rest @ ..] = rest {
            if (low..=*high).contains(&c) {
                return true;
            }
            inside = rest;
        } else {
            if low == c {
                return true;
            }
            inside = rest;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_in_module_aliases() {
        let virtio = "pci:v00001AF4d*sv*sd*bc*sc*i*";
        assert!(matches(
            virtio,
            "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00"
        ));
        assert!(!matches(
            virtio,
            "pci:v00008086d00001041sv00001AF4sd00001100bc02sc00i00"
        ));
        assert!(matches(
            "usb:v*p*d*dc*ic08isc0[5-6]ip*",
            "usb:v1p2d3dc0ic08isc05ip50"
        ));
        assert!(!matches(
            "usb:v*p*d*dc*ic08isc0[5-6]ip*",
            "usb:v1p2d3dc0ic08isc04ip50"
        ));
        assert!(matches("a[!b]?", "acd") && !matches("a[!b]?", "abd"));
        assert!(matches("a[]]", "a]") && matches("[", "[") && matches("\\*", "*") && !matches("\\*", "a"));
        assert!(matches("", "") && matches("**", "") && !matches("?", "") && !matches("a", "ab"));
    }

    proptest! {
        #[test]
        fn a_star_takes_anything(head in "[a-z]{0,5}", middle in any::<String>(), tail in "[a-z]{0,5}") {
            let pattern = format!("{head}*{tail}");
            let text = format!("{head}{middle}{tail}");
            prop_assert!(matches(&pattern, &text));
        }

        #[test]
        fn any_pattern_never_panics(pattern in "[]a\\[!^*?\\\\-]{0,12}", text in "[]a\\[-]{0,12}") {
            let _ = matches(&pattern, &text);
        }
    }
}
