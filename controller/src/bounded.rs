//! Maps that do not grow without end, whoever fills them. Pure.

use std::collections::HashMap;

/// Forgets what need not be remembered once there are `most`; and if all of it need be, all.
pub(crate) fn make_room<K, T>(remembered: &mut HashMap<K, T>, most: usize, needed: impl Fn(&T) -> bool) {
    if remembered.len() >= most {
        remembered.retain(|_, one| needed(one));
    }
    if remembered.len() >= most {
        remembered.clear();
    }
}
