//! Secrets that one session of an agent can open, for one job, and nobody else: HPKE (RFC 9180) in base mode, with
//! DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20-Poly1305.
//!
//! A sealed text is base64 of `version (1 byte) | recipient's public key (32) | encapsulated key (32) | ciphertext and tag`. Job, epoch
//! and session are authenticated with it and not in it: put into another job, it does not open.

use base64::{Engine, engine::general_purpose::STANDARD};
use hpke::{
    Deserializable, Kem as _, OpModeR, OpModeS, Serializable, aead::ChaCha20Poly1305, kdf::HkdfSha256,
    kem::X25519HkdfSha256 as Kem,
};
use zeroize::Zeroizing;

use crate::job::ConfigDrive;

/// Length of an X25519 public key, in bytes (RFC 7748, section 5).
const KEY: usize = 32;

/// The first byte of what is sealed.
const VERSION: u8 = 1;

/// HPKE's `info`: what these secrets are for.
const PURPOSE: &[u8] = b"muster config drive 1";

/// What a secret is bound to. All of it is public.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound<'a> {
    /// The job's id.
    pub job: &'a str,
    /// Its epoch.
    pub epoch: i64,
    /// SHA-256 of the session's public key, hexadecimal, as `Session.key` of the kinds has it.
    pub session: &'a str,
}

impl Bound<'_> {
    /// Every part with its length before it, so that no two bindings have the same bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in [
            self.job.as_bytes(),
            &self.epoch.to_be_bytes(),
            self.session.as_bytes(),
        ] {
            bytes.extend_from_slice(&part.len().to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

/// Why a secret was not sealed or opened. Never says anything of the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The public key is none.
    #[error("the session has no key that secrets can be sealed to")]
    Key,
    /// The text is no sealed secret of a version that is known here.
    #[error("what should be a sealed secret is none, or of a newer version")]
    Form,
    /// It is for another session.
    #[error("the secret is sealed to another session of this machine")]
    OtherSession,
    /// It is for another job, or was changed.
    #[error("the secret does not open: it is sealed for another job, or damaged")]
    Refused,
}

/// `text` as a public key, 32 bytes in base64; `None` if it is none, or one with which anybody could open what is sealed to it
/// (a point of small order; RFC 7748, section 6.1).
pub fn public_key(text: &str) -> Option<[u8; KEY]> {
    let key: [u8; KEY] = STANDARD.decode(text).ok()?.try_into().ok()?;
    let usable = seal_bytes(&key, b"", b"").is_ok();
    usable.then_some(key)
}

/// Seals `secret` to the public key `to` (base64) of a session.
///
/// # Errors
/// [`SealError::Key`].
pub fn seal(to: &str, bound: &Bound<'_>, secret: &[u8]) -> Result<String, SealError> {
    let key = public_key(to).ok_or(SealError::Key)?;
    let (encapsulated, sealed) = seal_bytes(&key, secret, &bound.bytes())?;
    let whole = [&[VERSION][..], &key, &encapsulated, &sealed].concat();
    Ok(STANDARD.encode(whole))
}

/// Seals the contents of a config drive; their JSON is wiped from memory afterwards.
///
/// # Errors
/// [`SealError::Key`].
pub fn config_drive(to: &str, bound: &Bound<'_>, drive: &ConfigDrive) -> Result<String, SealError> {
    let plain = serde_json::to_vec(drive).expect("a config drive has only texts as keys");
    seal(to, bound, &Zeroizing::new(plain))
}

fn seal_bytes(key: &[u8; KEY], secret: &[u8], bound: &[u8]) -> Result<([u8; KEY], Vec<u8>), SealError> {
    let to = <Kem as hpke::Kem>::PublicKey::from_bytes(key).map_err(|_| SealError::Key)?;
    let (encapsulated, sealed) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Kem>(
        &OpModeS::Base,
        &to,
        PURPOSE,
        secret,
        bound,
    )
    .map_err(|_| SealError::Key)?;
    Ok((encapsulated.to_bytes().into(), sealed))
}

/// The key that a session's secrets are sealed to: in memory only, wiped when dropped, never shown.
#[derive(Clone)]
pub struct SealKey {
    secret: <Kem as hpke::Kem>::PrivateKey,
    public: [u8; KEY],
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealKey")
            .field("public", &self.public())
            .finish_non_exhaustive()
    }
}

impl SealKey {
    /// A new key. Waits for the kernel's random numbers early in a boot.
    pub fn generate() -> SealKey {
        let (secret, public) = Kem::gen_keypair();
        let public = public.to_bytes().into();
        SealKey { secret, public }
    }

    /// The public key, base64.
    pub fn public(&self) -> String {
        STANDARD.encode(self.public)
    }

    /// Whether `sealed` is meant for this key, as far as can be told without opening it.
    ///
    /// # Errors
    /// [`SealError::Form`], [`SealError::OtherSession`].
    pub fn fits(&self, sealed: &str) -> Result<(), SealError> {
        self.take_apart(sealed).map(|_| ())
    }

