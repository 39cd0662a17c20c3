//! Moments: how far clocks may differ, and how others write them. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// How far ahead of this computer's clock another one's may be.
pub(crate) const SKEW: SignedDuration = SignedDuration::from_secs(60);

/// True if `at` is further ahead of `now` than clocks of different computers may be.
pub(crate) fn is_ahead(at: Timestamp, now: Timestamp) -> bool {
    at.duration_since(now) > SKEW
}

/// Kubernetes keeps whole seconds; anything finer would differ from what is read back.
pub(crate) fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// `at` as the field `Date` has it (RFC 9110 section 5.6.7).
pub(crate) fn http_date(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
