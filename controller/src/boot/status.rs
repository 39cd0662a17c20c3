//! Segment status: what people and tools read about how serving goes. Written only when it changes, by server-side apply.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, Client, Resource as _, api::Patch, runtime::reflector::Store};
use muster_proto::{
    Chain,
    kinds::{DhcpMode, Segment, SegmentStatus, Trust},
};
use tokio::sync::watch;

use super::{
    dhcp::rogue::Intruder,
    segment::{self, Invalid, Net},
};
use crate::{
    bind::{self, ClosedPort},
    events::{Event, Events},
    manager::EDGE,
};

#[cfg(test)]
mod tests;

/// How long after a failed write the next one is tried.
const RETRY: Duration = Duration::from_secs(5);

/// Why a Segment is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// CamelCase, for machines.
    pub reason: &'static str,
    /// For people; stable while the trouble lasts.
    pub message: String,
}

impl From<&Invalid> for Trouble {
    fn from(invalid: &Invalid) -> Trouble {
        Trouble {
            reason: invalid.reason(),
            message: invalid.to_string(),
        }
    }
}

/// How one Segment fares.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Of the spec that this speaks of.
    pub generation: Option<i64>,
    /// How it is served, in words, or why it is not.
    pub serving: Result<String, Trouble>,
    /// Other servers that answer there; none where nobody listens for them.
    pub intruders: Option<Vec<Intruder>>,
    /// What a session must have proved before it is given secrets.
    pub trust_for_secrets: Trust,
}

/// How `net` is served, in words.
pub fn serving(net: &Net) -> String {
    let place = match &net.interface {
        Some(interface) => format!("on {interface} as {}", net.own),
        None => format!("through relays as {}", net.own),
    };
    match net.mode {
        DhcpMode::Server => {
            let ranges: Vec<String> = net
                .handout
                .ranges
                .iter()
                .map(|(start, end)| format!("{start} to {end}"))
                .collect();
            format!("DHCP server {place}, leasing {}", ranges.join(", "))
        }
        DhcpMode::Proxy => format!("proxy DHCP {place}"),
        DhcpMode::Off => format!(
            "DHCP is off; boot files at http://{}:{} and by TFTP",
            net.boot, net.http_port
        ),
    }
}

/// The reason of a Segment where another program has a port that it is served on.
pub const PORT_IN_USE: &str = "PortInUse";
/// The reason of a Segment where such a port cannot be opened for another reason.
pub const PORT_NOT_OPENED: &str = "PortNotOpened";
/// The reason of a Segment whose edge has no ramdisk of its profile.
pub const NO_RAMDISK: &str = "NoRamdisk";
/// The reason of a Segment whose edge has not read the keys of the installation.
pub const NO_KEYS: &str = "NoKeys";
/// What one edge lacks, another one may have.
const LACKING: [&str; 2] = [NO_RAMDISK, NO_KEYS];

/// What it means for a Segment that of the ports of boot files and agents `closed` are not open on its addresses.
pub fn without(closed: &[ClosedPort]) -> Option<Trouble> {
    let reason = if closed.iter().any(|port| port.is_taken) {
        PORT_IN_USE
    } else {
        PORT_NOT_OPENED
    };
    let list: Vec<&str> = closed.iter().map(|port| port.message.as_str()).collect();
    (!closed.is_empty()).then(|| Trouble {
        reason,
        message: format!(
            "{}, so machines here may not boot or enrol; next: it is retried every {} s",
            list.join("; "),
            bind::AGAIN.as_secs()
        ),
    })
}

/// True if another edge serves the Segment, or has it and lacks a port there, and `edge`, which has no such interface, no address there, no
/// ramdisk or no keys, cannot know better.
pub fn is_anothers(former: &SegmentStatus, facts: &Facts, edge: &str) -> bool {
    let has_it = |condition: &Condition| {
        condition.status == "True" || [PORT_IN_USE, PORT_NOT_OPENED].contains(&condition.reason.as_str())
    };
    let served = former
        .conditions
        .iter()
        .any(|condition| condition.type_ == "Serving" && has_it(condition));
    let elsewhere = facts.serving.as_ref().is_err_and(|trouble| {
        segment::ELSEWHERE.contains(&trouble.reason) || LACKING.contains(&trouble.reason)
    });
    elsewhere && served && !former.edge.is_empty() && former.edge != edge
}

