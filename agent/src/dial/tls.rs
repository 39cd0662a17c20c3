//! TLS: only the authorities that are given count, at the time that [`Clock`] tells.

use std::sync::Arc;

use rustls::{
    AlertDescription, ClientConfig, ConfigBuilder, RootCertStore, SupportedProtocolVersion,
    client::{Resumption, WantsClientCert},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

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

/// TLS towards controllers: trusts `authorities` (PEM) and nothing else, and shows `certificate` (PEM chain) with its key, if there is one.
///
/// # Errors
/// [`TlsError`], one variant for each way to fail.
pub fn client(
    authorities: &str,
    certificate: Option<(&str, PrivateKeyDer<'static>)>,
    clock: &Clock,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = trusting(
        authorities,
        "controller's authorities",
        &[&rustls::version::TLS13],
        clock,
    )?;
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(certificates(chain, "session's certificate")?, key)
            .map_err(|source| TlsError::Use {
                what: "session's certificate",
                source,
            })?,
    };
    // One connection lasts as long as the session.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// TLS towards servers of images: trusts `authorities` (PEM) and nothing else, and shows no certificate. They speak TLS 1.2 at
/// least.
///
/// # Errors
/// [`TlsError`], one variant for each way to fail.
pub fn images(authorities: &str, clock: &Clock) -> Result<Arc<ClientConfig>, TlsError> {
    let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = trusting(authorities, "site's certificate authorities", versions, clock)?;
    Ok(Arc::new(builder.with_no_client_auth()))
}

fn trusting(
    authorities: &str,
    what: &'static str,
    versions: &[&'static SupportedProtocolVersion],
    clock: &Clock,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(authorities, what)? {
        roots
            .add(authority)
            .map_err(|source| TlsError::Use { what, source })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(versions)
        .map_err(|source| TlsError::Use {
            what: "protocol versions",
            source,
        })?;
    Ok(builder.with_root_certificates(roots))
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
    let alert = match cause(error) {
        Some(rustls::Error::AlertReceived(alert)) => alert,
        _ => return false,
    };
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// True if somewhere in `error` we say that we do not accept the other end's certificate.
pub fn distrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// What rustls says somewhere in `error`.
pub fn cause<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // tokio-rustls wraps rustls' error in an io::Error, which shows it as itself and not as its source.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let tls = inner
            .and_then(|inner| inner.downcast_ref())
            .or_else(|| error.downcast_ref::<rustls::Error>());
        if tls.is_some() {
            return tls;
        }
        cause = error.source();
    }
    None
}
