//! What can be read off any Segment, whoever serves it. Pure.

use muster_proto::kinds::Segment;

// The reasons that `boot::segment::Invalid` gives, in the condition `Serving`.
pub(crate) const NO_INTERFACE: &str = "NoInterface";
pub(crate) const NO_ADDRESS: &str = "NoAddress";
pub(crate) const CONFLICT: &str = "Conflict";
pub(crate) const INVALID: &str = "Invalid";
/// All of them: where a Segment is not served at all, and not only without something.
const UNSERVED: [&str; 4] = [NO_INTERFACE, NO_ADDRESS, CONFLICT, INVALID];

/// True if no edge serves `segment`, as its status says. One that only lacks something (a port, a ramdisk) sends magic packets.
pub(crate) fn is_unserved(segment: &Segment) -> bool {
    let status = segment.status.as_ref();
    let mut conditions = status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| {
        condition.type_ == "Serving"
            && condition.status == "False"
            && UNSERVED.contains(&condition.reason.as_str())
    })
}
