//! The `Range` header of a GET (RFC 9110, 14): one range of bytes. Pure.

use std::ops::Range;

/// What a `Range` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything: no range, several ranges, other units or nonsense, which RFC 9110 lets a server ignore.
    Whole,
    /// These bytes; never empty, never beyond the end.
    Part(Range<u64>),
    /// A range that starts behind the end.
    Beyond,
}

/// What `header` asks for of a body of `len` bytes.
pub fn wanted(header: &[u8], len: u64) -> Wanted {
    parse(header, len).unwrap_or(Wanted::Whole)
}

fn parse(header: &[u8], len: u64) -> Option<Wanted> {
    let text = std::str::from_utf8(header).ok()?.trim();
    let (unit, ranges) = text.split_once('=')?;
    let (first, last) = ranges.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (start, end) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(len)),
        (Some(first), None) if last.is_empty() => (first, len),
        (None, Some(suffix)) if first.is_empty() => (len.saturating_sub(suffix), len),
        _ => return None,
    };
    Some(if start < end {
        Wanted::Part(start..end)
    } else {
        Wanted::Beyond
    })
}

/// A decimal number, nothing else around it. One that overflows is as good as the largest.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_form_of_a_range_is_understood() {
        for (header, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=2-5", Wanted::Part(2..6)),
            ("bytes=2-", Wanted::Part(2..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-30", Wanted::Part(0..10)),
            ("Bytes=9-99999999999999999999999", Wanted::Part(9..10)),
            ("bytes=10-", Wanted::Beyond),
            ("bytes=10-20", Wanted::Beyond),
            ("bytes=-0", Wanted::Beyond),
            ("bytes=99999999999999999999999-", Wanted::Beyond),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("0-1", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(wanted(header.as_bytes(), 10), expected, "{header}");
        }
        assert_eq!(wanted(b"bytes=0-", 0), Wanted::Beyond);
        assert_eq!(wanted(b"bytes=\xff", 10), Wanted::Whole);
    }

    proptest! {
        /// Against the plainest reading of the RFC: the set of positions that belong to the range.
        #[test]
        fn ranges_select_the_positions_that_the_rfc_says(len in 0_u64..50, first in 0_u64..60, last in 0_u64..60) {
            let of = |header: String| wanted(header.as_bytes(), len);
            let select = |keep: &dyn Fn(u64) -> bool| {
                let positions: Vec<u64> = (0..len).filter(|at| keep(*at)).collect();
                match (positions.first(), positions.last()) {
                    (Some(from), Some(to)) => Wanted::Part(*from..to + 1),
                    _ => Wanted::Beyond,
                }
            };
            if first <= last {
                prop_assert_eq!(of(format!("bytes={first}-{last}")), select(&|at| (first..=last).contains(&at)));
            }
            prop_assert_eq!(of(format!("bytes={first}-")), select(&|at| at >= first));
            prop_assert_eq!(of(format!("bytes=-{last}")), select(&|at| at + last >= len));
        }

        #[test]
        fn any_header_stays_inside(header: Vec<u8>, len: u64) {
            if let Wanted::Part(range) = wanted(&header, len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }
    }
}
