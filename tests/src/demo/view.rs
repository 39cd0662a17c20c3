//! What a host shows of itself, in one line.

use std::fmt::Write as _;

use muster_proto::{
    kinds::{BareMetalHost, JobAction, Server},
    text,
};

/// What stands in the status of a host and of its Server, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// The host's state.
    pub(super) state: String,
    /// True while it waits for a person to power-cycle its machine.
    pub(super) by_hand: bool,
    /// What it waits for, if it does.
    waits: String,
    /// Its error, if it has one.
    error: String,
    /// What the ramdisk does or did last, and how far it is.
    job: String,
}

impl View {
    /// The host has changed.
    pub(super) fn host(&mut self, host: &BareMetalHost) {
        let Some(status) = &host.status else { return };
        self.state.clone_from(&status.provisioning.state);
        self.error = text::clean(status.error_message.as_bytes());
        let mut conditions = status.conditions.iter();
        let waits = conditions.find(|condition| condition.type_ == "Waiting" && condition.status == "True");
        self.by_hand = waits.is_some_and(|waits| waits.reason == "PowerCycleByHand");
        self.waits = waits.map_or_else(String::new, |waits| text::clean(waits.message.as_bytes()));
    }

    /// Its Server has changed.
    pub(super) fn server(&mut self, server: &Server) {
        self.job = job(server).unwrap_or_default();
    }

    /// The line.
    pub(super) fn line(&self) -> String {
        let mut line = format!("{:14}", self.state);
        // Writing to a String cannot fail.
        let job = if self.by_hand { "" } else { self.job.as_str() };
        for (before, what) in [("error: ", self.error.as_str()), ("", job), ("", &self.waits)] {
            if !what.is_empty() {
                let _ = write!(line, "  {before}{what}");
                break;
            }
        }
        line.trim_end().to_owned()
    }
}

/// What the ramdisk does for the job that is placed on `server`: action, step, percent and speed.
fn job(server: &Server) -> Option<String> {
    let placed = server.spec.job.as_ref()?;
    let action = match placed.action {
        JobAction::Inspect => "inspect",
        JobAction::Reboot => "reboot",
        JobAction::PowerOff => "power off",
        JobAction::Clean => "clean",
        JobAction::Write => "write",
    };
    let status = server.status.as_ref().and_then(|status| status.job.as_ref());
    let Some(status) = status.filter(|status| placed.is_called(&status.id)) else {
        return Some(format!("{action}: ordered"));
    };
    let action = match server.follow_up() {
        Some(_) => "write",
        None => action,
    };
    Some(text::clean(format!("{action}: {}", status.summary).as_bytes()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn server(status: &Value) -> Server {
        let whole = json!({
            "apiVersion": "muster.dev/v1alpha1", "kind": "Server", "metadata": {"name": "s"},
            "spec": {"job": {"id": "host-1-write", "action": "write"}}, "status": {"job": status},
        });
        serde_json::from_value(whole).unwrap()
    }

    fn host(waits: &str) -> BareMetalHost {
        let whole = json!({
            "apiVersion": "metal3.io/v1alpha1", "kind": "BareMetalHost", "metadata": {"name": "h"},
            "spec": {"online": true},
            "status": {"errorMessage": "", "operationalStatus": "OK", "poweredOn": true,
              "provisioning": {"ID": "", "state": "provisioning"},
              "conditions": [{"type": "Waiting", "status": "True", "reason": waits, "message": "waits",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn the_line_shows_what_the_ramdisk_does_else_what_is_waited_for() {
        let mut view = View::default();
        view.host(&host("Write"));
        assert!(!view.by_hand);
        assert_eq!(view.line(), "provisioning    waits");
        view.server(&server(
            &json!({"id": "host-0-clean", "summary": "done", "done": true}),
        ));
        assert_eq!(view.line(), "provisioning    write: ordered");
        view.server(&server(
            &json!({"id": "host-1-write", "summary": "write image 42 %, 98 MB/s"}),
        ));
        assert_eq!(view.line(), "provisioning    write: write image 42 %, 98 MB/s");
        view.host(&host("PowerCycleByHand"));
        assert!(view.by_hand);
        assert_eq!(view.line(), "provisioning    waits");
    }
}
