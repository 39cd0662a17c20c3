//! TLS of BMCs: verified, unless the host says otherwise.

use std::path::PathBuf;

use muster_controller::bmc::{AuthorityError, BmcError, Config, PowerState, Reset, Verify, authorities};
use muster_tests::bmc::{Authority, Options, Service};

use super::{access, bmcs, hasty};

fn secure(authority: &Authority, names: &[&str]) -> Service {
    let options = Options {
        tls: Some(authority.server(names).expect("a certificate")),
        ..Options::default()
    };
    Service::start(options).expect("a BMC starts").0
}

fn trusting(authority: &Authority) -> Config {
    Config {
        authorities: vec![authority.certificate()],
        ..hasty()
    }
}

#[tokio::test]
async fn a_certificate_of_an_authority_that_is_trusted_will_do() {
    let authority = Authority::new().unwrap();
    let service = secure(&authority, &["127.0.0.1"]);
    let access = access(&service, "host", None);
    let bmcs = bmcs(&trusting(&authority));
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
    bmcs.set_power(&access, 1, Reset::On).await.unwrap();
    bmcs.stop().await;
    assert_eq!(service.open_sessions(), 0);
}

#[tokio::test]
async fn any_other_certificate_is_refused_before_anything_is_said() {
    let (ours, theirs) = (Authority::new().unwrap(), Authority::new().unwrap());
    for (service, why) in [
        (
            secure(&theirs, &["127.0.0.1"]),
            "not issued by a trusted authority",
        ),
        (secure(&ours, &["127.0.0.2"]), "does not name"),
        (secure(&ours, &["bmc.example.com"]), "does not name"),
    ] {
        let mut access = access(&service, "host", None);
        // With real pauses: another wish for verification is not held up by them.
        let bmcs = bmcs(&Config {
            authorities: vec![ours.certificate()],
            ..Config::default()
        });
        let error = bmcs.power(&access).await.unwrap_err();
        assert!(matches!(error, BmcError::Untrusted { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(service.seen(), []);
        access.verify = Verify::from_spec(Some(true));
        assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off, "{why}");
        access.verify = Verify::from_spec(Some(false));
        assert!(matches!(
            bmcs.power(&access).await,
            Err(BmcError::Untrusted { .. })
        ));
    }
}

#[tokio::test]
async fn plain_http_on_a_port_of_tls_and_the_reverse_are_errors() {
    let authority = Authority::new().unwrap();
    let secure = secure(&authority, &["127.0.0.1"]);
    let (plain, _events) = Service::start(Options::default()).unwrap();
    let bmcs = bmcs(&trusting(&authority));
    for (service, scheme) in [(&secure, "redfish+http"), (&plain, "redfish+https")] {
        let mut access = access(service, "host", None);
        access.address = format!("{scheme}://{}", service.socket()).parse().unwrap();
        let error = bmcs.power(&access).await.unwrap_err();
        assert!(
            matches!(error, BmcError::Unreachable { .. } | BmcError::Answer { .. }),
            "{error:?}"
        );
        assert_eq!(service.seen(), []);
    }
}

#[tokio::test]
async fn authorities_come_from_files_and_one_that_cannot_be_used_is_named() {
    let (ours, theirs) = (Authority::new().unwrap(), Authority::new().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let both = format!("# ours\n{}\n# theirs\n{}", ours.pem(), theirs.pem());
    let found = authorities(&[file("both.pem", &both), file("again.pem", &ours.pem())]).unwrap();
    assert_eq!(found.len(), 3);
    let service = secure(&theirs, &["127.0.0.1"]);
    let access = access(&service, "host", None);
    let bmcs = bmcs(&Config {
        authorities: found,
        ..hasty()
    });
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (name, text) in [
        ("empty.pem", ""),
        ("broken.pem", broken),
        ("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n"),
    ] {
        let error = authorities(&[file("good.pem", &ours.pem()), file(name, text)]).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    let missing = scratch.path().join("missing.pem");
    let error = authorities(std::slice::from_ref(&missing)).unwrap_err();
    assert!(
        matches!(&error, AuthorityError::Read { path, .. } if *path == missing),
        "{error}"
    );
}
