//! Which one of several controllers acts: leader election by a Lease (`coordination.k8s.io/v1`).
//!
//! ```text
//! next      what to do about the Lease: pure
//! elect     does it: the loop
//! others    whether another installation leads for the same hosts
//! gate      a term: until when this process leads, and what is under way
//! client    a Kubernetes client whose writes stop with the term
//! identity  who we are to others
//! ```
//!
//! A Lease is no fence: a leader that was only asleep does not know that it lost. So every write of the control role asks a clock
//! that goes on while a process or its computer sleeps right before it goes out ([`client`]; `clock` says when even that one stands still),
//! and what machines are told carries the number of the term ([`Leadership::epoch`]), so that they refuse an older one.
//!
//! The number only grows as long as the Lease stays. It stands in an annotation there and is at least one more than before, and at least
//! the time in milliseconds. After somebody has deleted the Lease, or taken the number off, it does not fall if one who knew it takes the
//! Lease, or if it was no more than the time; it falls if it was ahead of that, written by hand or by a clock that was wrong, and all who
//! knew it have ended. Agents that have seen the higher number then refuse the lower ones for half an hour before their machines boot again.
//!
//! Who knew a holder of a Lease that was deleted still waits for that holder's time to end; one that has never seen it, because it
//! started after that, cannot know of it. So a Lease is not to be deleted while a controller leads and another starts.

mod client;
mod clock;
mod elect;
mod gate;
mod identity;
mod next;
mod others;

pub use self::{
    client::{client, guarded},
    clock::now,
    elect::{Election, Standing},
    gate::{Leadership, NotLeading, UnderWay},
    identity::Identity,
    next::{EPOCH_ANNOTATION, Moment, Timing, TimingError},
    others::{Rival, WATCH_ANNOTATION},
};
