//! How long a BMC is left alone after failures. Pure: times are given.

use std::time::Duration;

use super::{BmcError, Credentials, Verify};

/// What failed last, and with what: the same would fail again.
#[derive(Clone, Debug)]
pub(super) struct Pause<T> {
    pub(super) error: BmcError,
    credentials: Credentials,
    verify: Verify,
    failures: u32,
    /// When the BMC may be asked again.
    pub(super) until: T,
}

/// The first pause and the longest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl<T> Pause<T>
where
    T: Copy + Ord + std::ops::Add<Duration, Output = T>,
{
    /// True while a call with these would only fail again.
    pub(super) fn holds(&self, credentials: &Credentials, verify: Verify, now: T) -> bool {
        self.verify == verify && self.credentials == *credentials && now < self.until
    }

    /// The pause after `error`, which follows on `before`; none if asking at once is right.
    pub(super) fn after(
        before: Option<&Pause<T>>,
        error: &BmcError,
        (credentials, verify): (&Credentials, Verify),
        pauses: Pauses,
        now: T,
    ) -> Option<Pause<T>> {
        let asked = match error {
            BmcError::Busy {
                retry_after: Some(asked),
                ..
            } => Some(*asked),
            // Wrong passwords lock accounts; the rest only costs time.
            BmcError::Credentials { .. }
            | BmcError::Untrusted { .. }
            | BmcError::Unreachable { .. }
            | BmcError::Answer { .. } => None,
            // It works, and says what it thinks; also that it is on its way to another power and cannot be asked for that.
            _ => return None,
        };
        let same = before.filter(|before| before.verify == verify && before.credentials == *credentials);
        let failures = same.map_or(0, |before| before.failures.saturating_add(1));
        let grown = pauses
            .first
            .saturating_mul(1 << failures.min(16))
            .min(pauses.longest);
        Some(Pause {
            error: error.clone(),
            credentials: credentials.clone(),
            verify,
            failures,
            until: now + asked.map_or(grown, |asked| asked.max(grown)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Pauses = Pauses {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(60),
    };

    fn unreachable() -> BmcError {
        BmcError::Unreachable {
            reason: String::new(),
        }
    }

    fn pauses(errors: &[BmcError], credentials: &Credentials) -> Vec<Option<Duration>> {
        let mut last: Option<Pause<Duration>> = None;
        let access = (credentials, Verify::Certificate);
        let step = |error| {
            last = Pause::after(last.as_ref(), error, access, PAUSES, Duration::ZERO);
            last.as_ref().map(|pause| pause.until)
        };
        errors.iter().map(step).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let user = Credentials::new("a", "b");
        let grown: Vec<_> = pauses(&vec![unreachable(); 8], &user)
            .into_iter()
            .map(|pause| pause.unwrap().as_secs())
            .collect();
        assert_eq!(grown, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn the_bmcs_own_wish_counts_if_it_is_longer() {
        let busy = |seconds: Option<u64>| BmcError::Busy {
            message: String::new(),
            retry_after: seconds.map(Duration::from_secs),
        };
        let user = Credentials::new("a", "b");
        let asked = pauses(&[busy(Some(90)), unreachable(), busy(Some(1)), busy(None)], &user);
        let expected = [Some(90), Some(2), Some(4), None];
        assert_eq!(asked, expected.map(|seconds| seconds.map(Duration::from_secs)));
    }

    #[test]
    fn a_bmc_that_refuses_or_lacks_something_needs_no_pause() {
        let refused = BmcError::Refused {
            status: 400,
            message: String::new(),
        };
        let unsupported = BmcError::Unsupported { what: String::new() };
        assert_eq!(
            pauses(&[refused, unsupported], &Credentials::new("a", "b")),
            [None, None]
        );
    }

    #[test]
    fn other_credentials_and_other_verification_are_tried_at_once() {
        let user = Credentials::new("a", "b");
        let access = (&user, Verify::Certificate);
        let pause = Pause::after(None, &unreachable(), access, PAUSES, Duration::ZERO).unwrap();
        assert!(pause.holds(&user, Verify::Certificate, Duration::ZERO));
        assert!(!pause.holds(&user, Verify::Certificate, Duration::from_secs(1)));
        assert!(!pause.holds(&Credentials::new("a", "c"), Verify::Certificate, Duration::ZERO));
        assert!(!pause.holds(&user, Verify::Nothing, Duration::ZERO));
    }
}
