//! The controller's clock, in the two shapes that certificates and objects have.

/// Now, unix seconds.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// `seconds` since 1970 as RFC 3339 with whole seconds; what lies outside of jiff's range is its end.
pub(super) fn rfc3339(seconds: i64) -> String {
    let at = jiff::Timestamp::from_second(seconds);
    at.unwrap_or(if seconds < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    })
    .to_string()
}

/// RFC 3339 as unix seconds.
pub(super) fn parse(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(jiff::Timestamp::as_second)
}
