//! Kernel, initramfs and boot images, byte for byte reproducible.
//!
//! [`build`] makes a release from Debian packages and the agent; [`release`] keeps it on disk and finds it again;
//! [`cpio`], [`firmware`] and [`uki`] serve the controller, which puts a small archive of its own in front of the
//! initramfs for every boot.

#![forbid(unsafe_code)]

pub mod build;
pub mod cpio;
pub mod deb;
pub mod elf;
pub mod firmware;
pub mod glob;
pub mod initramfs;
pub mod kernel;
pub mod modinfo;
pub mod modules;
pub mod oci;
pub mod packed;
pub mod pe;
pub mod profile;
pub mod release;
pub mod uki;
