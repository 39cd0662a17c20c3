//! How many hosts there are in each state and what they wait for, as the watched copy has it when somebody asks. Nothing is kept in
//! between: to count ten thousand hosts at every scrape costs less than to follow every change of them.

use std::{collections::BTreeMap, sync::Arc};

use kube::runtime::reflector::Store;
use muster_proto::kinds::{BareMetalHost, OperationalStatus};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};
use tokio::sync::watch;

use crate::{
    host::{State, WaitReason, conditions},
    hosts::is_paused,
    lease::{Leadership, Standing},
    metrics::Registry,
};

/// What stands for the operational status of a paused host, whose status says what was so before.
const PAUSED: &str = "paused";

/// What stands for a reason that this version does not know: whoever may write a status is to make no series.
const OTHER: &str = "other";

/// The hosts of the watched copy, told of while this process leads, so that of several replicas one does.
#[derive(Debug)]
struct Hosts {
    hosts: Store<BareMetalHost>,
    standing: watch::Receiver<Standing>,
}

/// Registers on `registry` how the `hosts` are, for as long as this process leads.
pub fn register_hosts(
    registry: &mut Registry,
    hosts: Store<BareMetalHost>,
    standing: watch::Receiver<Standing>,
) {
    registry.register_collector(Box::new(Hosts { hosts, standing }));
}

/// How many hosts are how.
#[derive(Debug)]
struct Census {
    /// By state and operational status.
    hosts: BTreeMap<(&'static str, &'static str), u32>,
    /// By what they wait for: each reason, also that of none of them.
    waiting: BTreeMap<&'static str, u32>,
}

fn census(all: &[Arc<BareMetalHost>]) -> Census {
    let reasons = WaitReason::ALL.iter().map(|reason| reason.name());
    let mut hosts = BTreeMap::new();
    let mut waiting: BTreeMap<_, _> = reasons.chain([OTHER]).map(|reason| (reason, 0)).collect();
    for host in all {
        count(&mut hosts, (State::of(host).name(), status_word(host)));
        if let Some(reason) = waits_for(host) {
            count(&mut waiting, reason);
        }
    }
    Census { hosts, waiting }
}

fn count<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    let count = counts.entry(key).or_default();
    *count = count.saturating_add(1);
}

/// The operational status in the words of the API, or that the host is paused.
fn status_word(host: &BareMetalHost) -> &'static str {
    if is_paused(host) {
        return PAUSED;
    }
    let status = host.status.as_ref().map(|status| status.operational_status);
    match status.unwrap_or_default() {
        OperationalStatus::Unset => "",
        OperationalStatus::Ok => "OK",
        OperationalStatus::Discovered => "discovered",
        OperationalStatus::Error => "error",
        OperationalStatus::Delayed => "delayed",
        OperationalStatus::Detached => "detached",
        OperationalStatus::Servicing => "servicing",
    }
}

/// What `host` waits for; a paused one waits for nothing, whatever its conditions said before.
fn waits_for(host: &BareMetalHost) -> Option<&'static str> {
    if is_paused(host) {
        return None;
    }
    let waiting = conditions::waiting(host.status.as_ref()?)?;
    Some(WaitReason::parse(&waiting.reason).map_or(OTHER, WaitReason::name))
}

