//! How many files the process may have open at once, and what comes of a system that allows fewer. Pure.

use crate::{
    admin, agents,
    args::{Metrics, Role, RunArgs},
    bmc,
    boot::{http, tftp},
};

/// Room for what has no bound of its own and stays few: connections to the API server (one for each watch and each request under
/// way; many more only if agents write faster than it answers), the ports of each Segment, the ramdisks that are served, what the runtime needs.
const REST: usize = 512;

/// What the process may have open at once.
#[derive(Clone, Debug)]
pub struct OpenFiles {
    /// Connections of agents; none without the edge.
    agents: usize,
    /// All else.
    others: usize,
    /// What fails once there are no more, beside what fails in every role.
    failing: String,
}

impl OpenFiles {
    /// Of a process with these arguments.
    pub fn of(args: &RunArgs) -> OpenFiles {
        let listeners = if args.metrics == Metrics::Authenticated {
            2
        } else {
            1
        };
        let mut open = OpenFiles {
            agents: 0,
            others: REST + listeners * admin::CONNECTIONS,
            failing: String::new(),
        };
        for role in args.roles() {
            match role {
                Role::Edge => {
                    open.agents = args.max_agents;
                    // Each enrolment may wait for the API server.
                    open.others += 2 * agents::MAX_STRANGERS
                        + http::Limits::default().connections
                        + tftp::Limits::default().transfers;
                    open.failing.push_str(", DHCP, boot files, agents");
                }
                Role::Control => {
                    // Each host that is reconciled may wait for the API server.
                    open.others +=
                        bmc::Config::default().concurrent + bmc::ENDING + usize::from(args.host_concurrency);
                    open.failing.push_str(", calls to BMCs");
                }
            }
        }
        open
    }

    /// What comes of it that the system allows `most` files, and what helps; none: they suffice.
    pub fn shortage(&self, most: u64) -> Option<String> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let needed = self.agents.saturating_add(self.others);
        if most >= needed {
            return None;
        }
        // Lowered to that, they would suffice.
        let agents = most.saturating_sub(self.others);
        let lower = if self.agents > 0 && agents > 0 {
            format!(", or lower --max-agents to {agents}")
        } else {
            String::new()
        };
        Some(format!(
            "the limit of open files is {most}, and this process may need {needed}: once they run out, probes, calls to the API server{} \
             fail, even if strangers' connections used them up; next: raise the limit (LimitNOFILE of a systemd unit, ulimit -Hn){lower}",
            self.failing
        ))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    fn of(args: &[&str]) -> OpenFiles {
        let args = ["muster-controller", "--max-agents", "1000"].iter().chain(args);
        OpenFiles::of(&Cli::try_parse_from(args).unwrap().run)
    }

    /// The least limit about which nothing is said.
    fn enough(open: &OpenFiles) -> u64 {
        (0..100_000)
            .find(|most| open.shortage(*most).is_none())
            .expect("some limit is enough")
    }

    #[test]
    fn each_role_has_room_for_all_that_it_lets_in() {
        let (edge, control) = (of(&["--roles", "edge"]), of(&["--roles", "control"]));
        let rest = 512 + 2 * 32;
        assert_eq!(enough(&edge), 1000 + 2 * 1024 + 1024 + 512 + rest);
        assert_eq!(enough(&control), 256 + 256 + 16 + rest);
        assert_eq!(enough(&of(&[])), enough(&edge) + enough(&control) - rest);
        assert_eq!(enough(&of(&["--metrics", "off"])), enough(&of(&[])) - 32);
    }

    #[test]
    fn a_limit_that_strangers_can_use_up_is_told_with_what_fails_and_what_helps() {
        let edge = of(&["--roles", "edge"]);
        // Enough for the agents alone.
        let told = edge.shortage(enough(&edge) - 1).unwrap();
        for part in [
            "probes",
            "API server",
            "DHCP",
            "LimitNOFILE",
            "lower --max-agents to 999",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let told = edge.shortage(1024).unwrap();
        assert!(
            !told.contains("--max-agents"),
            "no number of agents helps: {told}"
        );
        let told = of(&["--roles", "control"]).shortage(256).unwrap();
        assert!(
            told.contains("BMCs") && !told.contains("DHCP") && !told.contains("--max-agents"),
            "{told}"
        );
    }

    #[test]
    fn any_number_of_agents_can_be_counted() {
        let open = of(&["--roles", "edge", "--metrics", "off"]);
        let most = OpenFiles {
            agents: usize::MAX,
            ..open
        };
        assert!(most.shortage(1 << 20).is_some());
        assert_eq!(most.shortage(u64::MAX), None, "no limit");
    }
}
