//! How often a machine's ramdisk ended in the middle of what it was told to do. Pure.
//!
//! What was interrupted is done again by the next ramdisk, without an end where the machine itself is what ends it: a disk controller
//! that brings the kernel down, or too little memory.

use muster_proto::kinds::{BareMetalHost, Server, SessionState};

use super::{inspection, jobs};

/// So many ramdisks may end in the middle of one operation.
pub(super) const MOST: u32 = 3;

/// What inspects a machine, or clears or writes its disks. Only of this process: another one counts anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    operation: String,
    /// The key of the session that was at it last.
    session: String,
    /// That session has ended, and is counted.
    ended: bool,
    /// How many sessions ended in the middle.
    lost: u32,
}

impl Work {
    /// What is known once `server` of `host` was seen, of which `before` was known. Nothing is as long as nothing was taken up, or that has
    /// ended. An inspection need not be taken up: a ramdisk is at it as soon as it calls in.
    pub(super) fn seen(before: Option<Work>, host: &BareMetalHost, server: Option<&Server>) -> Option<Work> {
        let server = server?;
        let status = server.status.as_ref()?;
        let session = status.session.as_ref()?;
        let inspects = inspection::operation_under_way(host);
        let (operation, is_at_it) = match &inspects {
            Some(operation) => (
                operation.as_str(),
                session.state == SessionState::Connected && !status.contested,
            ),
            None => {
                let last = status.job.as_ref().filter(|last| !last.done)?;
                (
                    jobs::operation_of(&last.id)?,
                    jobs::is_under_way(server, |_| true),
                )
            }
        };
        let session = &session.key;
        let mut known = before.filter(|before| before.operation == operation);
        if let Some(known) = known
            .as_mut()
            .filter(|known| known.session != *session && !known.ended)
        {
            known.ended = true;
            known.lost += 1;
        }
        // One that came after it, and has not been given anything yet, ends in the middle of nothing.
        if !is_at_it {
            return known;
        }
        Some(Work {
            operation: operation.to_owned(),
            session: session.clone(),
            ended: false,
            lost: known.map_or(0, |known| known.lost),
        })
    }

    /// How many ramdisks have ended in the middle of `operation`.
    pub(super) fn lost_in(work: Option<&Work>, operation: &str) -> u32 {
        let work = work.filter(|work| work.operation == operation);
        work.map_or(0, |work| work.lost)
    }
}
