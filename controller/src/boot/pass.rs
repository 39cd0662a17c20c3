//! What shows that a boot URL is ours: when it was made, what makes it unlike any other, and a seal over both and over what the
//! URL gives. Only DHCP's answer and the script that it leads to hand passes out; any replica can check them.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

/// A URL can be used as long as the token behind it.
pub use crate::token::{LIFETIME, SKEW};

use crate::token::TokenKey;

/// Random bytes in a pass: they keep two boots of one machine apart that begin in one second. What cannot be guessed is the seal.
const SALT: usize = 4;

/// Bytes of HMAC-SHA256 in a pass (RFC 2104, section 5: at least half of them); a URL must fit into one DHCP option.
const SEAL: usize = 16;

/// Bytes of a pass. A multiple of three, so that one pass has one text.
const LEN: usize = 4 + SALT + SEAL;

/// Separates these seals from those of the tokens, which are made with the same Secret.
const PURPOSE: &str = "muster boot URL";

/// The pass of one boot, the 32 characters of its URL-safe base64 form.
#[derive(Clone, PartialEq, Eq)]
pub struct Pass {
    issued: u32,
    salt: [u8; SALT],
    seal: [u8; SEAL],
}

/// The text is no pass.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pass is 32 characters of URL-safe base64")]
pub struct ParsePassError;

/// Why a pass is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not made by this installation for that path: guessed, or of another machine, segment or release.
    Forged,
    /// Made longer ago than [`LIFETIME`].
    Old,
    /// Made further in the future than [`SKEW`].
    Early,
}

/// Seals and checks passes.
#[derive(Clone)]
pub struct PassKey(hmac::Key);

/// Makes the passes of one moment: plain data, so that who decides what to answer needs neither clock nor chance.
#[derive(Clone, Debug)]
pub struct Maker {
    key: PassKey,
    issued: u32,
    salt: [u8; SALT],
}

impl Pass {
    /// When it was made, in unix seconds.
    pub fn issued(&self) -> i64 {
        self.issued.into()
    }

    fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&self.issued.to_be_bytes());
        bytes[4..4 + SALT].copy_from_slice(&self.salt);
        bytes[4 + SALT..].copy_from_slice(&self.seal);
        bytes
    }
}

impl PassKey {
    /// The one that belongs to this installation's key for tokens.
    pub fn of(key: &TokenKey) -> Self {
        PassKey(hmac::Key::new(hmac::HMAC_SHA256, key.derive(PURPOSE).as_ref()))
    }

    /// Whether `pass` was made by us for `path`, the part of the URL before it, and may be used at `now` (unix seconds).
    pub fn check(&self, path: &str, pass: &Pass, now: i64) -> Result<(), Refused> {
        let expected = self.seal(path, pass.issued, pass.salt);
        // Compared as their HMACs, so that the time it takes says nothing about where they differ.
        let blind = hmac::sign(&self.0, &expected);
        hmac::verify(&self.0, &pass.seal, blind.as_ref()).map_err(|_| Refused::Forged)?;
        match now.saturating_sub(pass.issued()) {
            age if age > LIFETIME => Err(Refused::Old),
            age if age < -SKEW => Err(Refused::Early),
            _ => Ok(()),
        }
    }

    fn seal(&self, path: &str, issued: u32, salt: [u8; SALT]) -> [u8; SEAL] {
        let mut context = hmac::Context::with_key(&self.0);
        // Both are of fixed length: nothing else has the same bytes.
        context.update(&issued.to_be_bytes());
        context.update(&salt);
        context.update(path.as_bytes());
        let mut seal = [0; SEAL];
        seal.copy_from_slice(&context.sign().as_ref()[..SEAL]);
        seal
    }
}

impl fmt::Debug for PassKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassKey")
    }
}

impl Maker {
    /// Of these.
    pub fn new(key: PassKey, issued: u32, salt: [u8; SALT]) -> Self {
        Maker { key, issued, salt }
    }

    /// One for `now` (unix seconds). `None` if the kernel gives no random bytes.
    pub fn fresh(key: PassKey, now: i64) -> Option<Self> {
        let mut salt = [0; SALT];
        SystemRandom::new().fill(&mut salt).ok()?;
        Some(Maker::new(key, u32::try_from(now).ok()?, salt))
    }

