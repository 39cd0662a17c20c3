//! From the lines of a boot to its times. Pure.

use std::time::Instant;

use muster_proto::Mac;

use super::results::{Run, seconds};
use crate::{
    demo::step::{self, Step},
    lines::Line,
};

/// The steps that are no agent's, as they stand in the results.
pub(super) const DHCP: &str = "first-dhcp";
pub(super) const BOOT_FILE: &str = "boot-file";
pub(super) const UKI_ASKED: &str = "uki-asked";
pub(super) const KERNEL: &str = "kernel";

/// The last step that the agent tells.
pub(super) const SENT: &str = "step=inventory-sent";

/// What `log` (the controller's) and `console` say of the machine `mac` that was switched on at `since`: of each step, the first time.
pub(super) fn run(since: Instant, mac: Mac, log: &[Line], console: &[Line]) -> Run {
    let mut run = Run::default();
    let after = |line: &Line| seconds(line.at.saturating_duration_since(since));
    for line in log {
        let name = match step::in_log(&line.text) {
            Some((of, Step::Dhcp)) if of == mac => DHCP,
            Some((of, Step::BootFile)) if of == mac => BOOT_FILE,
            Some((of, Step::Kernel)) if of == mac => KERNEL,
            _ => continue,
        };
        run.steps.entry(name.to_owned()).or_insert(after(line));
        if let Some(took) = uki(&line.text) {
            run.steps
                .entry(UKI_ASKED.to_owned())
                .or_insert(after(line) - took);
        }
    }
    for line in console {
        let Some((uptime, words)) = step::agent_line(&line.text) else {
            continue;
        };
        let Some(name) = step::field(words, "step") else {
            continue;
        };
        run.steps.entry(name.to_owned()).or_insert(after(line));
        run.uptimes.entry(name.to_owned()).or_insert(uptime);
        if let (None, Some(quiet)) = (run.quiet, step::field(words, "quiet_ms")) {
            run.quiet = quiet.parse().ok().map(|millis: f64| millis / 1000.0);
        }
    }
    run
}

/// How long the answer to a request for a UKI took to send, in seconds, if `line` tells that.
fn uki(line: &str) -> Option<f64> {
    let millis: f64 = step::field(line, "ms")?.parse().ok()?;
    (step::field(line, "step")? == "uki").then_some(millis / 1000.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_uki_is_asked_for_before_it_is_sent() {
        let sent = |step: &str| {
            format!(r#"INFO boot step step="{step}" mac=52:54:00:00:00:01 bytes=16571904 ms=2075"#)
        };
        assert_eq!(uki(&sent("uki")), Some(2.075));
        assert_eq!(uki(&sent("initramfs")), None);
    }

    #[test]
    fn each_step_counts_once_and_only_for_its_own_machine() {
        let since = Instant::now();
        let lines = |lines: &[(u64, &str)]| -> Vec<Line> {
            let line = |(millis, text): &(u64, &str)| Line {
                at: since + Duration::from_millis(*millis),
                text: (*text).to_owned(),
            };
            lines.iter().map(line).collect()
        };
        let log = lines(&[
            (900, r#"INFO offer mac=52:54:00:00:00:02 segment="a/b""#),
            (1000, r#"INFO offer mac=52:54:00:00:00:01 segment="a/b""#),
            (
                1200,
                r#"INFO boot step step="script" mac=52:54:00:00:00:01 bytes=1"#,
            ),
            (
                2000,
                r#"INFO boot step step="initramfs" mac=52:54:00:00:00:01 bytes=1"#,
            ),
            (3000, r#"INFO offer again mac=52:54:00:00:00:01"#),
        ]);
        let console = lines(&[
            (2500, "muster   1.250 step=agent version=0.1.0"),
            (3100, "muster   1.850 step=modules loaded=9 failed=0 quiet_ms=101"),
            (3150, "muster   1.900 enrolled as srv"),
            (3200, "muster   1.950 step=inventory-sent"),
            (9000, "muster   7.950 step=inventory-sent"),
        ]);
        let run = run(since, Mac([0x52, 0x54, 0, 0, 0, 1]), &log, &console);
        let steps: Vec<_> = run.steps.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        assert_eq!(
            steps,
            [
                ("agent", 2.5),
                (BOOT_FILE, 1.2),
                (DHCP, 1.0),
                ("inventory-sent", 3.2),
                (KERNEL, 2.0),
                ("modules", 3.1)
            ]
        );
        assert_eq!(run.uptimes["inventory-sent"], 1.95);
        assert_eq!(run.quiet, Some(0.101));
    }
}
