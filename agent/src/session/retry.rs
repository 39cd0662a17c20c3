//! What to do after a call failed: pure decisions.

use std::{collections::BTreeSet, time::Duration};

use muster_proto::session::{Problem, ProblemKind};

use super::http;
use crate::dial::tls;

/// What follows a failed call.
#[derive(Clone, Debug)]
pub enum Next {
    /// The next controller of the list; if all were tried, after a pause.
    OtherEndpoint,
    /// The same call again, after at least this long if the controller said so.
    Again {
        /// How long.
        asked: Option<Duration>,
        /// It may be this controller's own trouble: after some refusals in a row, another one is called.
        elsewhere: bool,
    },
    /// This certificate is not accepted: enrol again with the same key and token, after a pause.
    Enrol,
    /// This certificate is not accepted, and no other can be had for the token: the same again, at the next controller of the list, after a
    /// pause. One that does not know the authority of today yet will soon.
    ShowAgain,
    /// Never this body again, but the session goes on.
    DropBody(Problem),
    /// The session is over.
    End(Problem),
}

/// What follows `error`, where the boot's token may still be good, as `token_lives` says, or not.
pub fn after(error: &http::CallError, token_lives: bool) -> Next {
    match error {
        http::CallError::Refused {
            problem, retry_after, ..
        } => match problem.kind {
            ProblemKind::Version | ProblemKind::Token | ProblemKind::Certificate => {
                Next::End(problem.clone())
            }
            ProblemKind::Malformed | ProblemKind::TooLarge => Next::DropBody(problem.clone()),
            ProblemKind::Quota | ProblemKind::Unavailable | ProblemKind::Other => Next::Again {
                asked: *retry_after,
                elsewhere: problem.kind != ProblemKind::Quota,
            },
        },
        http::CallError::Answer { .. } => Next::Again {
            asked: None,
            elsewhere: true,
        },
        error if tls::certificate_refused(error) && token_lives => Next::Enrol,
        error if tls::certificate_refused(error) => Next::ShowAgain,
        _ => Next::OtherEndpoint,
    }
}

/// So long no controller may be trusted before the machine boots again: for the authorities and the time of today. Certificates of all
/// controllers are made anew in less, also after somebody's clock went wrong.
const DISTRUST: Duration = Duration::from_mins(30);

/// The same where another controller is away, which may be trusted once it is back, or may be gone for good.
const LONG_DISTRUST: Duration = Duration::from_hours(2);

/// Which controllers were called last without being trusted, and since when, by [`uptime`](crate::clock::uptime), all are such.
#[derive(Debug, Default)]
pub struct Distrust {
    strangers: BTreeSet<usize>,
    since: Option<Duration>,
    /// The first time that one was not, since one answered.
    first: Option<Duration>,
}

impl Distrust {
    /// A call of controller number `at`, of `all`, failed at `now`. True if none has been trusted for too long.
    pub fn failed(&mut self, at: usize, all: usize, error: &http::CallError, now: Duration) -> bool {
        if matches!(
            error,
            http::CallError::Refused { .. } | http::CallError::Answer { .. }
        ) {
            self.trusted(at);
        } else if tls::distrusted(error) {
            self.strangers.insert(at);
            self.first.get_or_insert(now);
        } else {
            self.may_be_trusted(at);
        }
        if self.strangers.len() == all {
            self.since.get_or_insert(now);
        }
        let lasts =
            |since: Option<Duration>, most| since.is_some_and(|since| now.saturating_sub(since) >= most);
        lasts(self.since, DISTRUST) || (!self.strangers.is_empty() && lasts(self.first, LONG_DISTRUST))
    }

    /// Controller number `at` was trusted.
    pub fn trusted(&mut self, at: usize) {
        self.may_be_trusted(at);
        self.first = None;
    }

