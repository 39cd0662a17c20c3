//! Certificates of BMCs.

use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

/// An authority that issues certificates to BMCs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new()).context("describe an authority")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().context("make an authority's key")?;
        // A name of its own: two authorities with one name are told apart by their signatures only.
        let name: String = key
            .public_key_raw()
            .iter()
            .rev()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("light BMCs {name}"));
        let issuer = CertifiedIssuer::self_signed(params, key).context("make an authority")?;
        Ok(Authority(issuer))
    }

    /// Its certificate, for those who are to trust it.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// The same as PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a BMC with these names and addresses, and its key.
    fn issue(&self, names: &[&str]) -> Result<(Certificate, KeyPair)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().context("make a BMC's key")?;
        let params = CertificateParams::new(names).context("describe a BMC's certificate")?;
        let certificate = params
            .signed_by(&key, &self.0)
            .context("issue a BMC's certificate")?;
        Ok((certificate, key))
    }

    /// The same as PEM.
    pub fn issue_pem(&self, names: &[&str]) -> Result<(String, String)> {
        let (certificate, key) = self.issue(names)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// TLS of a BMC with these names and addresses.
    pub fn server(&self, names: &[&str]) -> Result<Arc<ServerConfig>> {
        let (certificate, key) = self.issue(names)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choose versions of TLS")?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .context("use a BMC's certificate")?;
        Ok(Arc::new(config))
    }
}
