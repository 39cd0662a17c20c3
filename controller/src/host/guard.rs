//! Leave to destroy data. Only this module makes a [`Permit`], and no job that cleans or writes can be made without one. Pure.

use muster_proto::job::{DiskId, MachineId};

/// Leave to destroy what is on these disks of this machine, given in this round and for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    machine: MachineId,
    disks: Vec<DiskId>,
}

impl Permit {
    /// The machine that is meant.
    pub fn machine(&self) -> &MachineId {
        &self.machine
    }

    /// The disks that are meant; for a write exactly one.
    pub fn disks(&self) -> &[DiskId] {
        &self.disks
    }
}