impl Collector for Hosts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let leads = self.standing.borrow().leadership().is_some_and(Leadership::still);
        if !leads {
            return Ok(());
        }
        let Census { hosts, waiting } = census(&self.hosts.state());
        let (name, help) = (
            "muster_hosts",
            "Hosts by state and operational status, from the leader only",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for ((state, status), count) in hosts {
            family
                .encode_family(&[("state", state), ("operational_status", status)])?
                .encode_gauge(&count)?;
        }
        let (name, help) = (
            "muster_hosts_waiting",
            "Hosts by the reason of their condition Waiting while it is true, from the leader only",
        );
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (reason, count) in waiting {
            family
                .encode_family(&[("reason", reason)])?
                .encode_gauge(&count)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use kube::runtime::{reflector::store::Writer, watcher};
    use muster_proto::kinds::{BareMetalHostSpec, BareMetalHostStatus, PAUSED_ANNOTATION, ProvisionStatus};
    use serde_json::json;

    use super::*;

    /// A host in this state; what it waits for: status and reason of the condition.
    fn host(name: &str, state: &str, status: OperationalStatus, waiting: (&str, &str)) -> BareMetalHost {
        let mut host = BareMetalHost::new(name, BareMetalHostSpec::default());
        host.metadata.namespace = Some("metal".to_owned());
        host.status = Some(BareMetalHostStatus {
            operational_status: status,
            provisioning: ProvisionStatus {
                state: state.to_owned(),
                ..ProvisionStatus::default()
            },
            conditions: vec![Condition {
                type_: conditions::WAITING.to_owned(),
                status: waiting.0.to_owned(),
                reason: waiting.1.to_owned(),
                message: String::new(),
                last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
                observed_generation: None,
            }],
            ..BareMetalHostStatus::default()
        });
        host
    }

    fn paused(mut host: BareMetalHost) -> BareMetalHost {
        let annotations = host.metadata.annotations.get_or_insert_default();
        annotations.insert(PAUSED_ANNOTATION.to_owned(), String::new());
        host
    }

    fn leads() -> Standing {
        let until = crate::lease::now() + Duration::from_secs(3600);
        Standing::Leads(Leadership::new(1, until))
    }

    /// What is told of these hosts by one who stands so.
    fn told(hosts: impl IntoIterator<Item = BareMetalHost>, standing: Standing) -> String {
        let mut writer = Writer::default();
        for host in hosts {
            writer.apply_watcher_event(&watcher::Event::Apply(host));
        }
        let mut registry = Registry::default();
        // What was sent last stays when the sender is gone.
        register_hosts(&mut registry, writer.as_reader(), watch::channel(standing).1);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn some() -> [BareMetalHost; 9] {
        use OperationalStatus::{Detached, Discovered, Error, Ok, Unset};
        let nothing = ("False", "Nothing");
        let mut young = host("young", "", Unset, nothing);
        young.status = None;
        [
            young,
            host("seen", "unmanaged", Discovered, ("True", "Management")),
            host("broken", "registering", Error, ("True", "Retry")),
            host("by-hand", "inspecting", Ok, ("True", "PowerCycleByHand")),
            host("by-hand-too", "inspecting", Ok, ("True", "PowerCycleByHand")),
            host("done", "provisioned", Ok, ("False", "Trust")),
            host("apart", "provisioned", Detached, nothing),
            host("newer", "available", Ok, ("True", "ToBeInvented")),
            paused(host("paused", "provisioning", Error, ("True", "Trust"))),
        ]
    }

    #[test]
    fn how_many_hosts_are_how_and_wait_for_what_is_told() {
        let text = told(some(), leads());
        for (state, status, count) in [
            ("", "", 1),
            ("unmanaged", "discovered", 1),
            ("registering", "error", 1),
            ("inspecting", "OK", 2),
            ("provisioned", "OK", 1),
            ("provisioned", "detached", 1),
            ("available", "OK", 1),
            ("provisioning", "paused", 1),
        ] {
            let line = format!(r#"muster_hosts{{state="{state}",operational_status="{status}"}} {count}"#);
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        let of_hosts = text.lines().filter(|line| line.starts_with("muster_hosts{"));
        assert_eq!(of_hosts.count(), 8, "{text}");
        // What a paused host said before, and what a host that waits no more says, do not count.
        for (reason, count) in [
            ("Management", 1),
            ("Retry", 1),
            ("PowerCycleByHand", 2),
            ("Trust", 0),
            ("other", 1),
        ] {
            let line = format!(r#"muster_hosts_waiting{{reason="{reason}"}} {count}"#);
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    #[test]
    fn each_reason_has_a_series_also_without_a_host_and_no_host_can_make_one() {
        let reasons = |text: &str| {
            let lines = text
                .lines()
                .filter(|line| line.starts_with("muster_hosts_waiting{"));
            lines.count()
        };
        let all = WaitReason::ALL.len() + 1;
        assert_eq!(reasons(&told([], leads())), all);
        assert_eq!(reasons(&told(some(), leads())), all);
        assert!(!told(some(), leads()).contains("ToBeInvented"));
    }

    #[test]
    fn only_the_leader_tells_how_many_hosts_there_are() {
        assert!(told(some(), leads()).contains("muster_hosts"));
        let over = Standing::Leads(Leadership::new(1, crate::lease::now()));
        for standing in [Standing::Unknown, Standing::Standby, over] {
            let text = told(some(), standing);
            assert!(!text.contains("muster_hosts"), "{text}");
        }
    }

    #[test]
    fn the_operational_status_is_told_in_the_words_of_the_api() {
        for word in [
            "",
            "OK",
            "discovered",
            "error",
            "delayed",
            "detached",
            "servicing",
        ] {
            let status = serde_json::from_value(json!(word)).unwrap();
            let host = host("a", "available", status, ("False", "Nothing"));
            assert_eq!(status_word(&host), word);
        }
    }

    #[test]
    fn the_alert_for_hosts_that_wait_for_a_person_names_the_reasons_that_need_one() {
        let page = include_str!("../../../../docs/metrics.md");
        let needed = WaitReason::ALL.iter().filter(|reason| reason.needs_person());
        let needed: Vec<&str> = needed.map(|reason| reason.name()).collect();
        let alert = format!(r#"muster_hosts_waiting{{reason=~"{}"}}"#, needed.join("|"));
        assert!(page.contains(&alert), "{alert}");
    }

    /// One that is provisioned has no error because of that.
    #[test]
    fn the_alerts_and_the_command_find_hosts_whose_bmc_does_not_answer() {
        let page = include_str!("../../../../docs/metrics.md");
        let alert = format!(
            r#"expr: muster_hosts_waiting{{reason="{}"}} > 0"#,
            WaitReason::Bmc.name()
        );
        assert!(page.contains(&alert), "{alert}");
        let page = include_str!("../../../../docs/provision.md");
        let picks = r#" || $5 == "False"'"#;
        let command = page.lines().find(|line| line.contains(picks)).unwrap();
        let columns = command.split('\'').nth(1).unwrap();
        let fifth = columns.split(',').nth(4);
        assert_eq!(
            fifth,
            Some(r#"MANAGEABLE:.status.conditions[?(@.type=="Manageable")].status"#)
        );
    }

    #[test]
    fn the_command_that_finds_broken_hosts_names_the_reasons_that_are_left_to_a_person() {
        let page = include_str!("../../../../docs/provision.md");
        let left = WaitReason::ALL
            .iter()
            .filter(|reason| reason.is_left_to_a_person());
        let left: Vec<&str> = left.map(|reason| reason.name()).collect();
        let command = format!("/^({})$/", left.join("|"));
        assert!(page.contains(&command), "{command}");
    }
}
