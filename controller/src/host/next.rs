//! What is to be done about one host: the decision, alone. Pure: no client, no runtime, no clock.

use jiff::Timestamp;
use muster_proto::kinds::BareMetalHost;

use super::{observed::Observed, plan::Plan};

/// What is to be done about `host`. Total: whatever the world looks like, there is a plan.
pub fn next(host: &BareMetalHost, seen: &Observed<'_>, now: Timestamp) -> Plan {
    let _ = (seen, now);
    Plan::rest(format!("host is {}", super::State::of(host)))
}