    /// The pass of the URL that begins with `path`.
    pub fn pass(&self, path: &str) -> Pass {
        let Maker { key, issued, salt } = self;
        Pass {
            issued: *issued,
            salt: *salt,
            seal: key.seal(path, *issued, *salt),
        }
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.bytes()))
    }
}

/// The seal buys a certificate; it stays out of logs.
impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass({})", self.issued)
    }
}

impl FromStr for Pass {
    type Err = ParsePassError;

    fn from_str(text: &str) -> Result<Self, ParsePassError> {
        let bytes = BASE64.decode(text).map_err(|_| ParsePassError)?;
        let bytes: [u8; LEN] = bytes.try_into().map_err(|_| ParsePassError)?;
        let [a, b, c, d, rest @ ..] = bytes;
        let (salt, seal) = rest.split_at(SALT);
        Ok(Pass {
            issued: u32::from_be_bytes([a, b, c, d]),
            salt: salt.try_into().map_err(|_| ParsePassError)?,
            seal: seal.try_into().map_err(|_| ParsePassError)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATH: &str = "/ipxe/muster-system/lab/525400123456/-";

    fn key(byte: u8) -> PassKey {
        PassKey::of(&TokenKey::new(&[byte; 32]))
    }

    fn fresh(now: i64) -> Pass {
        Maker::fresh(key(7), now).unwrap().pass(PATH)
    }

    #[test]
    fn a_pass_lives_an_hour_and_may_be_a_minute_early() {
        let made = 1_800_000_000;
        let pass = fresh(made);
        for now in [made - SKEW, made, made + LIFETIME] {
            assert_eq!(key(7).check(PATH, &pass, now), Ok(()));
        }
        assert_eq!(key(7).check(PATH, &pass, made + LIFETIME + 1), Err(Refused::Old));
        assert_eq!(key(7).check(PATH, &pass, made - SKEW - 1), Err(Refused::Early));
        assert_eq!(key(7).check(PATH, &pass, i64::MAX), Err(Refused::Old));
        assert_eq!(key(7).check(PATH, &pass, i64::MIN), Err(Refused::Early));
    }

    #[test]
    fn a_pass_is_good_at_every_replica_and_nowhere_else() {
        let pass = fresh(1_800_000_000);
        let at = |key: PassKey| key.check(PATH, &pass, 1_800_000_000);
        assert_eq!(at(key(7)), Ok(()));
        assert_eq!(at(key(8)), Err(Refused::Forged), "another installation's key");
    }

    #[test]
    fn no_two_are_the_same_and_logs_do_not_show_them() {
        let (one, other) = (fresh(1), fresh(1));
        assert_ne!(one, other);
        assert_eq!(format!("{one:?}"), "Pass(1)");
        assert!(Maker::fresh(key(7), -1).is_none());
    }

    proptest! {
        #[test]
        fn text_form_round_trips(issued: u32, salt: [u8; SALT], path in "\\PC{0,40}") {
            let pass = Maker::new(key(7), issued, salt).pass(&path);
            prop_assert_eq!(pass.to_string().len(), 32);
            prop_assert_eq!(pass.to_string().parse(), Ok(pass));
        }

        #[test]
        fn other_text_is_refused(text in "\\PC{0,40}|[A-Za-z0-9_=-]{30,34}") {
            if let Ok(pass) = text.parse::<Pass>() {
                prop_assert_eq!(pass.to_string(), text);
            }
        }

        #[test]
        fn a_pass_opens_no_other_path(other in "/(ipxe|boot)(/[a-f0-9.-]{1,12}){2,6}") {
            prop_assume!(other != PATH);
            let now = 1_800_000_000;
            prop_assert_eq!(key(7).check(&other, &fresh(now), now), Err(Refused::Forged));
        }

        #[test]
        fn no_changed_character_passes(at in 0_usize..32, to in "[A-Za-z0-9_-]") {
            let now = 1_800_000_000;
            let mut text = fresh(now).to_string();
            prop_assume!(text[at..=at] != to);
            text.replace_range(at..=at, &to);
            prop_assert_eq!(key(7).check(PATH, &text.parse().unwrap(), now), Err(Refused::Forged));
        }

        #[test]
        fn no_guess_passes(bytes: [u8; LEN], now in 0..i64::from(u32::MAX)) {
            let guess: Pass = BASE64.encode(bytes).parse().unwrap();
            prop_assert_eq!(key(7).check(PATH, &guess, now), Err(Refused::Forged));
        }
    }
}
