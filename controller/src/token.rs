//! What network boot and the agents' side share: one-time tokens, sealed claims that any replica can check, and the Secrets behind them.
//!
//! `boot` hands tokens out; `agents` takes them back, each for one Enrolment, and makes and reads the Secrets.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use muster_proto::Mac;
use serde::{Deserialize, Serialize};

use crate::time;

/// The Secret with the authority: `ca.crt`, `ca.key`, during an overlap `previous.crt` and `cross.crt`.
pub const CA_SECRET: &str = "muster-ca";
/// The Secret with the key that seals tokens: `key`, at least 32 random bytes.
pub const TOKEN_SECRET: &str = "muster-token-key";

/// How long a token can be spent, in seconds from [`Claims::issued`].
pub const LIFETIME: i64 = muster_proto::config::TOKEN_LIFETIME;

/// [`SKEW`](time::SKEW) in seconds.
pub const SKEW: i64 = time::SKEW.as_secs();

/// The longest token that is looked at, in bytes; a sealed one is about 250.
pub const MAX: usize = 2048;

/// What the boot services put beside the initramfs.
#[derive(Clone, Debug)]
pub struct BootSecrets {
    /// The authorities that agents trust, PEM; during a rotation two.
    pub ca_pem: String,
    /// Seals tokens.
    pub token_key: TokenKey,
}

/// What a token says: served on that segment, for a machine that asked with that address, then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// `namespace/name` of the Segment.
    pub segment: String,
    /// MAC address of the DHCP or HTTP request.
    pub mac: Mac,
    /// Unix seconds.
    pub issued: i64,
    /// Makes the token unique: the pass of the boot's URL, chosen once for a boot.
    pub nonce: String,
}

/// Why a token opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not sealed with our key: guessed, damaged, or of another installation.
    #[error("the token was not issued by this installation")]
    Forged,
    /// Sealed by us, too long ago.
    #[error("the token expired {ago} s ago")]
    Expired {
        /// Seconds since its end.
        ago: i64,
        /// What it said, so that its Segment can be told.
        claims: Claims,
    },
    /// Sealed by us, at a time that has not come: a replica's clock is wrong.
    #[error("the token was issued {ahead} s in the future")]
    Future {
        /// Seconds.
        ahead: i64,
        /// What it said.
        claims: Claims,
    },
}

/// Seals and opens tokens. The same claims give the same token, so that HEAD, Range and a repeated GET agree.
#[derive(Clone)]
pub struct TokenKey(ring::hmac::Key);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey")
    }
}

impl TokenKey {
    /// From the key's bytes, at least 32.
    pub fn new(bytes: &[u8]) -> Self {
        TokenKey(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, bytes))
    }

    /// A key for another `purpose`, which tells nothing of this one. No token's body can be a purpose: it has a space in it.
    pub fn derive(&self, purpose: &str) -> ring::hmac::Tag {
        ring::hmac::sign(&self.0, purpose.as_bytes())
    }

    /// The token: URL-safe base64 of the claims, `.`, URL-safe base64 of their HMAC-SHA256.
    pub fn seal(&self, claims: &Claims) -> String {
        let body = BASE64.encode(serde_json::to_vec(claims).expect("claims are plain data"));
        let tag = BASE64.encode(ring::hmac::sign(&self.0, body.as_bytes()));
        format!("{body}.{tag}")
    }

    /// What `token` says, if it was sealed with this key and can be spent at `now` (unix seconds).
    ///
    /// The seal is checked before anything inside is parsed, in constant time.
    pub fn open(&self, token: &str, now: i64) -> Result<Claims, TokenError> {
        if token.len() > MAX {
            return Err(TokenError::Forged);
        }
        let (body, tag) = token.split_once('.').ok_or(TokenError::Forged)?;
        let tag = BASE64.decode(tag).map_err(|_| TokenError::Forged)?;
        ring::hmac::verify(&self.0, body.as_bytes(), &tag).map_err(|_| TokenError::Forged)?;
        let claims = BASE64.decode(body).map_err(|_| TokenError::Forged)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError::Forged)?;
        let age = now.saturating_sub(claims.issued);
        if age > LIFETIME {
            return Err(TokenError::Expired {
                ago: age - LIFETIME,
                claims,
            });
        }
        if age < -SKEW {
            return Err(TokenError::Future {
                ahead: age.saturating_neg(),
                claims,
            });
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims() -> Claims {
        Claims {
            segment: "muster-system/lab".into(),
            mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            issued: 1_800_000_000,
            nonce: "00112233445566778899aabbccddeeff".into(),
        }
    }

    #[test]
    fn a_token_opens_for_an_hour_and_from_a_minute_early() {
        let key = TokenKey::new(&[7; 32]);
        let token = key.seal(&claims());
        let issued = claims().issued;
        for now in [issued - SKEW, issued, issued + LIFETIME] {
            assert_eq!(key.open(&token, now), Ok(claims()));
        }
        assert!(matches!(
            key.open(&token, issued + LIFETIME + 1),
            Err(TokenError::Expired { ago: 1, .. })
        ));
        assert!(matches!(
            key.open(&token, issued - SKEW - 1),
            Err(TokenError::Future { ahead: 61, .. })
        ));
        for now in [i64::MIN, i64::MAX] {
            assert!(key.open(&token, now).is_err());
        }
    }

    #[test]
    fn another_installations_token_is_forged() {
        let token = TokenKey::new(&[7; 32]).seal(&claims());
        let other = TokenKey::new(&[8; 32]);
        assert_eq!(other.open(&token, claims().issued), Err(TokenError::Forged));
    }

    #[test]
    fn an_oversized_token_is_not_even_checked() {
        let key = TokenKey::new(&[7; 32]);
        let mut big = claims();
        big.segment = "x".repeat(MAX);
        let token = key.seal(&big);
        assert_eq!(key.open(&token, big.issued), Err(TokenError::Forged));
    }

    proptest! {
        #[test]
        fn no_other_text_opens(token in "\\PC{0,300}", now: i64) {
            prop_assert_eq!(TokenKey::new(&[7; 32]).open(&token, now), Err(TokenError::Forged));
        }

        #[test]
        fn no_changed_byte_opens(at: prop::sample::Index, to in prop::char::range('!', '~')) {
            let key = TokenKey::new(&[7; 32]);
            let token = key.seal(&claims());
            let mut chars: Vec<char> = token.chars().collect();
            let at = at.index(chars.len());
            prop_assume!(chars[at] != to);
            chars[at] = to;
            let changed: String = chars.into_iter().collect();
            prop_assert_eq!(key.open(&changed, claims().issued), Err(TokenError::Forged));
        }
    }
}
