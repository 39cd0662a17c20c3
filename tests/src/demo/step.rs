//! Where a server is on its way, read from what controller and agent say.

use muster_proto::Mac;

/// The steps from power-on to `kubectl get bmh`, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// The controller heard its DHCP.
    Dhcp,
    /// It has a boot program: iPXE, its script, or the kernel image itself.
    BootFile,
    /// It has the whole ramdisk, and starts its kernel.
    Kernel,
    /// The agent runs.
    Agent,
    /// The agent has its certificate.
    Enrolled,
    /// The controller has its inventory.
    Inventory,
    /// It is a BareMetalHost.
    Host,
}

impl Step {
    /// All, in order.
    pub(crate) const ALL: [Step; 7] = [
        Step::Dhcp,
        Step::BootFile,
        Step::Kernel,
        Step::Agent,
        Step::Enrolled,
        Step::Inventory,
        Step::Host,
    ];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Step::Dhcp => "DHCP",
            Step::BootFile => "boot file",
            Step::Kernel => "kernel",
            Step::Agent => "agent",
            Step::Enrolled => "enrolled",
            Step::Inventory => "inventory",
            Step::Host => "BareMetalHost",
        }
    }
}

/// The server that a line of the controller's log speaks of, and the step that it has taken.
pub(crate) fn in_log(line: &str) -> Option<(Mac, Step)> {
    let mac = field(line, "mac")?.parse().ok()?;
    let step = match field(line, "step") {
        Some("tftp" | "script") => Step::BootFile,
        Some("initramfs" | "uki") => Step::Kernel,
        Some("kernel") => Step::BootFile,
        _ => Step::Dhcp,
    };
    Some((mac, step))
}

/// The step that a line on a server's console tells.
pub(crate) fn on_console(line: &str) -> Option<Step> {
    let (_, words) = agent_line(line)?;
    Some(match field(words, "step") {
        Some("enrolled") => Step::Enrolled,
        Some("inventory-sent") => Step::Inventory,
        _ => Step::Agent,
    })
}

/// The uptime in seconds and the words of a line that the agent wrote on a console.
pub(crate) fn agent_line(line: &str) -> Option<(f64, &str)> {
    let words = line.split_once("muster ")?.1;
    // The agent's lines go on with the uptime; the kernel's command line, shown at its start, does not.
    let uptime = words.split_whitespace().next()?;
    Some((uptime.parse().ok()?, words))
}

/// The value of `name=value` or `name="value"` in a log line.
pub(crate) fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.match_indices(name).find_map(|(at, _)| {
        let begins = line[..at].chars().next_back().is_none_or(char::is_whitespace);
        let value = line[at + name.len()..].strip_prefix('=')?;
        let value = match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next()?,
            None => value.split_whitespace().next()?,
        };
        begins.then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn log_lines_name_server_and_step() {
        let mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
        for (line, step) in [
            (
                r#"INFO muster::dhcp: offer mac=52:54:00:00:00:01 segment="a/b""#,
                Step::Dhcp,
            ),
            (
                r#"INFO boot step step="tftp" mac=52:54:00:00:00:01 client=10.0.0.1:5"#,
                Step::BootFile,
            ),
            (
                r#"INFO boot step step="initramfs" mac=52:54:00:00:00:01 bytes=1"#,
                Step::Kernel,
            ),
            (r#"INFO boot step step="uki" mac=52:54:00:00:00:01"#, Step::Kernel),
        ] {
            assert_eq!(in_log(line), Some((mac, step)), "{line}");
        }
        assert_eq!(in_log("INFO serving on br0"), None);
        assert_eq!(in_log("INFO boot_mac=52:54:00:00:00:01"), None);
    }

    #[test]
    fn console_lines_name_the_step() {
        for (line, step) in [
            ("muster   1.234 step=modules loaded=7 failed=0", Some(Step::Agent)),
            (
                "[    1.2] muster   2.345 step=enrolled server=srv-1 key=ab",
                Some(Step::Enrolled),
            ),
            ("muster  12.345 step=inventory-sent", Some(Step::Inventory)),
            ("http://10.77.0.1/muster/kernel... ok", None),
            ("Command line: muster console=ttyS0", None),
        ] {
            assert_eq!(on_console(line), step, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_breaks_the_reader(line in any::<String>()) {
            let _ = (in_log(&line), on_console(&line), in_log(&format!("mac={line} step=\"{line}")));
        }
    }
}
