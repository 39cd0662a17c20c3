//! What makes one boot unlike any other: when its URL was made, and what nobody can guess.

use std::{fmt, str::FromStr};

use ring::rand::{SecureRandom, SystemRandom};

/// How long a URL can be used, in seconds: as long as the token in it.
pub const LIFETIME: i64 = 3600;

/// How far ahead of this controller's clock another replica's may be, in seconds.
pub const SKEW: i64 = 60;

/// Random bytes in a nonce.
pub const RANDOM: usize = 12;

/// The nonce of one boot: `{unix seconds:08x}` and 24 random hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Nonce {
    issued: u32,
    random: [u8; RANDOM],
}

/// The text is no nonce.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a nonce is 32 hexadecimal digits in lower case")]
pub struct ParseNonceError;

/// Why a nonce is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Made longer ago than [`LIFETIME`].
    Old,
    /// Made further in the future than [`SKEW`].
    Early,
}

impl Nonce {
    /// A nonce made of these.
    pub fn new(issued: u32, random: [u8; RANDOM]) -> Self {
        Nonce { issued, random }
    }

    /// A fresh one, made at `now` (unix seconds). `None` if the kernel gives no random bytes.
    pub fn fresh(now: i64) -> Option<Self> {
        let mut random = [0; RANDOM];
        SystemRandom::new().fill(&mut random).ok()?;
        Some(Nonce {
            issued: u32::try_from(now).ok()?,
            random,
        })
    }

    /// When it was made, in unix seconds.
    pub fn issued(&self) -> i64 {
        self.issued.into()
    }

    /// Whether it may be used at `now` (unix seconds).
    pub fn check(&self, now: i64) -> Result<(), Stale> {
        match now.saturating_sub(self.issued()) {
            age if age > LIFETIME => Err(Stale::Old),
            age if age < -SKEW => Err(Stale::Early),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.issued)?;
        self.random.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The random part buys a certificate together with the key's seal; it stays out of logs.
impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({:08x})", self.issued)
    }
}

impl FromStr for Nonce {
    type Err = ParseNonceError;

    fn from_str(text: &str) -> Result<Self, ParseNonceError> {
        let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 8 + 2 * RANDOM || !text.bytes().all(lower) {
            return Err(ParseNonceError);
        }
        let number = |range: std::ops::Range<usize>| {
            u32::from_str_radix(&text[range], 16).map_err(|_| ParseNonceError)
        };
        let mut random = [0; RANDOM];
        for (at, byte) in random.iter_mut().enumerate() {
            let start = 8 + 2 * at;
            *byte = u8::try_from(number(start..start + 2)?).expect("two digits");
        }
        Ok(Nonce {
            issued: number(0..8)?,
            random,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_nonce_lives_an_hour_and_may_be_a_minute_early() {
        let made = 1_800_000_000;
        let nonce = Nonce::fresh(made).unwrap();
        for now in [made - SKEW, made, made + LIFETIME] {
            assert_eq!(nonce.check(now), Ok(()));
        }
        assert_eq!(nonce.check(made + LIFETIME + 1), Err(Stale::Old));
        assert_eq!(nonce.check(made - SKEW - 1), Err(Stale::Early));
        assert_eq!(nonce.check(i64::MAX), Err(Stale::Old));
        assert_eq!(nonce.check(i64::MIN), Err(Stale::Early));
    }

    #[test]
    fn no_two_are_the_same_and_logs_do_not_show_them() {
        let (one, other) = (Nonce::fresh(1).unwrap(), Nonce::fresh(1).unwrap());
        assert_ne!(one, other);
        assert_eq!(format!("{one:?}"), "Nonce(00000001)");
        assert_eq!(Nonce::fresh(-1), None);
    }

    proptest! {
        #[test]
        fn text_form_round_trips(issued: u32, random: [u8; RANDOM]) {
            let nonce = Nonce::new(issued, random);
            prop_assert_eq!(nonce.to_string().parse(), Ok(nonce));
        }

        #[test]
        fn other_text_is_refused(text in "\\PC{0,40}") {
            if let Ok(nonce) = text.parse::<Nonce>() {
                prop_assert_eq!(nonce.to_string(), text);
            }
        }
    }
}
