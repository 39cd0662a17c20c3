//! The controller's BMC side against the light BMC, in one process: what works, and what of a broken BMC comes through.

mod faults;
mod line;
mod power;
mod sessions;
mod trust;

use std::{sync::Arc, time::Duration};

use muster_controller::bmc::{
    Access, Bmcs, Boot, Config, Credentials, Device, HostRef, Lasting, Metrics, Mode, Verify, WantedMode,
};
use muster_tests::bmc::{Event, Options, Service};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc::UnboundedReceiver;

/// More than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Without pauses between failures: those have tests of their own.
fn hasty() -> Config {
    Config {
        first_pause: Duration::ZERO,
        longest_pause: Duration::ZERO,
        ..Config::default()
    }
}

fn bmcs(config: &Config) -> Bmcs {
    Bmcs::new(config, metrics()).expect("there are no authorities to refuse")
}

fn metrics() -> Arc<Metrics> {
    Metrics::register(&mut Registry::default())
}

/// A service of one system, `1`, and a way to it.
fn one(options: Options) -> (Service, UnboundedReceiver<Event>, Access) {
    let (service, events) = Service::start(options).expect("a BMC starts");
    let access = access(&service, "host", Some("1"));
    (service, events, access)
}

fn access(service: &Service, host: &str, system: Option<&str>) -> Access {
    Access {
        host: HostRef {
            namespace: "metal".to_owned(),
            name: host.to_owned(),
            uid: format!("uid-of-{host}"),
        },
        address: service.address("redfish", system).parse().expect("an address"),
        credentials: Credentials::new("admin", "secret"),
        verify: Verify::Certificate,
    }
}

fn once(device: Device) -> Boot {
    Boot {
        device,
        mode: WantedMode::Any,
        lasting: Lasting::Once,
    }
}

fn uefi(device: Device) -> Boot {
    Boot {
        mode: WantedMode::Required(Mode::Uefi),
        ..once(device)
    }
}

/// How many requests of `method` for paths with `path` came since somebody last looked.
fn count(service: &Service, method: &str, path: &str) -> usize {
    let seen = service.seen();
    seen.iter()
        .filter(|seen| seen.method == method && seen.path.contains(path))
        .count()
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what)
        .await
        .expect("it ends in time")
}

/// Waits until `holds`.
async fn until(holds: impl Fn() -> bool) {
    in_time(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
