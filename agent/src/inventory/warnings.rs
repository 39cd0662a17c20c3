use std::{collections::BTreeSet, error::Error, fmt::Display};

use muster_proto::{Chain, inventory::Warning, text};

/// Ten thousand broken disks say no more than a hundred do.
const MAX: usize = 100;

/// What could not be read so far.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    kept: Vec<Warning>,
    dropped: BTreeSet<&'static str>,
    dropped_count: usize,
}

impl Warnings {
    /// To warn about one `subject`, a device or file, of one collector.
    pub(super) fn on<'w>(&'w mut self, collector: &'static str, subject: &'w str) -> Subject<'w> {
        Subject {
            warnings: self,
            collector,
            subject,
        }
    }

    /// With those that were collected apart.
    pub(super) fn append(&mut self, others: Warnings) {
        for warning in others.kept {
            if self.kept.len() == MAX {
                self.dropped_count += 1;
            } else {
                self.kept.push(warning);
            }
        }
        self.dropped.extend(others.dropped);
        self.dropped_count += others.dropped_count;
    }

    /// All of them, at most [`MAX`] and one that counts the others.
    pub(super) fn finish(mut self) -> Vec<Warning> {
        if self.dropped_count > 0 {
            let collectors: Vec<_> = self.dropped.into_iter().collect();
            self.kept.push(Warning {
                collector: "inventory".to_owned(),
                subject: "warnings".to_owned(),
                message: format!(
                    "{} more warnings, from {}",
                    self.dropped_count,
                    collectors.join(", ")
                ),
            });
        }
        self.kept
    }
}

/// Where warnings about one device or file go.
#[derive(Debug)]
pub(super) struct Subject<'w> {
    warnings: &'w mut Warnings,
    collector: &'static str,
    subject: &'w str,
}

impl Subject<'_> {
    /// The value, or a warning and the empty value.
    pub(super) fn or_default<T: Default, E: Error + 'static>(&mut self, result: Result<T, E>) -> T {
        self.or_none(result).unwrap_or_default()
    }

    /// The value, or a warning and `None`.
    pub(super) fn or_none<T, E: Error + 'static>(&mut self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.say(Chain(&error));
                None
            }
        }
    }

    /// A warning in words.
    pub(super) fn say(&mut self, message: impl Display) {
        if self.warnings.kept.len() == MAX {
            self.warnings.dropped.insert(self.collector);
            self.warnings.dropped_count += 1;
            return;
        }
        self.warnings.kept.push(Warning {
            collector: self.collector.to_owned(),
            subject: text::clean(self.subject.as_bytes()),
            message: text::clean(message.to_string().as_bytes()),
        });
    }
}