/// The status by which `edge` says `facts`. A condition keeps its time of transition until its status changes.
pub fn status(former: &SegmentStatus, facts: &Facts, edge: &str, now: Timestamp) -> SegmentStatus {
    let condition = |type_: &str, (good, reason, message): (bool, &str, String)| {
        let status = if good { "True" } else { "False" };
        let since = former
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status)
            .map_or(Time(now), |condition| condition.last_transition_time.clone());
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since,
            observed_generation: facts.generation,
        }
    };
    let is_serving = match &facts.serving {
        Ok(how) => (true, "Serving", how.clone()),
        Err(trouble) => (false, trouble.reason, trouble.message.clone()),
    };
    let mut conditions = vec![
        condition("Serving", is_serving),
        condition("SecretsProtected", secrets_protected(facts.trust_for_secrets)),
    ];
    if let Some(intruders) = &facts.intruders {
        conditions.insert(0, condition("Alone", alone(intruders)));
    }
    SegmentStatus {
        conditions,
        observed_generation: facts.generation,
        edge: edge.to_owned(),
    }
}

fn alone(intruders: &[Intruder]) -> (bool, &'static str, String) {
    if intruders.is_empty() {
        let message = "no other DHCP or PXE server answered in the last ten minutes";
        return (true, "Alone", message.to_owned());
    }
    let list: Vec<String> = intruders.iter().map(ToString::to_string).collect();
    let message = format!(
        "machines here may boot something else: {} answers as well",
        list.join(", ")
    );
    (false, "AnotherServer", message)
}

fn secrets_protected(required: Trust) -> (bool, &'static str, String) {
    if required > Trust::Segment {
        let message = "secrets go only to sessions that have proved more than their place on the network, which no session can in this \
        release: hosts with userData, networkData or metaData wait, except those whose session key an operator has approved \
        (muster.dev/in-band)";
        return (true, "TrustRequired", message.to_owned());
    }
    let message = "anyone who can send packets on this segment can obtain the secrets of its machines; omitting requiredTrust prevents \
    it: hosts with userData, networkData or metaData then wait, except those whose session key an operator has approved \
    (muster.dev/in-band)";
    (false, "AnyoneOnTheSegment", message.to_owned())
}

/// True if both say the same; the API server keeps conditions in its own order.
fn same(former: &SegmentStatus, next: &SegmentStatus) -> bool {
    former.observed_generation == next.observed_generation
        && former.edge == next.edge
        && former.conditions.len() == next.conditions.len()
        && next
            .conditions
            .iter()
            .all(|condition| former.conditions.contains(condition))
}

/// Writes what comes through `facts`, in the name of `edge`, until its sender is gone.
pub(super) async fn write(
    client: Client,
    edge: String,
    segments: Store<Segment>,
    events: Events,
    mut facts: watch::Receiver<BTreeMap<String, Facts>>,
) {
    loop {
        let all = facts.borrow_and_update().clone();
        let mut failed = false;
        for segment in segments.state() {
            if let Some(facts) = all.get(&segment::key(&segment)) {
                failed |= !write_one(&client, &edge, &segment, facts, &events).await;
            }
        }
        if failed {
            // Else there are new facts, or it is time to try again.
            if let Ok(Err(_)) = tokio::time::timeout(RETRY, facts.changed()).await {
                return;
            }
        } else if facts.changed().await.is_err() {
            return;
        }
    }
}

/// False if it must be tried again.
async fn write_one(
    client: &Client,
    edge: &str,
    segment: &Arc<Segment>,
    facts: &Facts,
    events: &Events,
) -> bool {
    let (Some(namespace), Some(name)) = (&segment.metadata.namespace, &segment.metadata.name) else {
        return true;
    };
    let former = segment.status.clone().unwrap_or_default();
    let next = status(&former, facts, edge, Timestamp::now());
    if same(&former, &next) || is_anothers(&former, facts, edge) {
        return true;
    }
    let patch = serde_json::json!({
        "apiVersion": Segment::api_version(&()),
        "kind": Segment::kind(&()),
        "metadata": { "name": name },
        "status": next,
    });
    let api: Api<Segment> = Api::namespaced(client.clone(), namespace);
    let written = api.patch_status(name, &EDGE.apply(), &Patch::Apply(&patch)).await;
    match written {
        Ok(_) => {
            announce(&former, &next, segment, events);
            true
        }
        // Deleted a moment ago.
        Err(kube::Error::Api(response)) if response.code == 404 => true,
        Err(error) => {
            tracing::warn!(error = %Chain(&error), segment = segment::key(segment), "the status of a Segment could not be written; retrying");
            false
        }
    }
}

/// An Event when serving began or ended.
fn announce(former: &SegmentStatus, next: &SegmentStatus, segment: &Segment, events: &Events) {
    let find = |status: &SegmentStatus| {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Serving")
            .map(|condition| (condition.status == "True", condition.message.clone()))
    };
    if let Some((good, message)) = find(next)
        && find(former).map(|(good, _)| good) != Some(good)
    {
        events.record(Event {
            about: segment.object_ref(&()),
            related: None,
            warning: !good,
            reason: if good { "Serving" } else { "NotServing" },
            message,
        });
    }
}
