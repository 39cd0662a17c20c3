//! How long a failed attempt waits for the next one. Pure.

use std::time::Duration;

/// After so many failures in a row the pause grows no more.
const MOST: i64 = 9;

/// The pause after the `failures`th failure in a row of the host with this UID: 2^n minutes, shortened by up to a half.
///
/// Upstream draws that shortening; here it follows from the host and the count, so that hosts that failed together do not come
/// back together and yet the same input has the same plan.
pub(super) fn pause(uid: &str, failures: i64) -> Duration {
    let power = u32::try_from(failures.clamp(1, MOST)).unwrap_or(1);
    let most = 60_000_u64 << power;
    let share = hash(uid, failures) % 1024;
    Duration::from_millis(most - most / 2 * share / 1024)
}

/// FNV-1a, 64 bits, with its halves folded: spread is all that is asked of it.
fn hash(uid: &str, failures: i64) -> u64 {
    let bytes = uid.bytes().chain(failures.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash ^ (hash >> 32)
}

/// `pause` for people: `90 s`, `4 min`, `2 h 10 min`.
pub(super) fn words(pause: Duration) -> String {
    let seconds = pause.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}
