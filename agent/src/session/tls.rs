//! TLS towards the controller: only its own authorities count, at the time that [`Clock`] tells.

use std::sync::Arc;

use rustls::{
    AlertDescription, ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::key::SessionKey;
use crate::clock::Clock;

/// What TLS needs cannot be made from what we were given.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text cannot be read.
    #[error("read the {what}")]
    Pem {
        /// Whose certificates.
        what: &'static str,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// There is none in the PEM text.
    #[error("read the {what}: no certificate in it")]
    Empty {
        /// Whose certificates.
        what: &'static str,
    },
    /// rustls refuses it.
    #[error("use the {what}")]
    Use {
        /// What.
        what: &'static str,
        /// Why.
        source: rustls::Error,
    },
}

/// TLS that trusts `authorities` (PEM) and nothing else, and shows `certificate` (PEM chain) with its key, if there is one.
///
/// # Errors
/// [`TlsError`], one variant for each way to fail.
pub fn client(
    authorities: &str,
    certificate: Option<(&str, &SessionKey)>,
    clock: &Clock,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(authorities, "controller's authorities")? {
        roots.add(authority).map_err(|source| TlsError::Use {
            what: "controller's authorities",
            source,
        })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| TlsError::Use {
            what: "TLS 1.3",
            source,
        })?
        .with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(certificates(chain, "session's certificate")?, key.private())
            .map_err(|source| TlsError::Use {
                what: "session's certificate",
                source,
            })?,
    };
    // One connection lasts as long as the session.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if found.is_empty() {
        Err(TlsError::Empty { what })
    } else {
        Ok(found)
    }
}

/// True if somewhere in `error` the server says that it does not accept our certificate.
pub fn certificate_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // tokio-rustls wraps rustls' error in an io::Error, which shows it as itself and not as its source.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let tls = inner
            .and_then(|inner| inner.downcast_ref())
            .or_else(|| error.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            return matches!(
                alert,
                AlertDescription::BadCertificate
                    | AlertDescription::UnsupportedCertificate
                    | AlertDescription::CertificateRevoked
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::CertificateRequired
                    | AlertDescription::UnknownCA
                    | AlertDescription::AccessDenied
            );
        }
        cause = error.source();
    }
    false
}
