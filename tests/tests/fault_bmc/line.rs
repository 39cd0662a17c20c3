//! The line in front of each BMC.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use muster_controller::bmc::{BmcError, Config, Device, Done, Metrics, PowerState, Reset, Term};
use muster_tests::bmc::{self, Fault, Options, Rule, Service, What};
use prometheus_client::{encoding::text::encode, registry::Registry};

use super::{DEADLINE, access, bmcs, count, hasty, in_time, once, one};

/// Long enough that calls which may overlap do.
const A_WHILE: Fault = Fault::Slow(Duration::from_millis(20));

#[tokio::test]
async fn one_call_at_a_time_reaches_a_bmc_whoever_makes_it() {
    let (service, _events, _) = one(Options::default());
    service.inject(Rule::always(A_WHILE));
    let bmcs = bmcs(&hasty());
    let calls = (0..12).map(|number| {
        let (bmcs, access) = (
            bmcs.clone(),
            access(&service, &format!("host-{number}"), Some("1")),
        );
        async move {
            match number % 3 {
                0 => bmcs.power(&access).await.map(drop),
                1 => bmcs.set_power(&access, 1, Reset::ForceRestart).await.map(drop),
                _ => bmcs.set_boot(&access, 1, once(Device::Pxe)).await.map(drop),
            }
        }
    });
    for outcome in in_time(join_all(calls)).await {
        outcome.unwrap();
    }
    assert_eq!(service.most_at_once(), 1);
}

#[tokio::test]
async fn over_all_bmcs_only_so_many_calls_run() {
    let options = Options {
        systems: (0..16).map(|number| number.to_string()).collect(),
        ..Options::default()
    };
    let (service, _events) = Service::start(options).unwrap();
    service.inject(Rule::always(A_WHILE));
    let bmcs = bmcs(&Config {
        concurrent: 3,
        ..hasty()
    });
    let calls = (0..16).map(|number| {
        let name = number.to_string();
        let (bmcs, access) = (bmcs.clone(), access(&service, &name, Some(&name)));
        async move { bmcs.power(&access).await }
    });
    for outcome in in_time(join_all(calls)).await {
        outcome.unwrap();
    }
    assert!((2..=3).contains(&service.most_at_once()));
}

#[tokio::test]
async fn an_older_epoch_changes_nothing() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    bmcs.set_boot(&access, 7, once(Device::Pxe)).await.unwrap();
    service.seen();
    let fenced = bmcs.set_power(&access, 6, Reset::On).await;
    assert_eq!(fenced, Err(BmcError::Fenced { epoch: 6, seen: 7 }));
    assert_eq!(count(&service, "GET", ""), 0);
    assert_eq!(
        bmcs.set_power(&access, 7, Reset::On).await.unwrap(),
        Done::Accepted
    );
    bmcs.fence(9);
    assert!(matches!(
        bmcs.set_power(&access, 8, Reset::ForceOff).await,
        Err(BmcError::Fenced { .. })
    ));
    // Looking is always allowed.
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::On);
}

#[tokio::test]
async fn a_call_that_waits_for_its_turn_is_fenced_too() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&Config {
        request: Duration::from_secs(10),
        ..hasty()
    });
    service.inject(Rule::always(Fault::Hang).times(1));
    let first = tokio::spawn({
        let (bmcs, access) = (bmcs.clone(), access.clone());
        async move { bmcs.power(&access).await }
    });
    super::until(|| service.most_at_once() == 1).await;
    let before = service.seen().len();
    assert!(before > 0);
    let second = tokio::spawn({
        let (bmcs, access) = (bmcs.clone(), access.clone());
        async move { bmcs.set_power(&access, 1, Reset::On).await }
    });
    // It stands in the line by then.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    bmcs.fence(2);
    assert!(in_time(first).await.unwrap().is_err());
    assert_eq!(
        in_time(second).await.unwrap(),
        Err(BmcError::Fenced { epoch: 1, seen: 2 })
    );
    assert_eq!(service.seen(), [], "it asked nothing");
    assert_eq!(service.power("1"), bmc::PowerState::Off);
}

