//! The certificate authority: makes and rotates itself, issues server and client certificates. Pure but for random keys.
//!
//! A rotation never breaks an agent that runs: the new authority's certificate is signed a second time by the old one
//! ([`Ca::cross`]) and sent along with every server certificate, so that an agent that knows only the old one still believes us;
//! the old one stays in the bundle until it has ended, so that certificates it issued are still taken.

use std::{net::IpAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Life of the authority, in seconds: two years.
pub const CA_LIFETIME: i64 = 2 * 365 * 86_400;

/// Life of a client certificate, in seconds. It is worth something only as long as its Server has the session of its key; a machine whose
/// edges are all away for longer has to boot again, so it is no shorter than an outage may be.
pub const CLIENT_LIFETIME: i64 = 12 * 3600;

/// When the agent renews it, in seconds from its beginning.
pub const RENEW_AFTER: i64 = 1800;

/// Life of a server certificate, in seconds; it lives in memory and is made anew at half of it.
pub const SERVER_LIFETIME: i64 = 86_400;

/// How long before "now" a certificate begins, in seconds, because clocks disagree.
pub(super) const BACKDATE: i64 = 3600;

/// What the URI in a client certificate begins with; the session's id follows.
const SESSION_URI: &str = "muster:session:";

/// The longest certificate signing request that is parsed, in bytes; a P-256 one is about 400.
const MAX_CSR: usize = 16 << 10;

/// What the authority cannot do.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The stored text is no certificate.
    #[error("parse the {what} certificate")]
    ParseCertificate {
        /// Which.
        what: &'static str,
    },
    /// The stored key is none, or does not fit its certificate.
    #[error("parse the authority's key")]
    ParseKey(#[source] rcgen::Error),
    /// The stored key and certificate are not of one pair.
    #[error("the authority's key does not belong to its certificate")]
    KeyMismatch,
    /// Making a key or a signature failed.
    #[error("issue a certificate for {subject}")]
    Issue {
        /// For whom.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The request is no PKCS #10 request with a valid signature and a key that we certify.
    #[error("the certificate signing request is not valid")]
    Request,
}

/// SHA-256 of `bytes`, 64 hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The authority as it stands in its Secret: PEM texts.
#[derive(Clone, PartialEq, Eq)]
pub struct CaPem {
    /// `ca.crt`: its own certificate, self-signed.
    pub certificate: String,
    /// `ca.key`: PKCS #8.
    pub key: String,
    /// `previous.crt`: the authority before this one, while it has not ended.
    pub previous: Option<String>,
    /// `cross.crt`: this authority, signed by the previous one.
    pub cross: Option<String>,
}

impl std::fmt::Debug for CaPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaPem")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl CaPem {
    /// A new authority that begins at `now` (unix seconds).
    pub fn generate(now: i64) -> Result<CaPem, CaError> {
        let key = new_key("the authority")?;
        let certificate = ca_params(&key, now)
            .self_signed(&key)
            .map_err(|source| issue_error("the authority", source))?;
        Ok(CaPem {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            previous: None,
            cross: None,
        })
    }

    /// This authority as it should stand at `now`: replaced when less than a third of its life is left, rid of a previous one
    /// that has ended. `None` if it is right as it is.
    pub fn rotate(&self, now: i64) -> Result<Option<CaPem>, CaError> {
        let ca = Ca::parse(self)?;
        if ca.not_after - now < CA_LIFETIME / 3 {
            let key = new_key("the authority")?;
            let params = ca_params(&key, now);
            let failed = |source| issue_error("the authority", source);
            let certificate = params.self_signed(&key).map_err(failed)?;
            let ended = ca.not_after <= now;
            let cross = if ended {
                None
            } else {
                let mut params = params.clone();
                set_validity(&mut params, now - 86_400, ca.not_after);
                params.serial_number = Some(random_serial());
                Some(params.signed_by(&key, &ca.issuer).map_err(failed)?.pem())
            };
            return Ok(Some(CaPem {
                certificate: certificate.pem(),
                key: key.serialize_pem(),
                previous: (!ended).then(|| self.certificate.clone()),
                cross,
            }));
        }
        let previous_ended = match &self.previous {
            Some(pem) => validity(&first_certificate(pem, "previous")?, "previous")?.1 <= now,
            None => false,
        };
        Ok(previous_ended.then(|| CaPem {
            previous: None,
            cross: None,
            ..self.clone()
        }))
    }
}

/// The authority, ready to issue.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    not_after: i64,
    /// PEM of all authorities to trust: this one, then the previous one.
    pub bundle: String,
    /// The same, decoded.
    pub roots: Vec<CertificateDer<'static>>,
    /// This authority, signed by the previous one: goes along with server certificates.
    pub cross: Option<CertificateDer<'static>>,
}

