//! TLS: only the authorities that are given count, at the time that [`Clock`] tells.

use std::sync::Arc;

use muster_proto::Chain;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ConfigBuilder, RootCertStore, SupportedProtocolVersion,
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
    /// There is none in the PEM text, or none of use.
    #[error("read the {what}: no certificate that can be used")]
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
    let what = "controller's authorities";
    let mut roots = RootCertStore::empty();
    for authority in certificates(authorities, what)? {
        roots
            .add(authority)
            .map_err(|source| TlsError::Use { what, source })?;
    }
    let builder = trusting(roots, &[&rustls::version::TLS13], clock)?;
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

/// TLS towards servers of images: trusts the authorities in `files` (names and PEM) and nothing else, and shows no certificate. They
/// speak TLS 1.2 at least. A certificate that cannot be used is left out with a warning: the others may be all that it takes.
///
/// # Errors
/// [`TlsError`], one variant for each way to fail.
pub fn images(files: &[(String, Vec<u8>)], clock: &Clock) -> Result<Arc<ClientConfig>, TlsError> {
    let what = "site's certificate authorities";
    let mut roots = RootCertStore::empty();
    // Each file for itself: one that is cut off does not reach into the next.
    for (file, pem) in files {
        for (at, authority) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let added = authority
                .map_err(|source| TlsError::Pem { what, source })
                .and_then(|authority| {
                    roots
                        .add(authority)
                        .map_err(|source| TlsError::Use { what, source })
                });
            if let Err(error) = added {
                tracing::warn!(
                    file,
                    "certificate {} of the file is left out: {}",
                    at + 1,
                    Chain(&error)
                );
            }
        }
    }
    if roots.is_empty() {
        return Err(TlsError::Empty { what });
    }
    let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
    Ok(Arc::new(trusting(roots, versions, clock)?.with_no_client_auth()))
}

fn trusting(
    roots: RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
    clock: &Clock,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
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

/// Why the certificate of a server of images is not accepted, and what helps. Names and times follow from rustls.
pub fn distrust(why: &CertificateError) -> &'static str {
    use CertificateError as E;
    match why {
        // A wrong signature is what an authority gives that was made anew under its old name.
        E::UnknownIssuer | E::BadSignature => {
            "only the certificate authorities in the ramdisk are trusted (the controller's --extra-ca)"
        }
        E::Expired | E::ExpiredContext { .. } => {
            "by the controller's clock its certificate, or an authority's between, has expired"
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "by the controller's clock its certificate, or an authority's between, is not valid yet"
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "its certificate does not name the URL's host among its subjectAltNames"
        }
        // webpki has no type for it here.
        E::Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
            "its certificate is a CA certificate (CA:TRUE), which a server cannot use: give the server one with CA:FALSE"
        }
        _ => "its certificate is not valid for a server",
    }
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