#[tokio::test]
async fn nothing_leaves_for_a_term_that_ended_in_the_middle_of_a_call() {
    let (service, mut events, access) = one(Options::default());
    let (service, bmcs) = (Arc::new(service), bmcs(&hasty()));
    // Over as soon as the BMC was asked how things are: the change that was to follow must not.
    let term = |epoch| {
        let (service, over) = (Arc::clone(&service), AtomicBool::new(false));
        Term::new(epoch, move || {
            let asked = service
                .seen()
                .iter()
                .any(|seen| seen.path.ends_with("/Systems/1"));
            !(over.fetch_or(asked, Ordering::SeqCst) || asked)
        })
    };
    let reset = bmcs.set_power(&access, term(3), Reset::On).await;
    assert_eq!(reset, Err(BmcError::Lapsed { epoch: 3 }));
    let armed = bmcs.set_boot(&access, term(3), once(Device::Pxe)).await;
    assert_eq!(armed, Err(BmcError::Lapsed { epoch: 3 }));
    assert!(events.try_recv().is_err());
    assert_eq!(service.power("1"), bmc::PowerState::Off);
    assert_eq!(service.armed("1").target, None);
    // The next one finds nothing in its way.
    bmcs.set_boot(&access, 4, once(Device::Pxe)).await.unwrap();
    assert_eq!(
        bmcs.set_power(&access, 4, Reset::On).await.unwrap(),
        Done::Accepted
    );
}

#[tokio::test]
async fn a_look_whose_connection_ended_is_taken_again_and_a_change_is_not() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    bmcs.power(&access).await.unwrap();
    service.expire_sessions();
    service.seen();
    // After the new session, on its connection.
    let ends = Rule::always(Fault::Refuse).path("/Systems/1");
    service.inject(ends.clone().method("GET").times(1));
    let expired = Rule::always(Fault::Status(401, "NoValidSession"));
    service.inject(expired.path("/Systems/1").times(1));
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::Off);
    assert_eq!(count(&service, "GET", "/Systems/1"), 3);
    service.inject(ends.method("POST"));
    let error = bmcs.set_power(&access, 1, Reset::On).await.unwrap_err();
    assert!(matches!(error, BmcError::Unreachable { .. }), "{error:?}");
    assert_eq!(count(&service, "POST", "/Systems/1"), 1);
}

#[tokio::test]
async fn a_bmc_that_answers_one_request_per_connection_takes_changes() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    service.inject(Rule::always(Fault::OnePerConnection));
    let armed = bmcs.set_boot(&access, 1, once(Device::Pxe)).await;
    assert_eq!(armed.unwrap(), Done::Accepted);
    assert_eq!(count(&service, "PATCH", ""), 1);
    let reset = bmcs.set_power(&access, 1, Reset::On).await;
    assert_eq!(reset.unwrap(), Done::Accepted);
    assert_eq!(count(&service, "POST", "/Systems/1"), 1);
    assert_eq!(service.power("1"), bmc::PowerState::On);
}

#[tokio::test]
async fn a_call_whose_caller_went_away_ends_in_order() {
    let (service, mut events, access) = one(Options::default());
    let bmcs = bmcs(&hasty());
    service.inject(Rule::always(A_WHILE));
    let given_up = tokio::spawn({
        let (bmcs, access) = (bmcs.clone(), access.clone());
        async move { bmcs.set_power(&access, 1, Reset::On).await }
    });
    super::until(|| service.most_at_once() == 1).await;
    given_up.abort();
    let event = in_time(events.recv()).await.unwrap();
    assert!(matches!(event.what, What::On(_)));
    assert_eq!(bmcs.power(&access).await.unwrap().power, PowerState::On);
    // Its session is known, not lost.
    assert_eq!(service.open_sessions(), 1);
    bmcs.forget(&access.host).await;
    assert_eq!(service.open_sessions(), 0);
}

