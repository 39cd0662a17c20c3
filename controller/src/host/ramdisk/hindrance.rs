//! What keeps a ramdisk from calling in, as far as that can be told before. Pure.

use muster_proto::kinds::Segment;

use crate::host::{draft::Draft, restore};

/// Why the ramdisk is not likely to come, if that can be told before; it is waited for all the same, since what somebody wrote may be wrong,
/// and the machine may boot elsewhere than the last time.
pub(super) fn unlikely(draft: &Draft<'_>) -> String {
    // A machine that has a Server has run it.
    let Some(server) = draft.server() else {
        return restore::without_ramdisk(draft.host)
            .map(|said| format!(" (the only ramdisk is for x86_64, but spec.architecture is {said})"))
            .unwrap_or_default();
    };
    let named = server
        .session()
        .map(|session| session.segment.as_str())
        .unwrap_or_default();
    match draft.segment() {
        _ if named.is_empty() => String::new(),
        None => format!(
            " (Segment {named} of its last session no longer exists: recreate it, unless another Segment serves the machine's network)"
        ),
        Some(segment) if is_not_served(segment) => {
            format!(" (Segment {named} of its last session is not served: see its condition Serving)")
        }
        Some(_) => String::new(),
    }
}

/// True if machines on `segment` may not boot or enrol, as its status says.
fn is_not_served(segment: &Segment) -> bool {
    let status = segment.status.as_ref();
    let mut conditions = status.iter().flat_map(|status| &status.conditions);
    conditions.any(|one| one.type_ == "Serving" && one.status == "False")
}