    /// Encapsulated key and ciphertext.
    fn take_apart(&self, sealed: &str) -> Result<([u8; KEY], Vec<u8>), SealError> {
        let whole = STANDARD.decode(sealed).map_err(|_| SealError::Form)?;
        let (version, rest) = whole.split_first().ok_or(SealError::Form)?;
        let (key, rest) = rest.split_first_chunk::<KEY>().ok_or(SealError::Form)?;
        let (encapsulated, ciphertext) = rest.split_first_chunk::<KEY>().ok_or(SealError::Form)?;
        if *version != VERSION {
            return Err(SealError::Form);
        }
        if *key != self.public {
            return Err(SealError::OtherSession);
        }
        Ok((*encapsulated, ciphertext.to_vec()))
    }

    /// Opens what was sealed to this key and bound to the same.
    ///
    /// # Errors
    /// [`SealError::Form`], [`SealError::OtherSession`], [`SealError::Refused`].
    pub fn open(&self, bound: &Bound<'_>, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (encapsulated, ciphertext) = self.take_apart(sealed)?;
        let encapsulated =
            <Kem as hpke::Kem>::EncappedKey::from_bytes(&encapsulated).map_err(|_| SealError::Refused)?;
        hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &self.secret,
            &encapsulated,
            PURPOSE,
            &ciphertext,
            &bound.bytes(),
        )
        .map(Zeroizing::new)
        .map_err(|_| SealError::Refused)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUND: Bound<'_> = Bound {
        job: "write-1",
        epoch: 3,
        session: "ab12",
    };

    #[test]
    fn a_secret_opens_for_its_session_and_its_job_only() {
        let (key, other) = (SealKey::generate(), SealKey::generate());
        let sealed = seal(&key.public(), &BOUND, b"top secret").unwrap();
        assert_eq!(**key.open(&BOUND, &sealed).unwrap(), *b"top secret");
        assert_eq!(other.open(&BOUND, &sealed).unwrap_err(), SealError::OtherSession);
        assert_eq!(other.fits(&sealed), Err(SealError::OtherSession));
        for foreign in [
            Bound {
                job: "write-2",
                ..BOUND
            },
            Bound { epoch: 4, ..BOUND },
            Bound {
                session: "ab13",
                ..BOUND
            },
            Bound {
                job: "write-",
                session: "1ab12",
                ..BOUND
            },
        ] {
            assert_eq!(key.open(&foreign, &sealed).unwrap_err(), SealError::Refused);
        }
    }

    /// Made by another implementation of RFC 9180, so that no change here changes it: sealed to the private key of 32 bytes 7, with the
    /// ephemeral one of 32 bytes 9, and bound to [`BOUND`].
    const RECORDED: &str = "ARO+T+rq8gTH/TNY/JwAchiB0XQngSgifsZ0839/6XttV9tLNZ8jrl4Ubk4lEgVnBHIlBjSMFQwUdT0Mkz0E1CGPxBkD5njiiJUD6Ek8fOk8vLk2CrNexygazpW1hlymg6gBMLjfcqj79BnNJcYbwo2N+wgTyeYL+47MtP4MG41a3i3kMlF4Avts8vojDVI4L+btQbigPuKotGjufIKaNX3o+aNWXL7wOF+9";

    /// An agent that goes on with the job of a controller of another version, and a controller that seals for such an agent.
    #[test]
    fn what_an_older_version_sealed_opens_and_is_said_the_same() {
        let secret = <Kem as hpke::Kem>::PrivateKey::from_bytes(&[7; KEY]).unwrap();
        let public = Kem::sk_to_pk(&secret).to_bytes().into();
        let opened = SealKey { secret, public }.open(&BOUND, RECORDED).unwrap();
        let drive: ConfigDrive = serde_json::from_slice(&opened).unwrap();
        assert_eq!(drive.meta_data["hostname"], "a");
        assert!(drive.network_data.is_some());
        assert_eq!(drive.user_data.as_deref(), Some(&b"#cloud-config\n"[..]));
        assert_eq!(serde_json::to_vec(&drive).unwrap(), **opened);
    }

    #[test]
    fn the_same_secret_is_never_sealed_to_the_same_text_twice() {
        let key = SealKey::generate();
        let sealed = || seal(&key.public(), &BOUND, b"x").unwrap();
        assert_ne!(sealed(), sealed());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let short = STANDARD.encode([9; 31]);
        let small_order = STANDARD.encode([0; 32]);
        for bad in ["", "x", "ÿ", &short, &small_order] {
            assert_eq!(public_key(bad), None, "{bad:?}");
            assert_eq!(seal(bad, &BOUND, b"x"), Err(SealError::Key));
        }
        assert!(public_key(&SealKey::generate().public()).is_some());
    }

    #[test]
    fn nothing_of_a_key_or_a_secret_is_shown() {
        let key = SealKey::generate();
        let shown = format!("{key:?}");
        assert_eq!(shown, format!("SealKey {{ public: {:?}, .. }}", key.public()));
    }

    proptest! {
        #[test]
        fn a_damaged_secret_never_opens(at: usize, bit in 0_u8..8, secret: Vec<u8>) {
            let key = SealKey::generate();
            let sealed = seal(&key.public(), &BOUND, &secret).unwrap();
            let mut bytes = STANDARD.decode(sealed).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(key.open(&BOUND, &STANDARD.encode(bytes)).is_err());
        }

        #[test]
        fn foreign_text_is_refused(text: String, bytes: Vec<u8>) {
            let key = SealKey::generate();
            prop_assert!(key.open(&BOUND, &text).is_err());
            prop_assert!(key.open(&BOUND, &STANDARD.encode(bytes)).is_err());
        }
    }
}
