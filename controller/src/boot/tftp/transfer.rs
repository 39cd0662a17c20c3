//! One transfer of one file to one client: what to send next. Pure; the socket loop asks it.
//!
//! ```text
//!           OACK, if options were asked for        DATA a+1 ..= a+window
//! start ---------------------------------> negotiate ----ACK 0----> send --ACK of the last block--> Done
//!   \______________ no options ______________________________________^ |  \
//!                                                    ACK in the window, |   \-- ERROR, no answer, too late --> Failed
//!                                                    timeout: again  <--/
//! ```
//!
//! An acknowledgement that moves nothing forward is ignored, whichever it is: a doubled one would otherwise double every
//! packet after it (the Sorcerer's Apprentice, RFC 1123, 4.2.3.1). A lost window is sent again by the timer.

use std::{ops::Range, time::Duration};

use hyper::body::Bytes;

use super::packet::{self, DEFAULT_BLOCK, Options, Reply};

/// How often an unanswered window is sent before the transfer fails.
pub const TRIES: u32 = 6;

/// The first wait for an answer, if the client asked for no other; it doubles with each try.
pub const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two tries.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// How long a transfer may take in all: a client that answers now and then would keep its place for days, and there are few. The
/// largest of iPXE's binaries has about 1 MB, thus 2,000 blocks of the default size. Firmware that acknowledges each by itself, after
/// 100 ms, has it within 205 s, and there is time left to send a hundred blocks again.
pub const LONGEST: Duration = Duration::from_secs(300);

/// A running transfer.
#[derive(Debug)]
pub struct Transfer {
    file: Bytes,
    options: Options,
    /// Waiting for the answer to the OACK.
    negotiating: bool,
    /// Blocks that the client has; block numbers count from 1.
    acknowledged: u64,
    /// The last block that was sent.
    sent: u64,
    /// How often the present window was sent.
    tries: u32,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these, then wait for [`Transfer::wait`].
    Send(Vec<Outgoing>),
    /// Nothing changed: go on waiting as long as was left.
    Ignore,
    /// The client has the whole file.
    Done,
    /// It is over.
    Failed(Failure),
}

/// Why a transfer ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The client sent an ERROR with this code; firmware that only wanted the file's size does.
    Client(u16),
    /// No answer to [`TRIES`] sendings.
    Silent,
    /// The client answers, but does not have all after [`LONGEST`].
    Slow,
}

/// A packet to send; [`Transfer::encode`] makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// The answer to the options.
    Oack,
    /// The block with this number, counted from 1 without wrapping.
    Data(u64),
}

impl Transfer {
    /// A transfer of `file`, and the packets that start it.
    pub fn start(file: Bytes, options: Options) -> (Transfer, Vec<Outgoing>) {
        let negotiating = options.any();
        let mut transfer = Transfer {
            file,
            options,
            negotiating,
            acknowledged: 0,
            sent: 0,
            tries: 0,
        };
        let first = transfer.window();
        (transfer, first)
    }

    /// What to do about `reply`.
    pub fn on_reply(&mut self, reply: Reply) -> Step {
        match reply {
            Reply::Error(code) => Step::Failed(Failure::Client(code)),
            Reply::Ack(block) => self.on_ack(block),
        }
    }

    fn on_ack(&mut self, block: u16) -> Step {
        if self.negotiating {
            if block != 0 {
                return Step::Ignore;
            }
            self.negotiating = false;
        } else {
            // Numbers wrap at 65,536; a window is far smaller, so that the distance says which block is meant.
            let forward = u64::from(block.wrapping_sub(number(self.acknowledged)));
            if forward == 0 || self.acknowledged + forward > self.sent {
                return Step::Ignore;
            }
            self.acknowledged += forward;
        }
        if self.acknowledged == self.blocks() {
            return Step::Done;
        }
        self.tries = 0;
        Step::Send(self.window())
    }

    /// What to do when nobody answered within [`Transfer::wait`].
    pub fn on_timeout(&mut self) -> Step {
        if self.tries == TRIES {
            return Step::Failed(Failure::Silent);
        }
        Step::Send(self.window())
    }

    /// True if nothing is missing but the client's last word: one that has all may be gone before that arrives.
    pub fn is_all_sent(&self) -> bool {
        self.sent == self.blocks()
    }

    /// How long to wait for an answer to what was sent last.
    pub fn wait(&self) -> Duration {
        match self.options.timeout {
            Some(seconds) if !self.negotiating => Duration::from_secs(seconds.into()),
            _ => (FIRST_WAIT * 2_u32.pow(self.tries.saturating_sub(1))).min(LONGEST_WAIT),
        }
    }

    /// The file's size.
    pub fn size(&self) -> usize {
        self.file.len()
    }

    /// Puts `packet` into `out`, in place of what it held.
    pub fn encode(&self, packet: Outgoing, out: &mut Vec<u8>) {
        match packet {
            Outgoing::Oack => packet::oack(out, &self.options, self.file.len()),
            Outgoing::Data(block) => packet::data(out, number(block), &self.file[self.range(block)]),
        }
    }

    /// Everything that may be sent now.
    fn window(&mut self) -> Vec<Outgoing> {
        self.tries += 1;
        if self.negotiating {
            return vec![Outgoing::Oack];
        }
        let window = u64::from(self.options.window.unwrap_or(1));
        self.sent = (self.acknowledged + window).min(self.blocks());
        (self.acknowledged + 1..=self.sent).map(Outgoing::Data).collect()
    }

    /// How many blocks the file has. The last is the first that is not full, thus there is one even for an empty file.
    fn blocks(&self) -> u64 {
        self.file.len() as u64 / self.block_size() + 1
    }

    fn block_size(&self) -> u64 {
        self.options.block.unwrap_or(DEFAULT_BLOCK).into()
    }

    fn range(&self, block: u64) -> Range<usize> {
        let at = |block: u64| {
            usize::try_from(block.saturating_mul(self.block_size()))
                .map_or(self.file.len(), |offset| offset.min(self.file.len()))
        };
        at(block.saturating_sub(1))..at(block)
    }
}

/// `step` of a transfer that began so long ago.
pub fn within(step: Step, elapsed: Duration) -> Step {
    match step {
        Step::Send(_) | Step::Ignore if elapsed > LONGEST => Step::Failed(Failure::Slow),
        step => step,
    }
}

/// A block's number on the wire.
fn number(block: u64) -> u16 {
    u16::try_from(block & 0xffff).expect("sixteen bits")
}

#[cfg(test)]
mod tests;
