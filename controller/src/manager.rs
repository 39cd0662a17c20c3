//! As whom each role writes: the API server remembers which fields belong to which manager.

use kube::api::{PatchParams, PostParams};

/// The field manager of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Manager(&'static str);

/// The control role.
pub(crate) const CONTROL: Manager = Manager("muster-control");
/// The edge role.
pub(crate) const EDGE: Manager = Manager("muster-edge");

impl Manager {
    /// For making an object.
    pub(crate) fn create(self) -> PostParams {
        PostParams {
            field_manager: Some(self.0.to_owned()),
            ..PostParams::default()
        }
    }

    /// For a patch that changes what it names and nothing else.
    pub(crate) fn merge(self) -> PatchParams {
        PatchParams {
            field_manager: Some(self.0.to_owned()),
            ..PatchParams::default()
        }
    }

    /// For a patch that has all that is this manager's; what others hold of it becomes its own.
    pub(crate) fn apply(self) -> PatchParams {
        PatchParams::apply(self.0).force()
    }
}
