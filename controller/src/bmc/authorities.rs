//! Certificate authorities for BMCs, from files.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject},
    },
};

/// The authorities of a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It cannot be read.
    #[error("read the authorities for BMCs in {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no PEM.
    #[error("read the authorities for BMCs in {}: it is not a PEM file", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// It has no certificate: somebody believes otherwise.
    #[error("read the authorities for BMCs in {}: it contains no certificate", path.display())]
    None {
        /// Which.
        path: PathBuf,
    },
    /// One of its certificates is none.
    #[error("read the authorities for BMCs in {}: certificate {number} cannot be used", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Which of its certificates, from 1.
        number: usize,
        /// Why.
        source: rustls::Error,
    },
}

/// All certificates in `files`, each PEM (RFC 7468).
///
/// # Errors
/// [`AuthorityError`] names the file.
pub fn authorities(files: &[PathBuf]) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let mut all = Vec::new();
    for file in files {
        all.extend(of_file(file)?);
    }
    Ok(all)
}

fn of_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let path = || file.to_owned();
    let text = std::fs::read(file).map_err(|source| AuthorityError::Read { path: path(), source })?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|source| AuthorityError::Pem { path: path(), source })?;
    if found.is_empty() {
        return Err(AuthorityError::None { path: path() });
    }
    for (at, certificate) in found.iter().enumerate() {
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|source| AuthorityError::Certificate {
                path: path(),
                number: at + 1,
                source,
            })?;
    }
    Ok(found)
}
