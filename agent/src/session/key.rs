//! The session's key: made in memory, never written anywhere, gone with the power.

use std::fmt::Write as _;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A key pair and the request for its certificate.
#[derive(Debug)]
pub struct SessionKey {
    pair: KeyPair,
    csr: String,
}

impl SessionKey {
    /// A new ECDSA P-256 key. May wait for the kernel's random numbers early in a boot.
    ///
    /// # Errors
    /// If the random numbers cannot be had.
    pub fn generate() -> Result<SessionKey, rcgen::Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut request = CertificateParams::default();
        // The controller takes only the public key.
        request.distinguished_name = DistinguishedName::new();
        let csr = request.serialize_request(&pair)?.pem()?;
        Ok(SessionKey { pair, csr })
    }

    /// PKCS #10 certificate signing request, PEM.
    pub fn csr(&self) -> &str {
        &self.csr
    }

    /// The private key, for TLS.
    pub fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }

    /// The first 16 hexadecimal digits of the SHA-256 of the public key (SubjectPublicKeyInfo, DER), in groups of four:
    /// what a person compares with the console.
    pub fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.pair.subject_public_key_info());
        let mut text = String::new();
        for (at, byte) in digest.as_ref().iter().take(8).enumerate() {
            let gap = if at > 0 && at % 2 == 0 { "-" } else { "" };
            // Writing to a String cannot fail.
            _ = write!(text, "{gap}{byte:02x}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_for_people_and_of_this_key() {
        let key = SessionKey::generate().unwrap();
        let text = key.fingerprint();
        assert_eq!(text.len(), 19);
        assert!(
            text.split('-')
                .all(|group| group.len() == 4 && group.bytes().all(|sign| sign.is_ascii_hexdigit()))
        );
        assert_eq!(text, key.fingerprint());
        assert_ne!(text, SessionKey::generate().unwrap().fingerprint());
    }
}
