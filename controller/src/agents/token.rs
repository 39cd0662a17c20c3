//! One-time tokens: sealed claims that any replica can check, spent by an Enrolment named after their hash.

use muster_proto::Mac;
use serde::{Deserialize, Serialize};

/// What a token says: served on that segment, for a machine that asked with that address, then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// `namespace/name` of the Segment.
    pub segment: String,
    /// MAC address of the DHCP or HTTP request.
    pub mac: Mac,
    /// Unix seconds.
    pub issued: i64,
    /// Makes the token unique: 16 random bytes, hexadecimal, chosen once for a boot.
    pub nonce: String,
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

    /// The token: URL-safe base64 of the claims, `.`, URL-safe base64 of their HMAC-SHA256.
    pub fn seal(&self, claims: &Claims) -> String {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
        let body = BASE64.encode(serde_json::to_vec(claims).expect("claims are plain data"));
        let tag = BASE64.encode(ring::hmac::sign(&self.0, body.as_bytes()));
        format!("{body}.{tag}")
    }
}
