//! The Kubernetes kinds. `metal3.io/v1alpha1` has upstream's names, defaults, enums and columns; `muster.dev/v1alpha1` is ours.
//!
//! One file per kind. Every status has one writer: Server and Enrolment the edge role, the Metal3 kinds the control role.

mod baremetalhost;
mod enrolment;
mod hardware;
mod hardwaredata;
mod segment;
mod server;

pub use baremetalhost::*;
pub use enrolment::*;
pub use hardware::*;
pub use hardwaredata::*;
pub use segment::*;
pub use server::*;

/// Annotation on a BareMetalHost that Muster made: the name of its [`Server`].
pub const SERVER_ANNOTATION: &str = "muster.dev/server";
/// Label with the machine's processor architecture, such as `x86_64`.
pub const ARCH_LABEL: &str = "muster.dev/arch";
/// Label with the system vendor.
pub const VENDOR_LABEL: &str = "muster.dev/vendor";
/// Label with the firmware interface: `bios` or `uefi`.
pub const BOOT_MODE_LABEL: &str = "muster.dev/boot-mode";
/// Label with the [`Segment`] on which the machine was seen.
pub const SEGMENT_LABEL: &str = "muster.dev/segment";
/// Annotation on a [`Server`] whose host was deleted: present, the machine may become a host again.
pub const APPROVE_ANNOTATION: &str = "muster.dev/approve";
/// Upstream's annotation on a BareMetalHost that asks for another inspection.
pub const INSPECT_ANNOTATION: &str = "inspect.metal3.io";
/// Annotation on a BareMetalHost that is neither to be deleted nor to lose what is on its disks; any value but `false`.
pub const PROTECTED_ANNOTATION: &str = "muster.dev/protected";
/// Upstream's annotation that stops every controller from touching a host.
pub const PAUSED_ANNOTATION: &str = "baremetalhost.metal3.io/paused";