    fn may_be_trusted(&mut self, at: usize) {
        self.strangers.remove(&at);
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: ProblemKind, retry_after: Option<Duration>) -> http::CallError {
        let problem = Problem {
            kind,
            message: String::new(),
        };
        http::CallError::Refused {
            path: "/v1/poll",
            problem,
            retry_after,
        }
    }

    fn handshake(error: rustls::Error) -> http::CallError {
        http::CallError::Handshake {
            endpoint: "https://10.0.0.1:9443".parse().unwrap(),
            source: std::io::Error::other(error),
        }
    }

    #[test]
    fn a_certificate_that_tls_refuses_is_kept_once_the_token_buys_no_other() {
        use rustls::AlertDescription::{CertificateExpired, DecodeError, UnknownCA};
        let after = |alert, token_lives| after(&handshake(rustls::Error::AlertReceived(alert)), token_lives);
        for alert in [UnknownCA, CertificateExpired] {
            assert!(matches!(after(alert, true), Next::Enrol), "{alert:?}");
            assert!(matches!(after(alert, false), Next::ShowAgain), "{alert:?}");
        }
        // It says nothing of the certificate.
        for token_lives in [true, false] {
            assert!(matches!(after(DecodeError, token_lives), Next::OtherEndpoint));
        }
    }

    #[test]
    fn final_problems_end_the_session_and_no_others() {
        for kind in [
            ProblemKind::Malformed,
            ProblemKind::TooLarge,
            ProblemKind::Version,
            ProblemKind::Token,
            ProblemKind::Certificate,
            ProblemKind::Quota,
            ProblemKind::Unavailable,
            ProblemKind::Other,
        ] {
            let session_lost =
                [ProblemKind::Version, ProblemKind::Token, ProblemKind::Certificate].contains(&kind);
            for token_lives in [true, false] {
                let next = after(&refused(kind, None), token_lives);
                assert_eq!(matches!(next, Next::End(_)), session_lost, "{kind:?}");
                assert_eq!(
                    matches!(next, Next::Again { .. }),
                    kind.is_transient(),
                    "{kind:?}"
                );
            }
        }
    }

    #[test]
    fn the_controllers_patience_is_heard() {
        let asked = Some(Duration::from_secs(10));
        let next = after(&refused(ProblemKind::Quota, asked), true);
        assert!(matches!(next, Next::Again { asked: told, elsewhere: false } if told == asked));
    }

    #[test]
    fn the_machine_boots_again_once_no_controller_was_trusted_for_half_an_hour() {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let (stranger, broken) = (
            handshake(unknown),
            handshake(rustls::Error::General(String::new())),
        );
        let at = Duration::from_secs;
        let mut distrust = Distrust::default();
        let mut failed =
            |which, error: &http::CallError, seconds| distrust.failed(which, 2, error, at(seconds));
        assert!(!failed(0, &stranger, 0));
        assert!(!failed(0, &stranger, 5000), "the other one may be trusted");
        assert!(!failed(1, &stranger, 5001));
        assert!(!failed(0, &stranger, 6800));
        assert!(failed(1, &stranger, 6801));
        // One that is away, or has trouble of its own, may be trusted.
        assert!(!failed(1, &broken, 6802));
        assert!(!failed(0, &stranger, 6803));
        assert!(!failed(1, &stranger, 6804));
        distrust.trusted(0);
        assert!(!distrust.failed(0, 2, &stranger, at(10_000)));
        assert!(!distrust.failed(1, 2, &stranger, at(11_799)));
        assert!(distrust.failed(1, 2, &stranger, at(11_800)));
        // One that is away for good is no hope for ever.
        distrust.trusted(0);
        for minutes in 200..320 {
            assert!(!distrust.failed(0, 2, &stranger, Duration::from_mins(minutes)));
            assert!(!distrust.failed(1, 2, &broken, Duration::from_mins(minutes)));
        }
        assert!(distrust.failed(0, 2, &stranger, Duration::from_mins(320)));
    }
}
