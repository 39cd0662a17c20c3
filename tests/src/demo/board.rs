//! The live lines: one per server, redrawn in place on a terminal, else one line per step.

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::{Duration, Instant},
};

use muster_proto::Mac;

use super::step::Step;

/// How far one server is.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    /// The server's name.
    pub(super) name: String,
    /// By which it is known in logs and objects.
    pub(super) macs: Vec<Mac>,
    /// When it was switched on.
    pub(super) since: Instant,
    /// Each step taken and when; in order of steps, with no step before an earlier one.
    taken: Vec<(Step, Instant)>,
}

impl Progress {
    /// Switched on at `since`.
    pub(super) fn new(name: &str, macs: Vec<Mac>, since: Instant) -> Progress {
        Progress {
            name: name.to_owned(),
            macs,
            since,
            taken: Vec::new(),
        }
    }

    /// Takes note of `step`; true if it is news. A step that was passed over without a word counts as taken with the next.
    pub(super) fn take(&mut self, step: Step, at: Instant) -> bool {
        if self.last().is_some_and(|last| last >= step) {
            return false;
        }
        self.taken.push((step, at));
        true
    }

    /// The furthest step.
    pub(super) fn last(&self) -> Option<Step> {
        self.taken.last().map(|(step, _)| *step)
    }

    /// True once it is a BareMetalHost.
    pub(super) fn arrived(&self) -> bool {
        self.last() == Some(Step::Host)
    }

    /// The first step that is still missing.
    pub(super) fn missing(&self) -> Option<Step> {
        let last = self.last();
        Step::ALL.into_iter().find(|step| Some(*step) > last)
    }

    /// Power-on to the furthest step.
    pub(super) fn total(&self) -> Duration {
        self.taken
            .last()
            .map_or(Duration::ZERO, |(_, at)| at.saturating_duration_since(self.since))
    }

    /// How long each step took after the one before it.
    pub(super) fn durations(&self) -> Vec<(Step, Duration)> {
        let mut before = self.since;
        self.taken
            .iter()
            .map(|(step, at)| {
                let took = at.saturating_duration_since(before);
                before = before.max(*at);
                (*step, took)
            })
            .collect()
    }

    /// The live line.
    pub(super) fn line(&self, now: Instant, width: usize) -> String {
        let mut line = format!("{:width$} ", self.name);
        for (step, took) in self.durations() {
            // Writing to a String cannot fail.
            let _ = write!(line, " {} {} ", step.name(), seconds(took));
        }
        let _ = match self.missing() {
            None => write!(line, " here after {} s", seconds(self.total())),
            Some(step) => {
                let so_far = now.saturating_duration_since(self.since);
                write!(line, " … {} ({} s)", step.name(), seconds(so_far))
            }
        };
        line
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64())
}

/// Where the lines are shown.
#[derive(Debug)]
pub(super) struct Board {
    /// How many lines are to be overwritten; `None` if the output is no terminal.
    drawn: Option<usize>,
}

impl Board {
    /// For a terminal or for anything else.
    pub(super) fn new(terminal: bool) -> Board {
        Board {
            drawn: terminal.then_some(0),
        }
    }

    /// Shows all servers again, on a terminal.
    pub(super) fn draw(&mut self, servers: &[Progress], now: Instant) -> io::Result<()> {
        let Some(drawn) = &mut self.drawn else {
            return Ok(());
        };
        let mut text = match *drawn {
            0 => String::new(),
            lines => format!("\x1b[{lines}A"),
        };
        let width = servers.iter().map(|server| server.name.len()).max().unwrap_or(0);
        for server in servers {
            // Long lines are cut at the terminal's edge: a wrapped one would spoil the count of lines.
            let _ = writeln!(text, "\r\x1b[2K\x1b[?7l{}\x1b[?7h", server.line(now, width));
        }
        *drawn = servers.len();
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Tells one server's news, where nothing can be redrawn.
    pub(super) fn tell(&self, server: &Progress) -> io::Result<()> {
        let (None, Some(last)) = (self.drawn, server.last()) else {
            return Ok(());
        };
        let mut out = io::stdout().lock();
        let total = seconds(server.total());
        writeln!(out, "{total:>6} s  {}: {}", server.name, last.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_each_step() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut server = Progress::new("bios-1", Vec::new(), start);
        assert!(server.take(Step::Dhcp, after(2200)));
        assert!(
            server.take(Step::Kernel, after(3000)),
            "a step may be passed over"
        );
        assert!(
            !server.take(Step::BootFile, after(3100)),
            "and is no news afterwards"
        );
        assert!(!server.take(Step::Dhcp, after(3200)));
        assert_eq!(server.missing(), Some(Step::Agent));
        assert_eq!(
            server.line(after(4000), 7),
            "bios-1   DHCP 2.2  kernel 0.8  … agent (4.0 s)"
        );
        assert!(server.take(Step::Host, after(6000)));
        assert!(server.arrived());
        assert!(
            server
                .line(after(9000), 0)
                .ends_with("BareMetalHost 3.0  here after 6.0 s")
        );
    }
}
