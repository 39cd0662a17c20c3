//! The agent's own words: one line per event on every console of the machine, and the last lines kept for the controller.
//!
//! A line is `muster  12.345 message key=value …`; the number is the kernel's uptime in seconds. Lines with `step=` are
//! stable: people, the demo and the benchmark read them. `MUSTER_LOG=debug` on the kernel's command line shows more.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    sync::{
        Arc, Mutex,
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use muster_proto::{session::MAX_LOG_LINES, text};
use nix::libc;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{
    clock,
    sync::lock,
    sys::{self, Root},
};

/// How many lines are kept. The controller shows all of them.
const KEPT: usize = 200;
const _: () = assert!(KEPT <= MAX_LOG_LINES);

/// The most of a line's message, and of each value in it, in bytes: the cause of a failure stands last.
const WORDS: usize = 1024;

/// How many lines a slow console may lag behind before it misses some.
const BACKLOG: usize = 1000;

/// Takes the agent's events; a clone writes to the same consoles.
#[derive(Clone, Debug)]
pub struct Console {
    level: Level,
    outputs: Arc<[SyncSender<Task>]>,
    recent: Arc<Mutex<VecDeque<String>>>,
}

enum Task {
    Write(Arc<str>),
    /// Answer when everything before is written.
    Flush(SyncSender<()>),
}

impl Console {
    /// Every console that the kernel writes to, in the ramdisk; each has its thread, because a serial line is slow and a
    /// broken one may block for ever.
    pub fn of_the_kernel(root: &Root) -> Console {
        let active = sys::text(&root.sys("class/tty/console/active")).unwrap_or_default();
        let mut outputs: Vec<_> = active
            .split_whitespace()
            .filter_map(|name| writer(root, name))
            .collect();
        if outputs.is_empty() {
            outputs.extend(writer(root, "console"));
        }
        // What stands on the kernel's command line as NAME=value and is no parameter of its own becomes our environment.
        let debug = std::env::var("MUSTER_LOG").is_ok_and(|level| level == "debug");
        let level = if debug { Level::DEBUG } else { Level::INFO };
        Console {
            level,
            outputs: outputs.into(),
            recent: Arc::default(),
        }
    }

    /// The last lines, oldest first.
    pub fn recent(&self) -> Vec<String> {
        let recent = lock(&self.recent);
        recent.iter().cloned().collect()
    }

    /// Writes one line.
    pub fn line(&self, message: &str) {
        let uptime = clock::uptime().as_secs_f64();
        let line = format!("muster {uptime:7.3} {message}");
        // `\r`: the terminal may be in raw mode after a reset.
        let written: Arc<str> = format!("{line}\r\n").into();
        for output in &*self.outputs {
            // A full queue loses the line there.
            _ = output.try_send(Task::Write(Arc::clone(&written)));
        }
        let mut recent = lock(&self.recent);
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(line);
    }

    /// Waits until everything is written, at most so long.
    pub fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let (done, written) = sync_channel(self.outputs.len());
        let asked = self
            .outputs
            .iter()
            .filter(|output| output.try_send(Task::Flush(done.clone())).is_ok())
            .count();
        for _ in 0..asked {
            if written
                .recv_timeout(end.saturating_duration_since(Instant::now()))
                .is_err()
            {
                break;
            }
        }
    }
}

/// The queue of one console's thread; `None` if there is no such device.
fn writer(root: &Root, name: &str) -> Option<SyncSender<Task>> {
    let path = root.dev(name);
    if !path.exists() {
        return None;
    }
    let (queue, tasks) = sync_channel(BACKLOG);
    let write = move || {
        // Process 1 must not get a controlling terminal: its signals would end everything.
        let mut device = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(path)
            .ok();
        for task in tasks {
            match task {
                // There is nowhere to report that a console fails.
                Task::Write(line) => _ = device.as_mut().map(|device| device.write_all(line.as_bytes())),
                Task::Flush(done) => _ = done.send(()),
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("console-{name}"))
        .spawn(write)
        .ok()?;
    Some(queue)
}

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with("muster")
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        self.line(format!("{level}{}{}", text.message, text.fields).trim_end());
    }

    // Spans would tell nothing: the agent does one thing at a time.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The parts of a line.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = text::clean_to(format!("{value:?}").as_bytes(), WORDS);
        // Writing to a String cannot fail.
        _ = match field.name() {
            "message" => write!(self.message, "{value} "),
            name if value.contains(' ') => write!(self.fields, "{name}={value:?} "),
            name => write!(self.fields, "{name}={value} "),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(say: impl FnOnce()) -> Vec<String> {
        let console = Console {
            level: Level::INFO,
            outputs: Arc::from([]),
            recent: Arc::default(),
        };
        tracing::subscriber::with_default(console.clone(), say);
        let lines = console.recent();
        // Without `muster` and the time.
        lines
            .iter()
            .map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn steps_are_stable_lines() {
        let lines =
            lines(|| tracing::info!(step = "dhcp", nic = "eth0", address = %"10.77.0.12/24", tries = 2));
        assert_eq!(lines, ["step=dhcp nic=eth0 address=10.77.0.12/24 tries=2"]);
    }

    #[test]
    fn escapes_and_newlines_of_others_never_reach_the_console() {
        let lines = lines(|| tracing::warn!(server = %"a\x1b[31m\nb", "said \x07no"));
        assert_eq!(lines, ["warning: said no server=\"a [31m b\""]);
    }

    #[test]
    fn the_cause_of_a_failure_which_stands_last_is_shown() {
        let path = format!("/images/{}.raw.zst", "x".repeat(300));
        let lines =
            lines(|| tracing::error!("command failed: get https://images.test{path}: Connection refused"));
        assert!(lines[0].ends_with("Connection refused"), "{lines:?}");
    }

    #[test]
    fn debug_lines_are_dropped_and_only_the_last_lines_are_kept() {
        let lines = lines(|| {
            tracing::debug!("not this");
            for number in 0..KEPT + 5 {
                tracing::info!(number);
            }
        });
        assert_eq!(lines.len(), KEPT);
        assert_eq!(lines[0], "number=5");
    }

    #[test]
    fn flushing_waits_for_what_was_written() {
        let tree = crate::sys::tree::Tree::new().file("dev/console", "");
        let console = Console::of_the_kernel(&tree.root());
        console.line("the last words");
        console.flush(Duration::from_secs(10));
        let written = std::fs::read_to_string(tree.root().dev("console")).unwrap();
        assert!(
            written.starts_with("muster ") && written.ends_with(" the last words\r\n"),
            "{written:?}"
        );
    }
}
