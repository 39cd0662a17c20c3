//! The controller's Redfish against a service that is not ours: OpenStack's sushy-emulator.

use std::time::Duration;

use muster_controller::bmc::{
    Access, BmcError, Bmcs, Boot, Config, Credentials, Device, Done, HostRef, Lasting, Metrics, Mode,
    PowerState, Reset, Verify, WantedMode,
};
use muster_tests::{
    bmc::Authority,
    sushy::{Sushy, SushySystem, USER},
};
use prometheus_client::registry::Registry;

/// The emulator takes up to 11 s for a change of power, and more on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

fn system(number: u8) -> SushySystem {
    SushySystem {
        uuid: format!("5a1d2c3e-0000-4000-8000-0000000000{number:02}"),
        name: format!("node-{number}"),
        mac: format!("52:54:00:00:00:{number:02}"),
    }
}

fn access(sushy: &Sushy, scheme: &str, path: &str) -> Access {
    Access {
        host: HostRef {
            namespace: "metal".to_owned(),
            name: "host".to_owned(),
            uid: path.to_owned(),
        },
        address: format!("{scheme}://{}{path}", sushy.address())
            .parse()
            .expect("an address"),
        credentials: Credentials::new(USER.0, USER.1),
        verify: Verify::Certificate,
    }
}

fn bmcs(config: &Config) -> Bmcs {
    let quick = Config {
        first_pause: Duration::ZERO,
        longest_pause: Duration::ZERO,
        ..config.clone()
    };
    Bmcs::new(&quick, Metrics::register(&mut Registry::default())).expect("fit authorities")
}

async fn until_power(bmcs: &Bmcs, access: &Access, wanted: PowerState) {
    let reached = async {
        while bmcs.power(access).await.expect("it answers").power != wanted {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, reached)
        .await
        .expect("the power changes");
}

#[tokio::test]
async fn power_follows_orders() {
    let sushy = Sushy::start(&[system(1)], None).await.unwrap();
    let bmcs = bmcs(&Config::default());
    let path = format!("/redfish/v1/Systems/{}", system(1).uuid);
    let access = access(&sushy, "redfish+http", &path);
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::ForceOff).await.unwrap(),
        Done::Already
    );
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::On).await.unwrap(),
        Done::Accepted
    );
    until_power(&bmcs, &access, PowerState::On).await;
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::On).await.unwrap(),
        Done::Already
    );
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::ForceRestart).await.unwrap(),
        Done::Accepted
    );
    // It is off for a moment, which nobody may happen to see.
    let restarts = "power state set to \"ForceRestart\"";
    sushy.log().wait_for(restarts, 0, DEADLINE).await.unwrap();
    until_power(&bmcs, &access, PowerState::On).await;
    assert_eq!(
        bmcs.set_power(&access, 1, Reset::GracefulShutdown).await.unwrap(),
        Done::Accepted
    );
    until_power(&bmcs, &access, PowerState::Off).await;
}

#[tokio::test]
async fn boot_device_and_mode_are_set() {
    let sushy = Sushy::start(&[system(1)], None).await.unwrap();
    let bmcs = bmcs(&Config::default());
    // By its other name, from which it redirects.
    let access = access(&sushy, "redfish-virtualmedia+http", "/redfish/v1/Systems/node-1");
    let pxe = |mode| Boot {
        device: Device::Pxe,
        mode: WantedMode::Required(mode),
        // It takes "Once" and does "Continuous".
        lasting: Lasting::Continuous,
    };
    assert_eq!(
        bmcs.set_boot(&access, 1, pxe(Mode::Legacy)).await.unwrap(),
        Done::Accepted
    );
    assert_eq!(
        bmcs.set_boot(&access, 1, pxe(Mode::Legacy)).await.unwrap(),
        Done::Already
    );
    assert_eq!(
        bmcs.set_boot(&access, 1, pxe(Mode::Uefi)).await.unwrap(),
        Done::Accepted
    );
    assert_eq!(
        bmcs.set_boot(&access, 1, pxe(Mode::Uefi)).await.unwrap(),
        Done::Already
    );
    let once = Boot {
        device: Device::Hdd,
        mode: WantedMode::Any,
        lasting: Lasting::Once,
    };
    assert_eq!(bmcs.set_boot(&access, 1, once).await.unwrap(), Done::Accepted);
}