#[tokio::test]
async fn a_bmc_that_failed_is_left_alone_for_a_while() {
    let (service, _events, access) = one(Options::default());
    let bmcs = bmcs(&Config {
        first_pause: DEADLINE,
        longest_pause: DEADLINE,
        ..hasty()
    });
    service.inject(Rule::always(Fault::Refuse).times(1));
    let first = bmcs.power(&access).await.unwrap_err();
    service.seen();
    for _ in 0..3 {
        assert_eq!(bmcs.power(&access).await.unwrap_err(), first);
    }
    assert_eq!(count(&service, "GET", ""), 0);
    assert!(bmcs.pause(&access).is_some_and(|pause| pause <= DEADLINE));
}

#[tokio::test]
async fn a_host_without_a_driver_is_told_so_and_leaves_nothing_behind() {
    let (_service, _events, mut access) = one(Options::default());
    access.address = "ipmi://192.0.2.1".parse().unwrap();
    let mut registry = Registry::default();
    let bmcs = muster_controller::bmc::Bmcs::new(&hasty(), Metrics::register(&mut registry)).unwrap();
    let error = bmcs.probe(&access).await.unwrap_err();
    assert!(matches!(error, BmcError::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().contains("ipmi"), "{error}");
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    assert!(text.contains("muster_bmc_systems 0"), "{text}");
    assert!(
        text.contains("muster_bmc_failures_total{call=\"probe\",class=\"unsupported\"} 1"),
        "{text}"
    );
}

#[tokio::test]
async fn calls_and_failures_are_counted() {
    let (service, _events, access) = one(Options::default());
    let mut registry = Registry::default();
    let bmcs = muster_controller::bmc::Bmcs::new(&hasty(), Metrics::register(&mut registry)).unwrap();
    bmcs.power(&access).await.unwrap();
    service.inject(Rule::always(Fault::Refuse));
    bmcs.power(&access).await.unwrap_err();
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        "muster_bmc_calls_total{call=\"power\"} 2",
        "muster_bmc_failures_total{call=\"power\",class=\"unreachable\"} 1",
        "muster_bmc_call_seconds_count{call=\"power\"} 2",
        "muster_bmc_systems 1",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[tokio::test]
async fn what_is_remembered_of_bmcs_goes_with_their_hosts() {
    let systems = || (0..8).map(|number| number.to_string());
    let options = Options {
        systems: systems().collect(),
        ..Options::default()
    };
    let (service, _events) = Service::start(options).unwrap();
    let mut registry = Registry::default();
    let bmcs = muster_controller::bmc::Bmcs::new(&hasty(), Metrics::register(&mut registry)).unwrap();
    let remembered = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("muster_bmc_systems "))
            .unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    let first: Vec<_> = systems()
        .map(|name| access(&service, &name, Some(&name)))
        .collect();
    for access in &first {
        bmcs.power(access).await.unwrap();
    }
    assert_eq!(remembered(), "8");
    // All of them turn out to be one machine.
    for one in &first {
        let moved = muster_controller::bmc::Access {
            host: one.host.clone(),
            ..access(&service, "any", Some("3"))
        };
        bmcs.power(&moved).await.unwrap();
    }
    assert_eq!(remembered(), "1");
    for access in &first {
        bmcs.forget(&access.host).await;
    }
    assert_eq!(remembered(), "0");
    super::until(|| service.open_sessions() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_bmcs_are_switched_on_at_once() {
    let names: Vec<String> = (0..400).map(|number| format!("node-{number}")).collect();
    let options = Options {
        systems: names.clone(),
        sessions: Some(names.len()),
        remember: false,
        ..Options::default()
    };
    let (service, mut events) = Service::start(options).unwrap();
    let bmcs = bmcs(&hasty());
    let calls = names.iter().map(|name| {
        let (bmcs, access) = (bmcs.clone(), access(&service, name, Some(name)));
        async move {
            bmcs.set_boot(&access, 1, once(Device::Pxe)).await?;
            bmcs.set_power(&access, 1, Reset::On).await
        }
    });
    for outcome in in_time(join_all(calls)).await {
        assert_eq!(outcome.unwrap(), Done::Accepted);
    }
    let mut on = 0;
    while let Ok(event) = events.try_recv() {
        assert!(
            matches!(&event.what, What::On(source) if source.target.as_deref() == Some("Pxe")),
            "{event:?}"
        );
        on += 1;
    }
    assert_eq!(on, names.len());
    assert_eq!(service.open_sessions(), names.len());
}
