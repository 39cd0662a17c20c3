//! What can go wrong with a BMC.

use std::time::Duration;

/// A fault, for the requests that it is meant for.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The method; none: all.
    pub method: Option<&'static str>,
    /// What the path holds.
    pub path: String,
    /// How often; none: always.
    pub times: Option<u32>,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// `fault` at every request.
    pub fn always(fault: Fault) -> Rule {
        Rule {
            method: None,
            path: String::new(),
            times: None,
            fault,
        }
    }

    /// For requests of this method only.
    pub fn method(self, method: &'static str) -> Rule {
        Rule {
            method: Some(method),
            ..self
        }
    }

    /// For paths that hold `path` only.
    pub fn path(self, path: &str) -> Rule {
        Rule {
            path: path.to_owned(),
            ..self
        }
    }

    /// So many times only.
    pub fn times(self, times: u32) -> Rule {
        Rule {
            times: Some(times),
            ..self
        }
    }

    pub(super) fn meets(&self, method: &str, path: &str) -> bool {
        self.times != Some(0) && self.method.is_none_or(|own| own == method) && path.contains(&self.path)
    }
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed without an answer.
    Refuse,
    /// The same, but for the first request on each connection.
    OnePerConnection,
    /// This status, with this id of a message of the Base registry.
    Status(u16, &'static str),
    /// 503 with `Retry-After` in seconds.
    Unavailable(u32),
    /// The answer comes after this time.
    Slow(Duration),
    /// No answer ever comes.
    Hang,
    /// What is asked for is done, but no answer comes.
    DoneButSilent,
    /// What is asked for is done, and answered with this status by what stands before the BMC.
    DoneBut(u16),
    /// The answer ends in its middle.
    Truncated,
    /// The answer is no JSON.
    Garbage,
    /// The answer is this many bytes of JSON.
    Long(usize),
    /// The answer repeats what the request said in confidence.
    Echo,
    /// 301, or 308 for what changes something, to this place.
    Redirect(String),
    /// A system tells this power.
    Lie(&'static str),
    /// A reset is accepted, and nothing happens.
    NothingHappens,
    /// 412, whatever the tag.
    Mismatch,
}