#[tokio::test]
async fn a_machine_is_booted_from_the_network_as_the_operator_does_it() {
    let sushy = Sushy::start(&[system(1)], None).await.unwrap();
    let bmcs = bmcs(&Config::default());
    let access = access(&sushy, "redfish+http", "");
    for (mode, reset, word) in [
        (WantedMode::Any, Reset::On, "On"),
        (
            WantedMode::Preferred(Mode::Uefi),
            Reset::ForceRestart,
            "ForceRestart",
        ),
        (
            WantedMode::Preferred(Mode::Legacy),
            Reset::ForceRestart,
            "ForceRestart",
        ),
    ] {
        let said = sushy.log().len();
        let pxe = Boot {
            device: Device::Pxe,
            mode,
            lasting: Lasting::Once,
        };
        // It takes "Once" and does "Continuous", so that each is another wish.
        assert_eq!(
            bmcs.set_boot(&access, 1, pxe).await.unwrap(),
            Done::Accepted,
            "{mode:?}"
        );
        assert_eq!(
            bmcs.set_power(&access, 1, reset).await.unwrap(),
            Done::Accepted,
            "{mode:?}"
        );
        let changes = format!("power state set to \"{word}\"");
        sushy.log().wait_for(&changes, said, DEADLINE).await.unwrap();
        until_power(&bmcs, &access, PowerState::On).await;
    }
}

#[tokio::test]
async fn a_probe_knows_the_machine_again() {
    let sushy = Sushy::start(&[system(7)], None).await.unwrap();
    let probe = bmcs(&Config::default())
        .probe(&access(&sushy, "redfish+http", ""))
        .await
        .unwrap();
    assert_eq!(probe.state.power, PowerState::Off);
    assert_eq!(probe.identity.uuid, Some(system(7).uuid));
    assert_eq!(probe.identity.macs, Some(vec![system(7).mac.parse().unwrap()]));
}

#[tokio::test]
async fn credentials_and_systems_that_are_wrong_are_told_apart() {
    let sushy = Sushy::start(&[system(1), system(2)], None).await.unwrap();
    let bmcs = bmcs(&Config::default());
    let mut unnamed = access(&sushy, "redfish+http", "");
    assert!(matches!(
        bmcs.power(&unnamed).await,
        Err(BmcError::SeveralSystems { .. })
    ));
    let missing = access(&sushy, "redfish+http", "/redfish/v1/Systems/none");
    let error = bmcs.power(&missing).await.unwrap_err();
    assert!(matches!(error, BmcError::NoSystem { .. }), "{error:?}");
    unnamed.credentials = Credentials::new(USER.0, "wrong");
    let error = bmcs.power(&unnamed).await.unwrap_err();
    assert!(matches!(error, BmcError::Credentials { .. }), "{error:?}");
}

#[tokio::test]
async fn its_certificate_counts() {
    let authority = Authority::new().unwrap();
    let (certificate, key) = authority.issue_pem(&["127.0.0.1"]).unwrap();
    let sushy = Sushy::start(&[system(1)], Some((&certificate, &key)))
        .await
        .unwrap();
    let mut access = access(&sushy, "redfish", "");
    let trusting = bmcs(&Config {
        authorities: vec![authority.certificate()],
        ..Config::default()
    });
    assert_eq!(trusting.power(&access).await.unwrap().power, PowerState::Off);
    let strict = bmcs(&Config::default());
    assert!(matches!(
        strict.power(&access).await,
        Err(BmcError::Untrusted { .. })
    ));
    access.verify = Verify::Nothing;
    assert_eq!(strict.power(&access).await.unwrap().power, PowerState::Off);
}
