//! From BareMetalHost to what is done about it: the operator. Writes BareMetalHost (status, finalizer, consumed annotations),
//! HardwareData, the jobs of Servers, labels and holds on Secrets.
//!
//! [`next`](next::next) decides, alone and without IO. What it looks at is an [`Observed`]; what it says is a [`Plan`]; where the
//! host is in its life is a [`State`].

pub mod guard;
pub mod next;
pub mod observed;
pub mod owner;
pub mod plan;
pub mod state;

pub use next::next;
pub use observed::Observed;
pub use owner::{Owner, owner};
pub use plan::{Effect, Plan};
pub use state::State;