impl Ca {
    /// Reads what stands in the Secret.
    pub fn parse(pem: &CaPem) -> Result<Ca, CaError> {
        let key = KeyPair::from_pem(&pem.key).map_err(CaError::ParseKey)?;
        let own = first_certificate(&pem.certificate, "authority's")?;
        let (_, parsed) =
            X509Certificate::from_der(&own).map_err(|_| CaError::ParseCertificate { what: "authority's" })?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::KeyMismatch);
        }
        let not_after = parsed.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_der(&own, key).map_err(CaError::ParseKey)?;
        let mut bundle = ensure_newline(&pem.certificate);
        let mut roots = vec![own];
        if let Some(previous) = &pem.previous {
            roots.push(first_certificate(previous, "previous")?);
            bundle.push_str(&ensure_newline(previous));
        }
        let cross = pem
            .cross
            .as_deref()
            .map(|pem| first_certificate(pem, "cross"))
            .transpose()?;
        Ok(Ca {
            issuer,
            not_after,
            bundle,
            roots,
            cross,
        })
    }

    /// A server certificate for `addresses` and `names`, its chain and key.
    pub fn issue_server(
        &self,
        addresses: &[IpAddr],
        names: &[String],
        now: i64,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        const SUBJECT: &str = "muster controller";
        let key = new_key(SUBJECT)?;
        let failed = |source| issue_error(SUBJECT, source);
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
        params
            .subject_alt_names
            .extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name.push(DnType::CommonName, SUBJECT);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.limit(&mut params, now, SERVER_LIFETIME);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.cross.clone());
        Ok((
            chain,
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        ))
    }

    /// A client certificate for the key in `request`: this `server`, in this `session`. PEM, leaf only: agents' peers know the roots.
    pub fn issue_client(
        &self,
        request: &Request,
        server: &str,
        session: &str,
        now: i64,
    ) -> Result<String, CaError> {
        let failed = |source| issue_error(server, source);
        let mut params = CertificateParams::default();
        let uri = format!("{SESSION_URI}{session}").try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, server);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.limit(&mut params, now, CLIENT_LIFETIME);
        let certificate = params.signed_by(&request.key, &self.issuer).map_err(failed)?;
        Ok(certificate.pem())
    }

    /// What every leaf has in common; none outlives the authority.
    fn limit(&self, params: &mut CertificateParams, now: i64, lifetime: i64) {
        set_validity(params, now - BACKDATE, (now + lifetime).min(self.not_after));
        params.serial_number = Some(random_serial());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
    }
}

/// A certificate signing request whose signature proves that the sender has the key. Nothing but the key is taken from it.
#[derive(Debug)]
pub struct Request {
    key: rcgen::SubjectPublicKeyInfo,
    /// SHA-256 of the subject public key info, hexadecimal.
    pub fingerprint: String,
}

impl Request {
    /// Reads a PKCS #10 request, PEM. Keys that are no ECDSA on P-256 or P-384 and no Ed25519 are refused.
    pub fn parse(pem: &str) -> Result<Request, CaError> {
        if pem.len() > MAX_CSR {
            return Err(CaError::Request);
        }
        let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| CaError::Request)?;
        let proven = CertificateSigningRequestParams::from_der(&der).map_err(|_| CaError::Request)?;
        let allowed = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ];
        if !allowed.contains(&proven.public_key.algorithm()) {
            return Err(CaError::Request);
        }
        let (_, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(&der)
            .map_err(|_| CaError::Request)?;
        let spki = csr.certification_request_info.subject_pki.raw;
        let key = rcgen::SubjectPublicKeyInfo::from_der(spki).map_err(|_| CaError::Request)?;
        Ok(Request {
            key,
            fingerprint: sha256_hex(spki),
        })
    }
}

/// What a client certificate of ours says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The Server's name.
    pub server: String,
    /// The session's id: the name of the Enrolment that began it.
    pub session: String,
    /// SHA-256 of the subject public key info, hexadecimal.
    pub fingerprint: String,
    /// Unix seconds.
    pub not_after: i64,
}

impl ClientCertificate {
    /// Reads a certificate that TLS has already traced to our authority. `None` if it is not one that [`Ca::issue_client`] makes.
    pub fn parse(der: &[u8]) -> Option<ClientCertificate> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let server = certificate
            .subject()
            .iter_common_name()
            .next()?
            .as_str()
            .ok()?
            .to_owned();
        let names = certificate.subject_alternative_name().ok()??;
        let session = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SESSION_URI),
            _ => None,
        })?;
        Some(ClientCertificate {
            server,
            session: session.to_owned(),
            fingerprint: sha256_hex(certificate.public_key().raw),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// The same from PEM.
    pub fn parse_pem(pem: &str) -> Option<ClientCertificate> {
        ClientCertificate::parse(&CertificateDer::from_pem_slice(pem.as_bytes()).ok()?)
    }

    /// When the agent should renew it, unix seconds.
    pub fn renew_at(&self) -> i64 {
        self.not_after - CLIENT_LIFETIME + RENEW_AFTER
    }
}

/// Begin and end of `certificate`, unix seconds.
fn validity(certificate: &CertificateDer<'_>, what: &'static str) -> Result<(i64, i64), CaError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| CaError::ParseCertificate { what })?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

fn first_certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CaError::ParseCertificate { what })
}

fn ensure_newline(pem: &str) -> String {
    format!("{}\n", pem.trim_end())
}

fn new_key(subject: &str) -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|source| issue_error(subject, source))
}

fn issue_error(subject: &str, source: rcgen::Error) -> CaError {
    CaError::Issue {
        subject: subject.to_owned(),
        source,
    }
}

fn ca_params(key: &KeyPair, now: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Each authority has its own name, so that no verifier mixes two of them up.
    let id = &sha256_hex(key.public_key_raw())[..12];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Muster authority {id}"));
    // Not path length 0: the next authority's cross certificate stands below this one.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now - 86_400, now + CA_LIFETIME);
    params.serial_number = Some(random_serial());
    params
}

/// 16 random bytes, positive (RFC 5280, 4.1.2.2).
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Random bytes of the operating system.
pub(super) fn random<const N: usize>() -> [u8; N] {
    use ring::rand::SecureRandom;
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .expect("getrandom does not fail once the kernel is up");
    bytes
}

/// Sets begin and end of a certificate from unix seconds; times before 1970 are 1970.
fn set_validity(params: &mut CertificateParams, begin: i64, end: i64) {
    let since_epoch = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(begin);
    params.not_after = epoch + since_epoch(end);
}

#[cfg(test)]
mod tests;
