use std::sync::Arc;

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{ServerName, UnixTime},
};

use super::*;

const NOW: i64 = 1_800_000_000;

/// What an agent that trusts `bundle` says of a server certificate at `now`.
fn verify(bundle: &str, chain: &[CertificateDer<'_>], now: i64) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let name = ServerName::try_from("10.77.0.1").unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.try_into().unwrap()));
    verifier
        .verify_server_cert(&chain[0], &chain[1..], &name, &[], now)
        .map(drop)
}

fn server_chain(pem: &CaPem, now: i64) -> Vec<CertificateDer<'static>> {
    let ca = Ca::parse(pem).unwrap();
    ca.issue_server(&["10.77.0.1".parse().unwrap()], &["muster".to_owned()], now)
        .unwrap()
        .0
}

fn request() -> Request {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    Request::parse(&csr.pem().unwrap()).unwrap()
}

#[test]
fn an_agent_with_the_bundle_believes_the_server() {
    let pem = CaPem::generate(NOW).unwrap();
    let ca = Ca::parse(&pem).unwrap();
    assert_eq!(verify(&ca.bundle, &server_chain(&pem, NOW), NOW), Ok(()));
    let foreign = CaPem::generate(NOW).unwrap();
    assert!(verify(&foreign.certificate, &server_chain(&pem, NOW), NOW).is_err());
}

#[test]
fn a_ca_rotates_in_the_last_third_of_its_life_only() {
    let pem = CaPem::generate(NOW).unwrap();
    assert_eq!(pem.rotate(NOW).unwrap(), None);
    assert_eq!(pem.rotate(NOW + CA_LIFETIME * 2 / 3 - 10).unwrap(), None);
    let next = pem.rotate(NOW + CA_LIFETIME * 2 / 3 + 10).unwrap().expect("due");
    assert_eq!(next.previous.as_deref(), Some(pem.certificate.as_str()));
    assert_eq!(next.rotate(NOW + CA_LIFETIME * 2 / 3 + 10).unwrap(), None);
}

#[test]
fn a_rotation_breaks_neither_old_nor_new_agents() {
    let old = CaPem::generate(NOW).unwrap();
    let then = NOW + CA_LIFETIME * 3 / 4;
    let new = old.rotate(then).unwrap().expect("due");
    let chain = server_chain(&new, then);
    assert_eq!(verify(&Ca::parse(&old).unwrap().bundle, &chain, then), Ok(()));
    assert_eq!(verify(&Ca::parse(&new).unwrap().bundle, &chain, then), Ok(()));
    assert_eq!(verify(&new.certificate, &chain, then), Ok(()));
    assert_eq!(Ca::parse(&new).unwrap().roots.len(), 2);
}

#[test]
fn the_previous_ca_leaves_the_bundle_when_it_has_ended() {
    let old = CaPem::generate(NOW).unwrap();
    let new = old.rotate(NOW + CA_LIFETIME * 3 / 4).unwrap().expect("due");
    let alone = new
        .rotate(NOW + CA_LIFETIME + 1)
        .unwrap()
        .expect("the previous one has ended");
    assert_eq!((alone.previous.as_ref(), alone.cross.as_ref()), (None, None));
    assert_eq!(alone.certificate, new.certificate);
}

#[test]
fn an_ended_ca_is_replaced_without_overlap() {
    let old = CaPem::generate(NOW).unwrap();
    let new = old.rotate(NOW + CA_LIFETIME + 1).unwrap().expect("due");
    assert_eq!((new.previous, new.cross), (None, None));
}

#[test]
fn a_key_of_another_ca_is_refused() {
    let one = CaPem::generate(NOW).unwrap();
    let two = CaPem::generate(NOW).unwrap();
    let mixed = CaPem { key: two.key, ..one };
    assert!(matches!(Ca::parse(&mixed), Err(CaError::KeyMismatch)));
}

#[test]
fn a_client_certificate_says_what_was_put_in() {
    let ca = Ca::parse(&CaPem::generate(NOW).unwrap()).unwrap();
    let request = request();
    let pem = ca
        .issue_client(&request, "mac-525400123456", "token-abc", NOW)
        .unwrap();
    let read = ClientCertificate::parse_pem(&pem).unwrap();
    assert_eq!(read.server, "mac-525400123456");
    assert_eq!(read.session, "token-abc");
    assert_eq!(read.fingerprint, request.fingerprint);
    assert_eq!(read.not_after, NOW + CLIENT_LIFETIME);
    assert_eq!(read.renew_at(), NOW + RENEW_AFTER);
}

#[test]
fn nothing_but_the_key_is_taken_from_a_request() {
    let key = KeyPair::generate().unwrap();
    let mut asked = CertificateParams::new(vec!["controller.muster".to_owned()]).unwrap();
    asked
        .distinguished_name
        .push(DnType::CommonName, "mac-of-another");
    asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    asked.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let csr = asked.serialize_request(&key).unwrap().pem().unwrap();
    let ca = Ca::parse(&CaPem::generate(NOW).unwrap()).unwrap();
    let pem = ca
        .issue_client(&Request::parse(&csr).unwrap(), "mac-mine", "token-abc", NOW)
        .unwrap();
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(ClientCertificate::parse(&der).unwrap().server, "mac-mine");
    assert!(!certificate.is_ca());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    assert_eq!(certificate.subject().iter_common_name().count(), 1);
}

#[test]
fn a_request_without_proof_of_the_key_is_refused() {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let mut der = csr.der().to_vec();
    *der.last_mut().unwrap() ^= 1;
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
    assert!(matches!(Request::parse(&pem), Err(CaError::Request)));
}

proptest::proptest! {
    #[test]
    fn foreign_requests_never_panic(pem in "\\PC*", der: Vec<u8>) {
        let _ = Request::parse(&pem);
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &der);
        let _ = Request::parse(&format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n"));
        let _ = ClientCertificate::parse(&der);
    }
}
