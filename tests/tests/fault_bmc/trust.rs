//! TLS of BMCs: verified, unless the host says otherwise.

use muster_controller::bmc::{BmcError, Config, PowerState, Reset, Verify};
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
    assert_eq!(bmcs.power(&access).await.unwrap(), PowerState::Off);
    bmcs.set_power(&access, 1, Reset::On).await.unwrap();
    bmcs.stop().await;
    assert_eq!(service.open_sessions(), 0);
}

#[tokio::test]
async fn any_other_certificate_is_refused_before_anything_is_said() {
    let (ours, theirs) = (Authority::new().unwrap(), Authority::new().unwrap());
    for (service, why) in [
        (secure(&theirs, &["127.0.0.1"]), "no authority"),
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
        assert_eq!(bmcs.power(&access).await.unwrap(), PowerState::Off, "{why}");
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
