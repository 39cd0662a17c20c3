//! The lab: QEMU hosts, the local control plane, simulated clients, fault injection.
