//! The lab: QEMU hosts, the local control plane, simulated clients, fault injection.
//!
//! A test takes what it needs: [`cluster::Cluster`] is a real API server, [`netns::Netns`] a network that nobody else sees,
//! [`machine::Machine`] a server with firmware, NICs and disks, [`controller::Controller`] the real controller binary,
//! [`wire::Wire`] a cable with faults, [`sim`] clients that need no guest, [`bmc`] BMCs that need no machine,
//! [`loops::LoopDisk`] a disk, [`metal3::Operator`] the operator that Muster takes the place of. Everything that is started is a child of this process and dies with it, even by `kill -9`;
//! everything that is written lies in a [`scratch::Scratch`].

pub mod bench;
pub mod bmc;
pub mod bridges;
pub mod cluster;
pub mod controller;
pub mod demo;
pub mod dnsmasq;
pub mod files;
pub mod fleet;
pub mod forward;
mod interrupt;
pub mod lines;
pub mod loops;
pub mod machine;
pub mod metal3;
pub mod netns;
pub mod os_image;
pub mod paths;
pub mod program;
pub mod ra;
pub mod scratch;
pub mod sim;
pub mod slots;
pub mod spawner;
pub mod stage;
pub mod sushy;
pub mod wire;
