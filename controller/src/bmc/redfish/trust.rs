//! TLS towards BMCs: which certificates count.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::bmc::Verify;

/// How many handshakes are remembered, so that the next one spares the BMC's slow processor its asymmetric half.
const RESUMED: usize = 2048;

/// Both ways to speak TLS with a BMC.
#[derive(Clone, Debug)]
pub struct Trust {
    verifying: Arc<ClientConfig>,
    blind: Arc<ClientConfig>,
}

impl Trust {
    /// Trusts the authorities that this system trusts, as far as they can be read, and `authorities`.
    ///
    /// # Errors
    /// rustls', for what is no certificate among `authorities`.
    pub fn new(authorities: &[CertificateDer<'static>]) -> Result<Trust, rustls::Error> {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::debug!(%error, "some of the system's certificate authorities cannot be read and are not trusted");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(system.certs);
        for authority in authorities {
            roots.add(authority.clone())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        };
        let blind = Arc::new(Blind(Arc::clone(&provider)));
        Ok(Trust {
            verifying: finished(builder()?.with_root_certificates(roots).with_no_client_auth()),
            blind: finished(
                builder()?
                    .dangerous()
                    .with_custom_certificate_verifier(blind)
                    .with_no_client_auth(),
            ),
        })
    }

    pub(super) fn config(&self, verify: Verify) -> Arc<ClientConfig> {
        Arc::clone(match verify {
            Verify::Certificate => &self.verifying,
            Verify::Nothing => &self.blind,
        })
    }
}

fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(RESUMED);
    Arc::new(config)
}

/// Takes any certificate: the host's spec says so. Signatures made with one that proves nothing prove nothing either.
#[derive(Debug)]
struct Blind(Arc<CryptoProvider>);

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why a certificate is not trusted, in words that stay the same from try to try; none if it was something else.
pub(super) fn distrust(error: &rustls::Error) -> Option<&'static str> {
    use CertificateError as E;
    let rustls::Error::InvalidCertificate(why) = error else {
        return None;
    };
    Some(match why {
        E::Expired | E::ExpiredContext { .. } => "it has expired",
        E::NotValidYet | E::NotValidYetContext { .. } => "it is not valid yet",
        E::UnknownIssuer => {
            "it was not issued by a trusted authority (trust its authority with --bmc-ca and restart the controller, or set \
             spec.bmc.disableCertificateVerification)"
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "it does not name the host of the BMC's address"
        }
        E::Revoked => "it is revoked",
        E::BadEncoding => "it cannot be read",
        E::BadSignature => "its signature is wrong",
        // webpki has no type for it here.
        E::Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
            "it is a CA certificate (CA:TRUE), which a server cannot use: give the BMC one with CA:FALSE, or set \
             spec.bmc.disableCertificateVerification"
        }
        _ => "it is not valid for a server",
    })
}

/// What an `io::Error` of a TLS stream wraps.
pub(super) fn of_io(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
