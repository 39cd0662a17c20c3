//! The session's keys, one for TLS and one that secrets are sealed to: made in memory, never written anywhere, gone with the power.

use std::{fmt::Write as _, sync::Arc};

use muster_proto::seal::SealKey;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A key pair and the request for its certificate.
#[derive(Debug)]
pub struct SessionKey {
    pair: KeyPair,
    csr: String,
    seal: Arc<SealKey>,
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
        let seal = Arc::new(SealKey::generate());
        Ok(SessionKey { pair, csr, seal })
    }

    /// PKCS #10 certificate signing request, PEM.
    pub fn csr(&self) -> &str {
        &self.csr
    }

    /// The private key, for TLS.
    pub fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }

    /// What secrets are sealed to.
    pub fn seal(&self) -> Arc<SealKey> {
        Arc::clone(&self.seal)
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER), hexadecimal: the session's name at the controller.
    pub fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.pair.subject_public_key_info());
        let mut text = String::new();
        for byte in digest.as_ref() {
            // Writing to a String cannot fail.
            _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// The first 16 digits of [`SessionKey::fingerprint`] in groups of four: what a person compares with the console.
    pub fn short_fingerprint(&self) -> String {
        let whole = self.fingerprint();
        let groups = (0..4).filter_map(|group| whole.get(group * 4..group * 4 + 4));
        groups.collect::<Vec<_>>().join("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_for_people_and_of_this_key() {
        let key = SessionKey::generate().unwrap();
        let text = key.short_fingerprint();
        assert_eq!(text.len(), 19);
        assert!(
            text.split('-')
                .all(|group| group.len() == 4 && group.bytes().all(|sign| sign.is_ascii_hexdigit()))
        );
        assert_eq!(text, key.short_fingerprint());
        assert_ne!(text, SessionKey::generate().unwrap().short_fingerprint());
        assert_eq!(key.fingerprint().len(), 64);
        assert!(key.fingerprint().starts_with(&text.replace('-', "")));
    }
}
