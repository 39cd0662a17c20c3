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
//! that cannot have been asleep right before it goes out ([`client`]), and what machines are told carries the number of the term
//! ([`Leadership::epoch`]), so that they refuse an older one.
//!
//! The number only grows. It stands in an annotation on the Lease and is at least one more than before, and at least the time in
//! milliseconds: so it does not fall when somebody deletes the Lease. Who knew a holder of a Lease that was deleted still waits for
//! that holder's time to end; one that has never seen it, because it started after that, cannot know of it. So a Lease is not to be
//! deleted while a controller leads and another starts.

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
