//! TLS of the agents' port: our own certificate, renewed in memory; an agent's certificate optional, but ours if it comes.
//!
//! An agent's certificate that has ended is let in here and refused by the call ([`super::routes`]), because a refusal inside of the
//! handshake could not tell the agent what to do about it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::sync::watch;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::{
    ca::{BACKDATE, Ca, CaError, SERVER_LIFETIME},
    keys::Keys,
};
use crate::watches::Watches;

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No server certificate.
    #[error("issue the server certificate")]
    Issue(#[source] CaError),
    /// The authorities are not usable as roots.
    #[error("trust the authority for client certificates")]
    Roots(#[source] rustls::server::VerifierBuilderError),
    /// rustls refuses the configuration.
    #[error("configure TLS")]
    Configure(#[source] Error),
}

/// Under which addresses and names agents reach this replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// IP addresses: what agents normally dial.
    pub addresses: Vec<IpAddr>,
    /// DNS names.
    pub dns: Vec<String>,
}

impl Names {
    /// Those of a replica that serves at `addresses`, and that agents dial at `endpoints` as well: each a host, with or without `https://`
    /// and a port.
    pub fn new<'a>(
        addresses: impl IntoIterator<Item = IpAddr>,
        endpoints: impl IntoIterator<Item = &'a String>,
    ) -> Names {
        let mut names = Names {
            addresses: addresses.into_iter().collect(),
            dns: Vec::new(),
        };
        for endpoint in endpoints {
            match dialled(endpoint) {
                Ok(address) => names.addresses.push(address),
                Err(name) => names.dns.push(name.to_owned()),
            }
        }
        names.addresses.sort_unstable();
        names.addresses.dedup();
        names.dns.sort_unstable();
        names.dns.dedup();
        names
    }
}

/// The address in `endpoint`, a host with or without `https://` and a port; or else its name. An IPv6 address needs brackets only before
/// a port.
pub(crate) fn dialled(endpoint: &str) -> Result<IpAddr, &str> {
    let host = endpoint.strip_prefix("https://").unwrap_or(endpoint);
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse() {
        return Ok(address);
    }
    if let Ok(socket) = host.parse::<SocketAddr>() {
        return Ok(socket.ip());
    }
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host.parse().map_err(|_| host)
}

/// The configuration for one authority and one set of names, its certificate valid from about `now` (unix seconds).
pub(super) fn server_config(ca: &Ca, names: &Names, now: i64) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for root in &ca.roots {
        roots.add(root.clone()).map_err(TlsError::Configure)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Roots)?;
    let (chain, key) = ca
        .issue_server(&names.addresses, &names.dns, now)
        .map_err(TlsError::Issue)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Configure)?
        .with_client_cert_verifier(Arc::new(Ours(verifier)))
        .with_single_cert(chain, key)
        .map_err(TlsError::Configure)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session lasts hours and dials rarely: resumption would only be memory and a way around a fresh check.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// How often the time is compared with that of the certificate: clocks are set, and a certificate of another time is trusted by nobody.
const LOOK: Duration = Duration::from_secs(60);

/// True if a certificate that was made at `made` is to be made anew at `now` (unix seconds): half of its life is over, or the clock was set
/// back by so much that it may not have begun for others.
fn is_stale(made: i64, now: i64) -> bool {
    !(made - BACKDATE / 2..made + SERVER_LIFETIME / 2).contains(&now)
}

/// The configuration that is right now: made anew when the keys or the names change, and in good time before its certificate ends.
pub(super) async fn follow(
    mut keys: watch::Receiver<Keys>,
    mut names: watch::Receiver<Names>,
) -> Result<watch::Receiver<Arc<ServerConfig>>, TlsError> {
    let make = |keys: &Keys, names: &Names, now| server_config(&keys.ca, names, now).map(Arc::new);
    let now = super::clock::now();
    let first = make(&keys.borrow_and_update(), &names.borrow_and_update(), now)?;
    // None: another one is due, and could not be made yet.
    let mut made = Some(now);
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let (mut followed, mut named) = (true, true);
        loop {
            let changed = tokio::select! {
                () = sender.closed() => return,
                changed = keys.changed(), if followed => { followed = changed.is_ok(); true },
                changed = names.changed(), if named => { named = changed.is_ok(); true },
                () = tokio::time::sleep(LOOK) => false,
            };
            let now = super::clock::now();
            if !changed && made.is_some_and(|made| !is_stale(made, now)) {
                continue;
            }
            match make(&keys.borrow_and_update(), &names.borrow_and_update(), now) {
                Ok(config) => {
                    sender.send_replace(config);
                    made = Some(now);
                }
                Err(error) => {
                    made = None;
                    tracing::error!(error = %muster_proto::Chain(&error), "the old server certificate stays in use");
                }
            }
        }
    });
    Ok(receiver)
}

/// Tells `sender` a configuration for `names`, of the authority of this installation, and keeps it good. Never ends.
pub async fn own_certificate(
    client: kube::Client,
    namespace: String,
    watches: Watches,
    names: Names,
    sender: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    let keys = super::keys::watch(client, namespace, watches).await;
    let (_names, names) = watch::channel(names);
    let mut made = match follow(keys, names).await {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(error = %muster_proto::Chain(&error), "there is no certificate");
            return std::future::pending().await;
        }
    };
    loop {
        sender.send_replace(Some(made.borrow_and_update().clone()));
        if made.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Takes certificates that our authorities issued, whatever the time: who refuses one that has ended can say so in an answer, and one that is
/// not valid yet was issued by another edge, or by this one before its clock was set.
#[derive(Debug)]
struct Ours(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Ours {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let within = X509Certificate::from_der(end_entity)
            .ok()
            .and_then(|(_, certificate)| {
                let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).ok();
                let validity = certificate.validity();
                Some((seconds(validity.not_before)?, seconds(validity.not_after)?))
            })
            .map_or(now, |(first, last)| {
                UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().max(first).min(last)))
            });
        self.0.verify_client_cert(end_entity, intermediates, within)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_addresses_of_either_family_however_they_are_written() {
        let endpoints = [
            "2001:db8::1",
            "[2001:db8::2]",
            "[2001:db8::3]:9443",
            "https://[2001:db8::4]:9443",
            "192.0.2.1",
            "https://192.0.2.2:9443",
            "edge.example:9443",
        ]
        .map(str::to_owned);
        let names = Names::new([], &endpoints);
        let mut addresses: Vec<String> = names.addresses.iter().map(ToString::to_string).collect();
        addresses.sort_unstable();
        assert_eq!(
            addresses,
            [
                "192.0.2.1",
                "192.0.2.2",
                "2001:db8::1",
                "2001:db8::2",
                "2001:db8::3",
                "2001:db8::4"
            ]
        );
        assert_eq!(names.dns, ["edge.example"]);
    }

    #[test]
    fn a_certificate_is_made_anew_at_half_of_its_life_and_after_the_clock_was_set() {
        let made = 1_800_000_000;
        for (moved, stale) in [
            (0, false),
            (SERVER_LIFETIME / 2 - 1, false),
            (SERVER_LIFETIME / 2, true),
            (10 * SERVER_LIFETIME, true),
            // Others allow for clocks that differ a little.
            (-BACKDATE / 2, false),
            (-BACKDATE / 2 - 1, true),
            (-10 * SERVER_LIFETIME, true),
        ] {
            assert_eq!(is_stale(made, made + moved), stale, "{moved}");
        }
    }
}
