use std::{collections::BTreeSet, error::Error, fmt::Display};

use muster_proto::{Chain, inventory::Warning, text};

/// Ten thousand broken disks say no more than a hundred do.
const MAX: usize = 100;

/// What could not be read so far.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    kept: Vec<Warning>,
    /// The collectors of those that were dropped, and how many these are.
    dropped: BTreeSet<String>,
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
        others.kept.into_iter().for_each(|warning| self.add(warning));
        self.dropped.extend(others.dropped);
        self.dropped_count += others.dropped_count;
    }

    fn add(&mut self, warning: Warning) {
        if self.kept.len() < MAX {
            self.kept.push(warning);
        } else {
            self.dropped.insert(warning.collector);
            self.dropped_count += 1;
        }
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
        self.warnings.add(Warning {
            collector: self.collector.to_owned(),
            subject: text::clean(self.subject.as_bytes()),
            message: text::clean(message.to_string().as_bytes()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_warnings_that_are_too_many_the_last_one_counts_the_rest_and_names_their_collectors() {
        let mut all = Warnings::default();
        // As disks are read: each with warnings of its own.
        for disk in 0..MAX + 5 {
            let mut said = Warnings::default();
            said.on("disks", &format!("sd{disk}")).say("broken");
            all.append(said);
        }
        all.on("memory", "meminfo").say("broken");
        let warnings = all.finish();
        assert_eq!(warnings.len(), MAX + 1);
        assert_eq!(warnings[MAX].message, "6 more warnings, from disks, memory");
    }
}
