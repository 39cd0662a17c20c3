//! Takes partition tables and the signatures of file systems, volumes and arrays off disks, so that nothing finds or boots them.

/// What was done to one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Its device node, such as `/dev/sda`.
    pub disk: String,
    /// What it was divided by: `gpt`, `mbr` or empty.
    pub table: String,
    /// How many partitions it had.
    pub partitions: usize,
    /// How many bytes were overwritten with zeros.
    pub zeroed: u64,
}

/// Clears the disks that `job` means and no other, one after the other. No disk is touched unless the guard allows all.
/// Doing so again does no harm.
///
/// # Errors
/// [`CleanError`] says which disk, and what was not done.
pub fn clean(job: &Clean, root: &Root, work: &Work) -> Result<Vec<Cleaned>, CleanError> {
    run(job, root, work)
}
