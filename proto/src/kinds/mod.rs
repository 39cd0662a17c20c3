//! The Kubernetes kinds. `metal3.io/v1alpha1` has upstream's names, defaults, enums and columns; `muster.dev/v1alpha1` is ours.
//!
//! One file per kind. Every status has one writer: Server and Enrolment the edge role, the Metal3 kinds the control role.

mod baremetalhost;
mod enrolment;
mod hardware;
mod hardwaredata;
mod packed;
mod segment;
mod server;

pub use baremetalhost::*;
pub use enrolment::*;
pub use hardware::*;
pub use hardwaredata::*;
pub use packed::*;
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
/// Upstream's annotation that takes a host out of every controller's hands without touching the machine.
pub const DETACHED_ANNOTATION: &str = "baremetalhost.metal3.io/detached";
/// Upstream's annotation with a status, as JSON, for a host that has none: how `clusterctl move` carries it over.
pub const STATUS_ANNOTATION: &str = "baremetalhost.metal3.io/status";
/// Upstream's annotation with the hardware, as JSON, of a host that is not inspected.
pub const HARDWARE_ANNOTATION: &str = "inspect.metal3.io/hardwaredetails";
/// Upstream's annotation that asks for one reboot; with `/` and a key after it, the host stays off as long as it is there.
pub const REBOOT_ANNOTATION: &str = "reboot.metal3.io";
/// Annotation on a host without a BMC: it may be managed through its ramdisk. Its value is the fingerprint of the session's key,
/// which the machine's console shows, or [`IN_BAND_SEGMENT`].
pub const IN_BAND_ANNOTATION: &str = "muster.dev/in-band";
/// Value of [`IN_BAND_ANNOTATION`]: whatever session, where the Segment requires no more trust than `segment`.
pub const IN_BAND_SEGMENT: &str = "segment";
/// Annotation on a host whose BMC names another machine than the host's: the UUID or the serial number that it says, by which a person
/// says that both are one.
pub const BMC_IDENTITY_ANNOTATION: &str = "muster.dev/bmc-identity";
/// Annotation on a host that is being deprovisioned: do not wait for its disks to be cleaned.
pub const RELEASE_ANNOTATION: &str = "muster.dev/release-uncleaned";
